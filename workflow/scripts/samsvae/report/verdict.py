"""Comparison of models in words: the verdict to quote, sentences on main scores, and their table.

A verdict names models by their display names, the metrics that count, and what was repeated.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from samsvae.evaluation.compared import LEAST_BDS
from samsvae.evaluation.comparison import NOT_SIGNIFICANT
from samsvae.evaluation.metrics import (
    DE,
    HELD_OUT,
    WITH_TARGETS,
    heading,
    meaning,
    of_perturbations,
)
from samsvae.evaluation.ranking import CHANCE, metrics_of_held_out_cells
from samsvae.evaluation.summary import (
    BEST,
    NOISE_CEILING,
    NOT_DIFFERENT,
    UNTESTED,
    WORSE,
    Tables,
    by_fraction,
    headlines_in,
    paired_test_between,
)
from samsvae.figures import minus, readable

REPEATED = {
    "splits": "splits",
    "seeds": "training seeds",
    "perturbations": "perturbations",
    "cells": "cells",
}
CORRECTIONS = {"holm": "Holm", "bh": "Benjamini and Hochberg"}
VERDICT = ["fraction", "about", "verdict"]
RANKING, DIFFERENCES, CALIBRATION = "ranking", "differences", "calibration"
MOST_QUOTED = 6  # metrics that cannot rank models
ON_HELD_OUT = ", held-out cells"  # ends most headings


def verdicts(tables: Tables, n_top: int, correction: str, level: float) -> pd.DataFrame:
    """Write the comparison of models as paragraphs to quote, for each condition.

    Parameters
    ----------
    tables
        Tables of the comparison.
    n_top
        Genes per perturbation in the top-gene metrics.
    correction, level
        Of the paired tests, see :class:`samsvae.evaluation.comparison.Rules`.

    Returns
    -------
    DataFrame
        Columns :data:`VERDICT`, with a row for what is said about the ranking, about significant
        differences, and about metrics that cannot rank models; no rows where metrics are not
        calibrated, as without counts.
    """
    if "bds" not in tables.summary:
        return pd.DataFrame(columns=VERDICT)
    parts = by_fraction(tables.summary)
    how = f"p < {level:g} after correction ({CORRECTIONS[correction]}) over all pairs of models"
    rows = []
    for fraction, summary in parts:
        ranking, differences, scores = (
            table[table["fraction"].isna() if np.isnan(fraction) else table["fraction"] == fraction]
            for table in (tables.ranking, tables.differences, tables.intervals)
        )
        main = main_scores(summary, n_top)
        said = {
            RANKING: ranking_in_words(ranking),
            DIFFERENCES: differences_in_words(ranking, differences, main, how),
            CALIBRATION: calibration_in_words(scores, n_top),
        }
        where = f"Fraction {fraction:g}: " if len(parts) > 1 else ""
        rows += [
            {"fraction": fraction, "about": about, "verdict": where + " ".join(sentences)}
            for about, sentences in said.items()
            if sentences
        ]
    return pd.DataFrame(rows, columns=VERDICT)


def ranking_in_words(ranking: pd.DataFrame) -> list[str]:
    """Describe the mean normalised scores of models, and how certain the best one is.

    Parameters
    ----------
    ranking
        Rows of the table ranking.tsv under one condition.
    """
    if ranking.empty:
        return [
            "No metric of predicted effects has a scale on this screen, and models have no rank."
        ]
    best = ranking.iloc[0]
    reference = str(best["reference"])
    zero = "value by chance" if reference == CHANCE else readable(reference)
    named = ", ".join(
        readable(str(row["model"])) + minus(f" {row['score']:.2f}") + _interval(row)
        for _, row in ranking.iterrows()
    )
    intervals = "" if pd.isna(best["low"]) else ", with 95 % intervals"
    said = [
        f"Mean score over {counted(best['n_metrics'], 'calibrated metrics')}, on a scale from 0 "
        f"({zero}) to 1 (noise ceiling, or a replicate){intervals}: {named}."
    ]
    # seeds on several splits are averaged, and not resampled
    sampled = ("perturbations", "splits" if best["n_splits"] > 1 else "seeds")
    repeated = [counted(best[f"n_{of}"], REPEATED[of]) for of in sampled if best[f"n_{of}"] > 1]
    if len(ranking) > 1 and not pd.isna(best["probability_best"]):
        percent = f"{100 * best['probability_best']:.0f} %"
        said.append(
            f"{at_start(readable(str(best['model'])))} is the best in {percent} of bootstrap "
            f"samples of {' and '.join(repeated)}."
        )
    return said


def _interval(row: "pd.Series[Any]") -> str:
    low, high = (minus(f"{row[limit]:.2f}") for limit in ("low", "high"))
    return "" if pd.isna(row["low"]) else f" ({low} to {high})"


def at_start(name: str, before: str = "") -> str:
    """Write the name of a model with a capital letter where it begins a sentence."""
    return name if before else name[:1].upper() + name[1:]


def counted(number: int, things: str) -> str:
    """Write a number of things, which are singular if there is one."""
    return f"{number:,} {things.removesuffix('s') if number == 1 else things}"


def main_scores(summary: pd.DataFrame, n_top: int) -> dict[tuple[str, str], str]:
    """List the main scores of held-out cells that can rank models, with target genes left out.

    Parameters
    ----------
    summary
        Rows of the table summary.tsv under one condition.
    n_top
        Genes per perturbation in the top-gene metrics.

    Returns
    -------
    dict of str
        Short headings by scope and metric.
    """
    ranked = set(
        summary.loc[summary["bds"] >= LEAST_BDS, ["scope", "metric"]].itertuples(
            index=False, name=None
        )
    )
    return {
        (scope, metric): text.removesuffix(ON_HELD_OUT)
        for (scope, metric), text in headlines_in(summary, n_top).items()
        if (scope, metric) in ranked
        and WITH_TARGETS not in metric
        and (metric.endswith(HELD_OUT) or f"_{DE}" in metric)
    }


def differences_in_words(
    ranking: pd.DataFrame,
    differences: pd.DataFrame,
    scores: dict[tuple[str, str], str],
    how: str,
) -> list[str]:
    """Describe on which scores the first model of a ranking differs significantly from the others.

    Parameters
    ----------
    ranking, differences
        Rows of the tables ranking.tsv and paired_differences.tsv under one condition.
    scores
        As of :func:`main_scores`.
    how
        Level and correction of the tests.
    """
    if len(ranking) < 2 or not scores:
        return []
    first, *others = ranking["model"].astype(str)
    tests = {at: rows.set_index("over") for at, rows in differences.groupby(["scope", "metric"])}
    replicates: dict[str, int] = {}
    of_pattern: dict[tuple[str, ...], list[str]] = {}
    for other in others:
        pattern = []
        for scope, metric in scores:
            # a score of all entries together has no values of perturbations, but its median has
            asked = [tests.get((scope, name)) for name in (metric, f"median_{metric}")]
            made = [paired_test_between(one, first, other) for one in asked if one is not None]
            test = next((one for one in made if one is not None), None)
            pattern.append(UNTESTED if test is None else _outcome(test["better"], first))
            if test is not None:
                replicates[str(test.name)] = max(test["n"], replicates.get(str(test.name), 0))
        of_pattern.setdefault(tuple(pattern), []).append(readable(other))
    if not replicates:
        return ["Differences between models are not tested, since there are no replicates."]
    said = [f"Main scores that can rank models here: {_quoted(scores.values())}."]
    for found, models in of_pattern.items():
        subject = at_start(readable(first)) if len(said) == 1 else "It"
        said.append(_difference_in_words(subject, models, found, list(scores.values())))
    over = " and ".join(counted(number, REPEATED[of]) for of, number in replicates.items())
    return [*said, f"These are paired t-tests over {over}, with {how}."]


def _outcome(better: str, first: str) -> str:
    if better == NOT_SIGNIFICANT:
        return NOT_DIFFERENT
    return BEST if better == first else WORSE


def _difference_in_words(
    first: str, others: Sequence[str], found: Sequence[str], scores: Sequence[str]
) -> str:
    """Describe the outcomes of tests against models that are alike in these."""
    rivals = listed_words(others)
    by_outcome = {
        outcome: [score for score, one in zip(scores, found, strict=True) if one == outcome]
        for outcome in (BEST, WORSE, NOT_DIFFERENT, UNTESTED)
    }
    tested = len(scores) - len(by_outcome[UNTESTED])
    end = (
        f" (undefined or not tested: {_quoted(by_outcome[UNTESTED])})"
        if tested < len(scores)
        else ""
    )
    if not tested:
        return f"{first} is not tested against {rivals}."
    if len(by_outcome[NOT_DIFFERENT]) == tested:
        which = "any of them" if tested > 1 else "it"
        return f"{first} does not differ significantly from {rivals} on {which}{end}."
    clauses: list[str] = []
    for outcome, word in ((BEST, "better"), (WORSE, "worse")):
        if own := by_outcome[outcome]:
            than = "" if clauses else f" than {rivals}"
            which = "all of them" if len(own) == tested > 1 else _quoted(own)
            clauses.append(f"significantly {word}{than} on {which}")
    if by_outcome[NOT_DIFFERENT]:
        clauses.append("not significantly different on the others")
    return f"{first} is {listed_words(clauses)}{end}."


def _quoted(names: Collection[str]) -> str:
    return listed_words([f"“{name}”" for name in names])


MOST_NAMED = 4
MOST_SOUGHT = 12  # of a list in which a reader seeks a name


def some_of(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """List the first names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def listed_words(words: Sequence[str]) -> str:
    """List words, with "and" before the last."""
    *several, last = words
    return f"{', '.join(several)} and {last}" if several else last


