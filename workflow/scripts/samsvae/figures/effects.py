"""Effects gene by gene: predictions, volcano plots, differential expression, combinations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from samsvae.evaluation.differential_expression import (
    FEWEST_GENES,
    LOWER_LIMITS,
    stratum_names,
)
from samsvae.figures import minus, readable
from samsvae.figures.style import (
    DIVERGING,
    EFFECT_UNITS,
    OBSERVED_COLOUR,
    PAGE_WIDTH,
    SEQUENTIAL,
    colour_limit,
    error_bars,
    model_colours,
    models_in,
    name_points,
    name_rows,
    nothing_to_show,
    panels,
    quartiles_of_row,
)

# read of effects.parquet, which has tens of millions of rows for a genome-wide screen
COLUMNS = {
    "draw_effects": ["model", "observed", "predicted", "pearson"],
    "draw_volcanoes": [
        "model", "perturbation", "gene", "screen_effect", "screen_fdr", "screen_n_de", "predicted",
    ],
}  # fmt: skip
OF_FIRST_MODEL = ["draw_volcanoes"]  # read only its rows


def draw_effects(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw predicted against observed effects on all genes, from effects.parquet."""
    figure, axes = panels(len(models), 3, 2.3, sharex=True, sharey=True)
    low = float(min(table["observed"].min(), table["predicted"].min()))
    high = float(max(table["observed"].max(), table["predicted"].max()))
    for axis, model in zip(axes, models, strict=True):
        one = table[table["model"] == model].dropna(subset="observed")
        drawn = axis.hexbin(
            one["observed"], one["predicted"], gridsize=50, bins="log", mincnt=1,
            extent=(low, high, low, high), cmap=SEQUENTIAL, linewidths=0.1,
        )  # fmt: skip
        axis.plot([low, high], [low, high], color="0.6", linewidth=0.6, zorder=0)
        r = one["pearson"].iloc[0] if len(one) else np.nan
        score = "r undefined (constant)" if np.isnan(r) else minus(f"r = {r:.2f}")
        axis.set(title=f"{readable(model)}\n{score}", aspect="equal")
    for axis in axes[-3:]:  # the lowest of each column, also where the last row is not full
        axis.tick_params(labelbottom=True)
    scale = figure.colorbar(
        drawn, ax=axes, shrink=0.5, label="perturbation–gene pairs",
        format=StrMethodFormatter("{x:,.0f}"),
    )  # fmt: skip
    scale.ax.yaxis.set_minor_formatter(NullFormatter())
    figure.supxlabel(f"observed effect, {EFFECT_UNITS}", fontsize=7)
    figure.supylabel(f"predicted effect, {EFFECT_UNITS}", fontsize=7)
    return figure


NAMED_ALONE = 8
OTHER_COLOUR = "0.75"


