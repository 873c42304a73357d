"""Split the cells of a screen into training, validation and test cells."""

import logging
from typing import Any

from samsvae.config.experiments import UNSEEN_PERTURBATIONS, Split
from samsvae.runtime.files import write_text, write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen
from samsvae.screen.design import Design
from samsvae.screen.features import check_sources
from samsvae.screen.given_splits import given_parts
from samsvae.screen.splits import TRAIN, check_trained, split_screen, split_table


def main(snakemake: Any) -> None:
    """Run the rule."""
    params = snakemake.params
    with open_screen(snakemake.input.screen) as screen:
        split, design = Split(**params.split), Design.of_screen(screen)
        given = params.given
        parts = given_parts(screen, given) if given else split_screen(screen, split)
        holds_out = split.kind == UNSEEN_PERTURBATIONS
        how = "keep_prior" if holds_out else params.untrained_perturbations
        untrained = check_trained(design, parts, how)
        if untrained:
            logging.info("without a training cell, left at their prior: %s", ", ".join(untrained))
        trained = design[parts == TRAIN].names
        check_sources(params.features, design.names, trained, list(screen.var_names))
        how_split = {**params.split, **given}
        made_by = provenance(how_split, params.code, screen=digest_of_screen(screen))
        table = split_table(screen, parts)
    write_tsv(table, snakemake.output.split)
    write_text(made_by, snakemake.output.provenance)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
