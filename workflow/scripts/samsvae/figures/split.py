"""The split: what becomes of control cells, single perturbations and combinations."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from samsvae.figures.style import COLUMN_WIDTH
from samsvae.screen.labels import components
from samsvae.screen.splits import TEST, TRAIN, UNUSED, VAL

KINDS = {0: "control", 1: "single", 2: "combination"}
NARROWEST_LABELLED = 0.07  # of the whole bar


def draw(table: pd.DataFrame, **_: Any) -> Figure:
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
