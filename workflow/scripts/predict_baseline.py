"""Predict the effect of every perturbation by a baseline."""

from typing import Any

from samsvae.evaluation.baselines import BASELINES, from_other_contexts, over_contexts
from samsvae.evaluation.effects import effects_table, in_context, write_effects
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen, perturbations
from samsvae.screen.splits import TRAIN, read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    params = snakemake.params
    settings = dict(params.settings)
    how = {"effects": params.effects, "min_controls": params.min_controls}
    with open_screen(snakemake.input.screen) as screen:
        digest = digest_of_screen(screen)
        made_by = provenance({**settings, **how}, params.code, screen=digest)
        train = (read_split(snakemake.input.split, screen) == TRAIN).to_numpy()
        names, genes = perturbations(screen), list(screen.var_names)
        kind = settings.pop("kind")
        fewest = None if params.effects == "plain" else params.min_controls
        layers = {}
        if kind == "other_contexts":
            predicted = from_other_contexts(screen, train, names, fewest)
            effects = over_contexts(screen, ~train, names, predicted)
            layers = {in_context("effect", context): own for context, own in predicted.items()}
        else:
            effects = BASELINES[kind](screen, train, names, fewest, **settings)
        table = effects_table(effects, names, genes, layers, made_by)
    write_effects(table, snakemake.output.effects)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
