"""Compute the effects that the cells show, and the significance of each."""

from typing import Any

from samsvae.effects.observed import observed_effects
from samsvae.effects.table import write_effects
from samsvae.job import run_job
from samsvae.provenance import provenance
from samsvae.screen import digest_of_screen, open_screen
from samsvae.splits import read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    with open_screen(snakemake.input.screen) as screen:
        parts = read_split(snakemake.input.split, screen)
        made_by = provenance({}, snakemake.params.code, screen=digest_of_screen(screen))
        effects = observed_effects(screen, parts, made_by)
    write_effects(effects, snakemake.output.effects)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
