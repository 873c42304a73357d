"""The screen: how many cells each perturbation has, and how many counts a cell."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from samsvae.figures.style import OBSERVED_COLOUR, PAGE_WIDTH
from samsvae.screen.labels import CONTROL

MOST_NAMED = 60


def draw(table: pd.DataFrame, **_: Any) -> Figure:
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