def calibration_in_words(scores: pd.DataFrame, n_top: int) -> list[str]:
    """Name the metrics that cannot rank models on the screen, with the reason.

    Parameters
    ----------
    scores
        Rows of the table intervals.tsv under one condition: metric and bds.
    n_top
        Genes per perturbation in the top-gene metrics.

    Returns
    -------
    list of str
        A sentence on the metrics of held-out cells, each once, and on the main scores that are
        none of these; or none if all that are calibrated rank models.
    """
    cannot = scores[scores["bds"] < LEAST_BDS]
    main = {metric for _, metric in headlines_in(scores, n_top) if WITH_TARGETS not in metric}
    single = {metric: of_perturbations(metric, n_top) for metric in cannot["metric"].unique()}
    asked = main & set(single) | (metrics_of_held_out_cells(n_top).keys() & set(single.values()))
    bds = {
        single[metric]: value
        for metric, value in zip(cannot["metric"], cannot["bds"], strict=True)
        if asked & {metric, single[metric]}
    }
    named = [
        f"{heading(str(name), n_top).removesuffix(ON_HELD_OUT)} ({value:.2f})"
        for name, value in bds.items()
    ]
    if not named:
        return []
    more = f"; and {len(named) - MOST_QUOTED} more" if len(named) > MOST_QUOTED else ""
    return [
        "These metrics cannot rank models on this screen, since a replicate of a perturbation's "
        "own cells is better than a prediction that knows nothing of the perturbation for fewer "
        f"than {100 * LEAST_BDS:.0f} % of perturbations (fraction in brackets): "
        f"{'; '.join(named[:MOST_QUOTED])}{more}."
    ]


