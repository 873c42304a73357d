"""How well predicted effects find the gene sets that observed effects find."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from samsvae.biology.enrichment import OVER_REPRESENTATION, PRERANKED
from samsvae.figures.style import model_colours, models_in, name_rows, nothing_to_show, panels
from samsvae.figures.text import readable

MARKERS = {
    PRERANKED: ("o", "preranked enrichment"),
    OVER_REPRESENTATION: ("^", "over-representation"),
}
HEIGHT = 0.2  # of the methods about a model's row


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from pathway_agreement.tsv; a dot is a perturbation and a collection of gene sets."""
    shown = models_in(table, models)
    if not shown:
        return nothing_to_show("No model predicts an effect to test gene sets for.")
    titles = {
        "correlation": "rank correlation over gene sets,\npredicted and observed",
        "overlap": "share of significant sets\nfound by both",
        "same_top": "share of perturbations with\nthe same top set",
    }
    colours = model_colours(models)
    figure, axes = panels(3, 3, 0.9 + 0.32 * len(shown), sharey=True)
    rng = np.random.default_rng(0)
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for row, model in enumerate(shown):
            for method, offset in zip(MARKERS, (-HEIGHT, HEIGHT), strict=True):
                own = table[(table["model"] == model) & (table["method"] == method)]
                values = own[measure].dropna().astype(float).to_numpy()
                if not len(values):
                    continue
                marker, place = MARKERS[method][0], row + offset
                if measure == "same_top":
                    axis.plot(values.mean(), place, marker, color=colours[model], markersize=5)
                    axis.annotate(
                        f" {values.sum():.0f}/{len(values)}", (values.mean(), place), va="center",
                        xytext=(4, 0), textcoords="offset points", fontsize=6,
                    )  # fmt: skip
                    continue
                height = place + rng.uniform(-HEIGHT / 2, HEIGHT / 2, len(values))
                axis.plot(
                    values, height, marker, color=colours[model], markersize=2.5, alpha=0.5,
                    markeredgewidth=0,
                )  # fmt: skip
                axis.plot(
                    np.median(values), place, marker, color="0.15", markerfacecolor="white",
                    markersize=4,
                )  # fmt: skip
        axis.set_xlabel(title)
    axes[0].axvline(0, color="0.6", linewidth=0.6, zorder=0)
    axes[1].set_xlim(-0.05, 1.05)
    axes[2].set_xlim(-0.05, 1.3)
    axes[2].set_xticks([0, 0.5, 1])
    name_rows(axes[0], [readable(model) for model in shown])
    handles = [
        axes[0].plot(
            [], [], marker, color="0.15", markerfacecolor="white", markersize=4, label=name
        )[0]
        for marker, name in MARKERS.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure
