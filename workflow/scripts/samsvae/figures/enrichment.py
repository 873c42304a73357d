"""Gene sets that perturbations move, by observed and by predicted effects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samsvae.biology.enrichment import PRERANKED
from samsvae.figures.style import DIVERGING, PAGE_WIDTH, nothing_to_show, panels
from samsvae.wording import readable, readable_set

MOST_SETS, MOST_PERTURBATIONS = 12, 14
LONGEST_NAME = 38
SMALLEST_FDR = 1e-10
LARGEST_SCORE = 3.0


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from enrichment.tsv; preranked enrichment of data and of the first trained model."""
    table = table[table["method"] == PRERANKED]
    observed = table[table["model"] == "observed"]
    if observed.empty:
        return nothing_to_show("No perturbation has an effect to test gene sets for.")
    best = observed.groupby(["gene_sets", "set"])["pvalue"].min().sort_values(kind="stable")
    sets = list(best.index[:MOST_SETS])
    # enrich() goes from the strongest perturbation to the weakest
    perturbations = list(dict.fromkeys(observed["perturbation"]))[:MOST_PERTURBATIONS]
    predicted_by = next((model for model in models if model in set(table["model"])), None)
    sources = {"observed effects": "observed"}
    if predicted_by is not None:
        sources[f"predicted by {readable(predicted_by)}"] = predicted_by
    figure, axes = panels(len(sources), 2, 1.2 + 0.17 * len(sets), sharey=True)
    figure.set_figwidth(PAGE_WIDTH)
    for axis, (title, source) in zip(axes, sources.items(), strict=True):
        drawn = _dots(axis, table[table["model"] == source], sets, perturbations)
        axis.set_title(title)
    axes[0].set_yticks(range(len(sets)), [shortened(name) for _, name in sets])
    axes[0].set_ylim(len(sets) - 0.5, -0.5)
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="normalised enrichment score")
    handles = [
        axes[-1].scatter([], [], s=_area(fdr), color="0.4", label=f"{fdr:g}")
        for fdr in (0.25, 0.05, 1e-3, 1e-6)
    ]
    figure.legend(handles=handles, title="FDR", ncols=4, loc="outside lower center")
    return figure


def _dots(
    axis: Axes, rows: pd.DataFrame, sets: list[tuple[str, str]], perturbations: list[str]
) -> Any:
    indexed = rows.set_index(["gene_sets", "set", "perturbation"])
    points = [
        (column, row, indexed.loc[(*name, perturbation)])
        for row, name in enumerate(sets)
        for column, perturbation in enumerate(perturbations)
        if (*name, perturbation) in indexed.index
    ]
    drawn = axis.scatter(
        [column for column, _, _ in points],
        [row for _, row, _ in points],
        s=[_area(found["fdr"]) for _, _, found in points],
        c=[found["score"] for _, _, found in points],
        cmap=DIVERGING, vmin=-LARGEST_SCORE, vmax=LARGEST_SCORE, edgecolors="0.5", linewidths=0.3,
    )  # fmt: skip
    axis.set_xticks(range(len(perturbations)), perturbations, rotation=90)
    axis.set_xlim(-0.5, len(perturbations) - 0.5)
    axis.grid(True, linewidth=0.3, color="0.9")
    axis.set_axisbelow(True)
    return drawn


def _area(fdr: float) -> float:
    """Area of a dot in square points: grows with -log10 of the false discovery rate."""
    return 3 + 8 * float(-np.log10(np.clip(fdr, SMALLEST_FDR, 1)))


def shortened(name: str) -> str:
    """Write a gene set's name so that it fits beside an axis."""
    words = readable_set(name)
    return words if len(words) <= LONGEST_NAME else words[: LONGEST_NAME - 1] + "…"
