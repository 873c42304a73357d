"""Compute the split-half ceiling: held-out cells predicted by other held-out cells."""

from typing import Any

from samsvae.evaluation.effects import write_effects
from samsvae.evaluation.observed import split_half
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen
from samsvae.screen.splits import read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    params = snakemake.params
    how = {"how": params.effects, "min_controls": params.min_controls}
    effects = snakemake.output.effects  # a path, or a list of one for each seed
    with open_screen(snakemake.input.screen) as screen:
        parts = read_split(snakemake.input.split, screen)
        digest = digest_of_screen(screen)
        paths = [effects] if isinstance(effects, str) else effects
        for seed, path in zip(params.seeds, paths, strict=True):
            made_by = provenance(
                {**params.settings, "seed": seed, **how}, params.code, screen=digest
            )
            halves = split_half(screen, parts, seed, made_by, **how, required=params.required)
            write_effects(halves, path)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
