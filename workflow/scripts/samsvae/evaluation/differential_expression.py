"""Metrics of differentially expressed genes, and scores stratified by effect strength.

Metrics take significant and predicted effects, perturbations x genes, and return one value per
perturbation, NaN where undefined. Significant effects are the observed effects of differentially
expressed genes, and NaN for the other genes. Predictions rank genes by absolute effect; tied genes
count in proportion, so that a constant prediction scores as by chance.

A screen may have a few perturbations with hundreds of differentially expressed genes and many with
one or two, or with few cells. An average over all perturbations hides this difference; strata show
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from samsvae.evaluation.agreement import pearson

if TYPE_CHECKING:
    import anndata

Matrix = np.ndarray
FEWEST_RANKED = 3


def significant_effects(effects: anndata.AnnData, fdr: float) -> Matrix:
    """Select the effects among held-out cells of differentially expressed genes.

    Parameters
    ----------
    effects
        Observed effects with the layers ``fdr`` and ``ate_held_out``.
    fdr
        False discovery rate below which a gene is differentially expressed.

    Returns
    -------
    ndarray
        Perturbations x genes, NaN for the other genes.
    """
    held_out = np.asarray(effects.layers["ate_held_out"], dtype=np.float64)
    return np.where(np.asarray(effects.layers["fdr"]) < fdr, held_out, np.nan)


def auroc(significant: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the area under the ROC curve of differentially expressed genes."""
    is_de = ~np.isnan(significant)
    n_de, n_other = is_de.sum(axis=1), (~is_de).sum(axis=1)
    ranks = np.sum(rankdata(np.abs(predicted), axis=1), axis=1, where=is_de)
    return _ratio(ranks - n_de * (n_de + 1) / 2, n_de * n_other)


