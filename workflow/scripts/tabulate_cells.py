"""Count the cells that each split uses, and those that were left out, by reason."""

from typing import Any

from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import open_screen
from samsvae.screen.splits import cell_table


def main(snakemake: Any) -> None:
    """Run the rule."""
    with open_screen(snakemake.input.screen) as screen:
        parts = {
            name: read_table(path, text=["cell"])["split"]
            for name, path in zip(snakemake.params.splits, snakemake.input.splits, strict=True)
        }
        table = cell_table(screen, parts)
    write_tsv(table, snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
