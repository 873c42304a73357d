"""The inferred masks beside the true ones, where the truth is known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from samsvae.figures.style import models_in, nothing_to_show, panels
from samsvae.figures.text import readable


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from matched_masks.tsv."""
    shown = models_in(table, models)
    if not shown:
        return nothing_to_show("No model of this experiment has a mask.")
    n_targets = table["target"].nunique()
    figure, axes = panels(2 * len(shown), 4, 0.9 + 0.1 * n_targets)
    for index, model in enumerate(shown):
        one = table[table["model"] == model].fillna({"factor": ""})
        columns = list(dict.fromkeys(zip(one["factor"], one["dimension"], strict=True)))
        true, inferred = (
            one.pivot_table(index="target", columns="dimension", values=value)[
                [dimension for _, dimension in columns]
            ]
            for value in ("true_mask", "probability")
        )
        matched = [factor.rpartition("_")[2] for factor, _ in columns]
        for axis, matrix, title in zip(
            axes[2 * index : 2 * index + 2],
            (true, inferred),
            ("truth", readable(model)),
            strict=True,
        ):
            drawn = axis.imshow(matrix, cmap="Greys", vmin=0, vmax=1, aspect="auto")
            axis.set(title=title, xlabel="factor")
            axis.set_xticks(range(len(matched)), [name or "–" for name in matched], rotation=90)
            axis.set_yticks(np.arange(n_targets), matrix.index if axis is axes[0] else [])
            axis.tick_params(labelsize=5, length=0)
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="probability that a target moves a factor")
    return figure
