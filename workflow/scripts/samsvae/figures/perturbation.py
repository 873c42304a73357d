"""One perturbation: its volcano plot, and predicted against observed effects of every model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samsvae.evaluation.agreement import pearson
from samsvae.figures.style import EFFECT_UNITS, PAGE_WIDTH, model_colours, panels
from samsvae.figures.text import readable
from samsvae.figures.volcano import MOST_DOTS, name_points, strongest, sureness, volcano

MOST_NAMED = 8
OTHER_COLOUR = "0.75"


def draw(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw from the rows of one perturbation in effects.parquet."""
    name = str(table["perturbation"].iloc[0])
    first = table[table["model"] == models[0]]
    figure, axes = panels(1 + len(models), 3, 2.3)
    figure.set_figwidth(PAGE_WIDTH)
    fdr = evaluation["fdr"]
    direction = np.sign(first["observed_held_out"]) * (first["fdr"] < fdr)
    volcano(axes[0], first, fdr, direction, 1.5)
    number = int((first["fdr"] < fdr).sum())
    axes[0].set(
        title=f"{name}: {number:,} DE gene{'s' if number != 1 else ''}",
        xlabel=f"observed effect, held-out cells,\n{EFFECT_UNITS}",
        ylabel="−log10 false discovery rate",
    )
    colours = model_colours(models)
    for axis, model in zip(axes[1:], models, strict=True):
        rows = table[table["model"] == model]
        _against_observed(axis, rows, fdr, colours[model])
        r = float(pearson(rows["observed"].to_numpy(float), rows["predicted"].to_numpy(float)))
        score = "r undefined" if np.isnan(r) else f"r = {r:.2f}"
        axis.set_title(f"{readable(model)}, {score}")
        axis.set_xlabel(f"observed effect, all cells,\n{EFFECT_UNITS}")
        axis.set_ylabel(f"predicted effect,\n{EFFECT_UNITS}")
    figure.draw_without_rendering()
    named = strongest(first, fdr, MOST_NAMED)
    name_points(axes[0], list(named["gene"]), named["observed_held_out"], sureness(named))
    for axis, model in zip(axes[1:], models, strict=True):
        own = table[(table["model"] == model) & table["gene"].isin(named["gene"])]
        own = own.set_index("gene").loc[list(named["gene"])]
        name_points(axis, list(named["gene"]), own["observed"], own["predicted"])
    return figure


def _against_observed(axis: Axes, rows: pd.DataFrame, fdr: float, colour: Any) -> None:
    is_de = (rows["fdr"] < fdr).to_numpy()
    for chosen, shade, place in ((~is_de, OTHER_COLOUR, 1), (is_de, colour, 2)):
        axis.scatter(
            rows.loc[chosen, "observed"], rows.loc[chosen, "predicted"], s=7, color=shade,
            linewidths=0, zorder=place, rasterized=len(rows) > MOST_DOTS,
        )  # fmt: skip
    low, high = float(rows["observed"].min()), float(rows["observed"].max())
    axis.plot([low, high], [low, high], color="0.6", linewidth=0.6, zorder=0)
    axis.margins(x=0.2)
