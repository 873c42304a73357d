"""How well the gene sets that predicted effects move agree with those of observed effects."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from samsvae.biology.enrichment import PRERANKED

OBSERVED = "observed"
KEY = ["split", "gene_sets", "method", "perturbation"]
COLUMNS = [
    "split", "model", "seed", "gene_sets", "method", "perturbation", "n_sets", "correlation",
    "n_observed", "n_predicted", "n_shared", "overlap", "top_observed", "top_predicted",
    "same_top", "place_of_top",
]  # fmt: skip
FEWEST_SETS = 3


def pathway_agreement(enrichment: pd.DataFrame, fdr: float) -> pd.DataFrame:
    """Compare the gene sets of predicted with those of observed effects.

    Parameters
    ----------
    enrichment
        The table enrichment.tsv, in which the model of observed effects is ``observed``.
    fdr
        False discovery rate below which a set is significant.

    Returns
    -------
    DataFrame
        A row per run, collection, method and perturbation. correlation: Spearman's over sets, of
        normalised enrichment scores or of -log10 p of over-representation. n_observed,
        n_predicted, n_shared: significant sets, shared if they move the same way too; overlap:
        those shared among all (Jaccard), NaN if there are none. same_top: whether the set of
        smallest p is the same; place_of_top: place of the observed one among the predicted, 1
        for the same. NaN or empty where no observed set is significant.
    """
    observed = enrichment[enrichment["model"] == OBSERVED]
    predicted = enrichment[enrichment["model"] != OBSERVED]
    truths = {key: rows.set_index("set") for key, rows in observed.groupby(KEY, sort=False)}
    rows = []
    for (model, seed, *key), guess in predicted.groupby(
        ["model", "seed", *KEY], sort=False, dropna=False
    ):
        truth = truths.get(tuple(key))
        if truth is not None:
            own = dict(zip(KEY, key, strict=True)) | {"model": model, "seed": seed}
            rows.append(own | _agreement(truth, guess.set_index("set").loc[truth.index], fdr))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"seed": "Int64"})


def _agreement(truth: pd.DataFrame, guess: pd.DataFrame, fdr: float) -> dict[str, Any]:
    signed = truth["method"].iloc[0] == PRERANKED
    values = [_strength(table, signed) for table in (truth, guess)]
    defined = np.isfinite(values[0]) & np.isfinite(values[1])
    differ = all(np.ptp(value[defined]) > 0 for value in values) if defined.any() else False
    correlation = np.nan
    if defined.sum() >= FEWEST_SETS and differ:
        correlation = float(stats.spearmanr(values[0][defined], values[1][defined]).statistic)
    moved, found = (table["fdr"].to_numpy() < fdr for table in (truth, guess))
    same_way = np.sign(truth["score"]) == np.sign(guess["score"]) if signed else True
    shared, either = int(np.sum(moved & found & same_way)), int(np.sum(moved | found))
    order, guessed = _ranked(truth), _ranked(guess)
    known = bool(moved.any())
    return {
        "n_sets": len(truth),
        "correlation": correlation,
        "n_observed": int(moved.sum()),
        "n_predicted": int(found.sum()),
        "n_shared": shared,
        "overlap": shared / either if either else np.nan,
        "top_observed": order[0] if known else None,
        "top_predicted": guessed[0] if found.any() else None,
        "same_top": order[0] == guessed[0] if known else None,
        "place_of_top": 1 + guessed.index(order[0]) if known else np.nan,
    }


def _strength(table: pd.DataFrame, signed: bool) -> np.ndarray:
    if signed:
        return table["score"].to_numpy(dtype=float)
    smallest = np.finfo(float).tiny
    return -np.log10(np.clip(table["pvalue"].to_numpy(dtype=float), smallest, 1))


def _ranked(table: pd.DataFrame) -> list[str]:
    """Order sets by p-value, and the same p by the score."""
    strength = table["score"].abs().fillna(0)
    return list(table.assign(strength=-strength).sort_values(["pvalue", "strength"]).index)
