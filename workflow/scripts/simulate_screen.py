"""Simulate a screen with known truth, and write its gene sets."""

from typing import Any

from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import write_source_screen
from samsvae.screen.gene_sets import write_gmt
from samsvae.sources import simulated_screen


def main(snakemake: Any) -> None:
    """Run the rule."""
    settings = snakemake.params.settings
    screen, gene_sets = simulated_screen(settings)
    made_by = provenance(settings, snakemake.params.code)
    if gene_sets:
        write_gmt(gene_sets, snakemake.output.gene_sets, description="simulated")
    write_source_screen(screen, made_by, snakemake.output.screen)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
