"""The table that a person reads: for each question the best model, and which ones tie with it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from samsvae.config.models import CEILINGS
from samsvae.metrics.registry import HELD_OUT, Metric, Score
from samsvae.statistics.paired import TIE
from samsvae.statistics.scores import RUNS

BEST, TIED, WORSE, UNTESTED, CEILING = "best", "tied", "worse", "untested", "ceiling"
NOISE_CEILING = "noise_ceiling"


def headlines(n_top: int, scope: str) -> dict[tuple[str, str], str]:
    """List the questions of the summary, each a scope and a metric, with their headings.

    Parameters
    ----------
    n_top
        Genes per perturbation in the top-gene metrics.
    scope
        Of perturbations: ``test``, or ``all`` where none has test cells.
    """
    return {
        (scope, f"pearson{HELD_OUT}"): "r, held-out cells",
        (scope, f"pearson_top{n_top}{HELD_OUT}"): f"r, held-out cells, top {n_top} genes",
        (scope, f"median_pearson_from_mean{HELD_OUT}"): "r beyond the mean effect, held-out cells",
        (scope, f"mean_rank_of_right{HELD_OUT}"): "rank of the right perturbation, held-out cells",
        (scope, "median_de_auroc"): "AUROC of DE genes",
        (scope, "pearson"): "r, all cells",
        (scope, f"pearson_top{n_top}"): f"r, all cells, top {n_top} genes",
        ("val", "iwelbo"): "IWELBO, validation cells",
        ("test", "iwelbo"): "IWELBO, test cells",
        ("truth", "effect_pearson"): "r with true effects",
        ("truth", "mask_f1"): "mask F1",
    }


def scope_of_summary(summary: pd.DataFrame) -> str:
    """Tell which perturbations a summary is of: ``test``, or ``all`` where none has test cells."""
    effects = summary["metric"].str.contains("pearson") & (summary["scope"] != "truth")
    return "test" if (effects & (summary["scope"] == "test")).any() else "all"


def by_fraction(table: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    """Divide a table by condition, the smallest fraction first; NaN without fractions."""
    fractions = table["fraction"].astype(float)
    parts = [(float(one), table[fractions == one]) for one in sorted(fractions.dropna().unique())]
    without = table[fractions.isna()]
    return [*parts, (math.nan, without)] if len(without) else parts


@dataclass(frozen=True)
class Contestants:
    """Which models are rivals, and between what their scores are normalised.

    Attributes
    ----------
    rivals
        Models of which one is the best.
    ceilings
        Models that are measurements or the truth themselves; never the best.
    floor
        The baseline that scores 0 when normalised; None without any.
    split_half
        The ceiling made of half of the held-out cells; None without any.
    """

    rivals: Sequence[str]
    ceilings: Sequence[str]
    floor: str | None
    split_half: str | None

    @classmethod
    def of(cls, kinds: Mapping[str, str]) -> "Contestants":
        """Divide models, given by their kinds; the floor is the mean effect, or else no change."""
        first = {kind: model for model, kind in reversed(list(kinds.items()))}
        return cls(
            rivals=[model for model, kind in kinds.items() if kind not in CEILINGS],
            ceilings=[model for model, kind in kinds.items() if kind in CEILINGS],
            floor=first.get("mean_effect", first.get("no_change")),
            split_half=first.get("split_half"),
        )


def summarise(
    intervals: pd.DataFrame,
    differences: pd.DataFrame,
    contestants: Contestants,
    meaning: Callable[[str], Score | None],
) -> pd.DataFrame:
    """Say of each question which model is best, and which are not told apart from it.

    Parameters
    ----------
    intervals
        As of :func:`samsvae.statistics.comparison.intervals`, under one condition.
    differences
        As of :func:`samsvae.statistics.comparison.differences_of_runs`, and within runs.
    contestants
        The models.
    meaning
        Looks up what a metric says.

    Returns
    -------
    DataFrame
        The rows of `intervals` whose metric has a meaning, in the order best first, with
        ``normalised`` (0 at the floor, 1 at the noise ceiling, for metrics on held-out cells that
        have one), ``verdict`` (``best``; ``tied``, if not told apart from the best; ``worse``;
        ``untested``, if there is nothing to repeat; ``ceiling``), ``p_adjusted`` against the
        best and ``tested_over``, what that test repeats over: runs if there are several. A noise
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
        rivals = table[table["model"].isin(contestants.rivals)]
        table = table.sort_values("value", ascending=ascending, kind="stable")
        ceiling = noise_ceiling(table, metric, score, contestants)
        if len(rivals):
            best = rivals["value"].idxmin() if ascending else rivals["value"].idxmax()
            judged = _verdicts(table, best, tests.get((scope, metric)), contestants.rivals)
            table = table.join(judged)
        else:
            table["verdict"] = CEILING
        table["normalised"] = _normalised(table, score, ceiling, contestants.floor)
        rows.append(table)
        if not math.isnan(ceiling):
            own = {"scope": scope, "metric": metric, "model": NOISE_CEILING, "value": ceiling}
            rows.append(pd.DataFrame([{**own, "verdict": CEILING, "normalised": 1.0}]))
    columns = ["normalised", "verdict", "p_adjusted", "tested_over"]
    if not rows:
        return intervals.assign(**dict.fromkeys(columns))
    summary = pd.concat(rows, ignore_index=True)
    return summary.reindex(columns=[*intervals.columns, *columns])


def noise_ceiling(
    table: pd.DataFrame, metric: str, score: Score, contestants: Contestants
) -> float:
    """Compute what noise-free effects would score against held-out cells, or NaN.

    Parameters
    ----------
    table
        Rows of one question by model, with ``value``.
    metric, score
        The question.
    contestants
        The models.
    """
    half = contestants.split_half
    if half is None or half not in table.index or not isinstance(score, Metric):
        return math.nan
    # genes chosen by their noisy effect are not measured alike by either half
    if score.attainable is None or "_top" in metric or not metric.endswith(HELD_OUT):
        return math.nan
    return score.attainable(float(table.loc[half, "value"]))


def _verdicts(
    table: pd.DataFrame, best: str, tests: pd.DataFrame | None, rivals: Sequence[str]
) -> pd.DataFrame:
    rows = {}
    for model in table["model"]:
        test = None if tests is None else _test_between(tests, best, model)
        row: dict[str, Any] = {"p_adjusted": np.nan, "tested_over": None}
        if model not in rivals:
            row["verdict"] = CEILING
        elif model == best:
            row["verdict"] = BEST
        elif test is None:
            row["verdict"] = UNTESTED
        else:
            row["verdict"] = TIED if test["better"] == TIE else WORSE
            row |= {"p_adjusted": test["p_adjusted"], "tested_over": test.name}
        rows[model] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _test_between(tests: pd.DataFrame, one: str, other: str) -> "pd.Series[Any] | None":
    """Find the test between two models over runs, or else within them; None without any."""
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
