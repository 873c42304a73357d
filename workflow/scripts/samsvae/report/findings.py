"""What an experiment found, in sentences and in the report's tables, from summary.tsv."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from samsvae.metrics.registry import HELD_OUT
from samsvae.statistics.summary import (
    BEST,
    NOISE_CEILING,
    TIED,
    UNTESTED,
    WORSE,
    by_fraction,
    headlines,
    scope_of_summary,
)
from samsvae.wording import readable

UNDEFINED = "–"
REPEATED = {
    "splits": "splits",
    "seeds": "training seeds",
    "perturbations": "perturbations",
    "cells": "cells",
}


def condition_tables(
    summary: pd.DataFrame, models: Sequence[str], n_top: int
) -> list[dict[str, Any]]:
    """Lay out the summary for a reader: a table per condition, a row per model.

    Parameters
    ----------
    summary
        The table summary.tsv.
    models
        Rows.
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
    rows = [*models, NOISE_CEILING]
    cells = {model: [_cell(readable(model))] for model in rows}
    columns = ["model"]
    for (scope, metric), heading in _questions(summary, n_top).items():
        columns.append(heading)
        asked = (summary["scope"] == scope) & (summary["metric"] == metric)
        found = summary[asked].set_index("model")
        for model in rows:
            known = model in found.index
            cells[model].append(_score(found.loc[model], metric) if known else _cell(UNDEFINED))
    has_ceiling = (summary["model"] == NOISE_CEILING).any()
    return {"columns": columns, "rows": [cells[row] for row in (rows if has_ceiling else models)]}


def _questions(summary: pd.DataFrame, n_top: int) -> dict[tuple[str, str], str]:
    asked = set(zip(summary["scope"], summary["metric"], strict=True))
    found = headlines(n_top, scope_of_summary(summary))
    return {key: heading for key, heading in found.items() if key in asked}


def _cell(text: str, interval: str = "", verdict: str = "") -> dict[str, str]:
    return {"text": text, "interval": interval, "verdict": verdict}


def _score(row: "pd.Series[Any]", metric: str) -> dict[str, str]:
    low, high = (_number(row[limit], metric) for limit in ("low", "high"))
    interval = "" if pd.isna(row["low"]) else f"[{low}, {high}]"
    return _cell(_number(row["value"], metric), interval, row["verdict"])


def sentences(summary: pd.DataFrame, n_top: int) -> list[str]:
    """Say in sentences which model is best at what, and how surely.

    Parameters
    ----------
    summary
        The table summary.tsv.
    n_top
        Genes per perturbation in the top-gene metrics.
    """
    said = []
    parts = by_fraction(summary)
    for fraction, part in parts:
        where = f"Fraction {fraction:g}: " if len(parts) > 1 else ""
        for (scope, metric), subject in _subjects(part, n_top).items():
            asked = (part["scope"] == scope) & (part["metric"] == metric)
            found = part[asked].set_index("model")
            if (found["verdict"] == BEST).any():
                said.append(where + _verdict(found, metric, subject))
    return said


def _subjects(summary: pd.DataFrame, n_top: int) -> dict[tuple[str, str], str]:
    wording = {
        f"pearson{HELD_OUT}": "predicted effects agree best with those among held-out cells",
        "iwelbo": "the bound on test cells is highest",
        "effect_pearson": "predictions are nearest to the simulation's noise-free effects",
        "mask_f1": "which target moves which factor is recovered best",
    }
    return {
        (scope, metric): wording[metric]
        for scope, metric in _questions(summary, n_top)
        if metric in wording and scope != "val"
    }


def _verdict(found: pd.DataFrame, metric: str, subject: str) -> str:
    best = found[found["verdict"] == BEST].iloc[0]
    unit = {"iwelbo": " nats per cell", "mask_f1": " (F1)"}.get(metric, " (Pearson r)")
    sentence = f"For {readable(str(best.name))}, {subject}: {_number(best['value'], metric)}{unit}"
    ceiling = found["value"].get(NOISE_CEILING, np.nan)
    if not np.isnan(ceiling):
        sentence += f", where effects without noise would reach about {_number(ceiling, metric)}"
    clauses = [sentence + "."]
    tied, worse, untested = (
        found[found["verdict"] == verdict] for verdict in (TIED, WORSE, UNTESTED)
    )
    if len(tied):
        clauses.append(f"Not told apart from it: {_listed(tied, metric)}.")
    if len(worse):
        clauses.append(f"Behind it: {_listed(worse, metric)}.")
    if len(untested):
        clauses.append(f"Not tested, since nothing was repeated: {_listed(untested, metric)}.")
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
