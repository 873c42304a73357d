"""Whether combinations are the sum of their parts, in the cells and in the models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from samsvae.figures.style import (
    EFFECT_UNITS,
    OBSERVED_COLOUR,
    model_colours,
    models_in,
    name_rows,
    nothing_to_show,
    panels,
)
from samsvae.figures.text import readable

MOST_COMBINATIONS = 40


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from combinations.tsv; from the combination that departs most from a sum on."""
    if table.empty:
        return nothing_to_show("No combination has all its parts observed alone.")
    shown = models_in(table, models)
    of_data = table[table["model"] == shown[0]].set_index("perturbation")
    names = of_data["departure_size"].nlargest(MOST_COMBINATIONS).index
    of_data = of_data.loc[names]
    rows = np.arange(len(names))
    colours = model_colours(models)
    figure, (size, foreseen, right) = panels(3, 3, 1.1 + 0.13 * len(names), sharey=True)
    size.hlines(rows, of_data["departure_size"], of_data["effect_size"], color="0.85", zorder=0)
    size.plot(of_data["effect_size"], rows, "o", color="0.65", markersize=4, label="its effect")
    size.plot(
        of_data["departure_size"], rows, "D", color=OBSERVED_COLOUR, markersize=3.5,
        label="beyond the sum of its parts",
    )  # fmt: skip
    noise: dict[str, Any] = {"marker": "|", "linestyle": "", "color": "0.4", "markersize": 5}
    size.plot(of_data["noise_size"], rows, label="noise of the cells", **noise)
    foreseen.plot(of_data["noise_size"], rows, **noise)
    for row, number in zip(rows, of_data["n_departing"], strict=True):
        size.annotate(
            f"{number:,}", (1.02, row), xycoords=size.get_yaxis_transform(), va="center",
            fontsize=6, annotation_clip=False,
        )  # fmt: skip
    size.annotate(
        "genes", (1.02, -0.8), xycoords=size.get_yaxis_transform(), va="center", fontsize=6,
        annotation_clip=False,
    )  # fmt: skip
    size.set_xlabel(f"size of the observed\neffect, {EFFECT_UNITS}")
    foreseen.plot(of_data["departure_size"], rows, "D", color=OBSERVED_COLOUR, markersize=3.5)
    for model in shown:
        own = table[table["model"] == model].set_index("perturbation").loc[names]
        line: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 3.5, "alpha": 0.85}
        foreseen.plot(
            own["predicted_departure_size"],
            rows,
            color=colours[model],
            label=readable(model),
            **line,
        )
        right.plot(own["departure_correlation"], rows, color=colours[model], **line)
    foreseen.set_xlabel(f"size beyond the sum,\n{EFFECT_UNITS}")
    right.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    right.set_xlim(-1.05, 1.05)
    right.set_xlabel("Pearson r of predicted and\nobserved departure from the sum")
    name_rows(size, names, fontsize=5.5)
    handles, labels = (
        [*one, *other]
        for one, other in zip(
            size.get_legend_handles_labels(), foreseen.get_legend_handles_labels(), strict=True
        )
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure
