"""Tables of the comparison of models by condition, and their summary."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samsvae.config.experiments import Split, conditions
from samsvae.config.models import CEILINGS
from samsvae.evaluation.compared import LEAST_BDS
from samsvae.evaluation.comparison import (
    NOT_SIGNIFICANT,
    RUNS,
    Rules,
    differences_within_runs,
    intervals_and_differences,
    perturbation_scores,
)
from samsvae.evaluation.metrics import (
    HELD_OUT,
    WITH_TARGETS,
    Metric,
    Score,
    heading,
    of_perturbations,
    read_perturbation_metrics,
    read_run_metrics,
)
from samsvae.evaluation.ranking import RANKING, rank_models
from samsvae.runtime.files import read_table

BEST, NOT_DIFFERENT, WORSE, UNTESTED, NOT_RANKED, CEILING = (
    "best",
    "not_different",
    "worse",
    "untested",
    "not_ranked",
    "ceiling",
)
NOISE_CEILING = "noise_ceiling"
IWELBO = "iwelbo"


def headlines(n_top: int, scope: str) -> dict[tuple[str, str], str]:
    """List the scopes and metrics of the summary, with their headings.

    Parameters
    ----------
    n_top
        Genes per perturbation in the top-gene metrics.
    scope
        Scope of perturbations: ``test``, or ``all`` if none has test cells.
    """
    questions = [
        (scope, f"pearson{HELD_OUT}"),
        (scope, f"pearson_top{n_top}{HELD_OUT}"),
        (scope, f"median_pearson_from_mean{HELD_OUT}"),
        (scope, f"mean_retrieval_rank{HELD_OUT}"),
        (scope, f"mean_retrieval_rank{WITH_TARGETS}{HELD_OUT}"),
        (scope, "median_de_auroc"),
        (scope, f"median_de_auroc{WITH_TARGETS}"),
        (scope, "pearson"),
        (scope, f"pearson_top{n_top}"),
        ("val", IWELBO),
        ("test", IWELBO),
        ("truth", "effect_pearson"),
        ("truth", "mask_f1"),
    ]
    cells = {"val": ", validation cells", "test": ", test cells"}
    return {
        (scope, metric): heading(metric, n_top) + (cells[scope] if metric == IWELBO else "")
        for scope, metric in questions
    }


def scope_of_summary(summary: pd.DataFrame) -> str:
    """Find the scope of perturbations of a summary: ``test``, or ``all`` without test cells."""
    effects = summary["metric"].str.contains("pearson") & (summary["scope"] != "truth")
    return "test" if (effects & (summary["scope"] == "test")).any() else "all"


def headlines_in(summary: pd.DataFrame, n_top: int) -> dict[tuple[str, str], str]:
    """List the :func:`headlines` that a summary has, for its scope of perturbations."""
    asked = set(zip(summary["scope"], summary["metric"], strict=True))
    found = headlines(n_top, scope_of_summary(summary))
    return {key: text for key, text in found.items() if key in asked}


def by_fraction(table: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    """Divide a table by condition, the smallest fraction first; NaN without fractions."""
    fractions = table["fraction"].astype(float)
    parts = [(float(one), table[fractions == one]) for one in sorted(fractions.dropna().unique())]
    without = table[fractions.isna()]
    return [*parts, (math.nan, without)] if len(without) else parts


@dataclass(frozen=True)
class ComparedModels:
    """Competing models, and floor and ceilings of their normalised scores.

    Attributes
    ----------
    competing
        Models and baselines that compete for the best score.
    ceilings
        Ceilings, from measurements or the truth; never the best.
    floor
        The baseline with a normalised score of 0; None without any.
    split_half
        The ceiling from half of the held-out cells; None without any.
    """

    competing: Sequence[str]
    ceilings: Sequence[str]
    floor: str | None
    split_half: str | None

    @classmethod
    def of(cls, kinds: Mapping[str, str]) -> "ComparedModels":
        """Classify models by kind; the floor is the mean effect, or else no change."""
        first = {kind: model for model, kind in reversed(list(kinds.items()))}
        return cls(
            competing=[model for model, kind in kinds.items() if kind not in CEILINGS],
            ceilings=[model for model, kind in kinds.items() if kind in CEILINGS],
            floor=first.get("mean_effect", first.get("no_change")),
            split_half=first.get("split_half"),
        )


def summarise(
    intervals: pd.DataFrame,
    differences: pd.DataFrame,
    models: ComparedModels,
    meaning: Callable[[str], Score | None],
) -> pd.DataFrame:
    """Determine the best model by scope and metric, and the models that do not differ from it.

    Parameters
    ----------
    intervals
        As of :func:`samsvae.evaluation.comparison.intervals`, under one condition.
    differences
        As of :func:`samsvae.evaluation.comparison.differences_of_runs`, and within runs.
    models
        The models.
    meaning
        Looks up the description of a metric.

    Returns
    -------
    DataFrame
        The rows of `intervals` with a known metric, best first, with ``normalised`` (0 at the
        floor, 1 at the noise ceiling, for metrics of held-out cells that have one), ``verdict``
        (``best``; ``not_different``, not significantly different from the best; ``worse``;
        ``untested``, without replicates; ``ceiling``), ``p_adjusted`` against the best, and
        ``tested_over``, the kind of replicate of this test: runs if there are several. A noise
        ceiling is a row of its own.
    """
    tests = {
        key: group.set_index("over") for key, group in differences.groupby(["scope", "metric"])
    }
    rows = []
    for (scope, metric), group in intervals.groupby(["scope", "metric"], sort=False):
        score = meaning(metric)
        if score is None:
            continue
        table = group.set_index("model", drop=False)
        ascending = score.direction == "lower"
        competing = table[table["model"].isin(models.competing)]
        table = table.sort_values("value", ascending=ascending, kind="stable")
        ceiling = noise_ceiling(table, metric, score, models)
        if len(competing):
            best = competing["value"].idxmin() if ascending else competing["value"].idxmax()
            judged = _verdicts(table, best, tests.get((scope, metric)), models.competing)
            table = table.join(judged)
        else:
            table["verdict"] = CEILING
        table["normalised"] = _normalised(table, score, ceiling, models.floor)
        rows.append(table)
        if not math.isnan(ceiling):
            own = {"scope": scope, "metric": metric, "model": NOISE_CEILING, "value": ceiling}
            rows.append(pd.DataFrame([{**own, "verdict": CEILING, "normalised": 1.0}]))
    columns = ["normalised", "verdict", "p_adjusted", "tested_over"]
    if not rows:
        return intervals.assign(**dict.fromkeys(columns))
    summary = pd.concat(rows, ignore_index=True)
    return summary.reindex(columns=[*intervals.columns, *columns])


def noise_ceiling(table: pd.DataFrame, metric: str, score: Score, models: ComparedModels) -> float:
    """Estimate the score of noise-free effects against held-out cells; NaN if unknown.

    Parameters
    ----------
    table
        Rows of a scope and metric by model, with ``value``.
    metric, score
        Name and description of the metric.
    models
        The models.
    """
    half = models.split_half
    if half is None or half not in table.index or not isinstance(score, Metric):
        return math.nan
    # the halves differ in noise for genes that are chosen by their noisy effect
    if score.attainable is None or "_top" in metric or not metric.endswith(HELD_OUT):
        return math.nan
    return score.attainable(float(table.loc[half, "value"]))


def _verdicts(
    table: pd.DataFrame, best: str, tests: pd.DataFrame | None, competing: Sequence[str]
) -> pd.DataFrame:
    rows = {}
    for model in table["model"]:
        test = None if tests is None else paired_test_between(tests, best, model)
        row: dict[str, Any] = {"p_adjusted": np.nan, "tested_over": None}
        if model not in competing:
            row["verdict"] = CEILING
        elif model == best:
            row["verdict"] = BEST
        elif test is None:
            row["verdict"] = UNTESTED
        else:
            row["verdict"] = NOT_DIFFERENT if test["better"] == NOT_SIGNIFICANT else WORSE
            row |= {"p_adjusted": test["p_adjusted"], "tested_over": test.name}
        rows[model] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def paired_test_between(tests: pd.DataFrame, one: str, other: str) -> "pd.Series[Any] | None":
    """Find the test between two models over runs, else within runs; None without any.

    Parameters
    ----------
    tests
        Paired differences of a scope and metric, by the kind of replicate.
    one, other
        The models, in any order.
    """
    pair = tests["first"].isin([one, other]) & tests["second"].isin([one, other])
    made = tests[pair & tests["p_adjusted"].notna()]
    over_runs = made[made.index.isin(RUNS)]
    chosen = over_runs if len(over_runs) else made
    return chosen.iloc[0] if len(chosen) else None


def _normalised(
    table: pd.DataFrame, score: Score, ceiling: float, floor: str | None
) -> "pd.Series[float]":
    low = float(table["value"].get(floor, np.nan)) if floor is not None else np.nan
    if math.isnan(low) and score.chance is not None:
        low = score.chance
    is_above = ceiling > low if score.direction == "higher" else ceiling < low
    return (table["value"] - low) / (ceiling - low if is_above else np.nan)


@dataclass(frozen=True)
class Tables:
    """Tables of the comparison of an experiment's models.

    The first column of each, ``fraction``, is the condition.

    Attributes
    ----------
    intervals
        Scores with confidence intervals, see :func:`samsvae.evaluation.comparison.intervals`.
    differences
        Paired differences over runs and within runs, see
        :func:`samsvae.evaluation.comparison.paired_differences`.
    summary
        The main scores with verdicts, see :func:`summarise`.
    ranking
        Models by mean normalised score, see :func:`samsvae.evaluation.ranking.rank_models`.
    """

    intervals: pd.DataFrame
    differences: pd.DataFrame
    summary: pd.DataFrame
    ranking: pd.DataFrame


def compare_models(
    path: str | Path,
    cells: Mapping[str, Path],
    splits: Mapping[str, Split],
    rules: Rules,
    models: ComparedModels,
    n_top: int,
    calibration: pd.DataFrame | None = None,
) -> Tables:
    """Compare the models of an experiment.

    Parameters
    ----------
    path
        The file metrics.parquet. The scores of perturbations are read one condition at a time.
    cells
        Files of the cells' bounds by model, if each has a single run and cells are the only
        replicates.
    splits
        The experiment's splits by name.
    rules
        Settings of the comparison.
    models
        Competing models and ceilings.
    n_top
        Genes per perturbation in the top-gene metrics.
    calibration
        The table calibration.tsv: split, metric, drf and bds; None without counts.
    """
    metrics = read_run_metrics(path)
    metrics = pd.concat([metrics, relative_bounds(metrics, splits, rules.models)])
    made = []
    for fraction, names in conditions(splits).items():
        scores = metrics[metrics["split"].isin(names)]
        scope = scope_of_summary(scores)
        if calibration is not None:
            calibrated = calibration[calibration["split"].isin(names)]
        means, of_runs = intervals_and_differences(scores, rules)
        differences = [of_runs]
        of_perturbations = read_perturbation_metrics(path, names)
        if len(of_perturbations):
            by_perturbation = perturbation_scores(of_perturbations, rules)
            differences.append(
                differences_within_runs(by_perturbation, scope, "perturbations", rules)
            )
        differences += [
            differences_within_runs(bounds, part, "cells", rules)
            for part, bounds in _bounds(cells).groupby("split", observed=True)
        ]
        pairs = pd.concat(differences, ignore_index=True)
        asked = _questions_in_order(means, list(headlines(n_top, scope)))
        summary = summarise(asked, pairs, models, rules.meaning)
        tables = [means, pairs, summary]
        ranking = pd.DataFrame(columns=RANKING)
        if calibration is not None:
            tables = [with_calibration(table, calibrated, n_top) for table in tables]
            ranking = rank_models(
                of_perturbations, calibrated, models.competing, models.floor, n_top
            )
        made.append([_of(fraction, table) for table in (*tables, ranking)])
    return Tables(*(_joined(parts) for parts in zip(*made, strict=True)))


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate tables; those without rows would change the types of columns."""
    filled = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(filled, ignore_index=True)


