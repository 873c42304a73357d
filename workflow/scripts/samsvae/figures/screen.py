"""The screen: cells and counts, parts of the split, and the quality of the screen."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from samsvae.biology.failed_guides import judge_guides
from samsvae.figures.cells import name_cells
from samsvae.figures.style import (
    COLUMN_WIDTH,
    OBSERVED_COLOUR,
    PAGE_WIDTH,
    error_bars,
    name_points,
    name_rows,
    nothing_to_show,
    shortened,
)

MOST_NAMED = 60  # perturbations with a bar each
MOST_TIMES_LARGEST = 2.0  # height of a bar of control cells, in that of the largest perturbation
NARROWEST_LABELLED = 0.07  # fraction of a bar that has room for a number
NARROW_RANGE = 1.5  # largest number of cells over the smallest, below which they are about equal
WIDE_RANGE = 4  # largest number of cells over the smallest, beyond which an axis is logarithmic


def draw_screen(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw the cells of each perturbation and the distribution of counts, from screen.tsv."""
    figure, (cells, counts) = plt.subplots(
        1, 2, figsize=(PAGE_WIDTH, 2.6), gridspec_kw={"width_ratios": [2, 1]}
    )
    colours = {"control": OBSERVED_COLOUR, "perturbed": sns.color_palette("colorblind")[0]}
    number = table[table["measure"] == "cells"]
    perturbed = number[number["kind"] == "perturbed"]
    if len(perturbed) <= MOST_NAMED:
        cells.bar(range(len(number)), number["value"], color=list(number["kind"].map(colours)))
        cells.set_xticks(range(len(number)), number["perturbation"], rotation=90, fontsize=5)
        cells.set_xlim(-0.8, len(number) - 0.2)
        _limit_bars(cells, number, perturbed["value"].max())
    else:
        cells.plot(np.arange(1, len(perturbed) + 1), perturbed["value"], color=colours["perturbed"])
        cells.set_ylim(0, None)
        control = number.loc[number["kind"] == "control", "value"].iloc[0]
        cells.set_xlabel(
            f"perturbation, by rank ({len(perturbed):,}; control: {control:,.0f} cells)"
        )
    cells.set_ylabel("number of cells")

    density = table[table["measure"] == "density"]
    for kind, colour in colours.items():
        own = density[density["kind"] == kind]
        if len(own):
            edges = [own["lower"].iloc[0], *own["upper"]]
            counts.stairs(own["value"], edges, color=colour, label=kind)
    counts.set_xscale("log")
    counts.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    counts.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    counts.xaxis.set_minor_formatter(NullFormatter())
    counts.tick_params(axis="x", rotation=45)
    counts.set(xlabel="UMI counts per cell, retained genes", ylabel="density of cells")
    counts.set_ylim(0, 1.25 * counts.get_ylim()[1])
    counts.legend(loc="upper right")
    return figure


def _limit_bars(axis: Axes, number: pd.DataFrame, largest: float) -> None:
    """Cut bars of control cells that would hide those of perturbations, and write their number."""
    limit = MOST_TIMES_LARGEST * largest
    if not number["value"].max() > limit:
        return
    axis.set_ylim(0, limit)
    for place, value in enumerate(number["value"]):
        if value > limit:
            axis.annotate(
                f"{value:,.0f}", (place, limit), xytext=(4, -1), textcoords="offset points",
                va="top", fontsize=6,
            )  # fmt: skip


def draw_split(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw the fractions of cells that train, validate and test, from split.tsv."""
    kinds, parts = (list(dict.fromkeys(table[name])) for name in ("kind", "part"))
    colours = [*sns.color_palette("colorblind")[:3], "0.8"]
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.55 + 0.4 * len(kinds)))
    start = np.zeros(len(kinds))
    for part, colour in zip(parts, colours, strict=True):
        rows = table[table["part"] == part].set_index("kind").loc[kinds]
        if not rows["cells"].any():
            continue
        axis.barh(kinds, rows["fraction"], left=start, color=colour, label=part)
        for row, (cells, fraction) in enumerate(zip(rows["cells"], rows["fraction"], strict=True)):
            if fraction > NARROWEST_LABELLED:
                axis.text(
                    start[row] + fraction / 2, row, f"{cells:,}", ha="center", va="center",
                    color="black",
                )  # fmt: skip
        start += rows["fraction"].to_numpy()
    axis.invert_yaxis()
    axis.set(xlabel="fraction of cells (numbers: cells)", xlim=(0, 1))
    axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=1)
    return figure


ROW_HEIGHT = 0.13  # inches, of a perturbation
MOST_ROWS = 60  # perturbations, of a figure with a row each
MOST_BATCHES = 16  # with a colour that a legend explains
MOST_HITS_NAMED = 300  # the strongest hits, whose names are tried; few of more would find room
MOST_DOTS = 3000  # more are pixels, lest the file be of many megabytes


def draw_null(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw the quantiles of p-values of groups of control cells, from null_quantiles.tsv."""
    if table.empty:
        return nothing_to_show("Too few control cells to test groups of them.")
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 2.8))
    axis.fill_between(table["expected"], table["low"], table["high"], color="0.88", linewidth=0)
    axis.plot(table["expected"], table["expected"], color="0.4", linestyle="--", linewidth=0.8)
    axis.scatter(
        table["expected"], table["observed"], s=6, linewidths=0, zorder=3,
        color=sns.color_palette("colorblind")[0],
    )  # fmt: skip
    axis.set(xlabel="−log10 p, expected", ylabel="−log10 p, observed")
    axis.margins(0.03)
    return figure


