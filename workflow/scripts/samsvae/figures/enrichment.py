"""Gene sets that perturbations move, by observed and by predicted effects."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from samsvae.biology.enrichment import OBSERVED, PRERANKED
from samsvae.figures.dots import draw_dots, explain_dots
from samsvae.figures.style import (
    DIVERGING,
    LARGEST_SCORE,
    PAGE_WIDTH,
    models_in,
    nothing_to_show,
    panels,
)
from samsvae.figures.text import readable

MOST_SETS, MOST_PERTURBATIONS = 12, 14


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from enrichment.tsv; preranked enrichment of data and of the first trained model."""
    table = table[table["method"] == PRERANKED]
    observed = table[table["model"] == OBSERVED]
    if observed.empty:
        return nothing_to_show("No perturbation has an effect to test gene sets for.")
    best = observed.groupby(["gene_sets", "set"])["pvalue"].min().sort_values(kind="stable")
    sets = list(best.index[:MOST_SETS])
    # enrich() goes from the strongest perturbation to the weakest
    perturbations = list(dict.fromkeys(observed["perturbation"]))[:MOST_PERTURBATIONS]
    sources = {"observed effects": OBSERVED} | {
        f"predicted by {readable(model)}": model for model in models_in(table, models)[:1]
    }
    figure, axes = panels(len(sources), 2, 1.2 + 0.17 * len(sets), sharey=True)
    figure.set_figwidth(PAGE_WIDTH)
    for axis, (title, source) in zip(axes, sources.items(), strict=True):
        dots = _dots(table[table["model"] == source], sets, perturbations)
        drawn = draw_dots(axis, dots, perturbations, DIVERGING, (-LARGEST_SCORE, LARGEST_SCORE))
        axis.set(title=title, xlim=(-0.5, len(perturbations) - 0.5))
    names = [name for _, name in sets]
    explain_dots(figure, axes, names, drawn, "normalised enrichment score")
    return figure


def _dots(
    rows: pd.DataFrame, sets: list[tuple[str, str]], perturbations: list[str]
) -> pd.DataFrame:
    """Keep the sets and perturbations shown, with their places, set by set."""
    keys = pd.MultiIndex.from_frame(rows[["gene_sets", "set"]])
    placed = rows.assign(
        row=pd.MultiIndex.from_tuples(sets).get_indexer(keys),
        column=pd.Index(perturbations).get_indexer(rows["perturbation"]),
        value=rows["score"],
    )
    return placed.query("row >= 0 and column >= 0").sort_values(["row", "column"], kind="stable")
