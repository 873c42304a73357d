"""The report's browser of perturbations and genes: its data, and its two interactive plots.

The data of all perturbations are in the page, so that it works without a network or a server.
BokehJS draws the plots; the page's script puts the data of the chosen perturbation into them.
"""

import base64
import json
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from bokeh.embed import json_item
from bokeh.layouts import row
from bokeh.models import BasicTickFormatter, ColumnDataSource
from bokeh.models.annotations import Slope, Span
from bokeh.models.tools import HoverTool
from bokeh.plotting import figure

from samsvae.biology.enrichment import OVER_REPRESENTATION
from samsvae.evaluation.effects import effects_in_use
from samsvae.figures import minus, readable, readable_set
from samsvae.report.sections import (
    COUNTS,
    GENE_SETS,
    GUIDES,
    MARGINAL,
    MASKS,
    REFERENCES,
    TRAINING,
)
from samsvae.runtime.files import read_table

MOST_EFFECTS = 200_000  # pairs of a perturbation and a gene in the page
MOST_NAMED = 5
# since a model that learnt little may have all factors in the mask of each perturbation
MOST_FACTORS = 8  # of a perturbation
MOST_FACTORS_IN_ALL = 20_000
EFFECT_STEP = 1e-3  # in which effects are stored, log2(CP10k + 1)
LOG_STEP = 5e-3  # in which -log10 of p-values is stored
LARGEST = {"int16": 2**15 - 1, "uint16": 2**16 - 1}
MISSING = -(2**15)  # of an effect
LIBRARIES = ("bokeh.min.js",)


def browser_data(
    experiment: Path, has: Collection[str], model: str, fdr: float
) -> dict[str, Any] | None:
    """Collect what is known of each perturbation of an experiment.

    Parameters
    ----------
    experiment
        Folder of the experiment's results.
    has
        Properties of the experiment, see :mod:`samsvae.report.sections`.
    model
        The model whose predictions are shown.
    fdr
        False discovery rate of differentially expressed genes and of gene sets.

    Returns
    -------
    dict or None
        JSON: ``genes``; ``model``; ``significance``, the false discovery rate; ``perturbations``
        with ``name``, ``facts`` (heading and text), ``similar`` (name and correlation of effects)
        and the range of their ``effects``; the ``strongest`` of them; ``arrays``, by name the type
        and base64 of the effects:
        index of the ``gene``, ``effect`` (all cells, log2(CP10k + 1)), its standard ``error``,
        ``predicted`` effect, in steps of :data:`EFFECT_STEP`, and -log10 of ``pvalue`` and
        ``fdr``, in steps of :data:`LOG_STEP`.
        None without counts.
    """
    if COUNTS not in has:
        return None
    screen = anndata.read_h5ad(experiment / "screen_effects.h5ad")
    tables = experiment / "tables"
    predicted = _predicted(tables / "effects.parquet", model, screen)
    arrays, ranges = pack_effects(screen, predicted)
    facts = _facts(tables, has, model, fdr)
    similar = _similar(tables / "similarity.parquet")
    return {
        "genes": list(screen.var_names),
        "perturbations": [
            {
                "name": name,
                "facts": facts.get(name, []),
                "similar": similar.get(name, []),
                "effects": ranges[at],
            }
            for at, name in enumerate(screen.obs_names)
        ],
        "strongest": _strongest(tables),
        "model": readable(model),
        "significance": fdr,
        "arrays": arrays,
        "steps": {"effect": EFFECT_STEP, "log": LOG_STEP, "missing": MISSING},
        "left_out": ranges[-1][1] < screen.n_obs * screen.n_vars if ranges else False,
    }


def _strongest(tables: Path) -> str | None:
    """Name the perturbation that changes most genes."""
    table = read_table(tables / "perturbations.tsv", text=["perturbation"])
    return next(iter(table["perturbation"]), None)


