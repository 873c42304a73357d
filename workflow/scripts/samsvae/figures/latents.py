"""Latent effects and factors of perturbations, and their similarity."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samsvae.biology.similarity import LATENT, OBSERVED, PREDICTED
from samsvae.figures import minus, readable, readable_set
from samsvae.figures.cells import name_cells
from samsvae.figures.style import (
    DIVERGING,
    LOWEST,
    PAGE_WIDTH,
    POINTS_PER_INCH,
    colour_limit,
    heatmap,
    models_in,
    name_points,
    nothing_to_show,
    panels,
)

MOST_DIMENSIONS, MOST_FACTORS, MOST_GROUPS = 30, 40, 9
ROW_HEIGHT = 0.085  # inches, of a label of 5 points
LABEL_SIZE = 5
SHIFT = "shift, basal standard deviations"


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
        dimensions = rows.drop_duplicates("dimension_order").set_index("dimension_order")
        matrix = matrix.rename(columns=dimensions["dimension"].map("dimension {}".format))
        heatmap(axis, matrix.reindex(order), SHIFT, limit, rows=axis is axes[0])
        axis.set(title=readable(model), ylabel="")
        axis.set_xlabel(f"latent dimensions ({matrix.shape[1]})")
        axis.tick_params(labelsize=5, length=0)
    figure.colorbar(axes[0].collections[0], ax=axes, shrink=0.6, label=SHIFT)
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
        figsize=(PAGE_WIDTH, max(LOWEST, 1.2 + height)),
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
        matrix = matrix.reindex(index=ordered.index, columns=factors["dimension"])
        drawn = heat.imshow(
            matrix, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
        name_cells(heat, matrix.rename(columns="factor {}".format), SHIFT)
        heat.set_xticks(range(len(factors)), factors["dimension"], rotation=90)
        number = factors["n_active"].iloc[0] if len(factors) else 0
        heat.set_xlabel(f"factor ({number:.0f} used)")
        heat.set_yticks(range(len(ordered)), ordered.index if column == 0 else [])
        heat.tick_params(labelsize=LABEL_SIZE, length=0)
        _separate(heat, ordered["group"])
    axes[0, 0].set_ylabel("number of\nperturbations", fontsize=LABEL_SIZE)
    _colour_by_group(figure, axes[1, 0], ordered["group"])
    figure.colorbar(drawn, ax=axes[1], shrink=0.8, aspect=30, label=SHIFT)
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
LETTER_WIDTH = 0.7  # of the size of the font


def draw_similarity(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw similarities of the strongest perturbations, clustered, from similarity.parquet."""
    shown = table.dropna(subset=["first_order", "second_order"])
    order = shown.drop_duplicates("first").sort_values("first_order")["first"].astype(str)
    maps = [(OBSERVED, OBSERVED)]
    maps += [(kind, model) for model in models for kind in (LATENT, PREDICTED)]
    by_map = shown.groupby(["kind", "model"], observed=True)
    maps = [one for one in maps if one in by_map.groups][:MOST_MAPS]
    longest = max(map(len, order)) * LETTER_WIDTH * MAP_LABEL_SIZE / POINTS_PER_INCH
    figure, axes = panels(len(maps), 3, 0.6 + longest + 0.067 * max(len(order), 20))
    for index, (axis, (kind, model)) in enumerate(zip(axes, maps, strict=True)):
        rows = by_map.get_group((kind, model))
        heatmap(
            axis, _square(rows, list(order)), "cosine" if kind == LATENT else "r over genes", 1,
            rows=index % 3 == 0, columns=True, rasterized=True,
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


LARGEST_DOT = 60.0  # square points


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
        axis.margins(x=0.15)
        title = "observed effects" if kind == OBSERVED else f"latent effects, {readable(model)}"
        axis.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=title)
    figure.draw_without_rendering()
    for axis, (kind, model) in zip(axes, kinds.itertuples(index=False), strict=True):
        rows = table[(table["kind"] == kind) & (table["model"] == model)]
        rows = rows.sort_values("strength", ascending=False, kind="stable")
        sizes = LARGEST_DOT * rows["strength"] / table["strength"].max()
        name_points(axis, list(rows["perturbation"]), rows["x"], rows["y"], sizes, size=6)
    return figure
