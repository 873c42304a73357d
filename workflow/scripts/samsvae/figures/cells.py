"""Values under the cells of heat maps, which the report shows where a reader points.

A drawing names its cells with :func:`name_cells`; the file of the drawing then contains their
names, values and places in its metadata.
"""

import json
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

DIGITS = 3  # of a value
_NAMED: WeakKeyDictionary[Axes, tuple[pd.DataFrame, str]] = WeakKeyDictionary()


def name_cells(axis: Axes, matrix: pd.DataFrame, quantity: str) -> None:
    """Name the cells of a heat map that fills its axes, its first row at the top.

    Parameters
    ----------
    axis
        Axes of the heat map.
    matrix
        Its values, rows x columns, with the names that a reader shall see.
    quantity
        What the values are, with their unit.
    """
    _NAMED[axis] = matrix, quantity


def named_cells(figure: Figure, box: Bbox) -> str | None:
    """List the named cells of a figure for the metadata of its file.

    Parameters
    ----------
    figure
        Laid out for good.
    box
        The part of the figure that is saved, in inches.

    Returns
    -------
    str or None
        JSON: for each heat map its ``quantity``, ``rows``, ``columns`` and ``values`` row by row
        (None where there is none), and its ``place``: left, top, width and height as fractions of
        the drawing. None without a heat map.
    """
    width, height = figure.get_size_inches()
    maps = []
    for axis in figure.axes:
        if axis not in _NAMED:
            continue
        matrix, quantity = _NAMED[axis]
        place = axis.get_position()
        maps.append(
            {
                "quantity": quantity,
                "rows": list(map(str, matrix.index)),
                "columns": list(map(str, matrix.columns)),
                "values": list(map(_rounded, matrix.to_numpy(dtype=float).ravel())),
                "place": [
                    round(float(fraction), 5)
                    for fraction in (
                        (place.x0 * width - box.x0) / box.width,
                        (box.y1 - place.y1 * height) / box.height,
                        place.width * width / box.width,
                        place.height * height / box.height,
                    )
                ],
            }
        )
    return json.dumps(maps, ensure_ascii=False, separators=(",", ":")) if maps else None


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
