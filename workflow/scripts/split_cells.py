"""Divide a screen's cells into training, validation and test cells."""

import logging
from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    from samsvae.experiments import Split
    from samsvae.files import write_tsv
    from samsvae.screen import read_screen
    from samsvae.splits import check_trained, split_cells, split_table

    screen = read_screen(snakemake.input.screen)
    labels = screen.obs["perturbation"].astype(str)
    parts = split_cells(labels, Split(**snakemake.params.split))
    untrained = check_trained(labels, parts, snakemake.params.untrained_perturbations)
    if untrained:
        logging.info("without a training cell, left at their prior: %s", ", ".join(untrained))
    write_tsv(split_table(screen, parts), snakemake.output.split)


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
