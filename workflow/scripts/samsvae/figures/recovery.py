"""How much of a simulated screen's truth each model recovers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from samsvae.evaluation.factors import MASK_THRESHOLD
from samsvae.evaluation.metrics import RUN_SCORES
from samsvae.figures.style import model_colours, models_in, panels
from samsvae.figures.text import readable


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from recovery.tsv; lines are runs of the first split, dots factors (means of runs)."""
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
    axes[0].set(xlabel="threshold of the mask's probability")
    axes[1].set(xlabel="fraction of entries in the mask", xscale="log")
    axes[1].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[1].xaxis.set_minor_formatter(NullFormatter())
    for axis in axes[:2]:
        axis.set(ylabel=RUN_SCORES["mask_f1"].heading, ylim=(0, 1.03))
    _by_factor(axes[2], table[table["measure"] == "correlation"], shown, colours)
    handles = [
        axes[0].scatter([], [], s=12, color=colours[model], label=readable(model))
        for model in shown
    ]
    figure.legend(handles=handles, ncols=4, loc="outside lower center")
    return figure


def _by_factor(axis: Axes, rows: pd.DataFrame, shown: list[str], colours: dict[str, Any]) -> None:
    """Dots for the factors, and a bar for their mean, by state and model."""
    states = ["total", "basal"]
    means = rows.groupby(["state", "model", "factor"])["value"].mean()
    rng = np.random.default_rng(0)
    for left, state in enumerate(states):
        for index, model in enumerate(shown):
            if (state, model) not in means.index.droplevel("factor"):
                continue
            values = means[state, model].to_numpy()
            place = left + 0.8 * ((index + 0.5) / len(shown) - 0.5)
            half = 0.3 / len(shown)
            axis.scatter(
                place + rng.uniform(-half, half, len(values)), values, s=8, linewidths=0,
                color=colours[model], alpha=0.8,
            )  # fmt: skip
            axis.plot([place - half, place + half], [values.mean()] * 2, color="black")
    axis.set_xticks(range(len(states)), [f"{state} state" for state in states])
    axis.set(ylabel="|r| with the true state, by factor", ylim=(0, 1.03))