def draw_perturbation(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw the effects of one perturbation, from its rows in effects.parquet."""
    name = str(table["perturbation"].iloc[0])
    first = table[table["model"] == models[0]]
    figure, axes = panels(1 + len(models), 3, 2.3)
    figure.set_figwidth(PAGE_WIDTH)
    fdr = evaluation["fdr"]
    direction = np.sign(first["screen_effect"]) * (first["screen_fdr"] < fdr)
    volcano(axes[0], first, fdr, direction, 1.5)
    axes[0].set(
        title=f"{name}: {_de_genes(first)}",
        xlabel=f"observed effect, all cells,\n{EFFECT_UNITS}",
        ylabel="−log10 false discovery rate",
    )
    colours = model_colours(models)
    for axis, model in zip(axes[1:], models, strict=True):
        rows = table[table["model"] == model]
        _against_observed(axis, rows, fdr, colours[model])
        r = rows["pearson_of_perturbation"].iloc[0]
        score = "r undefined" if np.isnan(r) else minus(f"r = {r:.2f}")
        axis.set_title(f"{readable(model)}, {score}")
        axis.set_xlabel(f"observed effect, all cells,\n{EFFECT_UNITS}")
        axis.set_ylabel(f"predicted effect,\n{EFFECT_UNITS}")
    figure.draw_without_rendering()
    named = strongest(first, fdr, NAMED_ALONE)
    name_points(axes[0], list(named["gene"]), named["screen_effect"], minus_log_fdr(named))
    for axis, model in zip(axes[1:], models, strict=True):
        own = table[(table["model"] == model) & table["gene"].isin(named["gene"])]
        own = own.set_index("gene").loc[list(named["gene"])]
        name_points(axis, list(named["gene"]), own["observed"], own["predicted"])
    return figure


def _de_genes(rows: pd.DataFrame) -> str:
    """Give the number of differentially expressed genes of a perturbation's rows."""
    number = rows["screen_n_de"].iloc[0]
    return f"{number:,} DE gene{'s' if number != 1 else ''}"


def _against_observed(axis: Axes, rows: pd.DataFrame, fdr: float, colour: Any) -> None:
    is_de = (rows["screen_fdr"] < fdr).to_numpy()
    for chosen, shade, place in ((~is_de, OTHER_COLOUR, 1), (is_de, colour, 2)):
        axis.scatter(
            rows.loc[chosen, "observed"], rows.loc[chosen, "predicted"], s=7, color=shade,
            linewidths=0, zorder=place, rasterized=len(rows) > MOST_DOTS,
        )  # fmt: skip
    low, high = float(rows["observed"].min()), float(rows["observed"].max())
    axis.plot([low, high], [low, high], color="0.6", linewidth=0.6, zorder=0)
    axis.margins(x=0.2)


SMALLEST_FDR = 1e-50  # smaller ones are drawn there
MOST_DOTS = 2000  # more are pixels, lest the file be of many megabytes
MOST_DOTS_TOGETHER = 12_000  # of all panels


def volcano(
    axis: Axes,
    rows: pd.DataFrame,
    fdr: float,
    values: pd.Series,
    limit: float,
    n_panels: int = 1,
) -> Any:
    """Draw the effects of one perturbation on genes, and their false discovery rates.

    Parameters
    ----------
    axis
        Axes.
    rows
        Rows of one perturbation: gene, screen_effect and screen_fdr; untested genes are left out.
    fdr
        False discovery rate below which a gene is differentially expressed; the dashed line.
    values
        Values shown as colours, with the index of `rows`.
    limit
        Value of the strongest colour.
    n_panels
        Number of such panels of the figure.

    Returns
    -------
    PathCollection
        The dots.
    """
    rows = rows.dropna(subset=["screen_fdr", "screen_effect"])
    drawn = axis.scatter(
        rows["screen_effect"], minus_log_fdr(rows), c=values[rows.index], s=9, cmap=DIVERGING,
        vmin=-limit, vmax=limit, edgecolors="0.4", linewidths=0.25,
        rasterized=len(rows) > min(MOST_DOTS, MOST_DOTS_TOGETHER // n_panels),
    )  # fmt: skip
    axis.axhline(-np.log10(fdr), color="0.5", linestyle="--", linewidth=0.6, zorder=0)
    axis.axvline(0, color="0.85", linewidth=0.6, zorder=0)
    axis.margins(x=0.3, y=0.12)  # room for names of genes
    return drawn


def minus_log_fdr(rows: pd.DataFrame) -> "pd.Series[float]":
    """Compute -log10 of the false discovery rate, 50 at most, also where float32 made it 0."""
    return -np.log10(np.clip(rows["screen_fdr"].astype(float), SMALLEST_FDR, 1))


def strongest(rows: pd.DataFrame, fdr: float, number: int) -> pd.DataFrame:
    """Keep the differentially expressed genes of largest effect among all cells."""
    significant = rows[rows["screen_fdr"] < fdr]
    return significant.loc[significant["screen_effect"].abs().nlargest(number).index]


MOST_VOLCANOES = 12
NAMED_TOGETHER = 4
COLOURED = 0.98  # fraction of predicted effects on DE genes below the strongest colour


def draw_volcanoes(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw volcano plots of the perturbations with most DE genes, from effects.parquet."""
    first = table[table["model"] == models[0]]
    number = (
        first.drop_duplicates("perturbation").set_index("perturbation")["screen_n_de"].sort_index()
    )
    names = number[number > 0].nlargest(MOST_VOLCANOES).index
    if not len(names):
        return nothing_to_show(
            f"No gene is differentially expressed at FDR < {evaluation['fdr']:g}."
        )
    limit = colour_limit(first.loc[first["screen_fdr"] < evaluation["fdr"], "predicted"], COLOURED)
    figure, axes = panels(len(names), 4, 1.85)
    rows = {name: first[first["perturbation"] == name] for name in names}
    for axis, name in zip(axes, names, strict=True):
        own = rows[name]
        drawn = volcano(axis, own, evaluation["fdr"], own["predicted"], limit, len(names))
        axis.set_title(f"{name}\n{_de_genes(own)}")
        axis.margins(x=0.5, y=0.12)  # room for names in narrow panels
    figure.supxlabel(f"observed effect, {EFFECT_UNITS}", fontsize=7)
    figure.supylabel("−log10 false discovery rate", fontsize=7)
    figure.colorbar(
        drawn, ax=axes, shrink=0.5, extend="both",
        label=f"effect predicted by {readable(models[0])}, {EFFECT_UNITS}",
    )  # fmt: skip
    figure.draw_without_rendering()
    for axis, name in zip(axes, names, strict=True):
        named = strongest(rows[name], evaluation["fdr"], NAMED_TOGETHER)
        name_points(axis, list(named["gene"]), named["screen_effect"], minus_log_fdr(named))
    return figure


QUARTILE_COLUMNS = ["auroc_lower_quartile", "auroc_median", "auroc_upper_quartile"]
MOST_DRAWN_POINTS = 5000  # more are pixels, lest the file be of many megabytes


def draw_differential_expression(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw the AUROC of DE genes by model and by their number, from de_comparison.tsv."""
    table = table[(table["n_de"] >= FEWEST_GENES) & table["auroc"].notna()]
    if table.empty:
        return nothing_to_show(
            f"No perturbation has {FEWEST_GENES} or more differentially expressed genes "
            f"among held-out cells at FDR < {evaluation['fdr']:g}."
        )
    shown = models_in(table, models)
    colours = model_colours(models)
    figure, (spread, by_number) = panels(2, 2, 0.9 + 0.3 * len(shown), sharey=False)
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
        quartiles_of_row(spread, row, table.loc[own, QUARTILE_COLUMNS].iloc[0])
    spread.axvline(0.5, color="0.5", linestyle="--", zorder=0)
    name_rows(spread, [readable(model) for model in shown])
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


STRENGTH_METRICS = {
    "auroc": ("AUROC of DE genes", 0.5),
    "sign_agreement": ("fraction of DE genes with\nthe correct sign", 0.5),
    "slope": ("slope, predicted on\nobserved effect of DE genes", 1.0),
}
MODEL_OFFSETS = 0.6  # width of the dots of all models at a stratum


def draw_de_by_strength(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw the prediction of DE genes by strength of perturbation, from de_by_strength.tsv."""
    by = {
        "n_de": f"DE genes (FDR < {evaluation['fdr']:g})",
        "n_held_out": "held-out cells of the perturbation",
    }
    table = table[table["metric"].isin(STRENGTH_METRICS) & table["stratified_by"].isin(by)]
    if table.empty:
        return nothing_to_show("No perturbation has a differentially expressed gene.")
    means = table.drop_duplicates(["stratified_by", "metric", "lower", "model"])
    figure, axes = panels(len(by) * len(STRENGTH_METRICS), 3, 2.1)
    places = iter(axes)
    for kind, xlabel in by.items():
        for metric, (ylabel, line) in STRENGTH_METRICS.items():
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
    colours = model_colours(models)
    for index, model in enumerate(models):
        own = rows[rows["model"] == model].set_index("lower").reindex(present)
        offset = MODEL_OFFSETS * ((index + 0.5) / len(models) - 0.5)
        axis.errorbar(
            np.arange(len(present)) + offset, own["mean_median"], fmt="o", markersize=3,
            yerr=error_bars(own, "mean_median", "mean_lower_quartile", "mean_upper_quartile"),
            elinewidth=0.7, color=colours[model], label=readable(model),
        )  # fmt: skip
    number = rows.drop_duplicates("lower").set_index("lower")["mean_n_perturbations"]
    labels = [f"{names[lower]}\n({number[lower]:.0f})" for lower in present]
    axis.set_xticks(range(len(present)), labels)
    axis.set_xlim(-0.5, len(present) - 0.5)


MOST_COMBINATIONS = 40


def draw_combinations(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the non-additivity of combinations, largest first, from combinations.tsv."""
    if table.empty:
        return nothing_to_show("No combination has all its parts observed alone.")
    shown = models_in(table, models)
    of_data = table[table["model"] == shown[0]].set_index("perturbation")
    names = of_data["non_additivity"].nlargest(MOST_COMBINATIONS).index
    of_data = of_data.loc[names]
    rows = np.arange(len(names))
    colours = model_colours(models)
    figure, (size, beyond, right) = panels(3, 3, 1.1 + 0.13 * len(names), sharey=True)
    size.hlines(rows, of_data["non_additivity"], of_data["effect_size"], color="0.85", zorder=0)
    size.plot(
        of_data["effect_size"],
        rows,
        "o",
        color="0.65",
        markersize=4,
        label="effect of the combination",
    )
    size.plot(
        of_data["non_additivity"], rows, "D", color=OBSERVED_COLOUR, markersize=3.5,
        label="non-additivity",
    )  # fmt: skip
    noise: dict[str, Any] = {"marker": "|", "linestyle": "", "color": "0.4", "markersize": 5}
    size.plot(of_data["noise_size"], rows, label="expected from sampling noise", **noise)
    beyond.plot(of_data["noise_size"], rows, **noise)
    for row, number in zip(rows, of_data["n_non_additive"], strict=True):
        size.annotate(
            f"{number:,}", (1.02, row), xycoords=size.get_yaxis_transform(), va="center",
            fontsize=6, annotation_clip=False,
        )  # fmt: skip
    size.annotate(
        "genes", (1.02, -0.8), xycoords=size.get_yaxis_transform(), va="center", fontsize=6,
        annotation_clip=False,
    )  # fmt: skip
    size.set_xlabel(f"observed effect (root mean\nsquare), {EFFECT_UNITS}")
    beyond.plot(of_data["non_additivity"], rows, "D", color=OBSERVED_COLOUR, markersize=3.5)
    for model in shown:
        own = table[table["model"] == model].set_index("perturbation").loc[names]
        line: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 3.5, "alpha": 0.85}
        beyond.plot(
            own["predicted_non_additivity"],
            rows,
            color=colours[model],
            label=readable(model),
            **line,
        )
        right.plot(own["non_additivity_correlation"], rows, color=colours[model], **line)
    beyond.set_xlabel(f"non-additivity,\n{EFFECT_UNITS}")
    right.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    right.set_xlim(-1.05, 1.05)
    right.set_xlabel("Pearson r of predicted and\nobserved non-additivity")
    name_rows(size, names, fontsize=5.5)
    handles, labels = (
        [*one, *other]
        for one, other in zip(
            size.get_legend_handles_labels(), beyond.get_legend_handles_labels(), strict=True
        )
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure
