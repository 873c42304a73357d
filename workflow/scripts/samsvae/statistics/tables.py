"""The tables that compare the models of an experiment, condition by condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.experiments import Split, conditions
from samsvae.files import read_table
from samsvae.statistics.comparison import (
    Rules,
    differences_of_runs,
    differences_within_runs,
    intervals,
    perturbation_scores,
)
from samsvae.statistics.summary import Contestants, headlines, scope_of_summary, summarise

IWELBO = "iwelbo"


@dataclass(frozen=True)
class Tables:
    """What is known of the models of an experiment.

    Attributes
    ----------
    intervals
        Each score with its interval, see :func:`samsvae.statistics.comparison.intervals`.
    differences
        Every two models, over runs and within them, see
        :func:`samsvae.statistics.paired.paired_differences`.
    summary
        The main scores with verdicts, see :func:`samsvae.statistics.summary.summarise`.

    Each has the condition in its first column, ``fraction``.
    """

    intervals: pd.DataFrame
    differences: pd.DataFrame
    summary: pd.DataFrame


def compare_models(
    metrics: pd.DataFrame,
    perturbations: Mapping[str, Path],
    cells: Mapping[str, Path],
    splits: Mapping[str, Split],
    rules: Rules,
    contestants: Contestants,
    n_top: int,
) -> Tables:
    """Compare the models of an experiment.

    Parameters
    ----------
    metrics
        The table metrics.tsv.
    perturbations
        Files of metrics by perturbation, by split; none for a screen without counts. Read one
        condition at a time.
    cells
        Files of the cells' bounds by model, where each has a single run and cells are all that
        repeats.
    splits
        The experiment's splits by name.
    rules
        How models are compared.
    contestants
        Which models are rivals.
    n_top
        Genes per perturbation in the top-gene metrics.
    """
    metrics = pd.concat([metrics, relative_bounds(metrics, splits, rules.models)])
    made = []
    for fraction, names in conditions(splits).items():
        scores = metrics[metrics["split"].isin(names)]
        scope = scope_of_summary(scores)
        means = intervals(scores, rules.models)
        differences = [differences_of_runs(scores, rules)]
        tables = [read_table(perturbations[name]) for name in names if name in perturbations]
        if tables:
            by_perturbation = perturbation_scores(pd.concat(tables, ignore_index=True), rules)
            differences.append(
                differences_within_runs(by_perturbation, scope, "perturbations", rules)
            )
        differences += [
            differences_within_runs(bounds, part, "cells", rules)
            for part, bounds in _bounds(cells).groupby("split", observed=True)
        ]
        pairs = pd.concat(differences, ignore_index=True)
        asked = _questions_in_order(means, list(headlines(n_top, scope)))
        summary = summarise(asked, pairs, contestants, rules.meaning)
        made.append([_of(fraction, table) for table in (means, pairs, summary)])
    return Tables(*(pd.concat(parts, ignore_index=True) for parts in zip(*made, strict=True)))


def relative_bounds(
    metrics: pd.DataFrame, splits: Mapping[str, Split], models: Sequence[str]
) -> pd.DataFrame:
    """Take bounds relative to the first model at the smallest fraction, as the paper's figures do.

    Parameters
    ----------
    metrics
        The table metrics.tsv.
    splits
        The experiment's splits by name.
    models
        The experiment's models; the first that has bounds is the reference.

    Returns
    -------
    DataFrame
        Rows of the metric ``iwelbo_relative``, nats per cell: the difference to the reference's
        bound on the split with the same seed and from the same seed of training, none where that
        is missing. Bounds vary with the split far more than these differences.
    """
    bounds = metrics[metrics["metric"] == IWELBO]
    bounds = bounds.assign(split_seed=[splits[name].seed for name in bounds["split"]])
    with_bounds = [model for model in models if model in set(bounds["model"])]
    if not with_bounds:
        return bounds[list(metrics)]
    smallest = min(splits.values(), key=lambda split: split.fraction or 0.0).fraction
    lowest = [name for name, split in splits.items() if split.fraction == smallest]
    same = ["split_seed", "seed", "scope"]
    reference = bounds[(bounds["model"] == with_bounds[0]) & bounds["split"].isin(lowest)]
    paired = bounds.merge(reference[[*same, "value"]], on=same, suffixes=("", "_of_reference"))
    paired["value"] -= paired["value_of_reference"]
    return paired.assign(metric=f"{IWELBO}_relative")[list(metrics)]


def _bounds(cells: Mapping[str, Path]) -> pd.DataFrame:
    columns = ["split", "unit", "model", "metric", "value"]
    tables = [
        read_table(path)
        .rename(columns={"cell": "unit", IWELBO: "value"})
        .assign(model=model, metric=IWELBO)[columns]
        for model, path in cells.items()
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _questions_in_order(table: pd.DataFrame, wanted: list[tuple[str, str]]) -> pd.DataFrame:
    """Keep the rows of some questions, each a scope and a metric, in the order of these."""
    place = pd.MultiIndex.from_tuples(wanted).get_indexer(
        pd.MultiIndex.from_frame(table[["scope", "metric"]])
    )
    order = np.argsort(place, kind="stable")
    return table.iloc[order[place[order] >= 0]]


def _of(fraction: float, table: pd.DataFrame) -> pd.DataFrame:
    columns = list(table)
    return table.assign(fraction=fraction)[["fraction", *columns]]
