"""Compute observed effects and their significance."""

from typing import Any

from samsvae.evaluation.effects import write_effects
from samsvae.evaluation.observed import observed_effects
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen
from samsvae.screen.splits import read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    with open_screen(snakemake.input.screen) as screen:
        parts = read_split(snakemake.input.split, screen)
        made_by = provenance({}, snakemake.params.code, screen=digest_of_screen(screen))
        fewest = snakemake.params.min_controls
        effects = observed_effects(screen, parts, made_by, min_controls=fewest)
    write_effects(effects, snakemake.output.effects)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
