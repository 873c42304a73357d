"""Volcano plots: how large an effect is on each gene, and how sure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from samsvae.figures.style import DIVERGING

SMALLEST_FDR = 1e-50  # below that all are as sure
FONT_SIZE = 5  # points, of gene names
GAP = 2.5  # points, between a dot and its name
WIDTH_OF_LETTER = 0.62  # of the font size, on average
MOST_DOTS = 2000  # more are pixels, lest the file be of many megabytes


def volcano(axis: Axes, rows: pd.DataFrame, fdr: float, values: pd.Series, limit: float) -> Any:
    """Draw one perturbation's effects on genes.

    Parameters
    ----------
    axis
        Where.
    rows
        Of one perturbation: gene, observed_held_out and fdr; genes that were not tested are not
        drawn.
    fdr
        False discovery rate below which a gene is differentially expressed; the dashed line.
    values
        What the colour of a dot says, by the index of `rows`.
    limit
        Value of the strongest colour.

    Returns
    -------
    PathCollection
        The dots.
    """
    rows = rows.dropna(subset=["fdr", "observed_held_out"])
    drawn = axis.scatter(
        rows["observed_held_out"], sureness(rows), c=values[rows.index], s=9, cmap=DIVERGING,
        vmin=-limit, vmax=limit, edgecolors="0.4", linewidths=0.25,
        rasterized=len(rows) > MOST_DOTS,
    )  # fmt: skip
    axis.axhline(-np.log10(fdr), color="0.5", linestyle="--", linewidth=0.6, zorder=0)
    axis.axvline(0, color="0.85", linewidth=0.6, zorder=0)
    axis.margins(x=0.15, y=0.12)
    return drawn


def sureness(rows: pd.DataFrame) -> "pd.Series[float]":
    """Compute -log10 of the false discovery rate, 50 at most."""
    return -np.log10(np.clip(rows["fdr"], SMALLEST_FDR, 1))


def strongest(rows: pd.DataFrame, fdr: float, number: int) -> pd.DataFrame:
    """Keep the differentially expressed genes of largest effect among held-out cells."""
    significant = rows[rows["fdr"] < fdr]
    return significant.loc[significant["observed_held_out"].abs().nlargest(number).index]


def name_points(axis: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float]) -> None:
    """Write names beside points where there is room, the first names first.

    Parameters
    ----------
    axis
        Already laid out, by ``figure.draw_without_rendering()``.
    names
        Gene symbols; one that would run into another or out of the axes is left out.
    x, y
        The points.
    """
    pixels = axis.figure.dpi / 72
    height = FONT_SIZE * pixels
    room = axis.get_window_extent()
    taken: list[Bbox] = []
    points = np.column_stack([x, y]).reshape(-1, 2)
    for name, point in zip(names, points, strict=True):
        across, up = axis.transData.transform(point)
        width = WIDTH_OF_LETTER * FONT_SIZE * len(name) * pixels
        outwards = 1 if across >= axis.transData.transform((0, 0))[0] else -1
        for side in (outwards, -outwards):
            gap = GAP * pixels
            left = across + gap if side > 0 else across - gap - width
            box = Bbox.from_bounds(left, up - height / 2, width, height)
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 + 4 * pixels
            if inside and not any(box.overlaps(other) for other in taken):
                text = axis.annotate(
                    name, tuple(point), xytext=(GAP * side, 0), textcoords="offset points",
                    ha="left" if side > 0 else "right", va="center", fontsize=FONT_SIZE,
                    style="italic",
                )  # fmt: skip
                text.set_in_layout(False)
                taken.append(box)
                break
