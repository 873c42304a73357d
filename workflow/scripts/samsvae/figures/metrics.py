"""How well every model and baseline predicts effects."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from samsvae.figures.style import model_colours, panels
from samsvae.wording import readable


def draw(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw from metrics.tsv; the scope is the perturbations with test cells."""
    n_top = evaluation["top_genes"]
    shown = {
        "pearson": "Pearson r, all genes",
        f"pearson_top{n_top}": f"Pearson r, top {n_top} genes\nof each perturbation",
        "pearson_held_out": "Pearson r, all genes,\nheld-out cells alone",
    }
    scope = "test" if (table["scope"] == "test").any() else "all"
    colours = model_colours(models)
    figure, axes = panels(len(shown), 3, 0.7 + 0.25 * len(models), sharey=True)
    for axis, (metric, title) in zip(axes, shown.items(), strict=True):
        for row, model in enumerate(models):
            chosen = (table["model"] == model) & (table["scope"] == scope)
            values = table.loc[chosen & (table["metric"] == metric), "value"].dropna()
            if values.empty:
                axis.text(0.02, row, "undefined (constant)", va="center", color="0.5", fontsize=6)
                continue
            offset = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [0]
            axis.scatter(values, row + np.asarray(offset), s=10, alpha=0.6, color=colours[model])
            axis.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colours[model], lw=1.6)
            side = {"ha": "right", "xytext": (-5, 0)} if values.mean() > 0.5 else {"xytext": (5, 0)}
            axis.annotate(
                f"{round(values.mean(), 2) + 0.0:.2f}", (values.mean(), row), va="center",
                fontsize=6, textcoords="offset points", **side,
            )  # fmt: skip
        axis.set_xlim(min(0, axis.get_xlim()[0]), 1.02)
        axis.set_xlabel(title)
    axes[0].set_yticks(range(len(models)), [readable(model) for model in models])
    axes[0].set_ylim(len(models) - 0.5, -0.5)
    return figure
