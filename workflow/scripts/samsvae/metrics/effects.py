"""Metrics of predicted against observed effects: the registry, and the scopes they are taken over.

A metric is one function of two matrices, perturbations x genes in log2(CP10k + 1), and one entry
in :data:`METRICS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

Matrix = np.ndarray


@dataclass(frozen=True)
class Metric:
    """A metric of predicted effects.

    Attributes
    ----------
    function
        Takes observed and predicted effects.
    description
        What it says, in one line.
    best
        Its best value.
    """

    function: Callable[[Matrix, Matrix], float]
    description: str
    best: float


def pearson(observed: Matrix, predicted: Matrix) -> float:
    """Pearson correlation over all entries; NaN if either side is constant."""
    o, p = observed.ravel(), predicted.ravel()
    if len(o) < 2 or np.ptp(o) == 0 or np.ptp(p) == 0:
        return float("nan")
    return float(np.corrcoef(o, p)[0, 1])


def r_squared(observed: Matrix, predicted: Matrix) -> float:
    """Coefficient of determination over all entries; NaN if the observed side is constant."""
    total = np.sum((observed - observed.mean()) ** 2)
    if total == 0:
        return float("nan")
    return float(1 - np.sum((observed - predicted) ** 2) / total)


def rmse(observed: Matrix, predicted: Matrix) -> float:
    """Root of the mean squared error, log2(CP10k + 1)."""
    return float(np.sqrt(np.mean((observed - predicted) ** 2)))


def median_pearson(observed: Matrix, predicted: Matrix) -> float:
    """Median over perturbations of the correlation over genes; NaN where none is defined."""
    values = [pearson(o, p) for o, p in zip(observed, predicted, strict=True)]
    defined = [value for value in values if not np.isnan(value)]
    return float(np.median(defined)) if defined else float("nan")


METRICS: dict[str, Metric] = {
    "pearson": Metric(pearson, "correlation of predicted and observed effects", 1.0),
    "r_squared": Metric(r_squared, "share of the observed effects' variance explained", 1.0),
    "rmse": Metric(rmse, "root mean squared error, log2(CP10k + 1)", 0.0),
    "median_pearson": Metric(
        median_pearson, "correlation over genes, median over perturbations", 1.0
    ),
}


def top_genes(observed: Matrix, predicted: Matrix, n_top: int) -> tuple[Matrix, Matrix]:
    """Keep each perturbation's genes of largest absolute observed effect."""
    order = np.argsort(-np.abs(observed), axis=1, kind="stable")[:, :n_top]
    return np.take_along_axis(observed, order, 1), np.take_along_axis(predicted, order, 1)


def scopes(observed: anndata.AnnData) -> dict[str, np.ndarray]:
    """Divide perturbations by what the split made of their cells.

    Returns
    -------
    dict of ndarray of bool
        ``all``; and ``train``, ``val``, ``test``: those with such cells. On a random split the
        three are the same; among unseen combinations ``test`` are the pairs held out.
    """
    masks = {part: observed.obs[f"n_{part}"].to_numpy() > 0 for part in ("train", "val", "test")}
    return {"all": np.ones(observed.n_obs, dtype=bool), **masks}


def effect_metrics(
    observed: anndata.AnnData, predicted: anndata.AnnData, n_top: int
) -> pd.DataFrame:
    """Compute every metric on every scope.

    Parameters
    ----------
    observed, predicted
        Effects of the same perturbations and genes, in any order.
    n_top
        Genes per perturbation in the metrics that end in ``_top``.

    Returns
    -------
    DataFrame
        Columns scope, metric, value. A metric's plain name takes the effects among all cells as
        the truth, as in the paper; ``_held_out`` those among held-out cells; ``_top<n>`` each
        perturbation's n genes of largest observed effect.
    """
    predicted = predicted[observed.obs_names, observed.var_names]
    rows = []
    for scope, mask in scopes(observed).items():
        if not mask.any():
            continue
        for suffix, layer in (("", "ate"), ("_held_out", "ate_held_out")):
            truth = np.asarray(observed.layers[layer][mask], dtype=np.float64)
            guess = np.asarray(predicted.X[mask], dtype=np.float64)
            known = ~np.isnan(truth).any(axis=1)
            sides = {
                suffix: (truth[known], guess[known]),
                f"_top{n_top}{suffix}": top_genes(truth[known], guess[known], n_top),
            }
            rows += [
                {"scope": scope, "metric": name + end, "value": metric.function(*pair)}
                for end, pair in sides.items()
                for name, metric in METRICS.items()
                if known.any()
            ]
    return pd.DataFrame(rows, columns=["scope", "metric", "value"])
