"""Paired differences between models, and which of them are real."""

from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from samsvae.statistics.scores import Repeats

CONFIDENCE = 0.95
TIE = "tie"


def mean_and_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average repeats, with the 95 % interval of Student's t.

    Parameters
    ----------
    values
        Repeats x anything; NaN where there is no value.

    Returns
    -------
    mean, low, high : ndarray
        NaN without a value; the limits are NaN for fewer than two.
    """
    n, mean, error = _moments(values)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, np.maximum(n - 1, 1)) * error
    return mean, mean - half, mean + half


def p_value(values: np.ndarray) -> np.ndarray:
    """Two-sided p-value of Student's t test that the mean of repeats is 0.

    Parameters
    ----------
    values
        Repeats x anything; NaN where there is no value.

    Returns
    -------
    ndarray
        NaN for fewer than two values; 1 if all are 0.
    """
    n, mean, error = _moments(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(mean) / error, np.maximum(n - 1, 1))
    return np.where((mean == 0) & (error == 0), 1.0, p)


def holm(p: np.ndarray) -> np.ndarray:
    """Correct p-values so that the chance of any false claim is bounded (Holm 1979).

    The same as statsmodels' ``multipletests``, which collects garbage at each of the thousands
    of calls that an experiment takes.
    """
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)


def paired_differences(
    repeats: Repeats,
    direction: Literal["higher", "lower"],
    correction: Literal["holm", "bh"],
    level: float,
) -> pd.DataFrame:
    """Compare every two models repeat by repeat.

    Splits and seeds make some runs easier than others, alike for all models, so that differences
    within a repeat vary far less than scores do. Whether a difference would be there with other
    seeds or splits is told by repeats over these; repeats over perturbations (or cells) tell
    whether it holds for other perturbations of these very trained models, and nothing of
    training them again.

    Parameters
    ----------
    repeats
        Scores of the models.
    direction
        Which scores are better.
    correction
        ``holm`` bounds the chance of any false claim among all pairs, ``bh`` the share of false
        ones among the claims (Benjamini and Hochberg 1995).
    level
        Corrected p-value below which one of two models is called better.

    Returns
    -------
    DataFrame
        One row per pair: over, first, second, n (repeats), difference (first minus second, in
        the metric's unit) with ``low`` and ``high``, p_value, p_adjusted, better (a name,
        ``tie``, or missing where there was no test) and share_better, the share of repeats in
        which the first is better, ties half.
    """
    pairs = list(combinations(range(len(repeats.models)), 2))
    first, second = (np.array([pair[side] for pair in pairs], dtype=int) for side in (0, 1))
    difference = repeats.values[:, first] - repeats.values[:, second]
    # two baselines on one split have one difference, however often it is written down
    difference[1:, ~(repeats.repeated[first] | repeats.repeated[second])] = np.nan
    mean, low, high = mean_and_interval(difference)
    p = p_value(difference)
    adjusted = _corrected(p, correction)
    sign = np.sign(mean) * (1 if direction == "higher" else -1)
    names = np.array(repeats.models, dtype=object)
    winner = np.where(sign > 0, names[first], names[second])
    better = np.where(adjusted < level, winner, TIE)
    better[np.isnan(p)] = None
    n = np.isfinite(difference).sum(axis=0)
    score = np.nansum((np.sign(difference) * (1 if direction == "higher" else -1) + 1) / 2, axis=0)
    return pd.DataFrame(
        {
            "over": repeats.over,
            "first": names[first],
            "second": names[second],
            "n": n,
            "difference": mean,
            "low": low,
            "high": high,
            "p_value": p,
            "p_adjusted": adjusted,
            "better": better,
            "share_better": np.divide(score, n, out=np.full(len(n), np.nan), where=n > 0),
        }
    )[n > 0]


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count repeats and compute their mean and its standard error."""
    n = np.isfinite(values).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nansum(values, axis=0) / n
        variance = np.nansum((values - mean) ** 2, axis=0) / (n - 1)
    return n, mean, np.sqrt(np.where(n > 1, variance, np.nan) / np.maximum(n, 1))


def _corrected(p: np.ndarray, correction: Literal["holm", "bh"]) -> np.ndarray:
    """Correct the p-values that there are for their number."""
    adjusted = np.full(len(p), np.nan)
    tested = np.isfinite(p)
    if tested.any():
        correct = holm if correction == "holm" else stats.false_discovery_control
        adjusted[tested] = correct(p[tested])
    return adjusted
