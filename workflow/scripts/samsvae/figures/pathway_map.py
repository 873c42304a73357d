"""Perturbations by gene sets: who moves what, clustered."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from samsvae.biology.enrichment import OBSERVED, PRERANKED
from samsvae.figures.style import (
    DIVERGING,
    LARGEST_SCORE,
    PAGE_WIDTH,
    clustered,
    models_in,
    nothing_to_show,
    panels,
    set_name,
)
from samsvae.figures.text import readable

MOST_SETS, MOST_PERTURBATIONS = 20, 40
MOST_MODELS = 2


def draw(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw from enrichment.tsv; observed effects and the first models', in the observed order."""
    table = table[table["method"] == PRERANKED]
    observed = table[table["model"] == OBSERVED]
    if observed.empty:
        return nothing_to_show("No perturbation has an effect to test gene sets for.")
    best = observed.groupby(["gene_sets", "set"])["fdr"].min().sort_values(kind="stable")
    sets = list(best.index[:MOST_SETS])
    # enrich() goes from the strongest perturbation to the weakest
    names = list(dict.fromkeys(observed["perturbation"]))[:MOST_PERTURBATIONS]
    scores = _matrix(observed, "score", sets, names).fillna(0)
    rows = [sets[row] for row in clustered(scores.to_numpy())]
    columns = [names[column] for column in clustered(scores.to_numpy().T)]
    predicting = models_in(table, models)[:MOST_MODELS]
    shown = {"observed effects": observed} | {
        f"predicted by {readable(model)}": table[table["model"] == model] for model in predicting
    }
    # one above the other, since names of so many perturbations need the width of a page
    figure, axes = panels(len(shown), 1, 0.5 + 0.11 * len(rows), sharex=True)
    figure.set_figwidth(PAGE_WIDTH)
    for axis, (title, part) in zip(axes, shown.items(), strict=True):
        sns.heatmap(
            _matrix(part, "score", rows, columns), ax=axis, cmap=DIVERGING, vmin=-LARGEST_SCORE,
            vmax=LARGEST_SCORE, cbar=False, xticklabels=1, yticklabels=False,
        )  # fmt: skip
        significant = _matrix(part, "fdr", rows, columns).to_numpy() < evaluation["fdr"]
        down, across = np.nonzero(significant)
        axis.plot(across + 0.5, down + 0.5, "o", color="0.1", markersize=1.2)
        axis.set(title=title, xlabel="", ylabel="")
        axis.set_yticks(np.arange(len(rows)) + 0.5, [set_name(name) for _, name in rows])
        axis.tick_params(labelsize=5, length=0)
    figure.colorbar(
        axes[0].collections[0], ax=axes, shrink=0.5, extend="both",
        label="normalised enrichment score",
    )  # fmt: skip
    return figure


def _matrix(
    part: pd.DataFrame, value: str, sets: list[tuple[str, str]], names: list[str]
) -> pd.DataFrame:
    matrix = part.pivot_table(index=["gene_sets", "set"], columns="perturbation", values=value)
    return matrix.reindex(index=pd.MultiIndex.from_tuples(sets), columns=names)
