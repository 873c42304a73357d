"""Basal and total states of cells on a plane."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from samsvae.biology.states import OTHER
from samsvae.figures.style import PAGE_WIDTH, SEQUENTIAL
from samsvae.figures.text import readable
from samsvae.screen.labels import CONTROL

MOST_COVARIATES, MOST_LEVELS = 2, 9
NOT_COVARIATES = {
    "split", "model", "seed", "cell", "perturbation", "state", "shown_as", "x", "y", "guide",
    "gene",
}  # fmt: skip
CONTROL_COLOUR, OTHER_COLOUR = "black", "0.85"


def draw(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw from state_map.tsv; a row of panels for perturbations and one for each covariate."""
    shown = ["shown_as", *_covariates(table)]
    figure, axes = plt.subplots(
        len(shown), 2, figsize=(PAGE_WIDTH, 2.7 * len(shown)), squeeze=False
    )
    size = float(np.clip(6000 / len(table), 0.6, 4))
    for row, name in enumerate(shown):
        for column, state in enumerate(("basal", "total")):
            axis, cells = axes[row, column], table[table["state"] == state]
            if name == "shown_as":
                _by_perturbation(axis, cells, size)
            elif pd.api.types.is_float_dtype(table[name]):
                drawn = _by_number(axis, cells, name, size)
                if column == 1:
                    figure.colorbar(drawn, ax=axes[row], shrink=0.7, label=readable(name))
            else:
                _by_level(axis, cells, name, size)
            axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
            if row == 0:
                axis.set_title(f"{state} state")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(
                loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3, handletextpad=0.1,
                title=None if name == "shown_as" else readable(name),
            )  # fmt: skip
    return figure


def _covariates(table: pd.DataFrame) -> list[str]:
    """Choose columns of numbers, or of a few levels."""
    candidates = [name for name in table.columns if name not in NOT_COVARIATES]
    return [
        name
        for name in candidates
        if pd.api.types.is_float_dtype(table[name]) or 1 < table[name].nunique() <= MOST_LEVELS
    ][:MOST_COVARIATES]


def _by_perturbation(axis: Axes, cells: pd.DataFrame, size: float) -> None:
    named = sorted(set(cells["shown_as"]) - {OTHER, CONTROL})
    palette = dict(zip(named, sns.color_palette("colorblind", len(named)), strict=True))
    colours = {OTHER: OTHER_COLOUR, CONTROL: CONTROL_COLOUR, **palette}
    for name, colour in colours.items():
        some = cells[cells["shown_as"] == name]
        axis.scatter(some["x"], some["y"], s=size, color=colour, linewidths=0, label=name)


def _by_number(axis: Axes, cells: pd.DataFrame, name: str, size: float) -> PathCollection:
    low, high = cells[name].quantile([0.01, 0.99])
    return axis.scatter(
        cells["x"], cells["y"], c=cells[name], s=size, cmap=SEQUENTIAL, vmin=low, vmax=high,
        linewidths=0,
    )  # fmt: skip


def _by_level(axis: Axes, cells: pd.DataFrame, name: str, size: float) -> None:
    levels = sorted(cells[name].dropna().astype(str).unique())
    colours = sns.color_palette("colorblind", len(levels))
    for level, colour in zip(levels, colours, strict=True):
        some = cells[cells[name].astype(str) == level]
        axis.scatter(some["x"], some["y"], s=size, color=colour, linewidths=0, label=level)
