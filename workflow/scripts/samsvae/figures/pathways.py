"""Gene sets and known groups: enrichment in effects and in latent factors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from samsvae.biology.enrichment import OBSERVED, OVER_REPRESENTATION, PRERANKED
from samsvae.figures import readable
from samsvae.figures.style import (
    DIVERGING,
    EFFECT_UNITS,
    LARGEST_SCORE,
    LOWEST,
    PAGE_WIDTH,
    SEQUENTIAL,
    heatmap,
    model_colours,
    models_in,
    name_rows,
    nothing_to_show,
    panels,
    set_name,
)

MOST_MODELS, MOST_FACTORS = 4, 30
SMALLEST_FDR = 1e-10
LEGEND = (0.25, 0.05, 1e-3, 1e-6)


def draw_dots(
    axis: Axes, dots: pd.DataFrame, columns: Sequence[Any], cmap: str, limits: tuple[float, float]
) -> PathCollection:
    """Draw the dots of a panel: colour shows the value, area the false discovery rate.

    Parameters
    ----------
    axis
        Axes.
    dots
        One row per dot: column, row, value and fdr.
    columns
        Names of the columns.
    cmap, limits
        Colours of the values.
    """
    drawn = axis.scatter(
        dots["column"], dots["row"], s=[_area(fdr) for fdr in dots["fdr"]], c=dots["value"],
        cmap=cmap, vmin=limits[0], vmax=limits[1], edgecolors="0.5", linewidths=0.3,
    )  # fmt: skip
    axis.set_xticks(range(len(columns)), columns, rotation=90)
    axis.grid(True, linewidth=0.3, color="0.9")
    axis.set_axisbelow(True)
    return drawn


def explain_dots(
    figure: Figure, axes: Sequence[Axes], rows: Sequence[str], drawn: PathCollection, label: str
) -> None:
    """Label the rows of all panels, and add the keys of colours and areas.

    Parameters
    ----------
    figure, axes
        The panels.
    rows
        Gene sets or groups, from top to bottom.
    drawn
        Result of :func:`draw_dots`.
    label
        Of the colours.
    """
    name_rows(axes[0], [set_name(name) for name in rows])
    figure.colorbar(drawn, ax=axes, shrink=0.6, label=label)
    handles = [
        axes[-1].scatter([], [], s=_area(fdr), color="0.4", label=f"{fdr:g}") for fdr in LEGEND
    ]
    figure.legend(handles=handles, title="FDR", ncols=4, loc="outside lower center")


def dots_by_factor(
    table: pd.DataFrame,
    models: Sequence[str],
    names: Sequence[str],
    cmap: str,
    limits: tuple[float, float],
    label: str,
) -> Figure:
    """Draw one panel for each model, with one column for each factor.

    Parameters
    ----------
    table
        One row per dot: model, dimension, pvalue, fdr, row (position in `names`) and value.
    models
        One panel each.
    names
        Names of the rows, from top to bottom.
    cmap, limits, label
        Colours of the values.
    """
    figure, axes = panels(len(models), 2, max(LOWEST, 1.1 + 0.16 * len(names)), sharey=True)
    figure.set_figwidth(PAGE_WIDTH)
    for axis, model in zip(axes, models, strict=True):
        rows = table[table["model"] == model]
        # factors by the row of their most significant dot, so that dots descend from left to right
        lowest = rows.sort_values("pvalue", kind="stable").groupby("dimension").first()
        kept = lowest.sort_values("pvalue", kind="stable")[:MOST_FACTORS]
        factors = list(kept.sort_values("row", kind="stable").index)
        rows = rows[rows["dimension"].isin(factors)]
        places = [factors.index(dimension) for dimension in rows["dimension"]]
        drawn = draw_dots(axis, rows.assign(column=places), factors, cmap, limits)
        axis.set(title=readable(model), xlabel="factor", xlim=(-0.5, max(len(factors), 3) - 0.5))
    explain_dots(figure, axes, names, drawn, label)
    return figure


def _area(fdr: float) -> float:
    """Compute the area of a dot in square points, linear in -log10 of the FDR."""
    return 3 + 8 * float(-np.log10(np.clip(fdr, SMALLEST_FDR, 1)))


TOP_SETS, TOP_PERTURBATIONS = 12, 14


def draw_enrichment(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw preranked enrichment of observed effects and of the first model, from enrichment.tsv."""
    table = table[table["method"] == PRERANKED]
    observed = table[table["model"] == OBSERVED]
    if observed.empty:
        return nothing_to_show("No perturbation has an effect to test gene sets for.")
    best = observed.groupby(["gene_sets", "set"])["pvalue"].min().sort_values(kind="stable")
    sets = list(best.index[:TOP_SETS])
    # enrich() goes from the strongest perturbation to the weakest
    perturbations = list(dict.fromkeys(observed["perturbation"]))[:TOP_PERTURBATIONS]
    sources = {"observed effects": OBSERVED} | {
        f"predicted by {readable(model)}": model for model in models_in(table, models)[:1]
    }
    figure, axes = panels(len(sources), 2, 1.2 + 0.17 * len(sets), sharey=True)
    figure.set_figwidth(PAGE_WIDTH)
    for axis, (title, source) in zip(axes, sources.items(), strict=True):
        dots = _dots(table[table["model"] == source], sets, perturbations)
        drawn = draw_dots(axis, dots, perturbations, DIVERGING, (-LARGEST_SCORE, LARGEST_SCORE))
        axis.set(title=title, xlim=(-0.5, len(perturbations) - 0.5))
    names = [name for _, name in sets]
    explain_dots(figure, axes, names, drawn, "normalised enrichment score")
    return figure


