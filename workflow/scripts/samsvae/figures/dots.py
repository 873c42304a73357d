"""Dots in rows and columns: colours say values, and areas how sure these are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from samsvae.figures.style import PAGE_WIDTH, name_rows, panels, set_name
from samsvae.figures.text import readable

MOST_MODELS, MOST_FACTORS = 4, 30
SMALLEST_FDR = 1e-10
LEGEND = (0.25, 0.05, 1e-3, 1e-6)


def draw_dots(
    axis: Axes, dots: pd.DataFrame, columns: Sequence[Any], cmap: str, limits: tuple[float, float]
) -> PathCollection:
    """Draw the dots of a panel.

    Parameters
    ----------
    axis
        Where.
    dots
        A dot a row: its column and row, its value, and its fdr.
    columns
        Names of the columns.
    cmap, limits
        Colours of the values.
    """
    drawn = axis.scatter(
        dots["column"], dots["row"], s=[_area(fdr) for fdr in dots["fdr"]], c=dots["value"],
        cmap=cmap, vmin=limits[0], vmax=limits[1], edgecolors="0.5", linewidths=0.3,
    )  # fmt: skip
    axis.set_xticks(range(len(columns)), columns, rotation=90)
    axis.grid(True, linewidth=0.3, color="0.9")
    axis.set_axisbelow(True)
    return drawn


def explain_dots(
    figure: Figure, axes: Sequence[Axes], rows: Sequence[str], drawn: PathCollection, label: str
) -> None:
    """Name the rows of all panels, and say what colours and areas mean.

    Parameters
    ----------
    figure, axes
        The panels.
    rows
        Gene sets, or groups, from above.
    drawn
        What :func:`draw_dots` gave.
    label
        Of the colours.
    """
    name_rows(axes[0], [set_name(name) for name in rows])
    figure.colorbar(drawn, ax=axes, shrink=0.6, label=label)
    handles = [
        axes[-1].scatter([], [], s=_area(fdr), color="0.4", label=f"{fdr:g}") for fdr in LEGEND
    ]
    figure.legend(handles=handles, title="FDR", ncols=4, loc="outside lower center")


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
        places = [factors.index(dimension) for dimension in rows["dimension"]]
        drawn = draw_dots(axis, rows.assign(column=places), factors, cmap, limits)
        axis.set(title=readable(model), xlabel="factor", xlim=(-0.5, max(len(factors), 3) - 0.5))
    explain_dots(figure, axes, names, drawn, label)
    return figure


def _area(fdr: float) -> float:
    """Area of a dot in square points: grows with -log10 of the false discovery rate."""
    return 3 + 8 * float(-np.log10(np.clip(fdr, SMALLEST_FDR, 1)))
