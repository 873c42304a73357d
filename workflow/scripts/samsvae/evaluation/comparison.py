"""Statistical comparison of models: replicates, confidence intervals, paired differences.

Replicates are splits if an experiment has several that differ by their seed alone, and training
seeds otherwise; seeds on the same split are averaged first, since they have the same cells. Within
runs, perturbations or cells are the replicates.

Splits of a condition differ by their seed alone: a condition is the fraction of pairs that may be
trained on, NaN for splits without one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from samsvae.evaluation.metrics import Metric, Score

RUNS = ("splits", "seeds")


@dataclass(frozen=True)
class Replicates:
    """Scores of several models by replicate.

    Attributes
    ----------
    over
        Kind of replicate: ``splits``, ``seeds``, ``perturbations`` or ``cells``.
    models
        Names of the columns.
    values
        Replicates x models; NaN where a model has no score.
    replicated
        Whether each model was run for each replicate. A deterministic baseline is run once on a
        split, and its score is replicated for each seed of the others.
    """

    over: str
    models: list[str]
    values: np.ndarray
    replicated: np.ndarray


def replicates_of_runs(scores: pd.DataFrame, models: list[str]) -> Replicates:
    """Tabulate the scores of runs by split, or by seed on a single split.

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
        return Replicates("splits", models, values, np.ones(len(models), dtype=bool))
    replicated = np.isfinite(values).sum(axis=0) > 1
    values[:, ~replicated] = np.nanmax(
        values[:, ~replicated], axis=0, initial=-np.inf, keepdims=True
    )
    values[np.isinf(values)] = np.nan
    return Replicates("seeds", models, values, replicated)


def replicates_within_runs(scores: pd.DataFrame, models: list[str], over: str) -> Replicates:
    """Tabulate scores by perturbation or cell, averaged over runs.

    Parameters
    ----------
    scores
        Columns unit, model, value, all of one metric.
    models
        The columns, in order.
    over
        Kind of unit, in the plural.
    """
    return Replicates(
        over, models, _table(scores, "unit", models), np.ones(len(models), dtype=bool)
    )


def _table(scores: pd.DataFrame, by: str, models: list[str]) -> np.ndarray:
    """Tabulate mean scores, replicates x models; replicates in order, without those of no score."""
    scores = scores[scores["value"].notna()]
    row, replicates = pd.factorize(scores[by], sort=True)
    column = pd.Index(models).get_indexer(pd.Index(scores["model"].astype(object)))
    cell = row * len(models) + column
    if len(np.unique(cell[column >= 0])) == np.sum(column >= 0):  # nothing to average
        values = np.full((len(replicates), len(models)), np.nan)
        values[row[column >= 0], column[column >= 0]] = scores["value"].to_numpy()[column >= 0]
        return values
    means = scores.groupby([by, "model"], observed=True)["value"].mean()
    # twice as fast as a pivot table
    table = means.unstack("model")  # noqa: PD010
    return table.reindex(columns=models).to_numpy(dtype=float)


CONFIDENCE = 0.95
NOT_SIGNIFICANT = "tie"


def mean_and_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the mean over replicates, with the 95 % confidence interval of Student's t.

    Parameters
    ----------
    values
        Replicates x anything; NaN for missing values.

    Returns
    -------
    mean, low, high : ndarray
        NaN without any value; the limits are NaN for fewer than two.
    """
    n, mean, error = _moments(values)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, np.maximum(n - 1, 1)) * error
    return mean, mean - half, mean + half


def p_value(values: np.ndarray) -> np.ndarray:
    """Compute the two-sided p-value of Student's t-test for a mean of 0 over replicates.

    Parameters
    ----------
    values
        Replicates x anything; NaN for missing values.

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
    """Correct p-values for the family-wise error rate (Holm 1979).

    scipy has no such function, and statsmodels' ``multipletests`` runs Python's garbage collector
    at each of the thousands of calls of an experiment (0.1 s and more). A test compares the two.
    """
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)


