"""Fit of the trained models: training curves, predictive bounds, recovery of a simulated truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter

from samsvae.evaluation.agreement import MASK_THRESHOLD
from samsvae.evaluation.metrics import RUN_SCORES
from samsvae.figures import minus, readable
from samsvae.figures.style import (
    COLUMN_WIDTH,
    error_bars,
    model_colours,
    models_in,
    name_rows,
    nothing_to_show,
    panels,
)

BOUND = RUN_SCORES["iwelbo"]
STEPS_LEFT_OUT = 0.1  # the steep first part, which would hide the rest
CELLS = {"test": "test cells", "val": "validation cells"}


def draw_training(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the ELBO of training and validation cells by training step, from training.tsv."""
    shown = models_in(table, models)
    late = table[table["step"] >= STEPS_LEFT_OUT * table["step"].max()]
    palette = sns.color_palette("colorblind")
    styles = {
        "train": ("training cells", palette[0], "-"),
        "val": ("validation cells", palette[1], "--"),
    }
    figure, axes = panels(len(shown), 3, 2.1, sharey=True, sharex=True)
    for axis, model in zip(axes, shown, strict=True):
        runs = late[late["model"] == model].groupby(["split", "seed", "cells"], sort=False)
        for (_split, _seed, cells), run in runs:
            _name, colour, line = styles[cells]
            axis.plot(run["step"], run["elbo"], line, color=colour)
        axis.set(title=readable(model), xlabel="training step")
    for name, colour, line in styles.values():
        axes[0].plot([], [], line, color=colour, label=name)
    axes[0].set_ylabel("ELBO, nats per cell")
    axes[0].legend(loc="lower right")
    return figure


