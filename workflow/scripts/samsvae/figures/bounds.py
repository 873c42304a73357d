"""Training curves and predictive bounds of the trained models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from samsvae.figures.style import COLUMN_WIDTH, model_colours, models_in, name_rows, panels
from samsvae.figures.text import readable

STEPS_LEFT_OUT = 0.1  # the steep first part, which would hide the rest


def draw_training(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from training.tsv."""
    shown = models_in(table, models)
    late = table[table["step"] >= STEPS_LEFT_OUT * table["step"].max()]
    styles = {"train": (sns.color_palette("colorblind")[0], "-"),
              "val": (sns.color_palette("colorblind")[1], "--")}  # fmt: skip
    names = {"train": "training cells", "val": "validation cells"}
    figure, axes = panels(len(shown), 3, 2.1, sharey=True, sharex=True)
    for axis, model in zip(axes, shown, strict=True):
        runs = late[late["model"] == model].groupby(["split", "seed", "cells"], sort=False)
        for number, ((_split, _seed, cells), run) in enumerate(runs):
            colour, line = styles[cells]
            label = names[cells] if number < 2 else None
            axis.plot(run["step"], run["elbo"], line, color=colour, label=label)
        axis.set(title=readable(model), xlabel="training step")
    axes[0].set_ylabel("ELBO, nats per cell")
    axes[0].legend(loc="lower right")
    return figure


CELLS = {"test": "test cells", "val": "validation cells"}


def unseen_cells(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keep the bounds of test cells, or of validation cells where no cell is left to test.

    Returns
    -------
    rows : DataFrame
        Those of the table whose scope these cells are.
    name : str
        What to call them.
    """
    scope = "test" if (table["scope"] == "test").any() else "val"
    return table[table["scope"] == scope], CELLS[scope]


def draw_iwelbo(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from iwelbo.tsv; test cells, or validation cells where no cell is left to test."""
    table, cells = unseen_cells(table)
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.6 + 0.3 * len(shown)))
    for row, model in enumerate(shown):
        runs = table[table["model"] == model]
        offset = np.linspace(-0.2, 0.2, len(runs)) if len(runs) > 1 else [0]
        axis.errorbar(
            runs["difference"], row + np.asarray(offset), fmt="o", color=colours[model],
            xerr=1.96 * runs["difference_standard_error"].fillna(0), markersize=4, capsize=2,
        )  # fmt: skip
        bound = f"{runs['iwelbo'].mean():.1f}".replace("-", "−")
        axis.annotate(
            bound, (1.02, row), va="center", annotation_clip=False,
            xycoords=axis.get_yaxis_transform(),
        )  # fmt: skip
    axis.annotate(
        "IWELBO", (1.02, -0.7), va="center", annotation_clip=False,
        xycoords=axis.get_yaxis_transform(),
    )  # fmt: skip
    axis.locator_params(axis="x", nbins=4)
    axis.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    name_rows(axis, [readable(model) for model in shown])
    axis.set_xlabel(f"IWELBO minus that of {readable(shown[0])},\nnats per cell ({cells})")
    return figure


def draw_iwelbo_particles(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
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
    axes[0].set_ylabel(f"IWELBO, nats per cell ({cells})")
    axes[1].set_ylabel(f"IWELBO minus that of {readable(shown[0])},\nnats per cell")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