def draw_hits(table: pd.DataFrame, reference: str = "control cells", **_: Any) -> Figure:
    """Draw the strength of perturbations against their cells, from hits.tsv.

    Where all have about as many cells, perturbations are placed in the order of their E-distance.
    """
    known = table.dropna(subset="e_distance")
    known = known.sort_values("e_distance", ascending=False, kind="stable")
    if known.empty:
        return nothing_to_show(f"No perturbation has two cells to compare with {reference}.")
    cells = known["n_compared"]
    in_order = cells.max() < NARROW_RANGE * cells.min()
    across = pd.Series(range(len(known)), index=known.index) if in_order else cells
    if in_order:
        figure, axes = plt.subplots(2, 1, figsize=(PAGE_WIDTH, 4.2), sharex=True)
    else:
        figure, axes = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.8))
    columns = {
        "e_distance": f"E-distance from {reference}",
        "n_de": "differentially expressed genes",
    }
    colours = {True: sns.color_palette("colorblind")[0], False: "0.65"}
    for axis, (column, title) in zip(axes, columns.items(), strict=True):
        for is_hit, own in known.groupby("is_hit"):
            axis.scatter(
                across[own.index], own[column], s=9, linewidths=0,
                label="hit" if is_hit else "no hit",
                color=colours[bool(is_hit)], rasterized=len(table) > MOST_DOTS,
            )  # fmt: skip
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylabel(title)
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if in_order:
            axis.margins(x=0.02, y=0.08)
        else:
            axis.set_xlabel("cells")
            _number_cells(axis, cells)
            axis.margins(x=0.15, y=0.08)
    axes[0].axhline(0, color="0.6", linewidth=0.6, zorder=0)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=2, loc="outside lower center")
    if in_order and len(known) <= MOST_ROWS:
        names = [shortened(name) for name in known["perturbation"].astype(str)]
        axes[1].set_xticks(range(len(names)), names, rotation=90, fontsize=5, style="italic")
        return figure
    if in_order:
        axes[1].set_xlabel("rank of the perturbation by E-distance")
    figure.draw_without_rendering()
    named = known[known["is_hit"]].head(MOST_HITS_NAMED)
    if len(known) <= MOST_ROWS:
        named = pd.concat([named, known[~known["is_hit"]]])
    for axis, column in zip(axes, columns, strict=True):
        name_points(axis, list(named["perturbation"]), across[named.index], named[column])
    return figure


