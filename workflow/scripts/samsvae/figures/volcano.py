"""Volcano plots: how large an effect is on each gene, and how sure."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from samsvae.figures.style import DIVERGING

SMALLEST_FDR = 1e-50  # below that all are as sure
FONT_SIZE = 5


def volcano(
    axis: Axes, rows: pd.DataFrame, fdr: float, limit: float, n_named: int, size: float = 9
) -> Any:
    """Draw one perturbation's effects on genes.

    Parameters
    ----------
    axis
        Where.
    rows
        Of one perturbation: gene, observed_held_out, fdr and predicted.
    fdr
        False discovery rate below which a gene is differentially expressed; the dashed line.
    limit
        Predicted effect of the strongest colour.
    n_named
        Genes that are named at most, of the differentially expressed ones the strongest.
    size
        Area of a dot in square points.

    Returns
    -------
    PathCollection
        The dots, coloured by predicted effect.
    """
    rows = rows.dropna(subset=["fdr", "observed_held_out"])
    sureness = -np.log10(np.clip(rows["fdr"], SMALLEST_FDR, 1))
    drawn = axis.scatter(
        rows["observed_held_out"], sureness, c=rows["predicted"], s=size, cmap=DIVERGING,
        vmin=-limit, vmax=limit, edgecolors="0.4", linewidths=0.25, rasterized=len(rows) > 2000,
    )  # fmt: skip
    axis.axhline(-np.log10(fdr), color="0.5", linestyle="--", linewidth=0.6, zorder=0)
    axis.axvline(0, color="0.85", linewidth=0.6, zorder=0)
    significant = rows[rows["fdr"] < fdr]
    named = significant["observed_held_out"].abs().nlargest(n_named).index
    name_points(
        axis, rows.loc[named, "gene"], rows.loc[named, "observed_held_out"], sureness[named]
    )
    axis.margins(x=0.2, y=0.1)
    return drawn


def name_points(axis: Axes, names: pd.Series, x: pd.Series, y: pd.Series) -> None:
    """Write names beside points, away from the axis of no effect."""
    for name, across, up in zip(names, x, y, strict=True):
        right = across >= 0
        axis.annotate(
            str(name), (across, up), xytext=(2 if right else -2, 1), textcoords="offset points",
            ha="left" if right else "right", va="bottom", fontsize=FONT_SIZE, style="italic",
        )  # fmt: skip
