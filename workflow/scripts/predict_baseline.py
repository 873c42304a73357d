"""Predict the effect of every perturbation by a baseline."""

from typing import Any

from samsvae.evaluation.baselines import BASELINES
from samsvae.evaluation.effects import effects_table, write_effects
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen, perturbations
from samsvae.screen.splits import TRAIN, read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    settings = dict(snakemake.params.settings)
    with open_screen(snakemake.input.screen) as screen:
        made_by = provenance(settings, snakemake.params.code, screen=digest_of_screen(screen))
        train = (read_split(snakemake.input.split, screen) == TRAIN).to_numpy()
        names, genes = perturbations(screen), list(screen.var_names)
        predict = BASELINES[settings.pop("kind")]
        table = effects_table(predict(screen, train, names, **settings), names, genes, {}, made_by)
    write_effects(table, snakemake.output.effects)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