def _number_cells(axis: Axes, cells: "pd.Series[int]") -> None:
    """Mark numbers of cells below an axis, on a logarithmic scale where they vary widely."""
    if cells.max() > WIDE_RANGE * cells.min():
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def draw_knock_down(table: pd.DataFrame, reference: str = "control cells", **_: Any) -> Figure:
    """Draw the change of target genes, by perturbation and by guide, from knock_down.tsv."""
    finite = table[table["log2fc"].astype(float).abs() < np.inf].fillna({"guide": ""})
    pooled = finite[finite["guide"] == ""].sort_values("log2fc", kind="stable")
    if pooled.empty:
        return nothing_to_show("No target gene is among the measured genes.")
    shown = pooled if len(pooled) <= MOST_ROWS else _ends(pooled, MOST_ROWS)
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.7 + ROW_HEIGHT * len(shown)))
    names = [
        gene if gene == perturbation else f"{gene} in {perturbation}"
        for gene, perturbation in zip(shown["gene"], shown["perturbation"], strict=True)
    ]
    guides = finite[finite["guide"] != ""].groupby(["perturbation", "gene"])["log2fc"]
    for row, key in enumerate(zip(shown["perturbation"], shown["gene"], strict=True)):
        if key in guides.groups:
            values = guides.get_group(key)
            axis.scatter(
                values, np.full(len(values), row), s=7, color="0.6", linewidths=0, zorder=2,
                label=None if axis.get_legend_handles_labels()[1] else "guide",
            )  # fmt: skip
    axis.errorbar(
        shown["log2fc"], range(len(shown)), xerr=error_bars(shown, "log2fc", "low", "high"),
        fmt="D", markersize=2.8, linewidth=0.8, color=sns.color_palette("colorblind")[0], zorder=3,
        label="all cells",
    )  # fmt: skip
    axis.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    name_rows(axis, names, fontsize=5, style="italic")
    axis.set_xlabel(f"target gene, log2 of mean CP10k relative to {reference}")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def _ends(rows: pd.DataFrame, number: int) -> pd.DataFrame:
    """Keep the first and the last rows."""
    return pd.concat([rows.head(number // 2), rows.tail(number // 2)])


FAILED_COLOUR = "#b2182b"  # red, apart from the orange of the palette
GUIDE, TARGET_ALONE, MAY_HAVE_FAILED = "guide", "target changes less", "may have failed"


def draw_guides(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw the agreement of the guides of each perturbation, from guides.tsv."""
    known = table.dropna(subset="concordance")
    if known.empty:
        return nothing_to_show(
            "No perturbation has two guides and five differentially expressed genes."
        )
    names = list(dict.fromkeys(known["perturbation"]))[:MOST_ROWS]
    palette = sns.color_palette("colorblind")
    judged = judge_guides(known)
    kinds = {
        GUIDE: (known.drop([*judged.failed.index, *judged.sound.index]), palette[0]),
        TARGET_ALONE: (judged.sound, palette[1]),
        MAY_HAVE_FAILED: (judged.failed, FAILED_COLOUR),
    }
    figure, axes = plt.subplots(
        1, 2, figsize=(PAGE_WIDTH, 0.8 + ROW_HEIGHT * len(names)), sharey=True
    )
    for axis, column, title in zip(
        axes,
        ("concordance", "slope"),
        ("Spearman correlation with the other guides", "size relative to the other guides"),
        strict=True,
    ):
        for kind, (rows, colour) in kinds.items():
            own = rows[rows["perturbation"].isin(names)]
            if len(own):
                axis.scatter(
                    own[column], own["perturbation"].map(names.index), s=10, linewidths=0,
                    color=colour, label=kind,
                )  # fmt: skip
        axis.set_xlabel(f"effect: {title}")
        axis.axvline(1, color="0.7", linewidth=0.6, zorder=0)
        axis.axvline(0, color="0.7", linewidth=0.6, zorder=0)
    name_rows(axes[0], names, fontsize=5)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=3, loc="outside lower center")
    return figure


def draw_batches(table: pd.DataFrame, reference: str = "control cells", **_: Any) -> Figure:
    """Draw the fractions of each perturbation's cells in each batch, from batches.tsv."""
    batches = sorted(table["batch"].astype(str).unique())
    table = table.astype({"batch": str})
    first = table[table["batch"] == batches[0]].sort_values("fraction", kind="stable")
    names = list(first["perturbation"])
    names = (
        names if len(names) <= MOST_ROWS else [*names[: MOST_ROWS // 2], *names[-MOST_ROWS // 2 :]]
    )
    palette = sns.color_palette("husl" if len(batches) > 10 else "colorblind", len(batches))
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.8 + ROW_HEIGHT * (len(names) + 1)))
    control = table.drop_duplicates("batch").set_index("batch")["control_fraction"]
    start = np.zeros(len(names) + 1)
    for batch, colour in zip(batches, palette, strict=True):
        own = table[table["batch"] == batch].set_index("perturbation")["fraction"]
        values = np.array([control[batch], *own.reindex(names)])
        axis.barh(range(len(values)), values, left=start, color=colour, label=batch, height=0.8)
        start += values
    name_rows(axis, [reference, *names], fontsize=5)
    axis.set(xlabel="fraction of cells", xlim=(0, 1))
    if len(batches) <= MOST_BATCHES:
        axis.legend(title="batch", loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1)
    else:
        axis.set_title(f"{len(batches):,} batches, in the order of their names")
    return figure


def draw_contexts(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw the changed genes of perturbations in each context, from contexts.tsv."""
    if table.empty:
        return nothing_to_show("No perturbation has cells to compare in any context.")
    table = table.astype({"context": str})
    strength = table.groupby("perturbation")["n_de"].max()
    names = list(strength.sort_values(ascending=False, kind="stable").index[:MOST_ROWS])
    numbers = table.pivot_table(index="perturbation", columns="context", values="n_de").loc[names]
    differ = table.groupby("perturbation")["n_heterogeneous"].first().loc[names]
    height = 1.1 + ROW_HEIGHT * len(names)
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, height), sharey=True)
    colours = plt.get_cmap("viridis").with_extremes(bad="0.9")
    shown = left.pcolormesh(
        np.arange(numbers.shape[1] + 1), np.arange(len(names) + 1) - 0.5,
        np.ma.masked_invalid(numbers.to_numpy(dtype=float)), cmap=colours,
    )  # fmt: skip
    name_cells(left, numbers, "differentially expressed genes")
    left.set_xticks(np.arange(numbers.shape[1]) + 0.5, list(numbers.columns), rotation=90)
    figure.colorbar(shown, ax=left, label="differentially expressed genes")
    right.barh(range(len(names)), differ, color=sns.color_palette("colorblind")[0], height=0.8)
    right.set_xlabel("genes that differ between contexts")
    name_rows(left, names, fontsize=5)
    return figure
