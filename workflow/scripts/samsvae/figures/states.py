"""Latent states of cells: independence of the perturbation, and maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from samsvae.biology import ALL, INDEPENDENT_WITHIN, NULL, OTHER, PERTURBED
from samsvae.figures import readable
from samsvae.figures.style import (
    OBSERVED_COLOUR,
    PAGE_WIDTH,
    SEQUENTIAL,
    models_in,
    name_rows,
    nothing_to_show,
    panels,
)
from samsvae.screen.labels import CONTROL

STATES = {
    "basal": ("basal", "true"),
    "total": ("total", "true"),
    "basal, labels shuffled": ("basal", "shuffled"),
}

MOST_COVARIATES, MOST_LEVELS = 2, 9
NOT_COVARIATES = {
    "split", "model", "seed", "cell", "perturbation", "state", "shown_as", "x", "y", "guide",
    "gene", "leiden",  # clusters of basal and of total states have numbers of their own
}  # fmt: skip
CONTROL_COLOUR, OTHER_COLOUR = "black", "0.85"


def draw_basal(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the accuracy of classifying perturbations by latent states, from basal.tsv."""
    shown = models_in(table, models)
    if not shown:
        return nothing_to_show("Too few held-out cells of control or of every perturbation.")
    colours = dict(zip(STATES, sns.color_palette("colorblind", len(STATES)), strict=True))
    figure, axes = panels(2, 2, 0.9 + 0.34 * len(shown), sharey=True)
    figure.set_figwidth(PAGE_WIDTH)
    rng = np.random.default_rng(0)
    for axis, of_all, title in zip(
        axes,
        (False, True),
        ("each perturbation against control", "all perturbations and control at once"),
        strict=True,
    ):
        rows = table[(table["perturbation"] == ALL) == of_all]
        chance = float(rows["chance"].iloc[0])
        axis.axvspan(chance, chance + INDEPENDENT_WITHIN, color="0.9", linewidth=0)
        axis.axvline(chance, color="0.3", linewidth=0.8, linestyle="--")
        for place, model in enumerate(shown):
            for offset, (name, (state, labels)) in enumerate(STATES.items()):
                own = rows[
                    (rows["model"] == model) & (rows["state"] == state) & (rows["labels"] == labels)
                ]
                values = own["accuracy"].to_numpy()
                height = place + 0.26 * (offset - 1)
                jitter = rng.uniform(-0.08, 0.08, len(values))
                if not of_all:
                    axis.scatter(
                        values, height + jitter, s=4, alpha=0.5, color=colours[name], linewidths=0
                    )
                axis.scatter(
                    own["mean_accuracy"].iloc[0], height, s=22, marker="D", color=colours[name],
                    edgecolors="black", linewidths=0.4, label=name if place == 0 else None,
                )  # fmt: skip
        axis.set(title=title, xlabel="cross-validated accuracy", xlim=(None, 1.03))
    claims = table.groupby("model")["claimed"].first()
    names = [readable(model) + ("" if claims[model] else " *") for model in shown]
    name_rows(axes[0], names)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=3, loc="outside lower center")
    return figure


RESPONDER_COLUMNS = 4


def draw_responders(table: pd.DataFrame, reference: str = "control cells", **_: Any) -> Figure:
    """Draw the densities of scores of perturbed and control cells, from responder_scores.tsv."""
    names = list(dict.fromkeys(table["perturbation"]))
    if not names:
        return nothing_to_show("No perturbation has responders that the model can distinguish.")
    n_columns = min(RESPONDER_COLUMNS, len(names))
    n_rows = -(-len(names) // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(PAGE_WIDTH * n_columns / RESPONDER_COLUMNS, 1.4 * n_rows + 0.4),
        squeeze=False,
    )  # fmt: skip
    palette = sns.color_palette("colorblind")
    colours = {NULL: OBSERVED_COLOUR, PERTURBED: palette[0]}
    labels = {NULL: f"{reference}, scored alike", PERTURBED: "perturbed cells"}
    for axis, name in zip(axes.flat, names, strict=False):
        rows = table[table["perturbation"] == name]
        for kind, colour in colours.items():
            own = rows[rows["kind"] == kind]
            edges = [own["lower"].iloc[0], *own["upper"]]
            axis.stairs(own["density"], edges, color=colour, label=labels[kind])
            axis.stairs(own["density"], edges, fill=True, color=colour, alpha=0.15)
        axis.axvline(0, color="0.7", linewidth=0.6, zorder=0)
        axis.set_title(name, style="italic")
        axis.set(yticks=[], ylim=(0, None))
        axis.spines["left"].set_visible(False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel("score: log likelihood with / without the perturbation (nats)", fontsize=7)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), ncols=2, loc="outside upper center")
    return figure


def draw_state_map(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw UMAP of basal and total states by perturbation and covariate, from state_map.tsv."""
    covariates = _covariates(table)
    shown = ["shown_as", *covariates[:MOST_COVARIATES]]
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
    if left_out := covariates[MOST_COVARIATES:]:
        figure.supxlabel(f"not shown: {', '.join(map(readable, left_out))}", fontsize=7)
    return figure


def _covariates(table: pd.DataFrame) -> list[str]:
    """List the numeric covariates and those of few levels."""
    candidates = [name for name in table.columns if name not in NOT_COVARIATES]
    return [
        name
        for name in candidates
        if pd.api.types.is_float_dtype(table[name]) or 1 < table[name].nunique() <= MOST_LEVELS
    ]


def _by_perturbation(axis: Axes, cells: pd.DataFrame, size: float) -> None:
    named = sorted(set(cells["shown_as"]) - {OTHER, CONTROL})
    palette = dict(zip(named, sns.color_palette("colorblind", len(named)), strict=True))
    colours = {OTHER: OTHER_COLOUR, CONTROL: CONTROL_COLOUR, **palette}
    for name, colour in colours.items():
        some = cells[cells["shown_as"] == name]
        axis.scatter(some["x"], some["y"], s=size, color=colour, linewidths=0, label=name)


def _by_number(axis: Axes, cells: pd.DataFrame, name: str, size: float) -> PathCollection:
    low, high = np.nanquantile(cells[name], [0.01, 0.99])
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