def paired_differences(
    replicates: Replicates,
    direction: Literal["higher", "lower"],
    correction: Literal["holm", "bh"],
    level: float,
) -> pd.DataFrame:
    """Test the paired difference of every two models over replicates.

    Some splits and seeds are easier than others for all models, so that paired differences vary
    far less than scores. Replicate splits or seeds test whether a difference holds for other
    splits or seeds; perturbations or cells as replicates test whether it holds for other
    perturbations or cells of the same trained models, not for models trained again.

    Parameters
    ----------
    replicates
        Scores of the models.
    direction
        Direction of better scores.
    correction
        ``holm`` controls the family-wise error rate over all pairs, ``bh`` the false discovery
        rate (Benjamini and Hochberg 1995).
    level
        Corrected p-value below which two models differ significantly.

    Returns
    -------
    DataFrame
        One row per pair: over, first, second, n (replicates), difference (first minus second, in
        the metric's unit) with ``low`` and ``high``, p_value, p_adjusted, better (a name, ``tie``
        if not significantly different, or missing without a test) and fraction_better, the fraction
        of replicates in which the first is better, ties counted one half.
    """
    pairs = list(combinations(range(len(replicates.models)), 2))
    first, second = (np.array([pair[side] for pair in pairs], dtype=int) for side in (0, 1))
    difference = replicates.values[:, first] - replicates.values[:, second]
    # two baselines on one split have a single difference
    difference[1:, ~(replicates.replicated[first] | replicates.replicated[second])] = np.nan
    mean, low, high = mean_and_interval(difference)
    p = p_value(difference)
    adjusted = _corrected(p, correction)
    sign = np.sign(mean) * (1 if direction == "higher" else -1)
    names = np.array(replicates.models, dtype=object)
    winner = np.where(sign > 0, names[first], names[second])
    better = np.where(adjusted < level, winner, NOT_SIGNIFICANT)
    better[np.isnan(p)] = None
    n = np.isfinite(difference).sum(axis=0)
    score = np.nansum((np.sign(difference) * (1 if direction == "higher" else -1) + 1) / 2, axis=0)
    return pd.DataFrame(
        {
            "over": replicates.over,
            "first": names[first],
            "second": names[second],
            "n": n,
            "difference": mean,
            "low": low,
            "high": high,
            "p_value": p,
            "p_adjusted": adjusted,
            "better": better,
            "fraction_better": np.divide(score, n, out=np.full(len(n), np.nan), where=n > 0),
        }
    )[n > 0]


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count replicates and compute their mean and its standard error."""
    n = np.isfinite(values).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.nansum(values, axis=0) / n
        variance = np.nansum((values - mean) ** 2, axis=0) / (n - 1)
    return n, mean, np.sqrt(np.where(n > 1, variance, np.nan) / np.maximum(n, 1))


def _corrected(p: np.ndarray, correction: Literal["holm", "bh"]) -> np.ndarray:
    """Correct the p-values that are not NaN for multiple testing."""
    adjusted = np.full(len(p), np.nan)
    tested = np.isfinite(p)
    if tested.any():
        correct = holm if correction == "holm" else stats.false_discovery_control
        adjusted[tested] = correct(p[tested])
    return adjusted


QUESTION = ["scope", "metric"]  # identify a score under one condition


@dataclass(frozen=True)
class Rules:
    """Settings of the comparison of models.

    Attributes
    ----------
    models
        Models of the experiment, in order.
    meaning
        Looks up the description of a metric; metrics without one are not compared.
    correction
        ``holm`` or ``bh``, over all pairs of models for a scope and metric.
    level
        Corrected p-value below which two models differ significantly.
    """

    models: Sequence[str]
    meaning: Callable[[str], Score | None]
    correction: Literal["holm", "bh"]
    level: float


def intervals(scores: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Compute mean scores of runs under one condition, with confidence intervals.

    Parameters
    ----------
    scores
        Columns split, model, seed, scope, metric and value.
    rules
        Settings of the comparison.

    Returns
    -------
    DataFrame
        One row per scope, metric and model: value, low, high (95 %, Student's t, within the
        metric's limits), n and over (the kind of replicate).
    """
    return _intervals(_by_question(scores, rules.models), rules)


