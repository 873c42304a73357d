"""The strongest perturbations at a glance: observed effects, coloured by predicted ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from samsvae.figures.style import EFFECT_UNITS, nothing_to_show, panels
from samsvae.figures.text import readable
from samsvae.figures.volcano import name_points, strongest, sureness, volcano

MOST_PERTURBATIONS = 12
MOST_NAMED = 4
COLOURED = 0.98  # quantile of |predicted effect| on DE genes with the strongest colour


def draw(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw from effects.parquet; perturbations with most differentially expressed genes."""
    first = table[table["model"] == models[0]]
    is_de = first["fdr"] < evaluation["fdr"]
    number = is_de.groupby(first["perturbation"], observed=True).sum()
    names = number[number > 0].nlargest(MOST_PERTURBATIONS).index
    if not len(names):
        return nothing_to_show(
            "No gene is differentially expressed among held-out cells at "
            f"FDR < {evaluation['fdr']:g}."
        )
    strengths = first.loc[is_de, "predicted"].abs()
    limit = float(strengths.quantile(COLOURED)) or 1.0
    figure, axes = panels(len(names), 4, 1.85)
    rows = {name: first[first["perturbation"] == name] for name in names}
    for axis, name in zip(axes, names, strict=True):
        own = rows[name]
        drawn = volcano(axis, own, evaluation["fdr"], own["predicted"], limit)
        axis.set_title(f"{name}\n{number[name]:,} DE gene{'s' if number[name] > 1 else ''}")
    figure.supxlabel(f"observed effect among held-out cells, {EFFECT_UNITS}", fontsize=7)
    figure.supylabel("−log10 false discovery rate", fontsize=7)
    figure.colorbar(
        drawn, ax=axes, shrink=0.5, extend="both",
        label=f"effect predicted by {readable(models[0])}, {EFFECT_UNITS}",
    )  # fmt: skip
    figure.draw_without_rendering()
    for axis, name in zip(axes, names, strict=True):
        named = strongest(rows[name], evaluation["fdr"], MOST_NAMED)
        name_points(axis, list(named["gene"]), named["observed_held_out"], sureness(named))
    return figure
