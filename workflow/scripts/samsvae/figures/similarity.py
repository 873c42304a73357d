"""Which perturbations resemble one another, in data, in predictions and in latent space."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from samsvae.biology.similarity import LATENT, OBSERVED, PREDICTED
from samsvae.figures.style import DIVERGING, clustered, panels
from samsvae.figures.text import readable

MOST_PERTURBATIONS, MOST_MAPS = 40, 12
LABEL_SIZE = 4.5


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from similarity.parquet; the strongest perturbations, clustered by observed effects."""
    observed = table[table["kind"] == OBSERVED]
    own = observed[observed["first"].astype(str) == observed["second"].astype(str)]
    strength = own.set_index(own["first"].astype(str))["strength"].sort_values(ascending=False)
    names = list(strength.index[:MOST_PERTURBATIONS])
    shown = table[table["first"].isin(names) & table["second"].isin(names)]
    maps = [(OBSERVED, OBSERVED)]
    maps += [(kind, model) for model in models for kind in (LATENT, PREDICTED)]
    by_map = shown.groupby(["kind", "model"], observed=True)
    matrices = {one: _square(by_map.get_group(one), names) for one in maps if one in by_map.groups}
    order = [names[row] for row in clustered(matrices[OBSERVED, OBSERVED].to_numpy())]
    matrices = dict(list(matrices.items())[:MOST_MAPS])
    figure, axes = panels(len(matrices), 3, 0.7 + 0.062 * max(len(order), 20))
    pairs = np.triu_indices(len(order), 1)
    measured = matrices[OBSERVED, OBSERVED].loc[order, order].to_numpy()[pairs]
    for index, (axis, ((kind, model), matrix)) in enumerate(
        zip(axes, matrices.items(), strict=True)
    ):
        drawn = matrix.loc[order, order]
        sns.heatmap(
            drawn, ax=axis, cmap=DIVERGING, vmin=-1, vmax=1, cbar=False,
            xticklabels=False, yticklabels=1 if index % 3 == 0 else False,
        )  # fmt: skip
        title = "observed effects" if kind == OBSERVED else f"{readable(model)}\n{kind} effects"
        if kind != OBSERVED and len(order) > 2:
            title += f", r = {np.corrcoef(measured, drawn.to_numpy()[pairs])[0, 1]:.2f}"
        axis.set(xlabel="", ylabel="")
        axis.set_title(title, fontsize=7)
        axis.tick_params(labelsize=LABEL_SIZE, length=0)
    figure.colorbar(
        axes[0].collections[0], ax=axes, location="bottom", shrink=0.4, aspect=30,
        ticks=[-1, -0.5, 0, 0.5, 1], label="similarity: r over genes, cosine in latent space",
    )  # fmt: skip
    return figure


def _square(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Lay out pairs as a symmetric matrix."""
    half = rows.pivot_table(index="first", columns="second", values="similarity", observed=True)
    half = half.reindex(index=names, columns=names)
    return half.fillna(half.T).astype(float)