def draw_iwelbo(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw bounds relative to the first model, paired by cell, from iwelbo.tsv."""
    table, cells = unseen_cells(table)
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.6 + 0.3 * len(shown)))
    for row, model in enumerate(shown):
        runs = table[table["model"] == model]
        offset = np.linspace(-0.2, 0.2, len(runs)) if len(runs) > 1 else np.zeros(1)
        axis.errorbar(
            runs["difference"], row + offset, fmt="o", color=colours[model], markersize=4,
            xerr=error_bars(runs, "difference", "difference_low", "difference_high"), capsize=2,
        )  # fmt: skip
        _beside(axis, row, minus(f"{runs['mean_iwelbo'].iloc[0]:.1f}"))
    _beside(axis, -0.7, BOUND.heading)
    axis.locator_params(axis="x", nbins=4)
    axis.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    name_rows(axis, [readable(model) for model in shown])
    axis.set_xlabel(f"{BOUND.heading} minus that of {readable(shown[0])},\n{BOUND.unit} ({cells})")
    return figure


def draw_iwelbo_particles(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw mean bounds by number of particles, from iwelbo_by_particles.tsv."""
    table, cells = unseen_cells(table)
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, axes = panels(2, 2, 2.4)
    for model in shown:
        means = table[table["model"] == model].drop_duplicates("particles").sort_values("particles")
        for axis, name in zip(axes, ("mean_iwelbo", "mean_difference"), strict=True):
            axis.errorbar(
                means["particles"], means[name], fmt="o-", markersize=2.5, capsize=1.5,
                yerr=error_bars(means, name, f"{name}_low", f"{name}_high"),
                color=colours[model], label=readable(model), elinewidth=0.6,
            )  # fmt: skip
    particles = sorted(table["particles"].unique())
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(particles, [f"{number:g}" for number in particles])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("particles")
    axes[0].set_ylabel(f"{BOUND.heading}, {BOUND.unit} ({cells})")
    axes[1].set_ylabel(f"{BOUND.heading} minus that of\n{readable(shown[0])}, {BOUND.unit}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def unseen_cells(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keep the bounds of test cells, or of validation cells where there are no test cells.

    Returns
    -------
    rows : DataFrame
        Rows of the table with that scope.
    name : str
        Name of these cells.
    """
    scope = "test" if (table["scope"] == "test").any() else "val"
    return table[table["scope"] == scope], CELLS[scope]


def _beside(axis: Axes, row: float, text: str) -> None:
    """Write text on the right of the axes, at the height of a row."""
    axis.annotate(
        text, (1.02, row), va="center", annotation_clip=False,
        xycoords=axis.get_yaxis_transform(),
    )  # fmt: skip


def draw_truth(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw inferred masks beside the true ones, matched, from matched_masks.tsv."""
    shown = models_in(table, models)
    if not shown:
        return nothing_to_show("No model of this experiment has a mask.")
    n_targets = table["target"].nunique()
    figure, axes = panels(2 * len(shown), 4, 0.9 + 0.1 * n_targets)
    for index, model in enumerate(shown):
        one = table[table["model"] == model].fillna({"factor": ""})
        columns = list(dict.fromkeys(zip(one["factor"], one["dimension"], strict=True)))
        true, inferred = (
            one.pivot_table(index="target", columns="dimension", values=value)[
                [dimension for _, dimension in columns]
            ]
            for value in ("true_mask", "probability")
        )
        matched = [factor.rpartition("_")[2] for factor, _ in columns]
        for axis, matrix, title in zip(
            axes[2 * index : 2 * index + 2],
            (true, inferred),
            ("truth", readable(model)),
            strict=True,
        ):
            drawn = axis.imshow(matrix, cmap="Greys", vmin=0, vmax=1, aspect="auto")
            axis.set(title=title, xlabel="factor")
            axis.set_xticks(range(len(matched)), [name or "–" for name in matched], rotation=90)
            axis.set_yticks(np.arange(n_targets), matrix.index if axis is axes[0] else [])
            axis.tick_params(labelsize=5, length=0)
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="mask: true, or posterior probability")
    return figure


def draw_recovery(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the recovery of true masks and latent states, from recovery.tsv."""
    table = table[table["split"] == table["split"].iloc[0]]
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, axes = panels(3, 3, 2.6)
    f1 = table[table["measure"] == "f1"]
    for model in shown:
        for _, run in f1[f1["model"] == model].groupby("seed"):
            style = {"color": colours[model], "alpha": 0.8, "linewidth": 0.8}
            axes[0].plot(run["threshold"], run["value"], **style)
            axes[1].plot(run["density"], run["value"], **style)
            at = run[np.isclose(run["threshold"], MASK_THRESHOLD)]
            for axis, x in zip(axes[:2], ("threshold", "density"), strict=True):
                axis.scatter(at[x], at["value"], s=12, color=colours[model], zorder=3)
    f1 = RUN_SCORES["mask_f1"].heading
    axes[0].set(xlabel="threshold of the mask probability", ylabel=f1)
    axes[1].set(xlabel="fraction of entries in the mask", ylabel=f1, xscale="log")
    axes[1].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[1].xaxis.set_minor_formatter(NullFormatter())
    for axis in axes[:2]:
        axis.set_ylim(0, 1.03)
    _by_factor(axes[2], table[table["measure"] == "correlation"], shown, colours)
    handles = [
        axes[0].scatter([], [], s=12, color=colours[model], label=readable(model))
        for model in shown
    ]
    figure.legend(handles=handles, ncols=4, loc="outside lower center")
    return figure


def _by_factor(axis: Axes, rows: pd.DataFrame, shown: list[str], colours: dict[str, Any]) -> None:
    """Draw the factors as dots and their mean as a bar, by state and model."""
    states = ["total", "basal"]
    once = rows.drop_duplicates(["state", "model", "factor"])
    rng = np.random.default_rng(0)
    for left, state in enumerate(states):
        for index, model in enumerate(shown):
            own = once[(once["state"] == state) & (once["model"] == model)]
            if own.empty:
                continue
            values = own["factor_mean"].to_numpy()
            place = left + 0.8 * ((index + 0.5) / len(shown) - 0.5)
            half = 0.3 / len(shown)
            axis.scatter(
                place + rng.uniform(-half, half, len(values)), values, s=8, linewidths=0,
                color=colours[model], alpha=0.8,
            )  # fmt: skip
            axis.plot([place - half, place + half], [own["state_mean"].iloc[0]] * 2, color="black")
    axis.set_xticks(range(len(states)), [f"{state} state" for state in states])
    axis.set(ylabel="|r| with the true factor", ylim=(0, 1.03))
