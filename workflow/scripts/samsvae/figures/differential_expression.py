"""How well predicted effects find the differentially expressed genes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from samsvae.figures.style import model_colours, models_in, nothing_to_show, panels
from samsvae.figures.text import readable

FEWEST_GENES = 3
MOST_DRAWN_POINTS = 5000  # more are pixels, lest the file be of many megabytes


def draw(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw from de_comparison.tsv; perturbations with at least three differential genes."""
    table = table[(table["n_de"] >= FEWEST_GENES) & table["auroc"].notna()]
    if table.empty:
        return nothing_to_show(
            f"No perturbation has {FEWEST_GENES} or more differentially expressed genes "
            f"among held-out cells at FDR < {evaluation['fdr']:g}."
        )
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, (spread, by_number) = panels(2, 2, 0.9 + 0.3 * len(shown), sharey=False)
    sns.boxplot(
        table, x="auroc", y="model", order=shown, ax=spread, showfliers=False, color="0.93",
        width=0.6, linewidth=0.7,
    )  # fmt: skip
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(table))
    for row, model in enumerate(shown):
        own = (table["model"] == model).to_numpy()
        spread.scatter(
            table.loc[own, "auroc"],
            row + jitter[own],
            s=5,
            alpha=0.7,
            color=colours[model],
            zorder=3,
            rasterized=len(table) > MOST_DRAWN_POINTS,
        )
    spread.axvline(0.5, color="0.5", linestyle="--", zorder=0)
    spread.set_yticks(range(len(shown)), [readable(model) for model in shown])
    spread.set(ylabel="", xlabel="AUROC of |predicted effect| for\ndifferentially expressed genes")
    sns.scatterplot(
        table, x="n_de", y="auroc", hue="model", hue_order=shown, legend=False, ax=by_number,
        palette=[colours[model] for model in shown], s=10, alpha=0.7,
        rasterized=len(table) > MOST_DRAWN_POINTS,
    )  # fmt: skip
    by_number.axhline(0.5, color="0.5", linestyle="--", zorder=0)
    by_number.set_xscale("log")
    by_number.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    by_number.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    by_number.xaxis.set_minor_formatter(NullFormatter())
    by_number.set(xlabel=f"genes at FDR < {evaluation['fdr']:g} (held-out cells)", ylabel="AUROC")
    return figure
