"""Agreement of inferred latent dimensions with true factors, up to permutation and sign."""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from samsvae.evaluation.agreement import r_squared

MASK_THRESHOLD = 0.5

Matching = tuple[np.ndarray, np.ndarray]


def match_factors(true_mask: np.ndarray, mask: np.ndarray) -> Matching:
    """Match true factors with latent dimensions one to one, by true positives.

    Parameters
    ----------
    true_mask
        Targets x factors, 0 or 1.
    mask
        Targets x latent dimensions, 0 or 1.

    Returns
    -------
    factor, dimension : ndarray
        Matched pairs, the smaller of the two numbers of them.
    """
    return linear_sum_assignment(-(true_mask.T @ mask))


def match_factors_by_effects(true_effects: np.ndarray, effects: np.ndarray) -> Matching:
    """Match true factors with latent dimensions one to one, by the correlation of their effects.

    Parameters
    ----------
    true_effects
        Targets x factors.
    effects
        Targets x latent dimensions, posterior means.

    Returns
    -------
    factor, dimension : ndarray
        Matched pairs of the largest total absolute correlation over targets.
    """
    return linear_sum_assignment(-np.abs(effect_correlations(true_effects, effects)))


def effect_correlations(true_effects: np.ndarray, effects: np.ndarray) -> np.ndarray:
    """Correlate effects over targets, factors x latent dimensions; 0 for a constant effect."""
    return _standardised(true_effects).T @ _standardised(effects)


def _standardised(columns: np.ndarray) -> np.ndarray:
    centred = columns - columns.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    return centred / np.where(norm > 0, norm, 1.0)


def mask_scores(true_mask: np.ndarray, mask: np.ndarray, matching: Matching) -> dict[str, float]:
    """Compute precision, recall and F1 of an inferred mask.

    All latent dimensions are included: one without a matched factor adds false positives.

    Parameters
    ----------
    true_mask
        Targets x factors, 0 or 1.
    mask
        Targets x latent dimensions, 0 or 1.
    matching
        Pairs of factor and dimension.

    Returns
    -------
    dict of float
        precision (NaN for an empty mask), recall and f1.
    """
    factor, dimension = matching
    hits = float(np.sum(true_mask[:, factor] * mask[:, dimension]))
    return {
        "precision": hits / mask.sum() if mask.sum() else float("nan"),
        "recall": hits / true_mask.sum(),
        "f1": 2 * hits / (mask.sum() + true_mask.sum()),
    }


def latent_effect_scores(true_effects: np.ndarray, effects: np.ndarray) -> dict[str, float]:
    """Score latent effects after matching dimensions and signs by correlation with the truth.

    Parameters
    ----------
    true_effects
        Targets x factors, in standard deviations of the basal state.
    effects
        Targets x latent dimensions, posterior means, on the same scale.

    Returns
    -------
    dict of float
        mean_correlation, the mean absolute correlation over factors, 0 for a factor without a
        dimension; effect_r_squared, over all entries, without rescaling, since the standard normal
        basal state fixes the scale.
    """
    factor, dimension = match_factors_by_effects(true_effects, effects)
    correlation = effect_correlations(true_effects, effects)[factor, dimension]
    matched = np.zeros_like(true_effects)
    matched[:, factor] = effects[:, dimension] * np.sign(correlation)
    return {
        "mean_correlation": float(np.abs(correlation).sum()) / true_effects.shape[1],
        "effect_r_squared": float(r_squared(true_effects.ravel(), matched.ravel())),
    }


def with_means(recovery: pd.DataFrame) -> pd.DataFrame:
    """Average the recovery of true factors over runs, and over factors.

    Parameters
    ----------
    recovery
        The table recovery.tsv: split, model, seed, measure, state, factor and value; without a
        state where the measure is of masks.

    Returns
    -------
    DataFrame
        With factor_mean, over the runs of a model on a split, and state_mean, the mean of these
        over factors; NaN for measures of masks.
    """
    kind = ["split", "model", "measure", "state"]
    recovery = recovery.astype({"value": float})
    of_factor = recovery.groupby([*kind, "factor"])["value"].transform("mean")
    table = recovery.assign(factor_mean=of_factor)
    once = table.drop_duplicates([*kind, "factor"]).dropna(subset="factor_mean")
    state_mean = once.groupby(kind)["factor_mean"].mean().rename("state_mean")
    return table.join(state_mean, on=kind)
