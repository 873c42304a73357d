"""Latent space: effects and factors of perturbations, their similarity, states of cells."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samsvae.biology import ALL, OTHER
from samsvae.biology.similarity import LATENT, OBSERVED, PREDICTED
from samsvae.figures.style import (
    DIVERGING,
    PAGE_WIDTH,
    SEQUENTIAL,
    colour_limit,
    models_in,
    name_rows,
    nothing_to_show,
    panels,
)
from samsvae.figures.text import minus, readable, readable_set
from samsvae.screen.labels import CONTROL

MOST_DIMENSIONS, MOST_FACTORS, MOST_GROUPS = 30, 40, 9
ROW_HEIGHT = 0.085  # inches, of a label of 5 points
LABEL_SIZE = 5


def draw_latent_effects(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw latent effects of perturbations in clustered order, from latent_effects.tsv."""
    shown = models_in(table, models)
    ordered = table.dropna(subset="perturbation_order").sort_values("perturbation_order")
    order = list(dict.fromkeys(ordered["perturbation"]))
    limit = colour_limit(table.loc[table["model"] == shown[0], "shift"], 0.995)
    figure, axes = panels(len(shown), 3, 0.8 + 0.11 * len(order))
    for axis, model in zip(axes, shown, strict=True):
        rows = table[(table["model"] == model) & (table["dimension_order"] < MOST_DIMENSIONS)]
        matrix = rows.pivot_table(index="perturbation", columns="dimension_order", values="shift")
        sns.heatmap(
            matrix.reindex(order), ax=axis, cmap=DIVERGING, vmin=-limit, vmax=limit, cbar=False,
            xticklabels=False, yticklabels=1 if axis is axes[0] else False,
        )  # fmt: skip
        axis.set(title=readable(model), ylabel="")
        axis.set_xlabel(f"latent dimensions ({matrix.shape[1]})")
        axis.tick_params(labelsize=5, length=0)
    figure.colorbar(
        axes[0].collections[0], ax=axes, shrink=0.6, label="shift, basal standard deviations"
    )
    return figure


