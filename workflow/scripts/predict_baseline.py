"""Predict the effect of every perturbation with a baseline."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    from samsvae.effects.baselines import BASELINES
    from samsvae.effects.table import effects_table, write_effects
    from samsvae.provenance import provenance
    from samsvae.screen import digest_of_screen, perturbations, read_screen
    from samsvae.splits import TRAIN, read_split

    settings = snakemake.params.settings
    screen = read_screen(snakemake.input.screen)
    train = (read_split(snakemake.input.split, screen) == TRAIN).to_numpy()
    names = perturbations(screen)
    effects = BASELINES[settings["kind"]](
        screen, train, names, **{key: value for key, value in settings.items() if key != "kind"}
    )
    made_by = provenance(settings, snakemake.params.code, screen=digest_of_screen(screen))
    table = effects_table(effects, names, list(screen.var_names), {}, made_by)
    write_effects(table, snakemake.output.effects)


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