def with_calibration(table: pd.DataFrame, calibration: pd.DataFrame, n_top: int) -> pd.DataFrame:
    """Add the calibration of metrics, by which those that cannot rank models decide nothing.

    Parameters
    ----------
    table
        A table of :class:`Tables`.
    calibration
        As of :func:`samsvae.evaluation.compared.calibrate`, with split.
    n_top
        Genes per perturbation in the top-gene metrics.

    Returns
    -------
    DataFrame
        With ``drf`` and ``bds``, means over the splits; NaN for other scores. Where the BDS is
        below :data:`samsvae.evaluation.compared.LEAST_BDS`, ``verdict`` (of models that compete)
        and ``better`` are ``not_ranked``, and there is no other result of a test.
    """
    means = calibration.groupby("metric")[["drf", "bds"]].mean()
    single = {name: of_perturbations(name, n_top) for name in table["metric"].unique()}
    found = means.reindex(table["metric"].map(single)).set_axis(table.index)
    table = table.assign(drf=found["drf"], bds=found["bds"])
    cannot = table["bds"] < LEAST_BDS
    if "verdict" in table:
        judged = cannot & (table["verdict"] != CEILING)
        table.loc[judged, "verdict"] = NOT_RANKED
        table.loc[judged, ["p_adjusted", "tested_over"]] = [np.nan, None]
    if "better" in table:
        table.loc[cannot & table["better"].notna(), "better"] = NOT_RANKED
    return table


def relative_bounds(
    metrics: pd.DataFrame, splits: Mapping[str, Split], models: Sequence[str]
) -> pd.DataFrame:
    """Compute bounds relative to the first model at the smallest fraction, as in the paper.

    Parameters
    ----------
    metrics
        Columns split, model, seed, scope, metric and value, of runs.
    splits
        The experiment's splits by name.
    models
        The experiment's models; the first that has bounds is the reference.

    Returns
    -------
    DataFrame
        Rows of the metric ``iwelbo_relative``, nats per cell: the difference to the reference's
        bound with the same split seed and training seed, without a row if that is missing. Bounds
        vary far more between splits than these differences.
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
    """Select the rows of some scopes and metrics, in their order."""
    position = pd.MultiIndex.from_tuples(wanted).get_indexer(
        pd.MultiIndex.from_frame(table[["scope", "metric"]])
    )
    order = np.argsort(position, kind="stable")
    return table.iloc[order[position[order] >= 0]]


def _of(fraction: float, table: pd.DataFrame) -> pd.DataFrame:
    columns = list(table)
    return table.assign(fraction=fraction)[["fraction", *columns]]
