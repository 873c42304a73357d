"""Split the cells of a screen into training, validation and test cells."""

import logging
from typing import Any

from samsvae.config.experiments import Split
from samsvae.runtime.files import write_text, write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen
from samsvae.screen.design import Design
from samsvae.screen.splits import check_trained, split_screen, split_table


def main(snakemake: Any) -> None:
    """Run the rule."""
    params = snakemake.params
    with open_screen(snakemake.input.screen) as screen:
        parts = split_screen(screen, Split(**params.split))
        untrained = check_trained(Design.of_screen(screen), parts, params.untrained_perturbations)
        if untrained:
            logging.info("without a training cell, left at their prior: %s", ", ".join(untrained))
        made_by = provenance(params.split, params.code, screen=digest_of_screen(screen))
        table = split_table(screen, parts)
    write_tsv(table, snakemake.output.split)
    write_text(made_by, snakemake.output.provenance)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
