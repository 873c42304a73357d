"""Dots of factors by gene sets or groups, the same for all figures of that kind."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from samsvae.figures.style import PAGE_WIDTH, panels
from samsvae.wording import readable

MOST_MODELS, MOST_FACTORS = 4, 30
SMALLEST_FDR = 1e-10
LEGEND = (0.25, 0.05, 1e-3, 1e-6)
LONGEST_NAME = 38


def dots_by_factor(
    table: pd.DataFrame,
    models: Sequence[str],
    names: Sequence[str],
    cmap: str,
    limits: tuple[float, float],
    label: str,
) -> Figure:
    """Draw a panel for each model, with a column for each of its factors.

    Parameters
    ----------
    table
        A dot a row: its model, dimension, pvalue and fdr, its row among `names`, and its value.
    models
        A panel each.
    names
        Of the rows, from above.
    cmap, limits, label
        Colours of the values.
    """
    figure, axes = panels(len(models), 2, 1.1 + 0.16 * len(names), sharey=True)
    figure.set_figwidth(PAGE_WIDTH)
    for axis, model in zip(axes, models, strict=True):
        rows = table[table["model"] == model]
        # factors by the row of their clearest dot, so that dots descend from left to right
        clearest = rows.sort_values("pvalue", kind="stable").groupby("dimension").first()
        kept = clearest.sort_values("pvalue", kind="stable")[:MOST_FACTORS]
        factors = list(kept.sort_values("row", kind="stable").index)
        rows = rows[rows["dimension"].isin(factors)]
        drawn = axis.scatter(
            [factors.index(dimension) for dimension in rows["dimension"]],
            rows["row"],
            s=[_area(fdr) for fdr in rows["fdr"]],
            c=rows["value"],
            cmap=cmap, vmin=limits[0], vmax=limits[1], edgecolors="0.5", linewidths=0.3,
        )  # fmt: skip
        axis.set(title=readable(model), xlabel="factor", xlim=(-0.5, max(len(factors), 3) - 0.5))
        axis.set_xticks(range(len(factors)), factors, rotation=90)
        axis.grid(True, linewidth=0.3, color="0.9")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), [_shortened(name) for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.colorbar(drawn, ax=axes, shrink=0.6, label=label)
    handles = [
        axes[-1].scatter([], [], s=_area(fdr), color="0.4", label=f"{fdr:g}") for fdr in LEGEND
    ]
    figure.legend(handles=handles, title="FDR", ncols=4, loc="outside lower center")
    return figure


def _area(fdr: float) -> float:
    """Area of a dot in square points: grows with -log10 of the false discovery rate."""
    return 3 + 8 * float(-np.log10(np.clip(fdr, SMALLEST_FDR, 1)))


def _shortened(name: str) -> str:
    words = readable(name.removeprefix("HALLMARK_")).lower()
    return words if len(words) <= LONGEST_NAME else words[: LONGEST_NAME - 1] + "…"
