"""Scores of models laid out so that they can be compared repeat by repeat.

What repeats is the split if an experiment has several that differ by their seed alone, and
otherwise the seed of training; seeds on the same split are averaged first, since they share its
cells. Within runs, perturbations repeat, or cells.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

RUNS = ("splits", "seeds")


@dataclass(frozen=True)
class Repeats:
    """Scores of several models, repeated.

    Attributes
    ----------
    over
        What repeats: ``splits``, ``seeds``, ``perturbations`` or ``cells``.
    models
        Names of the columns.
    values
        Repeats x models; NaN where a model has no score.
    repeated
        Whether each model was run anew for every repeat. A baseline, having no randomness, is
        run once on a split; its score stands beside every seed of the others.
    """

    over: str
    models: list[str]
    values: np.ndarray
    repeated: np.ndarray


def repeats_of_runs(scores: pd.DataFrame, models: list[str]) -> Repeats:
    """Lay out the scores of runs by split, or by seed on a single split.

    Parameters
    ----------
    scores
        Columns split, model, seed, value; one row per run, all of one metric on one scope, on
        splits that differ by their seed alone.
    models
        The columns, in order.
    """
    on_one_split = len(scores["split"].unique()) == 1
    by = "seed" if on_one_split else "split"
    values = _table(scores, by, models)
    if not on_one_split:
        return Repeats("splits", models, values, np.ones(len(models), dtype=bool))
    repeated = np.isfinite(values).sum(axis=0) > 1
    values[:, ~repeated] = np.nanmax(values[:, ~repeated], axis=0, initial=-np.inf, keepdims=True)
    values[np.isinf(values)] = np.nan
    return Repeats("seeds", models, values, repeated)


def repeats_within_runs(scores: pd.DataFrame, models: list[str], over: str) -> Repeats:
    """Lay out scores by perturbation or cell, runs averaged first.

    Parameters
    ----------
    scores
        Columns unit, model, value, all of one metric.
    models
        The columns, in order.
    over
        What a unit is, in the plural.
    """
    return Repeats(over, models, _table(scores, "unit", models), np.ones(len(models), dtype=bool))


def _table(scores: pd.DataFrame, by: str, models: list[str]) -> np.ndarray:
    means = scores.pivot_table(index=by, columns="model", values="value", observed=True)
    return means.reindex(columns=models).to_numpy(dtype=float)
