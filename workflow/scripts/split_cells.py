"""Divide a screen's cells into training, validation and test cells."""

import logging
from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    from samsvae.experiments import Split
    from samsvae.files import write_text, write_tsv
    from samsvae.provenance import provenance
    from samsvae.screen import digest_of_screen, read_screen
    from samsvae.splits import check_trained, split_screen, split_table

    screen = read_screen(snakemake.input.screen)
    labels = screen.obs["perturbation"].astype(str)
    parts = split_screen(screen, Split(**snakemake.params.split))
    untrained = check_trained(labels, parts, snakemake.params.untrained_perturbations)
    if untrained:
        logging.info("without a training cell, left at their prior: %s", ", ".join(untrained))
    made_by = provenance(
        snakemake.params.split, snakemake.params.code, screen=digest_of_screen(screen)
    )
    write_tsv(split_table(screen, parts), snakemake.output.split)
    write_text(made_by, snakemake.output.provenance)


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
