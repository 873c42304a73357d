"""Where each model sees each perturbation in latent space."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from samsvae.figures.style import DIVERGING, clustered, models_in, panels
from samsvae.figures.text import readable

MOST_PERTURBATIONS, MOST_DIMENSIONS = 50, 30


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from latent_effects.tsv; dimensions from the most used on, perturbations clustered."""
    shown = models_in(table, models)
    matrices = {
        model: table[table["model"] == model].pivot_table(
            index="perturbation", columns="dimension", values="shift"
        )
        for model in shown
    }
    first = matrices[shown[0]]
    strongest = first.abs().max(axis=1).sort_values(ascending=False).index[:MOST_PERTURBATIONS]
    order = strongest[clustered(first.loc[strongest].to_numpy())]
    limit = float(np.quantile(np.abs(first.to_numpy()), 0.995)) or 1.0
    figure, axes = panels(len(shown), 3, 0.8 + 0.11 * len(order))
    for axis, (model, matrix) in zip(axes, matrices.items(), strict=True):
        rows = matrix.reindex(order)
        used = (rows**2).sum().sort_values(ascending=False).index[:MOST_DIMENSIONS]
        sns.heatmap(
            rows[used], ax=axis, cmap=DIVERGING, vmin=-limit, vmax=limit, cbar=False,
            xticklabels=False, yticklabels=1 if axis is axes[0] else False,
        )  # fmt: skip
        axis.set(title=readable(model), ylabel="", xlabel=f"latent dimensions ({len(used)})")
        axis.tick_params(labelsize=5, length=0)
    figure.colorbar(
        axes[0].collections[0], ax=axes, shrink=0.6, label="shift, basal standard deviations"
    )
    return figure
