"""Gene sets among the genes that each latent factor moves."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from samsvae.figures.dots import MOST_MODELS, dots_by_factor
from samsvae.figures.style import DIVERGING, EFFECT_UNITS, models_in, nothing_to_show

MOST_SETS = 20
LARGEST_FDR = 0.25  # of what is drawn at all


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from factor_enrichment.tsv; the sets of smallest p-values."""
    shown = models_in(table, models)[:MOST_MODELS]
    found = table[table["model"].isin(shown) & (table["fdr"] <= LARGEST_FDR)]
    if found.empty:
        return nothing_to_show("No gene set stands out among the genes of any factor.")
    best = found.groupby(["gene_sets", "set"])["pvalue"].min().sort_values(kind="stable")
    sets = sorted(best.index[:MOST_SETS])
    places = {name: row for row, name in enumerate(sets)}
    rows = [places.get(name, -1) for name in zip(found["gene_sets"], found["set"], strict=True)]
    limit = float(found["mean_effect"].abs().max())
    return dots_by_factor(
        found.assign(row=rows, value=found["mean_effect"]).query("row >= 0"),
        shown,
        [name for _, name in sets],
        DIVERGING,
        (-limit, limit),
        f"mean effect on its genes\n{EFFECT_UNITS}",
    )