UNDEFINED = "–"


def condition_tables(
    summary: pd.DataFrame, models: Sequence[str], n_top: int
) -> list[dict[str, Any]]:
    """Lay out the summary for a reader: a table per condition, a row per score.

    Parameters
    ----------
    summary
        The table summary.tsv.
    models
        Columns.
    n_top
        Genes per perturbation in the top-gene metrics.

    Returns
    -------
    list of dict
        Of each condition its ``title`` (empty if there is one alone), ``columns`` (headings) and
        ``rows``, lists of cells with ``text``, ``interval`` and ``verdict``.
    """
    parts = by_fraction(summary)
    return [
        {
            "title": f"Fraction {fraction:g}" if len(parts) > 1 else "",
            **_table(part, models, n_top),
        }
        for fraction, part in parts
    ]


def _table(summary: pd.DataFrame, models: Sequence[str], n_top: int) -> dict[str, Any]:
    has_ceiling = (summary["model"] == NOISE_CEILING).any()
    shown = [*models, NOISE_CEILING] if has_ceiling else list(models)
    rows = []
    for (scope, metric), text in headlines_in(summary, n_top).items():
        asked = (summary["scope"] == scope) & (summary["metric"] == metric)
        found = summary[asked].set_index("model")
        rows.append(
            [
                _cell(text),
                *(
                    _score(found.loc[model], metric) if model in found.index else _cell(UNDEFINED)
                    for model in shown
                ),
            ]
        )
    return {"columns": ["score", *map(readable, shown)], "rows": rows}


