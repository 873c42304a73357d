"""Compute the observed effects that intervals are calibrated by and compared with."""

from typing import Any

from samsvae.evaluation.effects import write_effects
from samsvae.evaluation.intervals import observed_by_use
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen
from samsvae.screen.splits import read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    params = snakemake.params
    config = {
        "effects": params.effects,
        "min_controls_per_batch": params.min_controls,
        "fdr": params.fdr,
    }
    with open_screen(snakemake.input.screen) as screen:
        parts = read_split(snakemake.input.split, screen)
        made_by = provenance(config, params.code, screen=digest_of_screen(screen))
        how = params.effects, params.min_controls, params.fdr
        effects = observed_by_use(screen, parts, *how, made_by)
    write_effects(effects, snakemake.output.effects)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
