"""Predict the effect of every perturbation by the baselines of an experiment."""

from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np

from samsvae.evaluation.baselines import BASELINES, from_other_contexts, over_contexts
from samsvae.evaluation.effects import effects_table, in_context, write_effects
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen, perturbations
from samsvae.screen.splits import TRAIN, read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    params = snakemake.params
    how = {"effects": params.effects, "min_controls": params.min_controls}
    fewest = None if params.effects == "plain" else params.min_controls
    with open_screen(snakemake.input.screen) as screen:
        digest = digest_of_screen(screen)
        train = (read_split(snakemake.input.split, screen) == TRAIN).to_numpy()
        names, genes = perturbations(screen), list(screen.var_names)
        for settings, path in zip(params.settings, snakemake.output.effects, strict=True):
            made_by = provenance({**settings, **how}, params.code, screen=digest)
            effects, layers = predict(settings, screen, train, names, fewest)
            write_effects(effects_table(effects, names, genes, layers, made_by), path)


def predict(
    settings: Mapping[str, Any],
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    fewest: int | None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Predict effects by a baseline, with layers of the effects in each context if it has them."""
    options = dict(settings)
    kind = options.pop("kind")
    if kind != "other_contexts":
        return BASELINES[kind](screen, train, names, fewest, **options), {}
    of_contexts = from_other_contexts(screen, train, names, fewest)
    layers = {in_context("effect", context): own for context, own in of_contexts.items()}
    return over_contexts(screen, ~train, names, of_contexts), layers


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
