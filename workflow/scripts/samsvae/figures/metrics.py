"""How well every model and baseline does on the main scores, with intervals."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samsvae.evaluation.metrics import SHARE, describe
from samsvae.evaluation.summary import (
    BEST,
    CEILING,
    NOISE_CEILING,
    TIED,
    by_fraction,
    headlines,
    scope_of_summary,
)
from samsvae.figures.style import model_colours, name_rows, nothing_to_show, panels
from samsvae.figures.text import readable

LABEL_WIDTH = 24  # characters


def draw(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw from summary.tsv."""
    asked = set(zip(table["scope"], table["metric"], strict=True))
    questions = {
        key: heading
        for key, heading in headlines(evaluation["top_genes"], scope_of_summary(table)).items()
        if key in asked
    }
    if not questions:
        return nothing_to_show("No score is defined for these models.")
    colours = model_colours(models)
    height = 0.75 + 0.2 * len(models) * max(1.0, 0.5 * table["fraction"].nunique(dropna=False))
    figure, axes = panels(len(questions), 4, height, sharey=True)
    for axis, ((scope, metric), heading) in zip(axes, questions.items(), strict=True):
        found = table[(table["scope"] == scope) & (table["metric"] == metric)]
        _rows(axis, found, models, colours)
        axis.set_xlabel(_label(heading, metric, evaluation["top_genes"]))
        axis.xaxis.set_major_locator(MaxNLocator(3))
    name_rows(axes[0], [readable(model) for model in models])
    return figure


def _rows(
    axis: Axes, table: pd.DataFrame, models: Sequence[str], colours: Mapping[str, Any]
) -> None:
    parts = by_fraction(table)
    offset = np.linspace(-0.3, 0.3, len(parts)) if len(parts) > 1 else [0.0]
    for (_fraction, part), shift in zip(parts, offset, strict=True):
        one = part.set_index("model")
        for row, model in enumerate(models):
            if model not in one.index:
                continue
            score = one.loc[model]
            error = np.nan_to_num(
                [[score["value"] - score["low"]], [score["high"] - score["value"]]]
            )
            axis.errorbar(
                score["value"], row + shift, xerr=error, color=colours[model],
                fmt="D" if score["verdict"] == CEILING else "o", markersize=4,
                markerfacecolor=colours[model] if score["verdict"] in (BEST, TIED) else "white",
            )  # fmt: skip
        if NOISE_CEILING in one.index and len(parts) == 1:
            axis.axvline(one.loc[NOISE_CEILING, "value"], color="0.5", lw=0.8, ls="--", zorder=0)
    for row, model in enumerate(models):
        if model not in set(table["model"]):
            axis.annotate(
                "undefined", (0.02, row), xycoords=axis.get_yaxis_transform(), va="center",
                color="0.5", fontsize=6,
            )  # fmt: skip


def _label(heading: str, metric: str, n_top: int) -> str:
    text = textwrap.fill(heading, LABEL_WIDTH)
    known = describe(metric, n_top)
    return f"{text}\n({known.unit})" if known and known.unit not in ("", SHARE) else text