def _dots(
    rows: pd.DataFrame, sets: list[tuple[str, str]], perturbations: list[str]
) -> pd.DataFrame:
    """Keep the sets and perturbations shown, with their rows and columns, set by set."""
    keys = pd.MultiIndex.from_frame(rows[["gene_sets", "set"]])
    placed = rows.assign(
        row=pd.MultiIndex.from_tuples(sets).get_indexer(keys),
        column=pd.Index(perturbations).get_indexer(rows["perturbation"]),
        value=rows["score"],
    )
    return placed.query("row >= 0 and column >= 0").sort_values(["row", "column"], kind="stable")


MAPPED_MODELS = 2
SCORE = "normalised enrichment score"


def draw_pathway_map(
    table: pd.DataFrame, models: Sequence[str], evaluation: Mapping[str, Any], **_: Any
) -> Figure:
    """Draw a map of perturbations by gene sets in clustered order, from enrichment.tsv."""
    table = table[table["method"] == PRERANKED]
    observed = table[table["model"] == OBSERVED]
    if observed.empty:
        return nothing_to_show("No perturbation has an effect to test gene sets for.")
    by_set = observed.dropna(subset="set_order").sort_values("set_order")
    rows = list(dict.fromkeys(zip(by_set["gene_sets"], by_set["set"], strict=True)))
    by_name = observed.dropna(subset="perturbation_order").sort_values("perturbation_order")
    columns = list(dict.fromkeys(by_name["perturbation"]))
    predicting = models_in(table, models)[:MAPPED_MODELS]
    shown = {"observed effects": observed} | {
        f"predicted by {readable(model)}": table[table["model"] == model] for model in predicting
    }
    # one above the other, since the names of 40 perturbations need the width of a page
    figure, axes = panels(len(shown), 1, 0.5 + 0.11 * len(rows), sharex=True)
    figure.set_figwidth(PAGE_WIDTH)
    for axis, (title, part) in zip(axes, shown.items(), strict=True):
        scores = _matrix(part, "score", rows, columns)
        heatmap(axis, scores.droplevel(0), SCORE, LARGEST_SCORE, columns=axis is axes[-1])
        significant = _matrix(part, "fdr", rows, columns).to_numpy() < evaluation["fdr"]
        down, across = np.nonzero(significant)
        axis.plot(across + 0.5, down + 0.5, "o", color="0.1", markersize=1.2)
        axis.set(title=title, xlabel="", ylabel="")
        axis.set_yticks(np.arange(len(rows)) + 0.5, [set_name(name) for _, name in rows])
        axis.tick_params(labelsize=5, length=0)
    figure.colorbar(axes[0].collections[0], ax=axes, shrink=0.5, extend="both", label=SCORE)
    return figure


def _matrix(
    part: pd.DataFrame, value: str, sets: list[tuple[str, str]], names: list[str]
) -> pd.DataFrame:
    matrix = part.pivot_table(index=["gene_sets", "set"], columns="perturbation", values=value)
    return matrix.reindex(index=pd.MultiIndex.from_tuples(sets), columns=names)


METHODS = {
    PRERANKED: ("o", "preranked enrichment"),
    OVER_REPRESENTATION: ("^", "over-representation"),
}
METHOD_OFFSET = 0.2  # of the methods about a model's row


