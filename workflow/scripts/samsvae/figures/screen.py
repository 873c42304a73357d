"""The screen and its split: cells by perturbation, counts by cell, parts of the split."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from samsvae.figures.style import COLUMN_WIDTH, OBSERVED_COLOUR, PAGE_WIDTH

MOST_NAMED = 60  # perturbations with a bar each
NARROWEST_LABELLED = 0.07  # fraction of a bar that has room for a number


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
