"""Scores over the fraction of combinations that models were trained on (the paper's figure 3)."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from samsvae.evaluation.metrics import heading
from samsvae.figures.style import model_colours, models_in, nothing_to_show, panels
from samsvae.figures.text import readable

LABEL_WIDTH = 28  # characters


def draw(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw from intervals.tsv; the scope is the perturbations, and the cells, held out."""
    n_top = evaluation["top_genes"]
    table = table[table["scope"] == "test"]
    first = next((m for m in models if m in set(_of(table, "iwelbo_relative")["model"])), "")
    metrics = ("iwelbo_relative", "pearson", f"pearson_top{n_top}")
    shown = {
        metric: heading(metric, n_top, unit=True).replace("the first model", readable(first))
        for metric in metrics
        if len(_of(table, metric))
    }
    if not shown:
        return nothing_to_show("No score is defined for these models.")
    fractions = sorted(table["fraction"].dropna().unique())
    colours = model_colours(models)
    figure, axes = panels(len(shown), 3, 2.4)
    for axis, (metric, text) in zip(axes, shown.items(), strict=True):
        one = _of(table, metric)
        present = models_in(one, models)
        width = 0.8 / len(present)
        for place, model in enumerate(present):
            rows = one[one["model"] == model].set_index("fraction").reindex(fractions)
            error = np.nan_to_num([rows["value"] - rows["low"], rows["high"] - rows["value"]])
            axis.bar(
                np.arange(len(fractions)) + (place - (len(present) - 1) / 2) * width,
                rows["value"], width, yerr=error, color=colours[model], label=readable(model),
                error_kw={"elinewidth": 0.6, "capsize": 1},
            )  # fmt: skip
        axis.axhline(0, color="0.3", linewidth=0.6)
        axis.set_xticks(range(len(fractions)), [f"{fraction:g}" for fraction in fractions])
        axis.set(
            ylabel=textwrap.fill(text, LABEL_WIDTH),
            xlabel="fraction of combinations\nthat may be trained on",
        )
    named = {
        name: bar
        for axis in axes
        for bar, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=4)
    return figure


def _of(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    return table[table["metric"] == metric]
