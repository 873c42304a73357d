"""Training curves: the bound of training and of validation cells."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from samsvae.figures.style import models_in, panels
from samsvae.figures.text import readable

STEPS_LEFT_OUT = 0.1  # the steep first part, which would hide the rest


def draw(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw from training.tsv."""
    shown = models_in(table, models)
    late = table[table["step"] >= STEPS_LEFT_OUT * table["step"].max()]
    styles = {"train": (sns.color_palette("colorblind")[0], "-"),
              "val": (sns.color_palette("colorblind")[1], "--")}  # fmt: skip
    names = {"train": "training cells", "val": "validation cells"}
    figure, axes = panels(len(shown), 3, 2.1, sharey=True, sharex=True)
    for axis, model in zip(axes, shown, strict=True):
        runs = late[late["model"] == model].groupby(["split", "seed", "cells"], sort=False)
        for number, ((_split, _seed, cells), run) in enumerate(runs):
            colour, line = styles[cells]
            label = names[cells] if number < 2 else None
            axis.plot(run["step"], run["elbo"], line, color=colour, label=label)
        axis.set(title=readable(model), xlabel="training step")
    axes[0].set_ylabel("ELBO, nats per cell")
    axes[0].legend(loc="lower right")
    return figure