def draw_factors(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the factors that perturbations use, of models with masks, from latent_effects.tsv."""
    of_masks = table[table["mask_probability"].notna()]
    if of_masks.empty:
        return nothing_to_show("No model of this experiment has a mask.")
    ordered = of_masks.dropna(subset="mask_order").sort_values("mask_order")
    shown = models_in(ordered, models)
    if not shown:
        return nothing_to_show("No perturbation of any model uses a factor.")
    ordered = ordered.drop_duplicates("perturbation").set_index("perturbation")
    height = ROW_HEIGHT * len(ordered)
    figure, axes = plt.subplots(
        2,
        len(shown),
        figsize=(PAGE_WIDTH, 1.2 + height),
        height_ratios=[0.4, height],
        squeeze=False,
        sharex="col",
    )
    used = of_masks[of_masks["active"].astype(bool) & of_masks["model"].isin(shown)]
    limit = float(used["shift"].abs().max())
    colours = mpl.colormaps[DIVERGING].with_extremes(bad="white")
    for column, model in enumerate(shown):
        own = of_masks[(of_masks["model"] == model) & (of_masks["factor_order"] < MOST_FACTORS)]
        factors = own.drop_duplicates("dimension").sort_values("factor_order")
        bars, heat = axes[:, column]
        bars.bar(range(len(factors)), factors["n_perturbations"], color="0.4")
        bars.set_title(readable(model))
        bars.tick_params(bottom=False)
        bars.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        matrix = own[own["active"].astype(bool)].pivot_table(
            index="perturbation", columns="dimension", values="shift"
        )
        drawn = heat.imshow(
            matrix.reindex(index=ordered.index, columns=factors["dimension"]), cmap=colours,
            vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest",
        )  # fmt: skip
        heat.set_xticks(range(len(factors)), factors["dimension"], rotation=90)
        number = factors["n_active"].iloc[0] if len(factors) else 0
        heat.set_xlabel(f"factor ({number:.0f} used)")
        heat.set_yticks(range(len(ordered)), ordered.index if column == 0 else [])
        heat.tick_params(labelsize=LABEL_SIZE, length=0)
        _separate(heat, ordered["group"])
    axes[0, 0].set_ylabel("number of\nperturbations", fontsize=LABEL_SIZE)
    _colour_by_group(figure, axes[1, 0], ordered["group"])
    figure.colorbar(
        drawn, ax=axes[1], shrink=0.8, aspect=30, label="shift, basal standard deviations"
    )
    return figure


def _separate(axis: Axes, group: pd.Series) -> None:
    named = group.fillna("").to_numpy()
    for row in np.flatnonzero(named[1:] != named[:-1]):
        axis.axhline(row + 0.5, color="0.3", linewidth=0.5)


def _colour_by_group(figure: Figure, axis: Axes, group: pd.Series) -> None:
    """Colour the labels of members of known groups, the largest groups first."""
    number = group[group.notna() & (group != "")].value_counts()
    largest = number.index[:MOST_GROUPS]
    if not len(largest):
        return
    palette = dict(zip(largest, sns.color_palette("colorblind", len(largest)), strict=True))
    for label in axis.get_yticklabels():
        label.set_color(palette.get(group[label.get_text()], "0.3"))
    handles = [
        mpl.patches.Patch(color=colour, label=readable_set(str(name)))
        for name, colour in palette.items()
    ]
    figure.legend(handles=handles, ncols=3, loc="outside lower center", fontsize=LABEL_SIZE + 1)


MOST_MAPS = 12
MAP_LABEL_SIZE = 4.5


def draw_similarity(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw similarities of the strongest perturbations, clustered, from similarity.parquet."""
    shown = table.dropna(subset=["first_order", "second_order"])
    order = shown.drop_duplicates("first").sort_values("first_order")["first"].astype(str)
    maps = [(OBSERVED, OBSERVED)]
    maps += [(kind, model) for model in models for kind in (LATENT, PREDICTED)]
    by_map = shown.groupby(["kind", "model"], observed=True)
    maps = [one for one in maps if one in by_map.groups][:MOST_MAPS]
    figure, axes = panels(len(maps), 3, 0.7 + 0.062 * max(len(order), 20))
    for index, (axis, (kind, model)) in enumerate(zip(axes, maps, strict=True)):
        rows = by_map.get_group((kind, model))
        sns.heatmap(
            _square(rows, list(order)), ax=axis, cmap=DIVERGING, vmin=-1, vmax=1, cbar=False,
            xticklabels=False, yticklabels=1 if index % 3 == 0 else False,
        )  # fmt: skip
        title = "observed effects" if kind == OBSERVED else f"{readable(model)}\n{kind} effects"
        correlation = rows["correlation"].iloc[0]
        if np.isfinite(correlation):
            title += minus(f", r = {correlation:.2f}")
        axis.set(xlabel="", ylabel="")
        axis.set_title(title, fontsize=7)
        axis.tick_params(labelsize=MAP_LABEL_SIZE, length=0)
    figure.colorbar(
        axes[0].collections[0], ax=axes, location="bottom", shrink=0.4, aspect=30,
        ticks=[-1, -0.5, 0, 0.5, 1], label="similarity: r over genes, cosine in latent space",
    )  # fmt: skip
    return figure


def _square(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Arrange the similarities of pairs as a symmetric matrix."""
    half = rows.pivot_table(index="first", columns="second", values="similarity", observed=True)
    half = half.reindex(index=names, columns=names)
    return half.fillna(half.T).astype(float)


TOLERANCE = 0.05  # above chance, within which a basal state counts as independent
STATES = {
    "basal": ("basal", "true"),
    "total": ("total", "true"),
    "basal, labels shuffled": ("basal", "shuffled"),
}


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
        axis.axvspan(chance, chance + TOLERANCE, color="0.9", linewidth=0)
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


MOST_COVARIATES, MOST_LEVELS = 2, 9
NOT_COVARIATES = {
    "split", "model", "seed", "cell", "perturbation", "state", "shown_as", "x", "y", "guide",
    "gene", "leiden",  # clusters of basal and of total states have numbers of their own
}  # fmt: skip
CONTROL_COLOUR, OTHER_COLOUR = "black", "0.85"


LARGEST_DOT = 60.0  # square points
NAME_WIDTH, NAME_HEIGHT = 0.03, 0.05  # of a character of a name, as fractions of the map


def draw_perturbation_map(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw UMAPs of perturbations by observed and latent effects, from perturbation_map.tsv."""
    if table.empty:
        return nothing_to_show("Too few perturbations for a map.")
    kinds = table[["kind", "model"]].drop_duplicates()
    figure, axes = panels(len(kinds), len(kinds), 3.4)
    for axis, (kind, model) in zip(axes, kinds.itertuples(index=False), strict=True):
        rows = table[(table["kind"] == kind) & (table["model"] == model)]
        clusters = sorted(rows["leiden"].unique())
        palette = sns.color_palette("husl" if len(clusters) > 10 else "colorblind", len(clusters))
        for cluster, colour in zip(clusters, palette, strict=True):
            own = rows[rows["leiden"] == cluster]
            size = LARGEST_DOT * own["strength"] / table["strength"].max()
            axis.scatter(own["x"], own["y"], s=size, color=colour, linewidths=0, label=cluster)
        for row, is_left in _names_with_space(rows):
            named = axis.annotate(
                row["perturbation"], (row["x"], row["y"]), xytext=(4 if is_left else -4, 3),
                textcoords="offset points", fontsize=6, ha="left" if is_left else "right",
            )  # fmt: skip
            named.set_in_layout(False)
        axis.margins(x=0.08)
        title = "observed effects" if kind == OBSERVED else f"latent effects, {readable(model)}"
        axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=title)
    return figure


def _names_with_space(rows: pd.DataFrame) -> list[tuple["pd.Series[Any]", bool]]:
    """Choose perturbations to name, the strongest first, so that their names do not overlap.

    Returns
    -------
    list of tuple
        Row of each, and whether it is in the left half, where its name is to the right of the dot.
    """
    ordered = rows.sort_values("strength", ascending=False, kind="stable")
    points = ordered[["x", "y"]].to_numpy()
    points = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
    chosen: list[tuple[pd.Series[Any], bool]] = []
    boxes = np.empty((0, 2))
    for (_, row), (x, y) in zip(ordered.iterrows(), points, strict=True):
        width, is_left = NAME_WIDTH * len(row["perturbation"]), x < 0.5
        middle = np.array([x + width / 2 if is_left else x - width / 2, y])
        widths = [NAME_WIDTH * len(other["perturbation"]) for other, _ in chosen]
        apart = np.array([[(width + other) / 2, NAME_HEIGHT] for other in widths]).reshape(-1, 2)
        if not (np.abs(boxes - middle) < apart).all(axis=1).any():
            chosen.append((row, bool(is_left)))
            boxes = np.vstack([boxes, middle])
    return chosen


def draw_state_map(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw UMAP of basal and total states by perturbation and covariate, from state_map.tsv."""
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
    """Choose the first numeric covariates and those of few levels."""
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
