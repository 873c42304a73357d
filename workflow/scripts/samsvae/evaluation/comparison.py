"""Compare models: scores by replicate, confidence intervals, paired differences.

What repeats is the split if an experiment has several that differ by their seed alone, and
otherwise the seed of training; seeds on the same split are averaged first, since they share its
cells. Within runs, perturbations repeat, or cells.

A condition is what splits of an experiment have in common but their seed: the fraction of pairs
that may be trained on, NaN for splits without one.
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

    scipy has no function for this, and ``multipletests`` of statsmodels collects garbage at each of
    the thousands of calls that an experiment takes (0.1 s and more). A test compares the two.
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


QUESTION = ["scope", "metric"]  # what a score is of, under one condition


@dataclass(frozen=True)
class Rules:
    """How models are compared.

    Attributes
    ----------
    models
        The experiment's, in order.
    meaning
        Looks up what a metric says; metrics of which it knows nothing are not compared.
    correction
        ``holm`` or ``bh``, over all pairs of models on one question.
    level
        Corrected p-value below which one of two models is called better.
    """

    models: Sequence[str]
    meaning: Callable[[str], Score | None]
    correction: Literal["holm", "bh"]
    level: float


def intervals(scores: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Average the scores of runs under one condition.

    Parameters
    ----------
    scores
        Columns split, model, seed, scope, metric and value.
    models
        The experiment's models, in order.

    Returns
    -------
    DataFrame
        One row per question and model: scope, metric, model, value, low, high (95 %, Student's
        t), n and over (what repeats).
    """
    rows = []
    for question, repeats in _by_question(scores, models):
        values = repeats.values.copy()
        values[1:, ~repeats.repeated] = np.nan
        mean, low, high = mean_and_interval(values)
        table = {"value": mean, "low": low, "high": high, "n": np.isfinite(values).sum(axis=0)}
        rows.append(pd.DataFrame({**question, "model": repeats.models, **table}))
        rows[-1]["over"] = repeats.over
    return pd.concat(rows, ignore_index=True).dropna(subset="value")


def differences_of_runs(scores: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Compare every two models over the runs under one condition, question by question.

    Parameters
    ----------
    scores
        Columns split, model, seed, scope, metric and value.
    rules
        How.

    Returns
    -------
    DataFrame
        As of :func:`samsvae.evaluation.comparison.paired_differences`, with scope and metric.
    """
    return _differences(_by_question(scores, rules.models), rules)


def differences_within_runs(
    scores: pd.DataFrame, scope: str, over: str, rules: Rules
) -> pd.DataFrame:
    """Compare every two models over the perturbations or cells of the runs under one condition.

    Parameters
    ----------
    scores
        Columns metric, unit, model and value.
    scope
        What to call these units together.
    over
        What a unit is, in the plural.
    rules
        How.

    Returns
    -------
    DataFrame
        As of :func:`differences_of_runs`; of a metric that the table of runs averages over
        perturbations, the difference of means.
    """
    questions = (
        (
            {"scope": scope, "metric": metric},
            repeats_within_runs(group, list(rules.models), over),
        )
        for metric, group in scores.groupby("metric", sort=False, observed=True)
    )
    return _differences(questions, rules)


Question = tuple[dict[str, Any], Repeats]


def _by_question(scores: pd.DataFrame, models: Sequence[str]) -> Iterable[Question]:
    for question, group in scores.dropna(subset="value").groupby(QUESTION, sort=False):
        yield dict(zip(QUESTION, question, strict=True)), repeats_of_runs(group, list(models))


def perturbation_scores(table: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """Take from perturbation_metrics.parquet what can be compared over tested perturbations.

    Parameters
    ----------
    table
        Columns perturbation, tested, metric, model, seed and value, of the splits under one
        condition.
    rules
        How models are compared.

    Returns
    -------
    DataFrame
        Columns unit, model, value and metric, the name that the metric has in metrics.tsv. Of
        all perturbations, if none is tested.
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
    for question, repeats in questions:
        score = rules.meaning(question["metric"])
        if score is not None:
            table = paired_differences(repeats, score.direction, rules.correction, rules.level)
            found.append(table.assign(**question))
    table = pd.concat([one for one in found if len(one)] or found, ignore_index=True)
    return table[columns + [name for name in table if name not in columns]]
