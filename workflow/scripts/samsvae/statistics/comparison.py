"""Every score of an experiment with its interval, and every two models compared.

A condition is what splits of an experiment have in common but their seed: the fraction of pairs
that may be trained on, NaN for splits without one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from samsvae.metrics.registry import Metric, Score
from samsvae.statistics.paired import mean_and_interval, paired_differences
from samsvae.statistics.scores import Repeats, repeats_of_runs, repeats_within_runs

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
        As of :func:`samsvae.statistics.paired.paired_differences`, with scope and metric.
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
