"""Check a screen before training."""

from typing import Any

from samsvae.inspection.screen import inspect_screen, to_table, to_text
from samsvae.runtime.files import write_text, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    settings = snakemake.params.settings
    found = inspect_screen(settings, snakemake.params.gene_sets, **snakemake.params.sizes)
    write_tsv(to_table(found), snakemake.output.findings)
    text = to_text(found, snakemake.wildcards.screen, settings["path"])
    write_text(text, snakemake.output.text)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
