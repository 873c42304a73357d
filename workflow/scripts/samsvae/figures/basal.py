"""How well a classifier tells perturbations apart by basal and by total states."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from samsvae.biology.states import ALL
from samsvae.figures.style import PAGE_WIDTH, models_in, name_rows, nothing_to_show, panels
from samsvae.figures.text import readable

TOLERANCE = 0.05  # above chance, within which a basal state counts as free of the perturbation
STATES = {
    "basal": ("basal", "true"),
    "total": ("total", "true"),
    "basal, labels shuffled": ("basal", "shuffled"),
}


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from basal.tsv."""
    shown = models_in(table, models)
    if not shown:
        return nothing_to_show("Too few held-out cells of control or of every perturbation.")
    colours = dict(zip(STATES, sns.color_palette("colorblind", len(STATES)), strict=True))
    figure, axes = panels(2, 2, 0.9 + 0.34 * len(shown), sharey=True)
    figure.set_figwidth(PAGE_WIDTH)
    rng = np.random.default_rng(0)
    for axis, of_all, title in zip(
        axes, (False, True), ("each perturbation against control", "all at once"), strict=True
    ):
        rows = table[(table["perturbation"] == ALL) == of_all]
        chance = float(rows["chance"].iloc[0])
        axis.axvspan(chance, chance + TOLERANCE, color="0.9", linewidth=0)
        axis.axvline(chance, color="0.3", linewidth=0.8, linestyle="--")
        for place, model in enumerate(shown):
            for offset, (name, (state, labels)) in enumerate(STATES.items()):
                values = rows.loc[
                    (rows["model"] == model)
                    & (rows["state"] == state)
                    & (rows["labels"] == labels),
                    "accuracy",
                ].to_numpy()
                height = place + 0.26 * (offset - 1)
                jitter = rng.uniform(-0.08, 0.08, len(values))
                if not of_all:
                    axis.scatter(
                        values, height + jitter, s=4, alpha=0.5, color=colours[name], linewidths=0
                    )
                axis.scatter(
                    values.mean(), height, s=22, marker="D", color=colours[name],
                    edgecolors="black", linewidths=0.4, label=name if place == 0 else None,
                )  # fmt: skip
        axis.set(title=title, xlabel="cross-validated accuracy", xlim=(None, 1.03))
    claims = table.groupby("model")["claimed"].first()
    names = [readable(model) + ("" if claims[model] else " *") for model in shown]
    name_rows(axes[0], names)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=3, loc="outside lower center")
    return figure
