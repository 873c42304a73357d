"""Recovery of a simulated truth: masks and latent states."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from samsvae.evaluation.agreement import MASK_THRESHOLD
from samsvae.evaluation.metrics import RUN_SCORES
from samsvae.figures.style import model_colours, models_in, nothing_to_show, panels
from samsvae.figures.text import readable


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