def _cell(text: str, interval: str = "", verdict: str = "") -> dict[str, str]:
    return {"text": text, "interval": interval, "verdict": verdict}


def _score(row: "pd.Series[Any]", metric: str) -> dict[str, str]:
    low, high = (_number(row[limit], metric) for limit in ("low", "high"))
    interval = "" if pd.isna(row["low"]) else f"[{low}, {high}]"
    return _cell(_number(row["value"], metric), interval, row["verdict"])


def sentences(summary: pd.DataFrame, n_top: int) -> dict[str, list[str]]:
    """Describe the best model for each main score and its comparison with the others.

    Parameters
    ----------
    summary
        The table summary.tsv.
    n_top
        Genes per perturbation in the top-gene metrics.

    Returns
    -------
    dict
        Sentences by section of the report.
    """
    said: dict[str, list[str]] = {"effects": [], "models": [], "truth": []}
    parts = by_fraction(summary)
    for fraction, part in parts:
        where = f"Fraction {fraction:g}: " if len(parts) > 1 else ""
        for (scope, metric), (section, subject) in _subjects(part, n_top).items():
            asked = (part["scope"] == scope) & (part["metric"] == metric)
            found = part[asked].set_index("model")
            if (found["verdict"] == BEST).any():
                said[section].append(where + _verdict(found, metric, subject, n_top))
    return said


def _subjects(summary: pd.DataFrame, n_top: int) -> dict[tuple[str, str], tuple[str, str]]:
    """Describe main scores, with the section of the report that answers them."""
    subjects = {
        f"pearson{HELD_OUT}": (
            "effects",
            "predicted effects agree best with those among held-out cells",
        ),
        "iwelbo": ("models", "the bound on test cells (IWELBO) is highest"),
        "effect_pearson": (
            "truth",
            "predicted effects agree best with the noise-free simulated effects",
        ),
        "mask_f1": ("truth", "the mask of perturbations and factors is recovered best"),
    }
    return {
        (scope, metric): subjects[metric]
        for scope, metric in headlines_in(summary, n_top)
        if metric in subjects and scope != "val"
    }


def _verdict(found: pd.DataFrame, metric: str, subject: str, n_top: int) -> str:
    best = found[found["verdict"] == BEST].iloc[0]
    known = meaning(metric, n_top)
    unit = f" {known.unit or f'({known.heading})'}" if known else ""
    sentence = f"For {readable(str(best.name))}, {subject}: {_number(best['value'], metric)}{unit}"
    ceiling = found["value"].get(NOISE_CEILING, np.nan)
    if not np.isnan(ceiling):
        sentence += f", where noise-free effects would reach about {_number(ceiling, metric)}"
    clauses = [sentence + "."]
    equal, worse, untested = (
        found[found["verdict"] == verdict] for verdict in (NOT_DIFFERENT, WORSE, UNTESTED)
    )
    if len(equal):
        clauses.append(f"No significant difference to: {_listed(equal, metric)}.")
    if len(worse):
        clauses.append(f"Significantly worse: {_listed(worse, metric)}.")
    if len(untested):
        clauses.append(f"Not tested, without replicates: {_listed(untested, metric)}.")
    over = found["tested_over"].dropna().unique()
    if len(over):
        clauses.append(f"Tested over {' and '.join(REPEATED[name] for name in over)}.")
    return " ".join(clauses)


def _listed(rows: pd.DataFrame, metric: str) -> str:
    return ", ".join(
        f"{readable(str(model))} {_number(value, metric)}" for model, value in rows["value"].items()
    )


def _number(value: float, metric: str) -> str:
    digits = 2 if metric == "iwelbo" else 3
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")
