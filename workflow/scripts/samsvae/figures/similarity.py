"""Which perturbations resemble one another, by observed and by predicted effects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from samsvae.figures.style import DIVERGING, clustered, panels
from samsvae.wording import readable

MOST_PERTURBATIONS = 40


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from effects.parquet; the strongest perturbations, clustered by observed effects."""
    first = table[table["model"] == models[0]]
    observed = _matrix(first, "observed")
    strength = observed.std(axis=1).sort_values(ascending=False)
    names = strength.index[:MOST_PERTURBATIONS]
    order = names[clustered(_correlation(observed.loc[names]))]
    predicted = {
        readable(model): _matrix(table[table["model"] == model], "predicted") for model in models
    }
    # the same prediction for all, such as no change, tells nothing of resemblance
    differing = {m: effects for m, effects in predicted.items() if np.ptp(effects, axis=0).any()}
    shown = {"observed": observed, **differing}
    figure, axes = panels(len(shown), 3, 2.4)
    for index, (axis, (title, matrix)) in enumerate(zip(axes, shown.items(), strict=True)):
        correlation = pd.DataFrame(_correlation(matrix.loc[order]), order, order)
        sns.heatmap(
            correlation, ax=axis, cmap=DIVERGING, vmin=-1, vmax=1, square=True, cbar=False,
            xticklabels=False, yticklabels=1 if index % 3 == 0 else False,
        )  # fmt: skip
        axis.set(title=title, xlabel="", ylabel="")
        axis.tick_params(labelsize=4.5, length=0)
    figure.colorbar(
        axes[0].collections[0], ax=axes, shrink=0.5, label="Pearson r of effects over genes"
    )
    return figure


def _matrix(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    return rows.pivot_table(index="perturbation", columns="gene", values=value, observed=True)


def _correlation(matrix: pd.DataFrame) -> np.ndarray:
    return np.atleast_2d(np.nan_to_num(np.corrcoef(matrix.to_numpy(dtype=float)), nan=0.0))
