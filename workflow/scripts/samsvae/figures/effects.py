"""Predicted against observed effects, every perturbation and gene."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from samsvae.evaluation.agreement import pearson
from samsvae.figures.style import EFFECT_UNITS, SEQUENTIAL, panels
from samsvae.figures.text import readable


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from effects.parquet."""
    figure, axes = panels(len(models), 3, 2.3, sharex=True, sharey=True)
    low = float(min(table["observed"].min(), table["predicted"].min()))
    high = float(max(table["observed"].max(), table["predicted"].max()))
    for axis, model in zip(axes, models, strict=True):
        one = table[table["model"] == model].dropna(subset="observed")
        drawn = axis.hexbin(
            one["observed"], one["predicted"], gridsize=50, bins="log", mincnt=1,
            extent=(low, high, low, high), cmap=SEQUENTIAL, linewidths=0.1,
        )  # fmt: skip
        axis.plot([low, high], [low, high], color="0.6", linewidth=0.6, zorder=0)
        r = float(pearson(one["observed"].to_numpy(float), one["predicted"].to_numpy(float)))
        score = "r undefined: all the same" if np.isnan(r) else f"r = {r:.2f}"
        axis.set(title=f"{readable(model)}\n{score}", aspect="equal")
    for axis in axes[-3:]:  # the lowest of each column, also where the last row is not full
        axis.tick_params(labelbottom=True)
    scale = figure.colorbar(
        drawn, ax=axes, shrink=0.5, label="perturbation–gene pairs",
        format=StrMethodFormatter("{x:,.0f}"),
    )  # fmt: skip
    scale.ax.yaxis.set_minor_formatter(NullFormatter())
    figure.supxlabel(f"observed effect, {EFFECT_UNITS}", fontsize=7)
    figure.supylabel(f"predicted effect, {EFFECT_UNITS}", fontsize=7)
    return figure
