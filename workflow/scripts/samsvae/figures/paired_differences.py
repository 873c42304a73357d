"""Every model against the first, paired, with the interval of the difference."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samsvae.evaluation.comparison import RUNS, TIE
from samsvae.evaluation.metrics import HELD_OUT, heading
from samsvae.evaluation.summary import by_fraction
from samsvae.figures.style import model_colours, models_in, name_rows, nothing_to_show, panels
from samsvae.figures.text import readable

LABEL_WIDTH = 24  # characters
WITHIN = {"perturbations": "over perturbations", "cells": "over cells"}


def draw(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw from paired_differences.tsv."""
    metrics = (
        f"pearson{HELD_OUT}",
        f"median_pearson{HELD_OUT}",
        f"median_pearson_from_mean{HELD_OUT}",
        "median_de_auroc",
        "iwelbo",
    )
    scope = "test" if (table["scope"] == "test").any() else "all"
    against = _against_first(table[table["scope"] == scope], models[0])
    shown = [metric for metric in metrics if metric in set(against["metric"])]
    if f"pearson{HELD_OUT}" in shown and f"median_pearson{HELD_OUT}" in shown:
        shown.remove(f"median_pearson{HELD_OUT}")
    if not shown:
        return nothing_to_show("Nothing was repeated, so no difference has an interval.")
    others = models_in(against, models[1:])
    colours = model_colours(models)
    n_fractions = len(by_fraction(against))
    offset = np.linspace(-0.3, 0.3, n_fractions) if n_fractions > 1 else [0.0]
    height = 0.8 + 0.25 * len(others) * max(1.0, 0.5 * n_fractions)
    figure, axes = panels(len(shown), 4, height, sharey=True)
    for axis, metric in zip(axes, shown, strict=True):
        one = against[against["metric"] == metric]
        for index, part in enumerate(part for _, part in by_fraction(one)):
            for _name, row in part.iterrows():
                place = others.index(row["model"]) + offset[index]
                colour = colours[row["model"]]
                axis.plot([row["low"], row["high"]], [place] * 2, color=colour)
                axis.plot(
                    row["difference"], place, "o", color=colour, markersize=4,
                    markerfacecolor="white" if row["better"] == TIE else colour,
                )  # fmt: skip
                if n_fractions == 1:
                    axis.annotate(
                        f"{row['difference']:+.3f}".replace("-", "−"), (1.0, place), va="center",
                        xycoords=axis.get_yaxis_transform(), fontsize=6, annotation_clip=False,
                    )  # fmt: skip
        over = one["over"].iloc[0]
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.axvline(0, color="0.5", linewidth=0.6, zorder=0)
        text = textwrap.fill(heading(metric, evaluation["top_genes"], unit=True), LABEL_WIDTH)
        axis.set_xlabel(f"{text}\n({WITHIN.get(over, f'over {over}')})")
    name_rows(axes[0], [readable(model) for model in others])
    figure.suptitle(f"Difference to {readable(models[0])}")
    return figure


def _against_first(table: pd.DataFrame, first: str) -> pd.DataFrame:
    """Turn comparisons with the first model so that it is subtracted; over runs if there are."""
    table = table[table["low"].notna() & ((table["first"] == first) | (table["second"] == first))]
    turned = np.where(table["first"] == first, -1.0, 1.0)
    ends = np.sort([turned * table["low"], turned * table["high"]], axis=0)
    table = table.assign(
        model=np.where(table["first"] == first, table["second"], table["first"]),
        difference=turned * table["difference"], low=ends[0], high=ends[1],
        within=~table["over"].isin(RUNS),
    )  # fmt: skip
    question = ["fraction", "metric", "model"]
    return table.sort_values("within", kind="stable").drop_duplicates(question)