def draw_pathway_agreement(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw the agreement of predicted with observed gene sets, from pathway_agreement.tsv."""
    shown = models_in(table, models)
    if not shown:
        return nothing_to_show("No model predicts an effect to test gene sets for.")
    titles = {
        "correlation": "rank correlation over gene sets,\npredicted and observed",
        "overlap": "fraction of significant sets\nfound by both (Jaccard)",
        "same_top": "fraction of perturbations\nwith the same top set",
    }
    colours = model_colours(models)
    figure, axes = panels(3, 3, 0.9 + 0.32 * len(shown), sharey=True)
    rng = np.random.default_rng(0)
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for row, model in enumerate(shown):
            for method, offset in zip(METHODS, (-METHOD_OFFSET, METHOD_OFFSET), strict=True):
                own = table[(table["model"] == model) & (table["method"] == method)]
                values = own[measure].dropna().astype(float).to_numpy()
                if not len(values):
                    continue
                marker, place = METHODS[method][0], row + offset
                first = own.iloc[0]
                if measure == "same_top":
                    fraction = first["fraction_same_top"]
                    axis.plot(fraction, place, marker, color=colours[model], markersize=5)
                    axis.annotate(
                        f" {first['n_same_top']:.0f}/{first['n_with_top']:.0f}", (fraction, place),
                        va="center", xytext=(4, 0), textcoords="offset points", fontsize=6,
                    )  # fmt: skip
                    continue
                height = place + rng.uniform(-METHOD_OFFSET / 2, METHOD_OFFSET / 2, len(values))
                axis.plot(
                    values, height, marker, color=colours[model], markersize=2.5, alpha=0.5,
                    markeredgewidth=0,
                )  # fmt: skip
                axis.plot(
                    first[f"median_{measure}"], place, marker, color="0.15",
                    markerfacecolor="white", markersize=4,
                )  # fmt: skip
        axis.set_xlabel(title)
    axes[0].axvline(0, color="0.6", linewidth=0.6, zorder=0)
    axes[1].set_xlim(-0.05, 1.05)
    axes[2].set_xlim(-0.05, 1.3)
    axes[2].set_xticks([0, 0.5, 1])
    name_rows(axes[0], [readable(model) for model in shown])
    handles = [
        axes[0].plot(
            [], [], marker, color="0.15", markerfacecolor="white", markersize=4, label=name
        )[0]
        for marker, name in METHODS.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


FACTOR_SETS = 20
LARGEST_FDR = 0.25  # of a dot that is drawn


def draw_factor_enrichment(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw gene sets enriched among the genes of each factor, from factor_enrichment.tsv."""
    shown = models_in(table, models)[:MOST_MODELS]
    found = table[table["model"].isin(shown) & (table["fdr"] <= LARGEST_FDR)]
    if found.empty:
        return nothing_to_show(
            f"No gene set is enriched among the genes of any factor at FDR ≤ {LARGEST_FDR:g}."
        )
    best = found.groupby(["gene_sets", "set"])["pvalue"].min().sort_values(kind="stable")
    sets = sorted(best.index[:FACTOR_SETS])
    places = {name: row for row, name in enumerate(sets)}
    rows = [places.get(name, -1) for name in zip(found["gene_sets"], found["set"], strict=True)]
    limit = float(found["mean_effect"].abs().max())
    return dots_by_factor(
        found.assign(row=rows, value=found["mean_effect"]).query("row >= 0"),
        shown,
        [name for _, name in sets],
        DIVERGING,
        (-limit, limit),
        f"mean effect on its genes\n{EFFECT_UNITS}",
    )


MOST_GROUPS = 20


def draw_factor_groups(table: pd.DataFrame, models: Sequence[str], **_: Any) -> Figure:
    """Draw known groups of perturbations enriched in each factor, from factor_groups.tsv."""
    shown = models_in(table, models)[:MOST_MODELS]
    found = table[table["model"].isin(shown) & (table["overlap"] > 0)]
    if found.empty:
        return nothing_to_show("No perturbation of a known group uses a factor.")
    best = found.groupby("group")["pvalue"].min().sort_values(kind="stable")
    groups = list(best.index[:MOST_GROUPS])
    found = found[found["group"].isin(groups)]
    return dots_by_factor(
        found.assign(
            row=[groups.index(group) for group in found["group"]],
            value=found["fraction"],
        ),
        shown,
        groups,
        SEQUENTIAL,
        (0, 1),
        "fraction of the group\nthat uses the factor",
    )
