"""How the quality of predictions is distributed over perturbations."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from samsvae.evaluation.metrics import HELD_OUT, heading
from samsvae.figures.style import model_colours, name_rows, nothing_to_show, panels
from samsvae.figures.text import readable

LABEL_WIDTH = 30  # characters
SPREAD_OF_DOTS = 0.22


def draw(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw from perturbation_metrics.parquet; perturbations with test cells, seeds averaged."""
    metrics = (f"pearson{HELD_OUT}", f"pearson_from_mean{HELD_OUT}", "de_auroc")
    if table["tested"].any():
        table = table[table["tested"]]
    means = (
        table[table["metric"].isin(metrics)]
        .groupby(["metric", "model", "perturbation"], observed=True)["value"]
        .mean()
        .dropna()
        .reset_index()
    )
    shown = [metric for metric in metrics if metric in set(means["metric"])]
    if not shown:
        return nothing_to_show("No perturbation has enough held-out cells.")
    colours = model_colours(models)
    figure, axes = panels(len(shown), 3, 0.75 + 0.27 * len(models), sharey=True)
    rng = np.random.default_rng(0)
    for axis, metric in zip(axes, shown, strict=True):
        for row, model in enumerate(models):
            chosen = (means["metric"] == metric) & (means["model"] == model)
            values = means.loc[chosen, "value"].to_numpy()
            if not len(values):
                axis.annotate(
                    "undefined", (0.02, row), xycoords=axis.get_yaxis_transform(), va="center",
                    color="0.5", fontsize=6,
                )  # fmt: skip
                continue
            height = row + rng.uniform(-SPREAD_OF_DOTS, SPREAD_OF_DOTS, len(values))
            size = float(np.clip(300 / len(values), 1, 8))
            axis.scatter(values, height, s=size, alpha=0.5, color=colours[model], linewidths=0)
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            axis.plot([low, high], [row, row], color="0.15", lw=1.2)
            axis.plot(middle, row, "o", color="0.15", markerfacecolor="white", markersize=3.5)
        axis.set_xlabel(textwrap.fill(heading(metric, evaluation["top_genes"]), LABEL_WIDTH))
    name_rows(axes[0], [readable(model) for model in models])
    return figure
