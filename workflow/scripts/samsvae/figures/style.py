"""Style of all figures: sizes for print, colour-blind palettes, reproducible vector files."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from samsvae.figures import readable_set
from samsvae.figures.cells import name_cells, named_cells
from samsvae.runtime.files import whole_file

mpl.use("svg")
logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs every font of a PDF

COLUMN_WIDTH = 3.5  # inches, one column of a journal
PAGE_WIDTH = 7.2  # inches, two columns
LOWEST = 2.2  # inches, of a figure with a colour bar at its side
FONT_SIZE = 7  # points
MARGIN = 0.03  # inches, around a figure
POINTS_PER_INCH = 72
EFFECT_UNITS = "log2(CP10k + 1)"
DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"
OBSERVED_COLOUR = "0.35"
LARGEST_SCORE = 3.0  # normalised enrichment score of the strongest colour
LONGEST_NAME = 38  # characters, of a label


def use_style() -> None:
    """Set fonts, lines and colours of all figures."""
    sns.set_theme(style="ticks", context="paper", palette="colorblind")
    mpl.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "font.size": FONT_SIZE,
            "axes.titlesize": FONT_SIZE + 1,
            "axes.labelsize": FONT_SIZE,
            "xtick.labelsize": FONT_SIZE,
            "ytick.labelsize": FONT_SIZE,
            "legend.fontsize": FONT_SIZE,
            "legend.title_fontsize": FONT_SIZE,
            "figure.titlesize": FONT_SIZE + 1,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "lines.linewidth": 1.0,
            "legend.frameon": False,
            "svg.hashsalt": "samsvae",
            "pdf.fonttype": 42,  # letters stay letters, to be edited in a drawing program
            "text.parse_math": False,  # a gene called $x$ is no formula
        }
    )


# An engine None is the one of the settings. With the engine "none", which matplotlib takes for one
# that lays out, each file would take one more drawing.
@mpl.rc_context({"figure.constrained_layout.use": False})
def save_figure(figure: Figure, caption: str, provenance: str, paths: Sequence[str | Path]) -> None:
    """Write a figure with its caption and provenance in the metadata, whole or not at all.

    Parameters
    ----------
    figure
        Closed afterwards.
    caption
        Plain text.
    provenance
        Record of inputs, settings and code, as JSON.
    paths
        Files that end in ``.svg`` or ``.pdf``. The same figure gives the same bytes.
    """
    made_by = json.dumps(json.loads(provenance))
    box = settled_box(figure)
    of_format: dict[str, dict[str, Any]] = {
        ".svg": {
            "Date": None,
            "Description": caption,
            "Source": made_by,
            # the reason why a figure has nothing to show
            "Coverage": str(figure.get_label()) or None,
            "Relation": named_cells(figure, box),
        },
        ".pdf": {"CreationDate": None, "Subject": caption, "Keywords": made_by},
    }
    for path in paths:
        with whole_file(path) as temporary:
            figure.savefig(temporary, metadata=of_format[Path(path).suffix], bbox_inches=box)
    plt.close(figure)


def settled_box(figure: Figure) -> Bbox:
    """Lay a figure out for good, and return the box around all that is drawn, in inches.

    Otherwise the layout would be computed anew for each file.
    """
    dpi = figure.dpi
    figure.set_dpi(POINTS_PER_INCH)  # at which vector files are drawn
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    box = figure.get_tightbbox().padded(MARGIN)
    figure.set_dpi(dpi)
    return box


def model_colours(models: Sequence[str]) -> dict[str, Any]:
    """Assign a colour to each model of an experiment, by its position."""
    palette = sns.color_palette("colorblind", max(len(models), 1))
    return dict(zip(models, palette, strict=True))


def models_in(table: pd.DataFrame, models: Sequence[str]) -> list[str]:
    """List the experiment's models with rows in a table, in the experiment's order."""
    present = set(table["model"])
    return [model for model in models if model in present]


def heatmap(
    axis: Axes,
    matrix: pd.DataFrame,
    quantity: str,
    limit: float,
    rows: bool = False,
    columns: bool = False,
    **options: Any,
) -> None:
    """Draw a matrix in colours, its first row at the top; NaN stays empty.

    Unlike seaborn's, it does not draw the whole figure to find out whether labels overlap, which
    takes longer than all else in a figure of many heat maps.

    Parameters
    ----------
    axis
        Receives the mesh as its only collection.
    matrix
        Rows x columns, with their names.
    quantity
        What the values are, with their unit.
    limit
        Absolute value of the strongest colour.
    rows, columns
        Whether to write the names of the rows or columns.
    **options
        For :meth:`matplotlib.axes.Axes.pcolormesh`.
    """
    values = np.ma.masked_invalid(matrix.to_numpy(dtype=float))
    axis.pcolormesh(values, cmap=DIVERGING, vmin=-limit, vmax=limit, **options)
    axis.set(xlim=(0, matrix.shape[1]), ylim=(matrix.shape[0], 0))
    name_cells(axis, matrix, quantity)
    axis.spines[:].set_visible(False)
    axis.set_yticks(np.arange(len(matrix.index)) + 0.5 if rows else [])
    axis.set_xticks(np.arange(len(matrix.columns)) + 0.5 if columns else [])
    if rows:
        axis.set_yticklabels(matrix.index)
    if columns:
        axis.set_xticklabels(matrix.columns, rotation="vertical")


def name_rows(axis: Axes, names: Sequence[str], **options: Any) -> None:
    """Label the rows at the heights 0, 1, 2, ..., with the first at the top."""
    axis.set_yticks(range(len(names)), names, **options)
    axis.set_ylim(len(names) - 0.5, -0.5)


def quartiles_of_row(axis: Axes, row: float, quartiles: Sequence[float] | pd.Series) -> None:
    """Draw the lower quartile, the median and the upper quartile at the height of a row."""
    low, middle, high = quartiles
    axis.plot([low, high], [row, row], color="0.15", lw=1.2, zorder=4)
    axis.plot(middle, row, "o", color="0.15", markerfacecolor="white", markersize=3.5, zorder=5)


def set_name(name: str) -> str:
    """Shorten the name of a gene set for an axis label."""
    return shortened(readable_set(name))


def shortened(name: str) -> str:
    """Shorten a name for an axis label."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def panels(
    number: int, columns: int, panel_height: float, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Arrange panels row by row on a page.

    Parameters
    ----------
    number
        Number of panels.
    columns
        Largest number of panels in a row.
    panel_height
        Inches.
    **options
        For :func:`matplotlib.pyplot.subplots`.

    Returns
    -------
    figure : Figure
        As wide as its columns need.
    axes : list of Axes
        One per panel; the unused ones of the last row are removed.
    """
    columns = min(columns, number)
    rows = -(-number // columns)
    width = PAGE_WIDTH * max(columns / 3, 0.5) if columns < 3 else PAGE_WIDTH
    figure, grid = plt.subplots(
        rows, columns, figsize=(width, rows * panel_height), squeeze=False, **options
    )
    axes = list(grid.ravel())
    for axis in axes[number:]:
        axis.remove()
    return figure, axes[:number]


def error_bars(table: pd.DataFrame, value: str, low: str, high: str) -> np.ndarray:
    """Give the lengths of error bars from the columns of an interval; 0 without an interval.

    Returns
    -------
    ndarray
        2 x rows, below and above the value.
    """
    lengths = np.array([table[value] - table[low], table[high] - table[value]], dtype=float)
    return np.nan_to_num(lengths).clip(min=0)


def colour_limit(values: np.ndarray | pd.Series, coverage: float) -> float:
    """Choose the value of the strongest colour, which a fraction of the values does not exceed."""
    return float(np.quantile(np.abs(values), coverage)) or 1.0


def nothing_to_show(message: str) -> Figure:
    """Draw a message in place of a figure; the report shows the message alone."""
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.8))
    figure.set_label(message)
    axis.text(0.5, 0.5, message, ha="center", va="center", wrap=True)
    axis.set_axis_off()
    return figure


GENE_SIZE = 5  # points, of gene names
GENE_GAP = 2.5  # points, between a dot and its name
NAME_GAP = 2.0  # points between two names in a line


SMALL_DOT = 9.0  # square points; names keep the gap from the centres of dots up to this size


def _reach(sizes: ArrayLike) -> np.ndarray:
    """Compute by how much the radii of dots exceed that of a small one, in points."""
    return np.clip(np.sqrt(np.asarray(sizes, dtype=float)) - SMALL_DOT**0.5, 0, None) / 2


def name_points(
    axis: Axes,
    names: Sequence[str],
    x: Sequence[float],
    y: Sequence[float],
    dot_sizes: Sequence[float] | None = None,
    size: float = GENE_SIZE,
) -> None:
    """Label points where there is room, in the order of the names.

    Parameters
    ----------
    axis
        Already laid out, by ``figure.draw_without_rendering()``.
    names
        Gene symbols; one that would overlap another, cover a dot or leave the axes is omitted.
    x, y
        The points.
    dot_sizes
        Sizes of their dots, in square points; None for small ones.
    size
        Of the names, in points.
    """
    pixels = axis.figure.dpi / POINTS_PER_INCH
    height = size * pixels
    room = axis.get_window_extent()
    taken: list[Bbox] = []
    scattered = [dots for dots in axis.collections if isinstance(dots, PathCollection)]
    places = [axis.transData.transform(dots.get_offsets()) for dots in scattered]
    reaches = [
        np.broadcast_to(_reach(dots.get_sizes()), len(place))
        for dots, place in zip(scattered, places, strict=True)
    ]
    dots = np.concatenate([np.empty((0, 2)), *places])
    reach = np.concatenate([np.empty(0), *reaches])[:, None] * pixels
    points = np.column_stack([x, y]).reshape(-1, 2)
    gaps = GENE_GAP + _reach([SMALL_DOT] * len(points) if dot_sizes is None else dot_sizes)
    font = FontProperties(style="italic")
    for name, point, own_gap in zip(names, points, gaps, strict=True):
        across, up = axis.transData.transform(point)
        width = TextPath((0, 0), name, size=size, prop=font).get_extents().x1 * pixels
        outwards = 1 if across >= axis.transData.transform((0, 0))[0] else -1
        for side, above in ((outwards, 0), (-outwards, 0), (0, 1), (0, -1)):
            gap = own_gap * pixels
            box = Bbox.from_bounds(
                across - width / 2 + side * (gap + width / 2),
                up - height / 2 + above * (gap + height / 2),
                width,
                height,
            )
            inside = room.x0 <= box.x0 and box.x1 <= room.x1
            inside &= above == 0 or (room.y0 <= box.y0 and box.y1 <= room.y1)
            covers = (dots > box.min - reach) & (dots < box.max + reach)
            covered = covers.all(axis=1).any()
            apart = box.padded(NAME_GAP * pixels, 0)
            if inside and not covered and not any(apart.overlaps(other) for other in taken):
                text = axis.annotate(
                    name, tuple(point), xytext=(own_gap * side, (own_gap + size / 2) * above),
                    textcoords="offset points", ha={1: "left", 0: "center", -1: "right"}[side],
                    va="center", fontsize=size, style="italic",
                )  # fmt: skip
                text.set_in_layout(False)
                taken.append(box)
                break
