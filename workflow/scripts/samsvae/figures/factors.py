"""Which perturbation uses which latent factor, and how far it is moved along it."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from samsvae.biology.factors import used_shifts
from samsvae.figures.style import DIVERGING, PAGE_WIDTH, clustered, models_in, nothing_to_show
from samsvae.figures.text import readable, readable_set

MOST_MODELS, MOST_PERTURBATIONS, MOST_FACTORS, MOST_GROUPS = 4, 80, 40, 9
ROW_HEIGHT = 0.085  # inches, of a label of 5 points
LABEL_SIZE = 5


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from latent_effects.tsv, of models with a mask; known groups together, if any."""
    of_masks = table[table["mask_probability"].notna()]
    shown = models_in(of_masks, models)[:MOST_MODELS]
    if not shown:
        return nothing_to_show("No model of this experiment has a mask.")
    by_model = {model: of_masks[of_masks["model"] == model] for model in shown}
    by_dimension = {model: used_shifts(rows) for model, rows in by_model.items()}
    shifts = {model: m.loc[:, (m != 0).any()] for model, m in by_dimension.items()}
    if not any(matrix.shape[1] for matrix in shifts.values()):
        return nothing_to_show("No perturbation of any model uses a factor.")
    group = of_masks.drop_duplicates("perturbation").set_index("perturbation")["group"]
    order = rows_in_order(shifts, group)
    height = ROW_HEIGHT * len(order)
    figure, axes = plt.subplots(
        2,
        len(shown),
        figsize=(PAGE_WIDTH, 1.2 + height),
        height_ratios=[0.4, height],
        squeeze=False,
        sharex="col",
    )
    limit = max(float(np.abs(matrix.to_numpy()).max(initial=0)) for matrix in shifts.values())
    colours = mpl.colormaps[DIVERGING].with_extremes(bad="white")
    for column, (model, matrix) in enumerate(shifts.items()):
        most_used = (matrix != 0).sum().sort_values(ascending=False, kind="stable").index
        factors = most_used[:MOST_FACTORS]
        axes[0, column].bar(range(len(factors)), (matrix[factors] != 0).sum(), color="0.4")
        axes[0, column].set_title(readable(model))
        axes[0, column].tick_params(bottom=False)
        axes[0, column].yaxis.set_major_locator(MaxNLocator(2, integer=True))
        rows = matrix.reindex(order)[factors].fillna(0.0)
        heat = axes[1, column]
        drawn = heat.imshow(
            rows.where(rows != 0), cmap=colours, vmin=-limit, vmax=limit, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        heat.set_xticks(range(len(factors)), factors, rotation=90)
        heat.set_xlabel(f"factor ({len(most_used)} in use)")
        heat.set_yticks(range(len(order)), order if column == 0 else [])
        heat.tick_params(labelsize=LABEL_SIZE, length=0)
        _separate(heat, group.reindex(order))
    axes[0, 0].set_ylabel("used by")
    _colour_by_group(figure, axes[1, 0], group.reindex(order))
    figure.colorbar(
        drawn, ax=axes[1], shrink=0.8, aspect=30, label="shift, basal standard deviations"
    )
    return figure


def rows_in_order(shifts: dict[str, pd.DataFrame], group: pd.Series) -> list[str]:
    """Perturbations by known group, then clustered by all models that know them."""
    # where combinations are perturbations of their own, a model has more of them
    together = pd.concat(shifts.values(), axis=1, keys=shifts).fillna(0.0).sort_index()
    strength = (together**2).sum(axis=1).sort_values(ascending=False, kind="stable")
    kept = together.loc[sorted(strength.index[:MOST_PERTURBATIONS])]
    by_likeness = kept.index[clustered(kept.to_numpy())]
    known = group.reindex(by_likeness).fillna("")
    return list(known.index[np.lexsort([np.arange(len(known)), known, known == ""])])


def _separate(axis: Axes, group: pd.Series) -> None:
    named = group.fillna("").to_numpy()
    for row in np.flatnonzero(named[1:] != named[:-1]):
        axis.axhline(row + 0.5, color="0.3", linewidth=0.5)


def _colour_by_group(figure: Figure, axis: Axes, group: pd.Series) -> None:
    """Give the labels of known groups' members their colours, the largest groups first."""
    number = group[group.notna() & (group != "")].value_counts()
    largest = number.index[:MOST_GROUPS]
    if not len(largest):
        return
    palette = dict(zip(largest, sns.color_palette("colorblind", len(largest)), strict=True))
    for label in axis.get_yticklabels():
        label.set_color(palette.get(group[label.get_text()], "0.3"))
    handles = [
        mpl.patches.Patch(color=colour, label=readable_set(str(name)))
        for name, colour in palette.items()
    ]
    figure.legend(handles=handles, ncols=3, loc="outside lower center", fontsize=LABEL_SIZE + 1)
