"""Fits and scores of models: training, bounds, recovery of the truth, scores and their tests."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from samsvae.evaluation.agreement import MASK_THRESHOLD
from samsvae.evaluation.comparison import NOT_SIGNIFICANT, RUNS
from samsvae.evaluation.metrics import FRACTION, HELD_OUT, RUN_SCORES, describe, heading
from samsvae.evaluation.ranking import CHANCE
from samsvae.evaluation.scores import SIGNIFICANT, TESTED, clear_metrics
from samsvae.evaluation.summary import (
    BEST,
    CEILING,
    NOISE_CEILING,
    NOT_DIFFERENT,
    NOT_RANKED,
    by_fraction,
    headlines_in,
)
from samsvae.evaluation.vcc2026 import SCORES
from samsvae.figures import minus, readable
from samsvae.figures.cells import name_cells
from samsvae.figures.style import (
    COLUMN_WIDTH,
    error_bars,
    model_colours,
    models_in,
    name_rows,
    nothing_to_show,
    panels,
    quartiles_of_row,
)

BOUND = RUN_SCORES["iwelbo"]
STEPS_LEFT_OUT = 0.1  # the steep first part, which would hide the rest
RELIABILITY: dict[str, dict[str, Any]] = {
    "coverage": {"linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "calibrated_coverage": {"linestyle": "-", "marker": "o"},
    "noise_coverage": {"linestyle": ":"},
}
INTERVALS = {
    "coverage": "posterior",
    "calibrated_coverage": "calibrated",
    "noise_coverage": "sampling noise alone",
}
GENES = {TESTED: "all tested genes", SIGNIFICANT: "significantly changed genes"}
CELLS = {"test": "test cells", "val": "validation cells"}


def draw_training(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the ELBO of training and validation cells by training step, from training.tsv."""
    shown = models_in(table, models)
    late = table[table["step"] >= STEPS_LEFT_OUT * table["step"].max()]
    palette = sns.color_palette("colorblind")
    styles = {
        "train": ("training cells", palette[0], "-"),
        "val": ("validation cells", palette[1], "--"),
    }
    figure, axes = panels(len(shown), 3, 2.1, sharey=True, sharex=True)
    for axis, model in zip(axes, shown, strict=True):
        runs = late[late["model"] == model].groupby(["split", "seed", "cells"], sort=False)
        for (_split, _seed, cells), run in runs:
            _name, colour, line = styles[cells]
            axis.plot(run["step"], run["elbo"], line, color=colour)
        axis.set(title=readable(model), xlabel="training step")
    for name, colour, line in styles.values():
        axes[0].plot([], [], line, color=colour, label=name)
    axes[0].set_ylabel("ELBO, nats per cell")
    axes[0].legend(loc="lower right")
    return figure


