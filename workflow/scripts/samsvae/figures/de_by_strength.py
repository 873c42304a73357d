"""How well differential expression is predicted, by the strength of perturbations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samsvae.evaluation.differential_expression import LOWER_LIMITS, stratum_names
from samsvae.figures.style import model_colours, nothing_to_show, panels
from samsvae.figures.text import readable

METRICS = {
    "auroc": ("AUROC of DE genes", 0.5),
    "sign_agreement": ("share of DE genes with\nthe right sign", 0.5),
    "slope": ("slope, predicted on\nobserved effect of DE genes", 1.0),
}
SPREAD = 0.6  # of the models' dots about a stratum


def draw(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw from de_by_strength.tsv; medians over perturbations, quartiles, runs averaged."""
    by = {
        "n_de": f"DE genes (FDR < {evaluation['fdr']:g})",
        "n_held_out": "held-out cells of the perturbation",
    }
    table = table[table["metric"].isin(METRICS) & table["stratified_by"].isin(by)]
    if table.empty:
        return nothing_to_show("No perturbation has a differentially expressed gene.")
    means = table.groupby(["stratified_by", "metric", "lower", "model"], as_index=False)[
        ["n_perturbations", "median", "lower_quartile", "upper_quartile"]
    ].mean()
    figure, axes = panels(len(by) * len(METRICS), 3, 2.1)
    places = iter(axes)
    for kind, xlabel in by.items():
        for metric, (ylabel, line) in METRICS.items():
            axis = next(places)
            rows = means[(means["stratified_by"] == kind) & (means["metric"] == metric)]
            _strata(axis, rows, kind, models)
            axis.axhline(line, color="0.5", linestyle="--", linewidth=0.6, zorder=0)
            axis.set(xlabel=xlabel, ylabel=ylabel)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _strata(axis: Axes, rows: pd.DataFrame, kind: str, models: Sequence[str]) -> None:
    limits = LOWER_LIMITS[kind]
    present = sorted(rows["lower"].unique())
    names = dict(zip(limits, stratum_names(limits), strict=True))
    number = rows.groupby("lower")["n_perturbations"].max()
    colours = model_colours(models)
    for index, model in enumerate(models):
        own = rows[rows["model"] == model].set_index("lower").reindex(present)
        offset = SPREAD * ((index + 0.5) / len(models) - 0.5)
        error = [own["median"] - own["lower_quartile"], own["upper_quartile"] - own["median"]]
        axis.errorbar(
            np.arange(len(present)) + offset, own["median"], yerr=np.nan_to_num(error), fmt="o",
            markersize=3, elinewidth=0.7, color=colours[model], label=readable(model),
        )  # fmt: skip
    labels = [f"{names[lower]}\n({number[lower]:.0f})" for lower in present]
    axis.set_xticks(range(len(present)), labels)
    axis.set_xlim(-0.5, len(present) - 0.5)
