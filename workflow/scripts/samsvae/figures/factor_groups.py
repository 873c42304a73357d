"""Which known groups of perturbations gather in a latent factor."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from samsvae.figures.dots import MOST_MODELS, dots_by_factor
from samsvae.figures.style import SEQUENTIAL, models_in, nothing_to_show

MOST_GROUPS = 20


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from factor_groups.tsv; the groups of smallest p-values."""
    shown = models_in(table, models)[:MOST_MODELS]
    found = table[table["model"].isin(shown) & (table["overlap"] > 0)]
    if found.empty:
        return nothing_to_show("No perturbation of a known group uses a factor.")
    best = found.groupby("group")["pvalue"].min().sort_values(kind="stable")
    groups = list(best.index[:MOST_GROUPS])
    found = found[found["group"].isin(groups)]
    return dots_by_factor(
        found.assign(
            row=[groups.index(group) for group in found["group"]],
            value=found["overlap"] / found["group_size"],
        ),
        shown,
        groups,
        SEQUENTIAL,
        (0, 1),
        "share of the group that uses the factor",
    )
