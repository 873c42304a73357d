"""Predictive bounds over the number of particles: whether there are enough of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from samsvae.evaluation.metrics import RUN_SCORES
from samsvae.figures.bounds import unseen_cells
from samsvae.figures.style import model_colours, models_in, panels
from samsvae.figures.text import readable

BOUND = RUN_SCORES["iwelbo"]


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from iwelbo_by_particles.tsv; validation cells where no cell is left to test."""
    table, cells = unseen_cells(table)
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, axes = panels(2, 2, 2.4)
    runs = table.set_index(["split", "seed", "particles"])
    first = runs[runs["model"] == shown[0]]
    for model in shown:
        own = runs[runs["model"] == model]
        difference = (own["iwelbo"] - first["iwelbo"]).reindex(own.index)
        error = np.hypot(own["standard_error"], first["standard_error"].reindex(own.index))
        error = error * (model != shown[0])
        for axis, values, errors in (
            (axes[0], own["iwelbo"], own["standard_error"]),
            (axes[1], difference, error),
        ):
            over_runs = values.groupby("particles")
            axis.errorbar(
                over_runs.mean().index, over_runs.mean(), fmt="o-", markersize=2.5, capsize=1.5,
                yerr=1.96 * np.sqrt(errors.pow(2).groupby("particles").sum()) / over_runs.size(),
                color=colours[model], label=readable(model), elinewidth=0.6,
            )  # fmt: skip
    particles = sorted(table["particles"].unique())
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(particles, [f"{number:g}" for number in particles])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("particles")
    axes[0].set_ylabel(f"{BOUND.heading}, {BOUND.unit} ({cells})")
    axes[1].set_ylabel(f"{BOUND.heading} minus that of {readable(shown[0])},\n{BOUND.unit}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
