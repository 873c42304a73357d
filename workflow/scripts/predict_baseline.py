"""Predict the effect of every perturbation by a baseline."""

from typing import Any

from samsvae.evaluation.baselines import BASELINES, from_other_contexts
from samsvae.evaluation.effects import effects_table, in_context, write_effects
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import CONTEXT, digest_of_screen, open_screen, perturbations
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
        effects = BASELINES[kind](screen, train, names, fewest, **settings)
        layers = {}
        if kind == "other_contexts":
            layers = {
                in_context("effect", one): from_other_contexts(screen, train, names, one, fewest)
                for one in sorted(set(screen.obs[CONTEXT].astype(str)))
            }
        table = effects_table(effects, names, genes, layers, made_by)
    write_effects(table, snakemake.output.effects)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