def _intervals(questions: "Iterable[Question]", rules: Rules) -> pd.DataFrame:
    rows = []
    for question, replicates in questions:
        values = replicates.values.copy()
        values[1:, ~replicates.replicated] = np.nan
        mean, low, high = mean_and_interval(values)
        score = rules.meaning(str(question["metric"]))
        if score:  # impossible values are no part of an interval
            low, high = (np.clip(limit, *score.limits) for limit in (low, high))
        table = {"value": mean, "low": low, "high": high, "n": np.isfinite(values).sum(axis=0)}
        rows.append(pd.DataFrame({**question, "model": replicates.models, **table}))
        rows[-1]["over"] = replicates.over
    return pd.concat(rows, ignore_index=True).dropna(subset="value")


def differences_of_runs(scores: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Compare every two models over the runs under one condition, for each scope and metric.

    Parameters
    ----------
    scores
        Columns split, model, seed, scope, metric and value.
    rules
        Settings of the comparison.

    Returns
    -------
    DataFrame
        As of :func:`samsvae.evaluation.comparison.paired_differences`, with scope and metric.
    """
    return _differences(_by_question(scores, rules.models), rules)


def intervals_and_differences(
    scores: pd.DataFrame, rules: Rules
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute :func:`intervals` and :func:`differences_of_runs` from the same replicates."""
    questions = list(_by_question(scores, rules.models))
    return _intervals(questions, rules), _differences(questions, rules)


def differences_within_runs(
    scores: pd.DataFrame, scope: str, over: str, rules: Rules
) -> pd.DataFrame:
    """Compare every two models over the perturbations or cells of the runs under one condition.

    Parameters
    ----------
    scores
        Columns metric, unit, model and value.
    scope
        Scope of these units.
    over
        Kind of unit, in the plural.
    rules
        Settings of the comparison.

    Returns
    -------
    DataFrame
        As of :func:`differences_of_runs`; for a metric that is averaged over perturbations in the
        table of runs, the difference of means.
    """
    questions = (
        (
            {"scope": scope, "metric": metric},
            replicates_within_runs(group, list(rules.models), over),
        )
        for metric, group in scores.groupby("metric", sort=False, observed=True)
    )
    return _differences(questions, rules)


Question = tuple[dict[str, Any], Replicates]


def _by_question(scores: pd.DataFrame, models: Sequence[str]) -> Iterable[Question]:
    for question, group in scores.dropna(subset="value").groupby(QUESTION, sort=False):
        yield dict(zip(QUESTION, question, strict=True)), replicates_of_runs(group, list(models))


def perturbation_scores(table: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Select the scores to compare over tested perturbations from metrics.parquet.

    Parameters
    ----------
    table
        Columns perturbation, tested, metric, model, seed and value, of the splits under one
        condition.
    rules
        Settings of the comparison.

    Returns
    -------
    DataFrame
        Columns unit, model, value and metric, that of its average over perturbations; all
        perturbations if none is tested.
    """
    if table["tested"].any():
        table = table[table["tested"]]
    averaged = {}
    for name in table["metric"].unique():
        score = rules.meaning(name)
        if isinstance(score, Metric):
            averaged[name] = f"{score.average}_{name}"
    return table.assign(metric=table["metric"].map(averaged).astype("category")).rename(
        columns={"perturbation": "unit"}
    )


def _differences(questions: Iterable[Question], rules: Rules) -> pd.DataFrame:
    columns = [*QUESTION, "over", "first", "second"]
    found = [pd.DataFrame(columns=columns)]
    for question, replicates in questions:
        score = rules.meaning(question["metric"])
        if score is not None:
            table = paired_differences(replicates, score.direction, rules.correction, rules.level)
            found.append(table.assign(**question))
    table = pd.concat([one for one in found if len(one)] or found, ignore_index=True)
    return table[columns + [name for name in table if name not in columns]]