def auprc(significant: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the average precision of differentially expressed genes."""
    is_de, weakness = ~np.isnan(significant), -np.abs(predicted)
    among_all = rankdata(weakness, method="max", axis=1)
    # genes that are not differentially expressed rank last
    among_de = rankdata(np.where(is_de, weakness, np.inf), method="max", axis=1)
    return _ratio(np.sum(among_de / among_all, axis=1, where=is_de), is_de.sum(axis=1))


def precision_at_k(significant: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the precision at k, the number of differentially expressed genes.

    Precision and recall are equal at this k.
    """
    is_de = ~np.isnan(significant)
    n_de = is_de.sum(axis=1)
    return _ratio(np.sum(_leading(np.abs(predicted), n_de), axis=1, where=is_de), n_de)


def precision_at(k: int, significant: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the fraction of differentially expressed genes among the k top predictions."""
    return _found_at(k, significant, predicted) / min(k, predicted.shape[1])


def recall_at(k: int, significant: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the fraction of differentially expressed genes that the k top predictions contain."""
    return _ratio(_found_at(k, significant, predicted), np.sum(~np.isnan(significant), axis=1))


def overlap_at(k: int, significant: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the overlap of the k strongest differentially expressed genes with k predictions.

    If fewer genes are differentially expressed, k is their number.
    """
    number = np.minimum(k, np.sum(~np.isnan(significant), axis=1))
    strength = np.nan_to_num(np.abs(significant), nan=-1.0)
    shared = _leading(strength, number) * _leading(np.abs(predicted), number)
    return _ratio(shared.sum(axis=1), number)


def sign_agreement(significant: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the fraction of differentially expressed genes with the right predicted sign.

    A prediction of 0 is never right.
    """
    is_de = ~np.isnan(significant)
    right = np.sign(significant) == np.sign(predicted)
    return _ratio(np.sum(right, axis=1, where=is_de), is_de.sum(axis=1))


def spearman(significant: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the Spearman correlation over three or more differentially expressed genes."""
    found = np.full(len(significant), np.nan)
    for row in np.flatnonzero(np.sum(~np.isnan(significant), axis=1) >= FEWEST_RANKED):
        is_de = ~np.isnan(significant[row])
        found[row] = pearson(rankdata(significant[row, is_de]), rankdata(predicted[row, is_de]))
    return found


def slope(significant: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the regression slope of predicted on observed effects of significant genes.

    Least squares through 0: 1 for the right size, below 1 for shrunken predictions. The observed
    effects are those of held-out cells, whose noise also attenuates the slope, most with few cells.
    """
    is_de = ~np.isnan(significant)
    products = np.sum(significant * predicted, axis=1, where=is_de)
    return _ratio(products, np.sum(significant**2, axis=1, where=is_de))


def _found_at(k: int, significant: Matrix, predicted: Matrix) -> np.ndarray:
    is_de = ~np.isnan(significant)
    found = np.sum(_leading(np.abs(predicted), np.full(len(predicted), k)), axis=1, where=is_de)
    return np.where(is_de.any(axis=1), found, np.nan)


def _leading(strength: Matrix, number: np.ndarray) -> Matrix:
    """Compute 0-1 weights of each row's strongest genes, fractional for ties at the cut-off."""
    number = np.minimum(number, strength.shape[1])
    descending = -np.sort(-strength, axis=1)
    cut_off = np.take_along_axis(descending, np.maximum(number, 1)[:, None] - 1, axis=1)
    above, tied = strength > cut_off, strength == cut_off
    remaining = number - above.sum(axis=1)
    return above + tied * np.where(number > 0, remaining / tied.sum(axis=1), 0.0)[:, None]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    quotient = np.full(len(whole), np.nan)
    return np.divide(part, whole, out=quotient, where=whole > 0)


FEWEST_GENES = 3  # differentially expressed ones, of a perturbation whose AUROC is averaged
QUARTILES = {"auroc_median": 0.5, "auroc_lower_quartile": 0.25, "auroc_upper_quartile": 0.75}


def with_quartiles(comparison: pd.DataFrame) -> pd.DataFrame:
    """Add the quartiles of the AUROC over perturbations, by model.

    Parameters
    ----------
    comparison
        The table de_comparison.tsv: a row per run and perturbation.

    Returns
    -------
    DataFrame
        With the columns auroc_median, auroc_lower_quartile and auroc_upper_quartile, over the rows
        of a model with at least three differentially expressed genes; NaN without any.
    """
    enough = comparison[comparison["n_de"] >= FEWEST_GENES].groupby("model")["auroc"]
    added = {
        name: comparison["model"].map(enough.quantile(level)) for name, level in QUARTILES.items()
    }
    return comparison.assign(**added)


ALL = "all"
LOWER_LIMITS = {
    "n_de": (1, 3, 10, 30, 100, 300),  # differentially expressed genes
    "n_held_out": (0, 25, 50, 100, 200, 400),  # held-out cells
}
RUN = ["split", "model", "seed"]
COLUMNS = [
    *RUN, "stratified_by", "stratum", "lower", "metric", "n_perturbations", "median",
    "lower_quartile", "upper_quartile",
]  # fmt: skip
AVERAGED = ["n_perturbations", "median", "lower_quartile", "upper_quartile"]  # over runs


def scores_by_strength(comparison: pd.DataFrame) -> pd.DataFrame:
    """Stratify scores by effect strength.

    Parameters
    ----------
    comparison
        The table de_comparison.tsv: a row per run and perturbation, with ``n_de``,
        ``n_held_out`` and scores.

    Returns
    -------
    DataFrame
        For each run, score and stratum the median and the quartiles over perturbations with at
        least one differentially expressed gene. Strata are by the number of such genes (``n_de``),
        by the number of held-out cells (``n_held_out``), or all perturbations (``all``); ``lower``
        is the lower limit of a stratum. Columns ``mean_...`` are means over the runs of a model.
    """
    table = comparison[comparison["n_de"] > 0]
    scores = [
        name for name in table if name not in (*RUN, "perturbation", *LOWER_LIMITS, *QUARTILES)
    ]
    parts = []
    for by, limits in {ALL: (0,), **LOWER_LIMITS}.items():
        number = np.zeros(len(table), dtype=int) if by == ALL else table[by].to_numpy()
        stratum = np.searchsorted(limits, number, side="right") - 1
        long = table[[*RUN, *scores]].assign(place=stratum).melt([*RUN, "place"], scores, "metric")
        groups = long.dropna(subset="value").groupby([*RUN, "place", "metric"], sort=False)["value"]
        summary = groups.agg(n_perturbations="size", median="median")
        summary["lower_quartile"] = groups.quantile(0.25)
        summary["upper_quartile"] = groups.quantile(0.75)
        summary = summary.reset_index().assign(stratified_by=by)
        summary["lower"] = np.asarray(limits)[summary["place"]]
        names = [ALL] if by == ALL else stratum_names(limits)
        summary["stratum"] = np.asarray(names, dtype=object)[summary["place"]]
        parts.append(summary.sort_values([*RUN, "metric", "place"], kind="stable"))
    strata = pd.concat(parts, ignore_index=True)[COLUMNS]
    over_runs = strata.groupby(["stratified_by", "metric", "lower", "model"], observed=True)
    means = over_runs[AVERAGED].transform("mean")
    return strata.join(means.add_prefix("mean_"))


def stratum_names(limits: tuple[int, ...]) -> list[str]:
    """Name strata by their limits, as in ``3–9`` and ``300+``."""
    ends = [limit - 1 for limit in limits[1:]]
    names = [f"{a}–{b}" if a < b else f"{a}" for a, b in zip(limits, ends, strict=False)]
    return [*names, f"{limits[-1]}+"]