def draw_iwelbo(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw bounds relative to the first model, paired by cell, from iwelbo.tsv."""
    table, cells = unseen_cells(table)
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 0.6 + 0.3 * len(shown)))
    for row, model in enumerate(shown):
        runs = table[table["model"] == model]
        offset = np.linspace(-0.2, 0.2, len(runs)) if len(runs) > 1 else np.zeros(1)
        axis.errorbar(
            runs["difference"], row + offset, fmt="o", color=colours[model], markersize=4,
            xerr=error_bars(runs, "difference", "difference_low", "difference_high"), capsize=2,
        )  # fmt: skip
        _beside(axis, row, minus(f"{runs['mean_iwelbo'].iloc[0]:.1f}"))
    _beside(axis, -0.7, BOUND.heading)
    axis.locator_params(axis="x", nbins=4)
    axis.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    name_rows(axis, [readable(model) for model in shown])
    axis.set_xlabel(f"{BOUND.heading} minus that of {readable(shown[0])},\n{BOUND.unit} ({cells})")
    return figure


def draw_iwelbo_particles(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw mean bounds by number of particles, from iwelbo_by_particles.tsv."""
    table, cells = unseen_cells(table)
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, axes = panels(2, 2, 2.4)
    for model in shown:
        means = table[table["model"] == model].drop_duplicates("particles").sort_values("particles")
        for axis, name in zip(axes, ("mean_iwelbo", "mean_difference"), strict=True):
            axis.errorbar(
                means["particles"], means[name], fmt="o-", markersize=2.5, capsize=1.5,
                yerr=error_bars(means, name, f"{name}_low", f"{name}_high"),
                color=colours[model], label=readable(model), elinewidth=0.6,
            )  # fmt: skip
    particles = sorted(table["particles"].unique())
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(particles, [f"{number:g}" for number in particles])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("particles")
    axes[0].set_ylabel(f"{BOUND.heading}, {BOUND.unit} ({cells})")
    axes[1].set_ylabel(f"{BOUND.heading} minus that of\n{readable(shown[0])}, {BOUND.unit}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_reliability(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the coverage of intervals by their nominal level, from coverage.tsv."""
    shown = models_in(table, models)
    if not shown:
        return nothing_to_show("No interval can be compared with effects among test cells.")
    colours = model_colours(models)
    genes = list(table["genes"].drop_duplicates())
    figure, axes = panels(len(genes), 2, 2.6, sharey=True)
    for axis, which in zip(axes, genes, strict=True):
        rows = table[table["genes"] == which].drop_duplicates(["model", "level"])
        limits = [rows["level"].min(), 1]
        axis.plot(limits, limits, color="0.6", linewidth=0.6, zorder=0)
        for model in models_in(rows, shown):
            own = rows[rows["model"] == model]
            for column, style in RELIABILITY.items():
                axis.plot(
                    own["level"], own[f"mean_{column}"],
                    markersize=2.5, color=colours[model], **style,
                )  # fmt: skip
        number = rows["n_effects"].max()
        axis.set(title=f"{GENES[which]}\n({number:,.0f} effects)", xlabel="nominal level")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter(PercentFormatter(1))
    axes[0].set_ylabel("held-out effects inside interval")
    for model in shown:
        axes[0].plot([], [], color=colours[model], label=readable(model))
    for column, style in RELIABILITY.items():
        axes[0].plot([], [], markersize=2.5, color="0.3", label=INTERVALS[column], **style)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


NOT_CLEAR = "0.55"  # colour of the title of a metric that cannot rank models


def draw_vcc2026(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the scores of predicted cells between mean response and replicate, from vcc2026.tsv."""
    known = table.dropna(subset="mean_scaled")
    shown = models_in(known, models)
    if not shown:
        return nothing_to_show("No score of predicted cells has a scale.")
    colours = model_colours(models)
    metrics, clear = [name for name in SCORES if name in set(known["metric"])], clear_metrics(table)
    figure, axes = panels(len(metrics), 3, 0.7 + 0.17 * len(shown), sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        rows = known[known["metric"] == metric]
        for limit in (0, 1):
            axis.axvline(limit, color="0.6", linewidth=0.6, zorder=0)
        for row, model in enumerate(shown):
            runs = rows[rows["model"] == model]
            axis.scatter(runs["scaled"], [row] * len(runs), s=5, color=colours[model], alpha=0.6)
            axis.plot(runs["mean_scaled"].head(1), [row] * len(runs[:1]), "o", color=colours[model])
        axis.set_title(SCORES[metric].heading, color="black" if metric in clear else NOT_CLEAR)
    name_rows(axes[0], [readable(model) for model in shown])
    figure.supxlabel("0: mean response, 1: replicate of half of the held-out cells")
    return figure


def unseen_cells(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keep the bounds of test cells, or of validation cells where there are no test cells.

    Returns
    -------
    rows : DataFrame
        Rows of the table with that scope.
    name : str
        Name of these cells.
    """
    scope = "test" if (table["scope"] == "test").any() else "val"
    return table[table["scope"] == scope], CELLS[scope]


def _beside(axis: Axes, row: float, text: str) -> None:
    """Write text on the right of the axes, at the height of a row."""
    axis.annotate(
        text, (1.02, row), va="center", annotation_clip=False,
        xycoords=axis.get_yaxis_transform(),
    )  # fmt: skip


def draw_truth(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw inferred masks beside the true ones, matched, from matched_masks.tsv."""
    shown = models_in(table, models)
    if not shown:
        return nothing_to_show("No model of this experiment has a mask.")
    n_targets = table["target"].nunique()
    figure, axes = panels(2 * len(shown), 4, 0.9 + 0.1 * n_targets)
    for index, model in enumerate(shown):
        one = table[table["model"] == model].fillna({"factor": ""})
        columns = list(dict.fromkeys(zip(one["factor"], one["dimension"], strict=True)))
        true, inferred = (
            one.pivot_table(index="target", columns="dimension", values=value)[
                [dimension for _, dimension in columns]
            ]
            for value in ("true_mask", "probability")
        )
        matched = [factor.rpartition("_")[2] or "–" for factor, _ in columns]
        names = [
            f"factor {name}, dimension {own}"
            for name, own in zip(matched, true.columns, strict=True)
        ]
        for axis, matrix, title in zip(
            axes[2 * index : 2 * index + 2],
            (true, inferred),
            ("truth", readable(model)),
            strict=True,
        ):
            drawn = axis.imshow(matrix, cmap="Greys", vmin=0, vmax=1, aspect="auto")
            name_cells(axis, matrix.set_axis(names, axis="columns"), "mask")
            axis.set(title=title, xlabel="factor")
            axis.set_xticks(range(len(matched)), matched, rotation=90)
            axis.set_yticks(np.arange(n_targets), matrix.index if axis is axes[0] else [])
            axis.tick_params(labelsize=5, length=0)
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="mask: true, or posterior probability")
    return figure


def draw_recovery(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the recovery of true masks and latent states, from recovery.tsv."""
    table = table[table["split"] == table["split"].iloc[0]]
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, axes = panels(3, 3, 2.6)
    f1 = table[table["measure"] == "f1"]
    for model in shown:
        for _, run in f1[f1["model"] == model].groupby("seed"):
            style = {"color": colours[model], "alpha": 0.8, "linewidth": 0.8}
            axes[0].plot(run["threshold"], run["value"], **style)
            axes[1].plot(run["density"], run["value"], **style)
            at = run[np.isclose(run["threshold"], MASK_THRESHOLD)]
            for axis, x in zip(axes[:2], ("threshold", "density"), strict=True):
                axis.scatter(at[x], at["value"], s=12, color=colours[model], zorder=3)
    f1 = RUN_SCORES["mask_f1"].heading
    axes[0].set(xlabel="threshold of the mask probability", ylabel=f1)
    axes[1].set(xlabel="fraction of entries in the mask", ylabel=f1, xscale="log")
    axes[1].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[1].xaxis.set_minor_formatter(NullFormatter())
    for axis in axes[:2]:
        axis.set_ylim(0, 1.03)
    _by_factor(axes[2], table[table["measure"] == "correlation"], shown, colours)
    handles = [
        axes[0].scatter([], [], s=12, color=colours[model], label=readable(model))
        for model in shown
    ]
    figure.legend(handles=handles, ncols=4, loc="outside lower center")
    return figure


def _by_factor(axis: Axes, rows: pd.DataFrame, shown: list[str], colours: dict[str, Any]) -> None:
    """Draw the factors as dots and their mean as a bar, by state and model."""
    states = ["total", "basal"]
    once = rows.drop_duplicates(["state", "model", "factor"])
    rng = np.random.default_rng(0)
    for left, state in enumerate(states):
        for index, model in enumerate(shown):
            own = once[(once["state"] == state) & (once["model"] == model)]
            if own.empty:
                continue
            values = own["factor_mean"].to_numpy()
            place = left + 0.8 * ((index + 0.5) / len(shown) - 0.5)
            half = 0.3 / len(shown)
            axis.scatter(
                place + rng.uniform(-half, half, len(values)), values, s=8, linewidths=0,
                color=colours[model], alpha=0.8,
            )  # fmt: skip
            axis.plot([place - half, place + half], [own["state_mean"].iloc[0]] * 2, color="black")
    axis.set_xticks(range(len(states)), [f"{state} state" for state in states])
    axis.set(ylabel="|r| with the true factor", ylim=(0, 1.03))


LABEL_WIDTH = 24  # characters
UNCALIBRATED = "0.65"  # grey, of scores that cannot rank models on the screen
FILLED = (BEST, NOT_DIFFERENT)  # verdicts of filled markers
OPEN = (NOT_SIGNIFICANT, NOT_RANKED)  # results of tests of open markers


def draw_metrics(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw the main scores of models with confidence intervals, from summary.tsv."""
    questions = headlines_in(table, evaluation["top_genes"])
    if not questions:
        return nothing_to_show("No score is defined for these models.")
    colours = model_colours(models)
    height = 0.75 + 0.2 * len(models) * max(1.0, 0.5 * table["fraction"].nunique(dropna=False))
    figure, axes = panels(len(questions), 4, height, sharey=True)
    for axis, ((scope, metric), text) in zip(axes, questions.items(), strict=True):
        found = table[(table["scope"] == scope) & (table["metric"] == metric)]
        _score_rows(axis, found, models, colours)
        axis.set_xlabel(_score_label(text, metric, evaluation["top_genes"]))
        if (found["verdict"] == NOT_RANKED).any():
            _mark_uncalibrated(axis)
        axis.xaxis.set_major_locator(MaxNLocator(3))
    name_rows(axes[0], [readable(model) for model in models])
    return figure


def _score_rows(
    axis: Axes, table: pd.DataFrame, models: Sequence[str], colours: Mapping[str, Any]
) -> None:
    parts = by_fraction(table)
    offset = np.linspace(-0.3, 0.3, len(parts)) if len(parts) > 1 else [0.0]
    for (_fraction, part), shift in zip(parts, offset, strict=True):
        one = part.set_index("model")
        for row, model in enumerate(models):
            if model not in one.index:
                continue
            score = one.loc[model]
            colour = UNCALIBRATED if score["verdict"] == NOT_RANKED else colours[model]
            axis.errorbar(
                score["value"], row + shift, color=colour,
                xerr=error_bars(one.loc[[model]], "value", "low", "high"),
                fmt="D" if score["verdict"] == CEILING else "o", markersize=4,
                markerfacecolor=colour if score["verdict"] in FILLED else "white",
            )  # fmt: skip
        if NOISE_CEILING in one.index and len(parts) == 1:
            axis.axvline(one.loc[NOISE_CEILING, "value"], color="0.5", lw=0.8, ls="--", zorder=0)
    for row, model in enumerate(models):
        if model not in set(table["model"]):
            axis.annotate(
                "undefined", (0.02, row), xycoords=axis.get_yaxis_transform(), va="center",
                color="0.5", fontsize=6,
            )  # fmt: skip


def _mark_uncalibrated(axis: Axes) -> None:
    """Grey the label of a score that cannot rank models on the screen, and say so."""
    axis.set_title("cannot rank models here", color=UNCALIBRATED, fontsize=6)
    axis.xaxis.label.set_color(UNCALIBRATED)


def _score_label(text: str, metric: str, n_top: int) -> str:
    wrapped = textwrap.fill(text, LABEL_WIDTH)
    known = describe(metric, n_top)
    return f"{wrapped}\n({known.unit})" if known and known.unit not in ("", FRACTION) else wrapped


def draw_ranking(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the mean normalised scores of models with their intervals, from ranking.tsv."""
    parts = by_fraction(table)
    if not parts:
        return nothing_to_show("No metric of predicted effects can rank models on this screen.")
    colours = model_colours(models)
    height = 0.7 + 0.22 * table["model"].nunique()
    figure, axes = panels(len(parts), 2, height)
    for axis, (fraction, part) in zip(axes, parts, strict=True):
        for limit in (0, 1):
            axis.axvline(limit, color="0.6", linewidth=0.6, zorder=0)
        shown = part.sort_values("rank", kind="stable")
        for row, (_name, one) in enumerate(shown.iterrows()):
            axis.errorbar(
                one["score"], row, color=colours[one["model"]], fmt="o", markersize=4,
                xerr=error_bars(shown.iloc[[row]], "score", "low", "high"),
            )  # fmt: skip
            if not np.isnan(one["probability_best"]):
                _beside(axis, row, f"{100 * one['probability_best']:.0f} %")
        _beside(axis, -0.7, "best in")
        name_rows(axis, [readable(model) for model in shown["model"]])
        axis.xaxis.set_major_locator(MaxNLocator(4))
        if len(parts) > 1:
            axis.set_title(f"fraction {fraction:g}", loc="left")
    reference = table["reference"].iloc[0]
    at_zero = "value by chance" if reference == CHANCE else readable(reference)
    figure.supxlabel(f"mean normalised score\n(0: {at_zero}, 1: noise ceiling or replicate)")
    return figure


WITHIN = {"perturbations": "over perturbations", "cells": "over cells"}


def draw_paired_differences(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw paired differences to the first model with intervals, from paired_differences.tsv."""
    metrics = (
        f"pearson{HELD_OUT}",
        f"median_pearson{HELD_OUT}",
        f"median_pearson_from_mean{HELD_OUT}",
        "median_de_auroc",
        "iwelbo",
    )
    scope = "test" if (table["scope"] == "test").any() else "all"
    against = _against_first(table[table["scope"] == scope], models[0])
    shown = [metric for metric in metrics if metric in set(against["metric"])]
    if f"pearson{HELD_OUT}" in shown and f"median_pearson{HELD_OUT}" in shown:
        shown.remove(f"median_pearson{HELD_OUT}")
    if not shown:
        return nothing_to_show(
            "There are no replicates, so no difference has a confidence interval."
        )
    others = models_in(against, models[1:])
    colours = model_colours(models)
    n_fractions = len(by_fraction(against))
    offset = np.linspace(-0.3, 0.3, n_fractions) if n_fractions > 1 else [0.0]
    height = 0.8 + 0.25 * len(others) * max(1.0, 0.5 * n_fractions)
    figure, axes = panels(len(shown), 4, height, sharey=True)
    for axis, metric in zip(axes, shown, strict=True):
        one = against[against["metric"] == metric]
        for index, part in enumerate(part for _, part in by_fraction(one)):
            for _name, row in part.iterrows():
                place = others.index(row["model"]) + offset[index]
                is_ranked = row["better"] != NOT_RANKED
                colour = colours[row["model"]] if is_ranked else UNCALIBRATED
                axis.plot([row["low"], row["high"]], [place] * 2, color=colour)
                axis.plot(
                    row["difference"], place, "o", color=colour, markersize=4,
                    markerfacecolor="white" if row["better"] in OPEN else colour,
                )  # fmt: skip
                if n_fractions == 1:
                    axis.annotate(
                        minus(f"{row['difference']:+.3f}"), (1.0, place), va="center",
                        xycoords=axis.get_yaxis_transform(), fontsize=6, annotation_clip=False,
                    )  # fmt: skip
        over = one["over"].iloc[0]
        if (one["better"] == NOT_RANKED).any():
            _mark_uncalibrated(axis)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.axvline(0, color="0.5", linewidth=0.6, zorder=0)
        text = textwrap.fill(heading(metric, evaluation["top_genes"], unit=True), LABEL_WIDTH)
        axis.set_xlabel(f"{text}\n({WITHIN.get(over, f'over {over}')})")
    name_rows(axes[0], [readable(model) for model in others])
    figure.suptitle(f"Difference to {readable(models[0])}")
    return figure


def _against_first(table: pd.DataFrame, first: str) -> pd.DataFrame:
    """Orient comparisons with the first model so that it is subtracted; prefer those over runs."""
    table = table[table["low"].notna() & ((table["first"] == first) | (table["second"] == first))]
    turned = np.where(table["first"] == first, -1.0, 1.0)
    ends = np.sort([turned * table["low"], turned * table["high"]], axis=0)
    table = table.assign(
        model=np.where(table["first"] == first, table["second"], table["first"]),
        difference=turned * table["difference"], low=ends[0], high=ends[1],
        within=~table["over"].isin(RUNS),
    )  # fmt: skip
    question = ["fraction", "metric", "model"]
    return table.sort_values("within", kind="stable").drop_duplicates(question)


def draw_fractions(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw scores by the fraction available for training, from intervals.tsv.

    The scope is held-out perturbations and cells, as in figure 3 of Bereket & Karaletsos 2023.
    """
    n_top = evaluation["top_genes"]
    table = table[table["scope"] == "test"]
    first = next((m for m in models if m in set(_of_metric(table, "iwelbo_relative")["model"])), "")
    metrics = ("iwelbo_relative", "pearson", f"pearson_top{n_top}")
    shown = {
        metric: heading(metric, n_top, unit=True).replace("the first model", readable(first))
        for metric in metrics
        if len(_of_metric(table, metric))
    }
    if not shown:
        return nothing_to_show("No score is defined for these models.")
    fractions = sorted(table["fraction"].dropna().unique())
    colours = model_colours(models)
    figure, axes = panels(len(shown), 3, 2.4)
    for axis, (metric, text) in zip(axes, shown.items(), strict=True):
        one = _of_metric(table, metric)
        present = models_in(one, models)
        width = 0.8 / len(present)
        for place, model in enumerate(present):
            rows = one[one["model"] == model].set_index("fraction").reindex(fractions)
            error = error_bars(rows, "value", "low", "high")
            axis.bar(
                np.arange(len(fractions)) + (place - (len(present) - 1) / 2) * width,
                rows["value"], width, yerr=error, color=colours[model], label=readable(model),
                error_kw={"elinewidth": 0.6, "capsize": 1},
            )  # fmt: skip
        axis.axhline(0, color="0.3", linewidth=0.6)
        axis.set_xticks(range(len(fractions)), [f"{fraction:g}" for fraction in fractions])
        axis.set(
            ylabel=textwrap.fill(text, LABEL_WIDTH),
            xlabel="fraction available for training",
        )
    named = {
        name: bar
        for axis in axes
        for bar, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=4)
    return figure


def _of_metric(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    return table[table["metric"] == metric]


SPREAD_OF_DOTS = 0.22
MOST_DOTS = 20_000  # more are pixels, lest the file be of many megabytes


def draw_perturbations(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw the distribution of scores over perturbations, from metrics.parquet."""
    metrics = (f"pearson{HELD_OUT}", f"pearson_from_mean{HELD_OUT}", "de_auroc")
    table = table[table["perturbation"].notna()]
    if table["tested"].any():
        table = table[table["tested"]]
    table = table[table["metric"].isin(metrics) & table["mean_over_seeds"].notna()]
    means = table.drop_duplicates(["metric", "model", "perturbation"])
    shown = [metric for metric in metrics if metric in set(means["metric"])]
    if not shown:
        return nothing_to_show("No perturbation has enough held-out cells.")
    colours = model_colours(models)
    figure, axes = panels(len(shown), 3, 0.75 + 0.27 * len(models), sharey=True)
    rng = np.random.default_rng(0)
    for axis, metric in zip(axes, shown, strict=True):
        for row, model in enumerate(models):
            own = means[(means["metric"] == metric) & (means["model"] == model)]
            values = own["mean_over_seeds"].to_numpy()
            if not len(values):
                axis.annotate(
                    "undefined", (0.02, row), xycoords=axis.get_yaxis_transform(), va="center",
                    color="0.5", fontsize=6,
                )  # fmt: skip
                continue
            height = row + rng.uniform(-SPREAD_OF_DOTS, SPREAD_OF_DOTS, len(values))
            size = float(np.clip(300 / len(values), 1, 8))
            axis.scatter(
                values, height, s=size, alpha=0.5, color=colours[model], linewidths=0,
                rasterized=len(means) > MOST_DOTS,
            )  # fmt: skip
            quartiles_of_row(axis, row, own[["lower_quartile", "median", "upper_quartile"]].iloc[0])
        axis.set_xlabel(textwrap.fill(heading(metric, evaluation["top_genes"]), LABEL_WIDTH))
    name_rows(axes[0], [readable(model) for model in models])
    return figure