def pack_effects(
    screen: anndata.AnnData, predicted: np.ndarray, most: int = MOST_EFFECTS
) -> tuple[dict[str, list[str]], list[list[int]]]:
    """Pack the effects of all perturbations into short arrays.

    Parameters
    ----------
    screen
        Effects of all cells, as of :func:`samsvae.biology.quality.screen_effects`.
    predicted
        Predicted effects, perturbations x genes.
    most
        Largest number of effects; beyond it, each perturbation keeps the genes of smallest p-value.

    Returns
    -------
    arrays : dict
        By name the type and base64, see :func:`browser_data`.
    ranges : list
        First and last position of the effects of each perturbation.
    """
    effect = np.asarray(screen.X, dtype=np.float64)
    pvalue = effects_in_use(screen, "pvalue").astype(np.float64)
    kept = min(screen.n_vars, max(1, most // max(1, screen.n_obs)))
    gene = np.arange(screen.n_vars)[None].repeat(screen.n_obs, axis=0)
    if kept < screen.n_vars:
        gene = np.sort(np.argsort(pvalue, axis=1, kind="stable")[:, :kept], axis=1)

    def chosen(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(np.asarray(values, dtype=np.float64), gene, axis=1)

    columns = {
        "gene": gene.astype(np.uint16 if screen.n_vars <= LARGEST["uint16"] else np.uint32),
        "effect": _in_steps(chosen(effect)),
        "error": _in_steps(chosen(effects_in_use(screen, "standard_error"))),
        "predicted": _in_steps(chosen(predicted)),
        "pvalue": _logarithm(chosen(pvalue)),
        "fdr": _logarithm(chosen(effects_in_use(screen, "fdr"))),
    }
    arrays = {
        name: [str(values.dtype), base64.b64encode(values.tobytes()).decode()]
        for name, values in columns.items()
    }
    return arrays, [[at * kept, (at + 1) * kept] for at in range(screen.n_obs)]


def _in_steps(values: np.ndarray) -> np.ndarray:
    largest = LARGEST["int16"]
    whole = np.clip(np.rint(np.nan_to_num(values) / EFFECT_STEP), -largest, largest)
    return np.where(np.isfinite(values), whole, MISSING).astype("<i2")


def _logarithm(pvalue: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        strength = -np.log10(np.nan_to_num(pvalue, nan=1.0)) / LOG_STEP
    return np.clip(np.rint(strength), 0, LARGEST["uint16"]).astype("<u2")


def _predicted(path: Path, model: str, screen: anndata.AnnData) -> np.ndarray:
    """Read the effects that a model predicts, perturbations x genes; NaN where it predicts none."""
    table = pd.read_parquet(
        path, columns=["perturbation", "gene", "predicted"], filters=[("model", "==", model)]
    )
    found = np.full(screen.shape, np.nan)
    rows = screen.obs_names.get_indexer(table["perturbation"].astype(str))
    columns = screen.var_names.get_indexer(table["gene"].astype(str))
    known = (rows >= 0) & (columns >= 0)
    found[rows[known], columns[known]] = table["predicted"].to_numpy()[known]
    return found


NOT_MEASURED = "unknown: the screen does not measure it"
Facts = dict[str, list[list[str]]]  # heading and text, by perturbation


def _facts(tables: Path, has: Collection[str], model: str, fdr: float) -> Facts:
    """Collect what tables say of each perturbation, in the order of a reader's questions."""
    reference = REFERENCES[MARGINAL in has]
    parts = [
        _of_hits(hits := read_table(tables / "hits.tsv"), reference),
        _of_targets(read_table(tables / "knock_down.tsv"), hits["perturbation"]),
    ]
    if GUIDES in has:
        parts.append(_of_guides(read_table(tables / "guides.tsv")))
    if TRAINING in has:
        parts.append(_of_responders(read_table(tables / "responders.tsv"), reference))
    if GENE_SETS in has:
        parts.append(_of_gene_sets(read_table(tables / "enrichment.tsv"), fdr))
    if MASKS in has:
        parts.append(_of_factors(read_table(tables / "latent_effects.tsv"), model))
    parts.append(_of_predictions(read_table(tables / "missed_effects.tsv"), model))
    collected: Facts = {}
    for part in parts:
        for name, facts in part.items():
            collected.setdefault(name, []).extend(facts)
    return collected


def _of_hits(hits: pd.DataFrame, reference: str) -> Facts:
    found: Facts = {}
    for one in hits.to_dict("records"):
        tested = pd.notna(one["pvalue"])
        different = "yes" if one["is_hit"] else "no"
        test = f"{different} (FDR {one['fdr']:.2g})" if tested else "not tested: too few cells"
        facts = [
            ["Cells", f"{one['n_cells']:,}"],
            [f"Hit (differs from {reference})", test],
            ["Differentially expressed genes", f"{one['n_de']:,} of {one['n_tested']:,} tested"],
        ]
        if pd.notna(one.get("detectable_effect")):
            smallest = f"log2 {one['detectable_effect']:.2f} or more, in a typical gene"
            facts.append(["Change that would be found", smallest])
        if pd.notna(one["composition_gene"]):
            gene, shift = one["composition_gene"], minus(f"{one['common_shift']:+.2f}")
            facts.append(
                [
                    "Composition",
                    f"{gene} changes its fraction of the counts; others shift by {shift}",
                ]
            )
        if one["depth_difference"]:
            facts.append(["Depth", f"{one['depth_ratio']:.2f} times that of {reference}"])
        found[one["perturbation"]] = facts
    return found


def _of_targets(changes: pd.DataFrame, perturbations: Iterable[str]) -> Facts:
    pooled = changes[changes["guide"].fillna("") == ""]
    unknown: Facts = {str(name): [["Change of its target", NOT_MEASURED]] for name in perturbations}
    return unknown | {
        str(name): [
            [
                "Change of its target",
                "; ".join(
                    f"{one['gene']} log2 "
                    + minus(f"{one['log2fc']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]")
                    for one in rows.to_dict("records")
                ),
            ]
        ]
        for name, rows in pooled.groupby("perturbation", sort=False)
    }


def _of_guides(guides: pd.DataFrame) -> Facts:
    def said(one: Mapping[str, Any]) -> str:
        text = f"{one['guide']} ({one['n_cells']:,} cells)"
        return f"{text}: {one['reason']}" if one["odd"] else text

    return {
        str(name): [["Guides", "; ".join(map(said, rows.to_dict("records")))]]
        for name, rows in guides.groupby("perturbation", sort=False)
    }


def _of_responders(responders: pd.DataFrame, reference: str) -> Facts:
    def said(one: Mapping[str, Any]) -> str:
        if pd.isna(one["responders"]):
            return f"unknown: responders cannot be distinguished from {reference}"
        low, high = (f"{100 * one[end]:.0f}" for end in ("low", "high"))
        most, escaped, fewest = (
            f"{one['n_cells'] * (1 - one[end]):,.0f}" for end in ("low", "responders", "high")
        )
        return (
            f"{100 * one['responders']:.0f} % of cells [{low}, {high}]; {escaped} [{fewest}, "
            f"{most}] of {one['n_cells']:,} cells do not respond"
        )

    rows = responders.assign(guide=responders["guide"].fillna(""))
    found = {
        one["perturbation"]: [["Responders", said(one)]]
        for one in rows[rows["guide"] == ""].to_dict("records")
    }
    by_guide = rows[(rows["guide"] != "") & rows["responders"].notna()]
    for name, of_name in by_guide.groupby("perturbation", sort=False):
        text = "; ".join(
            f"{one['guide']} {100 * one['responders']:.0f} %" for one in of_name.to_dict("records")
        )
        found.setdefault(str(name), []).append(["Responders by guide", text])
    return found


def _of_gene_sets(enrichment: pd.DataFrame, fdr: float) -> Facts:
    observed = enrichment[
        (enrichment["model"] == "observed") & (enrichment["method"] == OVER_REPRESENTATION)
    ].sort_values("pvalue", kind="stable")
    significant = observed[observed["fdr"] < fdr]
    return {
        str(name): [
            [
                "Gene sets",
                "; ".join(
                    f"{readable_set(str(one['set']))} (FDR {one['fdr']:.2g})"
                    for one in rows.head(MOST_NAMED).to_dict("records")
                ),
            ]
        ]
        for name, rows in significant.groupby("perturbation", sort=False)
    }


def _of_factors(effects: pd.DataFrame, model: str) -> Facts:
    active = effects[(effects["model"] == model) & effects["active"].astype(bool)]
    if active.empty:
        return {}
    first = active[["split", "seed"]].iloc[0]
    active = active[(active["split"] == first["split"]) & (active["seed"] == first["seed"])]
    # one more than are named, since a perturbation does not share a factor with itself
    users = active.groupby("dimension")["perturbation"].agg(lambda own: list(own[: MOST_NAMED + 1]))

    def said(one: Mapping[str, Any]) -> str:
        others = [name for name in users[one["dimension"]] if name != one["perturbation"]]
        text = minus(f"factor {one['dimension']} ({one['shift']:+.1f} SD)")
        return f"{text}, shared with {', '.join(others[:MOST_NAMED])}" if others else text

    number = min(MOST_FACTORS, max(1, MOST_FACTORS_IN_ALL // active["perturbation"].nunique()))

    def together(rows: pd.DataFrame) -> str:
        left_out = len(rows) - number
        if left_out > 0:
            rows = rows.loc[rows["shift"].abs().nlargest(number).index]
        text = "; ".join(map(said, rows.to_dict("records")))
        return f"{text}; {left_out:,} weaker ones" if left_out > 0 else text

    return {
        str(name): [["Latent factors", together(rows)]]
        for name, rows in active.groupby("perturbation", sort=False)
    }


def _of_predictions(missed: pd.DataFrame, model: str) -> Facts:
    rows = missed[(missed["model"] == model)].dropna(subset="explained")
    explained = rows.groupby("perturbation", sort=False)["explained"].mean()
    return {
        str(name): [
            [
                "Prediction",
                f"{readable(model)} explains {100 * max(value, 0):.0f} % of the effect on held-out "
                "cells",
            ]
        ]
        for name, value in explained.items()
    }


def _similar(path: Path) -> dict[str, list[list[Any]]]:
    """List the perturbations with the most similar observed effects."""
    table = pd.read_parquet(path, columns=["kind", "model", "first", "second", "similarity"])
    # each pair is listed once
    pairs = table.loc[
        (table["kind"] == "observed").fillna(False), ["first", "second", "similarity"]
    ]
    pairs = pairs.astype({"first": str, "second": str})
    both = pd.concat([pairs, pairs.rename(columns={"first": "second", "second": "first"})])
    others = both[both["first"] != both["second"]].dropna().drop_duplicates(["first", "second"])
    order = others.sort_values("similarity", ascending=False, kind="stable")
    return {
        str(name): [
            [str(other), round(float(value), 2)]
            for other, value in zip(
                rows["second"].head(MOST_NAMED), rows["similarity"].head(MOST_NAMED), strict=True
            )
        ]
        for name, rows in order.groupby("first", sort=False)
    }


TOOLTIPS = [
    ("", "@name"),
    ("effect", "@effect{0.00} [@low{0.00}, @high{0.00}]"),
    ("predicted", "@predicted{0.00}"),
    ("p, FDR", "@pvalue_text, @fdr_text"),
]


def interactive_plots() -> str:
    """Describe the two plots of the browser, without data, as JSON for BokehJS.

    Returns
    -------
    str
        A volcano plot, and predicted against observed effects. Both draw the data source of the
        name ``genes``.
    """
    columns = [
        "name", "effect", "low", "high", "predicted", "strength", "pvalue_text", "fdr_text",
        "colour",
    ]  # fmt: skip
    source = ColumnDataSource({name: [] for name in columns}, name="genes")

    def plot(vertical: str, label: str) -> figure:
        made = figure(
            height=340,
            min_width=320,
            sizing_mode="stretch_width",
            tools="pan,wheel_zoom,box_zoom,reset,save",
            x_axis_label="observed effect, log2(CP10k + 1)",
            y_axis_label=label,
        )
        made.scatter(
            "effect", vertical, source=source, size=7, alpha=0.75, line_color=None,
            fill_color="colour",
        )  # fmt: skip
        made.yaxis.formatter = BasicTickFormatter(use_scientific=False)  # of small predictions
        made.add_tools(HoverTool(tooltips=TOOLTIPS))
        made.toolbar.logo = None
        return made

    volcano = plot("strength", "−log10 p-value")
    volcano.add_layout(Span(location=0, dimension="height", line_color="#c8ced5"))
    predicted = plot("predicted", "predicted effect")
    predicted.add_layout(Slope(gradient=1, y_intercept=0, line_color="#c8ced5"))
    narrow = {"flex-wrap": "wrap"}  # one above the other on a narrow screen
    layout = row([volcano, predicted], sizing_mode="stretch_width", styles=narrow)
    return json.dumps(json_item(layout), separators=(",", ":")).replace("<", "\\u003c")


def plot_library() -> str:
    """Read the source of BokehJS, which the page contains."""
    folder = resources.files("bokeh") / "server" / "static" / "js"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in LIBRARIES)
