"""Compute observed effects and their significance, and those that intervals are judged by."""

from typing import Any

from samsvae.evaluation.effects import write_effects
from samsvae.evaluation.observed import observed_effects
from samsvae.evaluation.observed_by_use import observed_by_use
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen
from samsvae.screen.splits import read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params, output = snakemake.input, snakemake.params, snakemake.output
    used = {
        "effects": params.effects,
        "min_controls_per_batch": params.min_controls,
        "fdr": params.fdr,
    }
    with open_screen(given.screen) as screen:
        parts = read_split(given.split, screen)
        digest = digest_of_screen(screen)
        made_by = provenance({}, params.code, screen=digest)
        effects = observed_effects(screen, parts, made_by, min_controls=params.min_controls)
        write_effects(effects, output.effects)
        made_by = provenance(used, params.code, screen=digest)
        how = params.effects, params.min_controls, params.fdr
        by_use = observed_by_use(screen, parts, *how, made_by)
    write_effects(by_use, output.by_use)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
