"""Predictive bounds: each model against the first, paired by cell."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from samsvae.evaluation.metrics import RUN_SCORES
from samsvae.figures.bounds import unseen_cells
from samsvae.figures.style import COLUMN_WIDTH, model_colours, models_in, name_rows
from samsvae.figures.text import readable

BOUND = RUN_SCORES["iwelbo"]


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from iwelbo.tsv; test cells, or validation cells where no cell is left to test."""
    table, cells = unseen_cells(table)
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.6 + 0.3 * len(shown)))
    for row, model in enumerate(shown):
        runs = table[table["model"] == model]
        offset = np.linspace(-0.2, 0.2, len(runs)) if len(runs) > 1 else [0]
        axis.errorbar(
            runs["difference"], row + np.asarray(offset), fmt="o", color=colours[model],
            xerr=1.96 * runs["difference_standard_error"].fillna(0), markersize=4, capsize=2,
        )  # fmt: skip
        bound = f"{runs['iwelbo'].mean():.1f}".replace("-", "−")
        axis.annotate(
            bound, (1.02, row), va="center", annotation_clip=False,
            xycoords=axis.get_yaxis_transform(),
        )  # fmt: skip
    axis.annotate(
        BOUND.heading, (1.02, -0.7), va="center", annotation_clip=False,
        xycoords=axis.get_yaxis_transform(),
    )  # fmt: skip
    axis.locator_params(axis="x", nbins=4)
    axis.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    name_rows(axis, [readable(model) for model in shown])
    axis.set_xlabel(f"{BOUND.heading} minus that of {readable(shown[0])},\n{BOUND.unit} ({cells})")
    return figure
