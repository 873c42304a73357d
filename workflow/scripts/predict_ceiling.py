"""Predict held-out cells by other held-out cells of the same perturbation."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    from samsvae.effects.split_half import split_half
    from samsvae.effects.table import write_effects
    from samsvae.provenance import provenance
    from samsvae.screen import digest_of_screen, read_screen
    from samsvae.splits import read_split

    screen = read_screen(snakemake.input.screen)
    parts = read_split(snakemake.input.split, screen)
    settings = {**snakemake.params.settings, "seed": snakemake.params.seed}
    made_by = provenance(settings, snakemake.params.code, screen=digest_of_screen(screen))
    write_effects(
        split_half(screen, parts, snakemake.params.seed, made_by), snakemake.output.effects
    )


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
