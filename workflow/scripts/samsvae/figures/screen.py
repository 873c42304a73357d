"""The screen and its split: cells by perturbation, counts by cell, parts of the split."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from samsvae.figures.style import COLUMN_WIDTH, OBSERVED_COLOUR, PAGE_WIDTH
from samsvae.screen.labels import CONTROL, components
from samsvae.screen.splits import TEST, TRAIN, UNUSED, VAL

MOST_NAMED = 60


def draw_screen(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw from split.tsv."""
    figure, (cells, counts) = plt.subplots(
        1, 2, figsize=(PAGE_WIDTH, 2.6), gridspec_kw={"width_ratios": [2, 1]}
    )
    colours = {"control": OBSERVED_COLOUR, "perturbed": sns.color_palette("colorblind")[0]}
    number = table["perturbation"].value_counts()
    perturbed = number.drop(CONTROL)
    if len(perturbed) <= MOST_NAMED:
        bars = pd.concat([number[[CONTROL]], perturbed])
        cells.bar(
            range(len(bars)),
            bars,
            color=[colours["control"]] + [colours["perturbed"]] * len(perturbed),
        )
        cells.set_xticks(range(len(bars)), bars.index, rotation=90, fontsize=5)
        cells.set_xlim(-0.8, len(bars) - 0.2)
        cells.set_ylabel("cells")
    else:
        cells.plot(np.arange(1, len(perturbed) + 1), perturbed, color=colours["perturbed"])
        cells.set_ylim(0, None)
        cells.set_xlabel(
            f"perturbation, by rank ({len(perturbed)}; control: {number[CONTROL]:,} cells)"
        )
        cells.set_ylabel("cells")

    kind = np.where(table["perturbation"] == CONTROL, "control", "perturbed")
    sns.histplot(
        x=table["library_size"], hue=kind, hue_order=list(colours), palette=colours, ax=counts,
        log_scale=True, stat="density", common_norm=False, element="step", fill=False, bins=40,
    )  # fmt: skip
    counts.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    counts.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    counts.xaxis.set_minor_formatter(NullFormatter())
    counts.tick_params(axis="x", rotation=45)
    counts.set(xlabel="UMI counts per cell, retained genes", ylabel="density of cells")
    counts.set_ylim(0, 1.25 * counts.get_ylim()[1])
    sns.move_legend(counts, "upper right", title=None)
    return figure


KINDS = {0: "control", 1: "single", 2: "combination"}
NARROWEST_LABELLED = 0.07  # of the whole bar


def draw_split(table: pd.DataFrame, **_: Any) -> Figure:
    """Draw from split.tsv."""
    size = {label: min(len(components(label)), 2) for label in table["perturbation"].unique()}
    kind = table["perturbation"].map(size).map(KINDS)
    number = pd.crosstab(kind, table["split"])
    rows = [name for name in KINDS.values() if name in number.index]
    number = number.reindex(index=rows, columns=[TRAIN, VAL, TEST, UNUSED], fill_value=0)
    colours = [*sns.color_palette("colorblind")[:3], "0.8"]
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.55 + 0.4 * len(rows)))
    share = number.div(number.sum(axis=1), axis=0)
    start = pd.Series(0.0, index=rows)
    for part, colour in zip(number.columns, colours, strict=True):
        if not number[part].any():
            continue
        axis.barh(rows, share[part], left=start, color=colour, label=part)
        for row, name in enumerate(rows):
            if share.loc[name, part] > NARROWEST_LABELLED:
                axis.text(
                    start[name] + share.loc[name, part] / 2, row, f"{number.loc[name, part]:,}",
                    ha="center", va="center", color="black",
                )  # fmt: skip
        start += share[part]
    axis.invert_yaxis()
    axis.set(xlabel="share of cells (numbers: cells)", xlim=(0, 1))
    axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=1)
    return figure
