"""Figures show the numbers of their tables, whatever an experiment has, the same every time."""

import importlib
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure

from draw_figures import main as draw_figures
from samsvae.biology import NULL, PERTURBED
from samsvae.biology.calibration import quantiles
from samsvae.biology.enrichment import pathway_agreement, with_order
from samsvae.biology.factors import with_orders
from samsvae.biology.failed_guides import LOW_CONCORDANCE, WEAK_EFFECT, WEAK_KNOCK_DOWN
from samsvae.biology.similarity import clustered
from samsvae.evaluation.agreement import with_means
from samsvae.evaluation.differential_expression import scores_by_strength, with_quartiles
from samsvae.evaluation.scores import (
    COVERAGES,
    SIGNIFICANT,
    TESTED,
    with_differences,
    with_intervals,
    with_mean_coverage,
    with_mean_scaled,
)
from samsvae.evaluation.scores import with_quartiles as with_quartiles_of_scores
from samsvae.evaluation.vcc2026 import JACCARD, RETRIEVAL, SCORES
from samsvae.figures import readable
from samsvae.figures.scores import NOT_CLEAR
from samsvae.figures.screen import GUIDE, MAY_HAVE_FAILED, MOST_ROWS, TARGET_ALONE
from samsvae.figures.style import (
    POINTS_PER_INCH,
    model_colours,
    save_figure,
    settled_box,
    use_style,
)
from samsvae.report.sections import SHOWN_FIGURES
from samsvae.report.sentences import describe
from samsvae.report.verdict import condition_tables, sentences
from samsvae.runtime.files import write_parquet
from samsvae.runtime.provenance import provenance
from samsvae.screen.splits import parts_table, screen_table
from tests.conftest import ROOT

MODELS = ["sams_vae", "no_change"]
PERTURBATION = "samsvae.figures.effects:draw_perturbation"  # no entry of the report
OPTIONS = {"models": MODELS, "evaluation": {"top_genes": 5, "fdr": 0.05}}


def function_of(figure):
    """The function that draws a figure of the report, or that of a single perturbation."""
    entry = SHOWN_FIGURES.get(figure)
    module, _, function = (entry.function if entry else PERTURBATION).partition(":")
    return getattr(importlib.import_module(module), function)


def split_table(n_perturbations, pairs=0):
    labels = ["control"] * 30 + [f"P{i}" for i in range(n_perturbations) for _ in range(5)]
    labels += [f"P{i}+Q" for i in range(pairs) for _ in range(4)]
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "cell": [f"c{i}" for i in range(len(labels))],
            "perturbation": labels,
            "library_size": rng.integers(100, 5000, len(labels)),
            "split": rng.choice(["train", "val", "test"], len(labels)),
        }
    )


def effects_table(n_perturbations):
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [MODELS, [f"P{i}" for i in range(n_perturbations)], [f"g{i}" for i in range(20)]],
        names=["model", "perturbation", "gene"],
    )
    table = index.to_frame(index=False)
    table["observed"] = rng.normal(size=len(table))
    table["predicted"] = np.where(table["model"] == "no_change", 0.0, table["observed"] / 2)
    table["screen_effect"] = table["observed"] + 0.01
    table["screen_fdr"] = np.where(table["gene"].isin(["g0", "g1"]), 1e-4, 0.5)
    table["trained"] = True
    return scored(table)


def scored(table):
    """Effects with the counts and correlations of their columns, computed another way."""
    one = ["model", "perturbation"]
    is_de = table["screen_fdr"] < 0.05
    table["screen_n_de"] = is_de.groupby([table[name] for name in one]).transform("sum")

    def correlations(names):
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {
                key: np.corrcoef(rows["observed"], rows["predicted"])[0, 1]
                for key, rows in table.groupby(names)
            }
        return table[names].apply(lambda row: found[tuple(row)], axis=1)

    table["pearson_of_perturbation"] = correlations(one)
    table["pearson"] = correlations(["model"])
    return table


def summary_table(fractions=(np.nan,)):
    rows = [
        (fraction, scope, metric, model, value + (0 if np.isnan(fraction) else fraction), verdict)
        for fraction in fractions
        for scope, metric, model, value, verdict in [
            ("test", "pearson_held_out", "sams_vae", 0.85, "best"),
            ("test", "pearson_held_out", "noise_ceiling", 0.9, "ceiling"),
            ("test", "pearson", "sams_vae", 0.1, "worse"),
            ("test", "pearson", "no_change", 0.4, "best"),
            ("test", "iwelbo", "sams_vae", -120.456, "best"),
            ("truth", "mask_f1", "sams_vae", 0.7, "best"),
        ]
    ]
    columns = ["fraction", "scope", "metric", "model", "value", "verdict"]
    table = pd.DataFrame(rows, columns=columns)
    table["low"], table["high"] = table["value"] - 0.01, table["value"] + 0.01
    table.loc[table["model"] == "no_change", ["low", "high"]] = np.nan
    table["tested_over"] = np.where(table["verdict"] == "worse", "seeds", None)
    return table


def differences_table(over, fractions=(np.nan,)):
    rows = [
        (fraction, "test", metric, over, "sams_vae", "no_change", 0.3, 0.1, 0.5, "sams_vae")
        for fraction in fractions
        for metric in ("pearson_held_out", "median_de_auroc", "iwelbo")
    ]
    columns = [
        "fraction",
        "scope",
        "metric",
        "over",
        "first",
        "second",
        "difference",
        "low",
        "high",
        "better",
    ]
    return pd.DataFrame(rows, columns=columns)


def perturbation_table(n, tested):
    index = pd.MultiIndex.from_product(
        [["pearson_held_out", "de_auroc"], MODELS, [0, 1], [f"P{i}" for i in range(n)]],
        names=["metric", "model", "seed", "perturbation"],
    )
    table = index.to_frame(index=False)
    table["tested"] = tested
    table["scope"] = "perturbation"
    table["value"] = np.random.default_rng(1).uniform(size=len(table))
    table.loc[table["model"] == "no_change", "value"] = np.nan
    return with_quartiles_of_scores(table)


def fractions_table(models):
    index = pd.MultiIndex.from_product(
        [["pearson", "pearson_top5", "iwelbo_relative"], models, [0.0, 0.5, 1.0]],
        names=["metric", "model", "fraction"],
    )
    table = index.to_frame(index=False).assign(scope="test")
    table["value"] = np.linspace(0, 1, len(table))
    return table.assign(low=table["value"] - 0.1, high=np.nan)


def particles_table(seeds, scopes=("val", "test")):
    index = pd.MultiIndex.from_product(
        [["s"], MODELS, seeds, scopes, [1, 2, 5, 10, 25, 50, 100]],
        names=["split", "model", "seed", "scope", "particles"],
    )
    table = index.to_frame(index=False)
    table["iwelbo"] = -190 + np.log(table["particles"]) + table["seed"]
    table["iwelbo"] += 0.1 * (table["model"] == "no_change") * table["particles"]
    return with_differences(table.assign(n_cells=10, standard_error=0.2))


def bounds_table(seeds, scopes=("val", "test")):
    index = pd.MultiIndex.from_product(
        [["s"], MODELS, seeds, scopes], names=["split", "model", "seed", "scope"]
    )
    table = index.to_frame(index=False)
    table["iwelbo"] = -190.0 - np.arange(len(table))
    table["difference"] = np.where(table["model"] == MODELS[0], 0.0, -1.5 - table["seed"])
    table["difference_standard_error"] = np.where(table["model"] == MODELS[0], 0.0, 0.2)
    return with_intervals(table)


def training_table(seeds):
    index = pd.MultiIndex.from_product(
        [["s"], MODELS, seeds, range(0, 200, 20), ["train", "val"]],
        names=["split", "model", "seed", "step", "cells"],
    )
    table = index.to_frame(index=False)
    return table.assign(elbo=-200 + np.log1p(table["step"]) + 0.1 * np.arange(len(table)))


def de_table(n_de):
    return with_quartiles(
        pd.DataFrame(
            {
                "split": "s",
                "model": MODELS * 4,
                "seed": 0,
                "n_de": n_de,
                "auroc": np.linspace(0.5, 1, 8),
            }
        )
    )


def enrichment_table(models):
    rows = [
        ("s", model, 0, "hallmark", method, f"P{p}", f"HALLMARK_SET_{s}",
         1.5 - s * (number + 1) + 0.1 * p, 0.01 * (s + 1), 0.04 / (1 + p + number), "g1")
        for number, model in enumerate(models)
        for method in ("preranked", "over_representation")
        for p in range(3)
        for s in range(4)
    ]  # fmt: skip
    columns = [
        "split",
        "model",
        "seed",
        "gene_sets",
        "method",
        "perturbation",
        "set",
        "score",
        "pvalue",
        "fdr",
        "genes",
    ]
    return with_order(pd.DataFrame(rows, columns=columns))


def strength_table(n_de):
    table = de_table(n_de).assign(
        perturbation=[f"P{i // 2}" for i in range(8)], n_held_out=np.repeat([10, 40, 90, 500], 2),
        sign_agreement=0.9, slope=0.5,
    )  # fmt: skip
    return scores_by_strength(table)


def combinations_table(n):
    index = pd.MultiIndex.from_product([MODELS, [f"A+B{i}" for i in range(n)]])
    table = index.to_frame(index=False, name=["model", "perturbation"])
    table["effect_size"], table["non_additivity"] = 0.5, np.linspace(0, 0.4, 2 * n)
    table["noise_size"] = 0.1
    table["n_non_additive"], table["predicted_non_additivity"] = 3, 0.2
    table["predicted_non_additivity"] += 0.01 * np.arange(2 * n)
    table["non_additivity_correlation"] = np.where(table["model"] == "no_change", np.nan, 0.3)
    return table


def agreement_table(models):
    return pathway_agreement(enrichment_table(models).assign(seed=0), 0.05)


def latents_table(n_perturbations, dimensions=4, masked=True, groups=0, models=MODELS[:1]):
    index = pd.MultiIndex.from_product(
        [models, [f"P{i}" for i in range(n_perturbations)], range(dimensions)],
        names=["model", "perturbation", "dimension"],
    )
    table = index.to_frame(index=False)
    rng = np.random.default_rng(0)
    table["shift"] = rng.normal(size=len(table))
    table["mask_probability"] = rng.uniform(size=len(table)) if masked else np.nan
    number = table["perturbation"].str[1:].astype(int)
    table["group"] = [f"PATHWAY_{n % groups}" if groups and n % 3 else None for n in number]
    return with_orders(table)


def dots_table(n_rows, names):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "model": MODELS[0],
            "dimension": rng.integers(0, 40, n_rows),
            names: [f"SET_{i}" for i in rng.integers(0, 30, n_rows)],
            "pvalue": rng.uniform(0, 0.01, n_rows),
            "fdr": rng.uniform(0, 0.3, n_rows),
        }
    ).drop_duplicates(["dimension", names])
    effect = rng.normal(size=len(table))
    return table.assign(
        gene_sets="s", mean_effect=effect, overlap=2, fraction=np.abs(np.sin(effect))
    )


def perturbation_map_table(n):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "perturbation": [f"P{i}" for i in range(n)],
            "strength": rng.uniform(0.1, 1, n),
            "leiden": rng.integers(3, size=n),
        }
    )
    kinds = [("observed", "observed"), ("latent", MODELS[0])]
    parts = [
        rows.assign(kind=kind, model=model, x=rng.normal(size=n), y=rng.normal(size=n))
        for kind, model in kinds
    ]
    return pd.concat(parts, ignore_index=True)


def similarity_table(n_perturbations, kinds, name="P"):
    names = [f"{name}{i}" for i in range(n_perturbations)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    table = pd.DataFrame(
        [(kind, model, *pair) for kind, model in kinds for pair in pairs],
        columns=["kind", "model", "first", "second"],
    )
    table["similarity"] = np.random.default_rng(0).uniform(-1, 1, len(table))
    table.loc[table["first"] == table["second"], "similarity"] = 1.0
    order = {name: place for place, name in enumerate(names[39::-1])}
    for side in ("first", "second"):
        table[f"{side}_order"] = pd.array([order.get(n) for n in table[side]], dtype="Int16")
    of_kind = {kind: number for number, (kind, _) in enumerate(kinds)}
    r = table["kind"].map(of_kind) / 10
    return table.assign(strength=1.0, correlation=r.where(r > 0) if n_perturbations > 2 else np.nan)


def basal_table(n_perturbations):
    index = pd.MultiIndex.from_product(
        [MODELS[:1], ["basal", "total"], ["true", "shuffled"], [*range(n_perturbations), "all"]],
        names=["model", "state", "labels", "perturbation"],
    )
    table = index.to_frame(index=False).assign(claimed=False)
    table["accuracy"] = np.random.default_rng(0).uniform(0.3, 0.9, len(table))
    is_all = table["perturbation"] == "all"
    mean = table.groupby(["state", "labels", is_all])["accuracy"].transform("mean")
    return table.assign(chance=np.where(is_all, 0.1, 0.5), mean_accuracy=mean)


def state_table(**covariates):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(200, 2)), columns=["x", "y"])
    table["state"] = ["basal", "total"] * 100
    table["shown_as"] = rng.choice(["control", "P1", "P2", "other perturbations"], 200)
    return table.assign(perturbation="P", cell="c", **covariates)


def recovery_table(masked):
    thresholds = pd.DataFrame(
        {"measure": "f1", "threshold": [0.1, 0.5, 0.9], "density": [1, 0.1, 0]}
    )
    states = pd.DataFrame(
        {"measure": "correlation", "state": ["basal", "total"] * 2, "factor": list("aabb")}
    )
    parts = [thresholds, states] if masked else [states]
    table = pd.concat([pd.concat(parts).assign(seed=seed) for seed in (0, 1)])
    table = table.assign(split="s", model=MODELS[0], value=np.linspace(0, 1, len(table)))
    return with_means(
        table.reset_index(drop=True).reindex(
            columns=[*table, *({"state", "factor", "threshold", "density"} - set(table))]
        )
    )


def masks_table(models):
    index = pd.MultiIndex.from_product(
        [models, ["T1", "T2", "T3"], [4, 1, 7]], names=["model", "target", "dimension"]
    )
    table = index.to_frame(index=False)
    rng = np.random.default_rng(0)
    table["factor"] = table["dimension"].map({4: "PROGRAMME_1", 1: "PROGRAMME_2"})
    table["true_mask"] = rng.integers(0, 2, len(table)) * 1.0 * table["factor"].notna()
    return table.assign(probability=rng.uniform(size=len(table)))


def null_table(n):
    rng = np.random.default_rng(0)
    return quantiles(rng.uniform(size=n))


def scores_table(n):
    """Densities of the scores of perturbed and control cells, of n perturbations."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(n):
        edges = np.linspace(-5, 10 + number, 9)
        for kind in (NULL, PERTURBED):
            density = rng.random(8)
            density /= (density * np.diff(edges)).sum()
            own = {"perturbation": f"P{number}", "kind": kind, "lower": edges[:-1]}
            found.append(pd.DataFrame({**own, "upper": edges[1:], "density": density}))
    columns = ["perturbation", "kind", "lower", "upper", "density"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def hits_table(n):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "perturbation": [f"P{i}" for i in range(n)],
            "n_compared": rng.integers(20, 2000, n),
            "e_distance": rng.normal(size=n) * 20,
            "is_hit": rng.random(n) < 0.5,
            "n_de": rng.integers(0, 200, n),
        }
    )


def knock_down_table(n, guides=3):
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [[f"P{i}" for i in range(n)], ["", *(f"g{i}" for i in range(guides))]],
        names=["perturbation", "guide"],
    )
    table = index.to_frame(index=False)
    table["gene"] = table["perturbation"]
    table["log2fc"] = rng.normal(size=len(table))
    return table.assign(low=table["log2fc"] - 0.2, high=table["log2fc"] + 0.3)


def guides_table(n, known=True):
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [[f"P{i}" for i in range(n)], ["g1", "g2", "g3"]], names=["perturbation", "guide"]
    )
    table = index.to_frame(index=False)
    table["concordance"] = rng.uniform(-1, 1, len(table)) if known else np.nan
    reasons = [None, None, WEAK_EFFECT, WEAK_KNOCK_DOWN, f"{LOW_CONCORDANCE}, {WEAK_KNOCK_DOWN}"]
    table["reason"] = rng.choice(np.array(reasons, dtype=object), len(table))
    return table.assign(
        slope=rng.normal(size=len(table)), knock_down=np.nan, odd=table["reason"].notna()
    )


def batches_table(n, batches):
    index = pd.MultiIndex.from_product(
        [[f"P{i}" for i in range(n)], [f"b{i}" for i in range(batches)]],
        names=["perturbation", "batch"],
    )
    table = index.to_frame(index=False)
    table["n_cells"] = np.random.default_rng(0).integers(1, 50, len(table))
    whole = table.groupby("perturbation")["n_cells"].transform("sum")
    return table.assign(fraction=table["n_cells"] / whole, control_fraction=1 / batches)


def contexts_table(n, contexts):
    rng = np.random.default_rng(1)
    pairs = [(f"P{i}", f"c{j}") for i in range(n) for j in range(contexts) if (i, j) != (2, 1)]
    table = pd.DataFrame(pairs, columns=["perturbation", "context"])
    table["n_de"] = rng.integers(0, 300, len(table))
    number = dict(zip(table["perturbation"].unique(), rng.integers(0, 90, n), strict=True))
    return table.assign(n_heterogeneous=table["perturbation"].map(number))


def coverage_table(models, genes):
    index = pd.MultiIndex.from_product(
        [["a", "b"], models, genes, [0.5, 0.8, 0.9, 0.99]],
        names=["split", "model", "genes", "level"],
    )
    table = index.to_frame(index=False)
    rng = np.random.default_rng(0)
    for name in COVERAGES:
        table[name] = table["level"] - rng.uniform(0, 0.1, len(table))
    return with_mean_coverage(table.assign(n=rng.integers(100, 5000, len(table))))


def vcc_table(seeds, unknown=()):
    index = pd.MultiIndex.from_product(
        [["s"], MODELS, seeds, SCORES], names=["split", "model", "seed", "metric"]
    )
    table = index.to_frame(index=False)
    table["scaled"] = np.random.default_rng(0).normal(0.5, 0.4, len(table))
    table.loc[table["metric"].isin(unknown), "scaled"] = np.nan
    narrow = table["metric"] == RETRIEVAL
    table = table.assign(baseline=0.5, replicate=0.7, replicate_sd=np.where(narrow, 0.2, 0.05))
    return with_mean_scaled(table)


def ranking_table(fractions=(np.nan,), certain=True):
    rows = pd.DataFrame(
        {
            "model": MODELS[::-1],
            "score": [0.8, 0.31],
            "low": [0.7, 0.2],
            "high": [0.95, 0.4],
            "rank": [1, 2],
            "probability_best": [0.83, 0.17] if certain else np.nan,
            "reference": "no_change",
        }
    )
    parts = [
        rows.assign(fraction=fraction, score=rows["score"] + number / 10, high=rows["high"] + 0.2)
        for number, fraction in enumerate(fractions)
    ]
    return pd.concat(parts, ignore_index=True) if parts else rows.assign(fraction=np.nan)[:0]


LATENT_KINDS = [("observed", "observed"), ("latent", MODELS[0]), ("predicted", MODELS[0])]
TABLES = {
    ("screen", "few"): screen_table(split_table(8)),
    ("screen", "many"): screen_table(split_table(200)),
    ("split", "singles"): parts_table(split_table(8)),
    ("split", "pairs"): parts_table(split_table(8, pairs=3)),
    ("null", "many"): null_table(3000),
    ("null", "none"): null_table(0),
    ("responders", "few"): scores_table(2),
    ("responders", "many"): scores_table(11),
    ("responders", "none"): scores_table(0),
    ("hits", "some"): hits_table(30),
    ("hits", "of as many cells"): hits_table(30).assign(n_compared=range(100, 130)),
    ("hits", "many of as many cells"): hits_table(90).assign(n_compared=100),
    ("hits", "none"): hits_table(0),
    ("knock_down", "some"): knock_down_table(8),
    ("knock_down", "many"): knock_down_table(200, guides=0),
    ("knock_down", "none"): knock_down_table(0).astype(object),  # as it is read
    ("guides", "some"): guides_table(12),
    ("guides", "none"): guides_table(3, known=False),
    ("batches", "three"): batches_table(20, 3),
    ("contexts", "two"): contexts_table(12, 2),
    ("contexts", "many"): contexts_table(90, 5),
    ("contexts", "none"): contexts_table(0, 0),
    ("batches", "many"): batches_table(200, 14),
    ("batches", "very many"): batches_table(3, 60),
    ("effects", "few"): effects_table(3),
    ("similarity", "one"): similarity_table(1, LATENT_KINDS),
    ("similarity", "many"): similarity_table(60, LATENT_KINDS),
    ("similarity", "combinations"): similarity_table(40, LATENT_KINDS, "MAP2K3+MAP2K"),
    ("similarity", "observed alone"): similarity_table(5, LATENT_KINDS[:1]),
    ("factors", "few"): latents_table(8, groups=2),
    ("factors", "many"): latents_table(700, 60, groups=12),
    ("factors", "one"): latents_table(1),
    ("factors", "pairs of their own"): pd.concat(
        [latents_table(4), latents_table(9).assign(model=MODELS[1])], ignore_index=True
    ).pipe(with_orders),
    ("factors", "no mask"): latents_table(8, masked=False),
    ("factors", "none in use"): with_orders(latents_table(8).assign(mask_probability=0.1)),
    ("latent_effects", "many"): latents_table(60, 40, models=MODELS),
    ("latent_effects", "one"): latents_table(1),
    ("truth", "two models"): masks_table(MODELS),
    ("truth", "no mask"): masks_table([]),
    ("training", "seeds"): training_table([0, 1]),
    ("iwelbo", "seeds"): bounds_table([0, 1, 2]),
    ("iwelbo", "validation alone"): bounds_table([0], ["val"]),
    ("factor_groups", "many"): dots_table(300, "group"),
    ("factor_groups", "none"): dots_table(0, "group"),
    ("factor_enrichment", "many"): dots_table(300, "set"),
    ("factor_enrichment", "one"): dots_table(1, "set"),
    ("factor_enrichment", "none"): dots_table(5, "set").assign(fdr=0.9),
    ("basal", "many"): basal_table(300),
    ("basal", "none"): basal_table(3)[:0],
    ("perturbation_map", "two kinds"): perturbation_map_table(40),
    ("perturbation_map", "none"): perturbation_map_table(0),
    ("state_map", "no covariate"): state_table(),
    ("state_map", "covariates"): state_table(batch=["a", "b"] * 100, mito=np.linspace(0, 1, 200)),
    ("reliability", "two models"): coverage_table(MODELS, [TESTED, SIGNIFICANT]),
    ("reliability", "not calibrated"): coverage_table(MODELS[:1], [TESTED]).assign(
        mean_calibrated_coverage=np.nan
    ),
    ("reliability", "none"): coverage_table([], []),
    ("vcc2026", "seeds"): vcc_table([0, 1, 2]),
    ("vcc2026", "one unknown"): vcc_table([0], [JACCARD]),
    ("vcc2026", "none"): vcc_table([0], SCORES),
    ("ranking", "one"): ranking_table(),
    ("ranking", "fractions"): ranking_table([0.5, 0.0]),
    ("ranking", "nothing repeated"): ranking_table(certain=False).assign(low=np.nan, high=np.nan),
    ("ranking", "none"): ranking_table([]),
    ("recovery", "masked"): recovery_table(True),
    ("recovery", "no mask"): recovery_table(False),
    ("metrics", "with undefined"): summary_table(),
    ("metrics", "fractions"): summary_table([0.0, 0.5]),
    ("paired_differences", "seeds"): differences_table("seeds"),
    ("paired_differences", "fractions"): differences_table("splits", [0.0, 0.5]),
    ("paired_differences", "nothing repeated"): differences_table("seeds").assign(low=np.nan),
    ("perturbations", "tested"): perturbation_table(300, True),
    ("perturbations", "none tested"): perturbation_table(3, False),
    ("fractions", "all"): fractions_table(MODELS),
    ("fractions", "one model"): fractions_table(MODELS[:1]),
    ("iwelbo_particles", "seeds"): particles_table([0, 1, 2]),
    ("iwelbo_particles", "validation alone"): particles_table([0], ["val"]),
    ("differential_expression", "some"): de_table(12),
    ("differential_expression", "none"): de_table(0),
    ("volcanoes", "few"): effects_table(3),
    ("volcanoes", "many"): effects_table(20),
    ("volcanoes", "none"): effects_table(2).assign(screen_fdr=1.0, screen_n_de=0),
    ("perturbation", "one"): effects_table(1),
    ("perturbation", "untested"): effects_table(1).assign(
        screen_fdr=np.nan, screen_effect=np.nan, screen_n_de=0
    ),
    ("de_by_strength", "some"): strength_table([1, 5, 20, 50, 500, 3, 0, 2]),
    ("de_by_strength", "none"): strength_table(0),
    ("combinations", "few"): combinations_table(2),
    ("combinations", "many"): combinations_table(60),
    ("combinations", "none"): combinations_table(0),
    ("pathway_agreement", "both"): agreement_table(["observed", "sams_vae"]),
    ("pathway_agreement", "observed alone"): agreement_table(["observed"]),
    ("pathway_map", "both"): enrichment_table(["observed", "sams_vae"]),
    ("pathway_map", "observed alone"): enrichment_table(["observed"]),
    ("pathway_map", "none"): enrichment_table([]),
    ("enrichment", "both"): enrichment_table(["observed", "sams_vae"]),
    ("enrichment", "observed alone"): enrichment_table(["observed"]),
    ("enrichment", "none"): enrichment_table([]),
}


def boxes_of_texts(figure):
    """Visible texts of a figure with their boxes; tilted ones, whose boxes are too large, not."""
    drawn = [figure._suptitle, figure._supxlabel, figure._supylabel]
    drawn += [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        drawn += [axes.title, *axes.texts]
        drawn += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            drawn.append(axis.label)
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                inside = low - 1e-9 <= tick.get_loc() <= high + 1e-9
                drawn += [tick.label1, tick.label2] if inside else []
    return [
        (text.get_text(), text.get_window_extent())
        for text in drawn
        if text and text.get_visible() and text.get_text().strip() and text.get_rotation() % 90 == 0
    ]


def overlaps(figure, most=1.5):
    """Pairs of texts that lie on each other by more pixels than these in both directions."""
    figure.canvas.draw()
    return [
        (first, second)
        for (first, one), (second, other) in itertools.combinations(boxes_of_texts(figure), 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > most
        and min(one.y1, other.y1) - max(one.y0, other.y0) > most
    ]


def cut_off(figure, most=0.5):
    """Texts that leave the box that is written by more pixels than these."""
    box = settled_box(figure)
    figure.set_dpi(POINTS_PER_INCH)
    box = box.transformed(figure.dpi_scale_trans)
    return [
        text
        for text, own in boxes_of_texts(figure)
        if own.x0 < box.x0 - most
        or own.x1 > box.x1 + most
        or own.y0 < box.y0 - most
        or own.y1 > box.y1 + most
    ]


def test_a_text_beyond_the_box_is_found_out():
    use_style()
    drawn, axis = plt.subplots(figsize=(2, 2))
    outside = axis.text(1, 0.5, "a long name", transform=axis.transAxes)
    assert cut_off(drawn) == []
    outside.set_in_layout(False)
    assert cut_off(drawn) == ["a long name"]
    plt.close(drawn)


@pytest.mark.parametrize("n_cells", [[100] * 29 + [150], list(range(20, 3020, 100))])
def test_names_of_dots_stay_within_the_figure(n_cells):
    """The names of perturbations with as many cells stand beside each other or are left out."""
    use_style()
    table = hits_table(30).assign(n_compared=n_cells, is_hit=True)
    table["perturbation"] = [f"CNN1+MAPK{number}" for number in range(30)]
    drawn = function_of("hits")(table, **OPTIONS)
    assert sum(len(axis.texts) for axis in drawn.axes) > 4
    assert cut_off(drawn) == []
    low, high = drawn.axes[0].get_xlim()
    shown = [tick for tick in drawn.axes[0].get_xticks() if low <= tick <= high]
    assert len(shown) > 1
    plt.close(drawn)


@pytest.mark.parametrize("models", [MODELS, MODELS[::-1]])
def test_the_job_of_a_figure_draws_what_its_function_draws(tmp_path, models):
    """Of volcano plots it reads the rows of the first model alone."""
    use_style()
    options = {**OPTIONS, "models": models}
    table = effects_table(3)
    write_parquet(table, "{}", tmp_path / "effects.parquet")
    (tmp_path / "caption.rst").write_text("caption")
    drawn = {}
    for name in ("volcanoes", "effects"):
        given = SimpleNamespace(
            tables=[tmp_path / "effects.parquet"], captions=[tmp_path / "caption.rst"]
        )
        paths = SimpleNamespace(figures=[tmp_path / f"{name}.svg"], pdfs=[tmp_path / f"{name}.pdf"])
        settings = SimpleNamespace(
            options=options, code="", functions=[SHOWN_FIGURES[name].function]
        )
        draw_figures(SimpleNamespace(input=given, output=paths, params=settings))
        drawn[name] = function_of(name)(table, **options)
        record = provenance(options, "")
        save_figure(drawn[name], "caption", record, [tmp_path / "whole.svg"])
        assert (tmp_path / f"{name}.svg").read_text() == (tmp_path / "whole.svg").read_text()


@pytest.mark.parametrize("smallest", [0.0, 1e-60, 1e-40])
def test_the_most_significant_genes_are_drawn(smallest):
    """A false discovery rate that float32 makes 0 is drawn at the largest height."""
    use_style()
    table = effects_table(3)
    rates = table["screen_fdr"].mask(table["gene"] == "g0", smallest).astype(np.float32)
    drawn = function_of("volcanoes")(table.assign(screen_fdr=rates), **OPTIONS)
    for axis in (axis for axis in drawn.axes if axis.get_title()):
        [points] = [c for c in axis.collections if isinstance(c, PathCollection)]
        offsets = points.get_offsets()
        assert np.isfinite(offsets).all()
        assert offsets[:, 1].max() == pytest.approx(40 if smallest == 1e-40 else 50, rel=1e-3)
        inside = axis.viewLim.contains(*offsets[offsets[:, 1].argmax()])
        assert inside
        assert "g0" in [text.get_text() for text in axis.texts]
    plt.close(drawn)


def test_names_cover_no_dot():
    use_style()
    table = perturbation_map_table(60).assign(strength=1.0)
    drawn = function_of("perturbation_map")(table, **OPTIONS)
    drawn.canvas.draw()
    for axis in drawn.axes:
        places = [axis.transData.transform(dots.get_offsets()) for dots in axis.collections]
        names = [text.get_window_extent() for text in axis.texts]
        radius = np.sqrt(60) / 2 * drawn.dpi / POINTS_PER_INCH
        assert len(names) > 5
        for box in names:
            beside = np.clip(np.concatenate(places), box.min, box.max)
            distance = np.linalg.norm(np.concatenate(places) - beside, axis=1)
            assert distance.min() > radius / 2
    plt.close(drawn)


@pytest.mark.parametrize("case", TABLES, ids="-".join)
def test_figures_cope_with_what_experiments_may_hold(case, tmp_path):
    use_style()
    draw = function_of(case[0])
    drawn = draw(TABLES[case], **OPTIONS)
    width = drawn.get_figwidth()
    assert width <= 7.2
    save_figure(drawn, "caption", '{"config": {}}', [tmp_path / "a.svg"])
    again = draw(TABLES[case], **OPTIONS)
    save_figure(again, "caption", '{"config": {}}', [tmp_path / "b.svg"])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    fresh = draw(TABLES[case], **OPTIONS)
    assert overlaps(fresh) == []
    assert cut_off(fresh) == []
    plt.close(fresh)
    # text is drawn as it is, so a label in matplotlib's notation of formulas would show it
    assert "mathdefault" not in (tmp_path / "a.svg").read_text()


def test_both_files_of_a_figure_have_its_layout_and_take_one_drawing_each(tmp_path, monkeypatch):
    use_style()
    drawn, axis = plt.subplots()
    axis.set_ylabel("of\nsome\nlines")
    places, draw = [], Figure.draw

    def recorded(figure, renderer):
        draw(figure, renderer)
        places.append(axis.get_position(original=True).bounds)

    monkeypatch.setattr(Figure, "draw", recorded)
    save_figure(drawn, "caption", "{}", [tmp_path / "a.svg", tmp_path / "a.pdf"])
    assert len(places) == 3  # to lay it out, and for each file
    assert places[0] == places[1] == places[2]


def test_a_figure_is_the_same_every_time_in_either_form_with_its_caption_and_origin(tmp_path):
    use_style()
    for name in "ab":
        drawn = function_of("split")(parts_table(split_table(8)), **OPTIONS)
        paths = [tmp_path / f"{name}{suffix}" for suffix in (".svg", ".pdf")]
        save_figure(drawn, "What it shows.", '{"code_digest": "c0de"}', paths)
    for suffix in (".svg", ".pdf"):
        first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
        assert first == second
        assert b"What it shows." in first
        assert b"c0de" in first


def test_names_of_many_perturbations_do_not_run_into_each_other():
    use_style()
    few = enrichment_table(["observed", *MODELS])
    table = pd.concat(
        few.assign(perturbation=few["perturbation"] + f"TARGET{number:02d}+TARGET{number:02d}")
        for number in range(14)
    ).reset_index(drop=True)
    drawn = function_of("pathway_map")(with_order(table), **OPTIONS)
    drawn.canvas.draw()
    lowest = drawn.axes[2]
    boxes = [label.get_window_extent() for label in lowest.get_xticklabels()]
    assert len(boxes) == 40
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
    plt.close(drawn)


def test_similar_rows_become_neighbours():
    rows = np.array([[0, 0], [9, 9], [0, 0.1], [9, 9.1]])
    order = clustered(rows)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    assert clustered(rows[:1]) == [0]


def test_names_are_spelt_as_the_field_spells_them():
    assert readable("sams_vae_correlated") == "SAMS-VAE correlated"
    assert readable("cpa_vae") == "CPA-VAE"
    assert readable("no_change") == "no change"
    assert len(set(model_colours(list("abcdef")).values())) == 6


def test_report_marks_the_best_and_says_what_is_undefined():
    [table] = condition_tables(summary_table(), MODELS, 5)
    cells = {
        model: {row[0]["text"]: row[at] for row in table["rows"]}
        for at, model in enumerate(table["columns"])
    }
    held_out, whole = "Pearson r, held-out cells", "Pearson r, all cells"
    assert cells["SAMS-VAE"][held_out] == {
        "text": "0.850",
        "interval": "[0.840, 0.860]",
        "verdict": "best",
    }
    assert cells["no change"][held_out]["text"] == "–"
    assert cells["no change"][whole] == {"text": "0.400", "interval": "", "verdict": "best"}
    assert cells["SAMS-VAE"][whole]["verdict"] == "worse"
    assert cells["noise ceiling"][held_out] == {
        "text": "0.900",
        "interval": "[0.890, 0.910]",
        "verdict": "ceiling",
    }
    assert cells["SAMS-VAE"]["IWELBO, test cells"]["text"] == "−120.46"


def test_report_has_a_table_for_each_fraction():
    tables = condition_tables(summary_table([0.5, 0.0]), MODELS, 5)
    assert [table["title"] for table in tables] == ["Fraction 0", "Fraction 0.5"]
    assert tables[1]["rows"][0][1]["text"] == "1.350"


@pytest.mark.parametrize(
    ("verdict", "over", "said"),
    [
        (
            "not_different",
            "splits",
            "No significant difference to: no change 0.400. Tested over splits.",
        ),
        ("worse", "cells", "Significantly worse: no change 0.400. Tested over cells."),
        ("untested", None, "Not tested, without replicates: no change 0.400."),
    ],
)
def test_report_says_how_surely_a_model_is_the_best(verdict, over, said):
    table = summary_table()
    rival = table.iloc[[0]].assign(model="no_change", value=0.4, verdict=verdict, tested_over=over)
    assert said in " ".join(sentences(pd.concat([table, rival]), 5)["effects"])


def test_report_says_in_words_what_was_run_and_found():
    config = {
        "screens": {"x": {"source": "simulated"}},
        "training": {"max_steps": 3000},
        "models": {"sams_vae": {"kind": "sams_vae"}, "no_change": {"kind": "no_change"}},
        "experiments": {
            "e": {
                "screen": "x",
                "split": {"kind": "unseen_combinations", "seeds": [0], "fractions": [0.5]},
                "models": MODELS,
                "seeds": [0, 1],
            }
        },
    }
    said = " ".join(itertools.chain(*sentences(summary_table(), 5).values()))
    assert (
        "For SAMS-VAE, predicted effects agree best with those among held-out cells: 0.850" in said
    )
    assert "noise-free effects would reach about 0.900" in said
    assert "recovered best: 0.700 (F1 of the mask)" in said
    assert "none of the tested ones" in describe(config, "e")
    assert "fractions 0.5" in describe(config, "e")


def same(found, expected):
    """Tell whether rows of numbers are the same in any order."""
    found, expected = (np.asarray(rows, dtype=float) for rows in (found, expected))
    assert len(found) == len(expected)
    if not len(found):
        return
    found, expected = (rows.reshape(len(rows), -1) for rows in (found, expected))
    assert found.shape == expected.shape
    found, expected = (rows[np.lexsort(np.round(rows, 9).T)] for rows in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def dots(axis):
    """Offsets of all scattered dots of an axis."""
    groups = [c for c in axis.collections if isinstance(c, PathCollection)]
    return np.concatenate([np.asarray(c.get_offsets()) for c in groups] or [np.empty((0, 2))])


def marks(axis, marker):
    """Points of the lines of an axis that are drawn with a marker."""
    lines = [line.get_xydata() for line in axis.lines if line.get_marker() == marker]
    return np.concatenate([*lines, np.empty((0, 2))])


def errors(axis):
    """Value, low and high end of every error bar of an axis, along the axis that has them."""
    rows = []
    for bars in (c for c in axis.containers if isinstance(c, ErrorbarContainer)):
        points = bars.lines[0].get_xydata()
        [segments] = [c.get_segments() for c in bars.lines[2]]
        for point, ends in zip(points, segments, strict=True):
            if not len(ends):  # undefined
                continue
            along = 0 if ends[0][1] == ends[1][1] else 1
            if ends[0][0] == ends[1][0] and bars.has_yerr:
                along = 1
            rows.append((point[along], ends[0][along], ends[1][along]))
    return rows


def heights(axis):
    bars = (c for c in axis.containers if isinstance(c, BarContainer))
    return [bar.get_height() for container in bars for bar in container]


def texts(axis):
    return [text.get_text() for text in axis.texts]


def squares(axis):
    """Array of a heatmap, with the names of its rows."""
    [mesh] = [c for c in axis.collections if isinstance(c, QuadMesh)]
    return np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan)


def labels(axis, which="y"):
    return [label.get_text() for label in getattr(axis, f"get_{which}ticklabels")()]


def panel(figure, title):
    [axis] = [axis for axis in figure.axes if axis.get_title().startswith(title)]
    return axis


def of(table, **values):
    """Rows of a table with these values."""
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def reads_screen(figure, table):
    cells, counts = figure.axes
    number = of(table, measure="cells")
    if cells.lines:
        same(cells.lines[0].get_ydata(), number["value"][1:])
        assert f"control: {number['value'].iloc[0]:.0f} cells" in cells.get_xlabel()
    else:
        np.testing.assert_array_equal(heights(cells), number["value"])
        assert labels(cells, "x") == list(number["perturbation"])
    steps = [patch.get_data() for patch in counts.patches]
    for step, kind in zip(steps, ("control", "perturbed"), strict=True):
        own = of(table, measure="density", kind=kind)
        np.testing.assert_array_equal(step.values, own["value"])
        np.testing.assert_array_equal(step.edges[1:], own["upper"])


def reads_split(figure, table):
    [axis] = figure.axes
    for container in axis.containers:
        own = of(table, part=container.get_label())
        np.testing.assert_allclose([bar.get_width() for bar in container], own["fraction"])
    wide = table[table["fraction"] > 0.07]
    same([int(text.replace(",", "")) for text in texts(axis)], wide["cells"])


def reads_null(figure, table):
    [axis] = figure.axes
    same(dots(axis), table[["expected", "observed"]])
    [area] = [c for c in axis.collections if not isinstance(c, PathCollection)]
    edges = area.get_paths()[0].vertices
    expected = np.concatenate([table[["expected", end]].to_numpy() for end in ("low", "high")])
    np.testing.assert_allclose(np.unique(edges[:, 1]), np.unique(expected[:, 1]))


def reads_responders(figure, table):
    names = list(table["perturbation"].unique())
    axes = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in axes] == names
    for axis, name in zip(axes, names, strict=True):
        drawn = [patch.get_data() for patch in axis.patches if not patch.get_fill()]
        for steps, kind in zip(drawn, (NULL, PERTURBED), strict=True):
            own = of(table, perturbation=name, kind=kind)
            same(steps.values, own["density"])
            same(steps.edges, [own["lower"].iloc[0], *own["upper"]])


def reads_hits(figure, table):
    strongest_first = sorted(table.index, key=lambda row: -table["e_distance"][row])
    rank = pd.Series(range(len(table)), index=strongest_first).reindex(table.index)
    alike = table["n_compared"].max() < 1.5 * table["n_compared"].min()
    for axis, column in zip(figure.axes, ("e_distance", "n_de"), strict=True):
        places = np.column_stack([rank if alike else table["n_compared"], table[column]])
        same(dots(axis), places)
        shades = [c.get_offsets() for c in axis.collections if c.get_label() == "hit"]
        same(np.concatenate(shades), places[table["is_hit"]])
        may_be_named = table[table["is_hit"] | (len(table) <= MOST_ROWS)]
        assert set(texts(axis)) <= set(may_be_named["perturbation"])
    if alike and len(table) <= 60:
        below = [text.get_text() for text in figure.axes[1].get_xticklabels()]
        assert below == list(table.loc[strongest_first, "perturbation"])
    elif alike:
        assert figure.axes[1].get_xlabel() == "rank of the perturbation by E-distance"
    else:
        assert [axis.get_xlabel() for axis in figure.axes] == ["cells", "cells"]


def reads_knock_down(figure, table):
    [axis] = figure.axes
    pooled = table[table["guide"] == ""].sort_values("log2fc")
    if len(pooled) > 60:
        pooled = pd.concat([pooled[:30], pooled[-30:]])
    same(errors(axis), pooled[["log2fc", "low", "high"]])
    assert labels(axis) == list(pooled["gene"])
    row = {name: place for place, name in enumerate(pooled["perturbation"])}
    guides = table[(table["guide"] != "") & table["perturbation"].isin(row)]
    same(dots(axis), np.column_stack([guides["log2fc"], guides["perturbation"].map(row)]))


def reads_guides(figure, table):
    names = list(dict.fromkeys(table["perturbation"]))
    assert labels(figure.axes[0]) == names
    for axis, column in zip(figure.axes, ("concordance", "slope"), strict=True):
        rows = np.column_stack([table[column], table["perturbation"].map(names.index)])
        same(dots(axis), rows)
        failed = table["reason"].str.contains("effect|concordance", na=False)
        for kind, chosen in (
            (MAY_HAVE_FAILED, failed),
            (TARGET_ALONE, table["odd"] & ~failed),
            (GUIDE, ~table["odd"]),
        ):
            shown = [c.get_offsets() for c in axis.collections if c.get_label() == kind]
            same(np.concatenate(shown), rows[chosen])


def reads_batches(figure, table):
    [axis] = figure.axes
    names = labels(axis)
    assert names[0] == "control cells"
    for container in axis.containers:
        own = of(table, batch=container.get_label()).set_index("perturbation")
        expected = [own["control_fraction"].iloc[0], *own["fraction"].reindex(names[1:])]
        np.testing.assert_allclose([bar.get_width() for bar in container], expected)


def reads_training(figure, table):
    late = table[table["step"] >= 0.1 * table["step"].max()]
    for axis, model in zip(figure.axes, MODELS, strict=True):
        lines = [line.get_xydata() for line in axis.lines if len(line.get_xdata())]
        same(np.concatenate(lines), of(late, model=model)[["step", "elbo"]])


def reads_iwelbo(figure, table):
    scope = "test" if "test" in set(table["scope"]) else "val"
    rows = of(table, scope=scope)
    [axis] = figure.axes
    same(errors(axis), rows[["difference", "difference_low", "difference_high"]])
    told = [float(text.replace("−", "-")) for text in texts(axis)[: len(MODELS)]]
    expected = rows.drop_duplicates("model")["mean_iwelbo"].round(1)
    np.testing.assert_allclose(told, expected)


def reads_iwelbo_particles(figure, table):
    scope = "test" if "test" in set(table["scope"]) else "val"
    rows = of(table, scope=scope).drop_duplicates(["model", "particles"])
    for axis, name in zip(figure.axes, ("mean_iwelbo", "mean_difference"), strict=True):
        same(errors(axis), rows[[name, f"{name}_low", f"{name}_high"]])


def reads_metrics(figure, table):
    metrics = ["pearson_held_out", "pearson", "iwelbo", "mask_f1"]
    for axis, metric in zip(figure.axes, metrics, strict=True):
        rows = of(table, metric=metric)
        rows = rows[rows["model"].isin(MODELS)]
        limits = rows[["value", "low", "high"]].T.fillna(rows["value"]).T
        same(errors(axis), limits)
        filled = [bars.lines[0].get_markerfacecolor() != "white" for bars in axis.containers]
        assert sum(filled) == (rows["verdict"] == "best").sum()


def reads_paired_differences(figure, table):
    metrics = ["pearson_held_out", "median_de_auroc", "iwelbo"]
    for axis, metric in zip(figure.axes, metrics, strict=True):
        rows = of(table, metric=metric)
        same(marks(axis, "o")[:, 0], -rows["difference"])  # the first model is subtracted
        ends = [line.get_xdata() for line in axis.lines if line.get_marker() == "None"]
        same([end for end in ends if end[0] != end[1]], -rows[["high", "low"]])
        if len(rows) == 1:
            assert texts(axis) == [f"−{rows['difference'].iloc[0]:.3f}"]


def reads_fractions(figure, table):
    metrics = ["iwelbo_relative", "pearson", "pearson_top5"]
    for axis, metric in zip(figure.axes, metrics, strict=True):
        rows = of(table, metric=metric)
        same(heights(axis), rows["value"])
        [*bars] = [c for c in axis.collections if isinstance(c, LineCollection)]
        lower = [segment[0][1] for one in bars for segment in one.get_segments()]
        same(lower, rows["low"])


def reads_perturbations(figure, table):
    shown = table[table["tested"]] if table["tested"].any() else table
    for axis, metric in zip(figure.axes, ["pearson_held_out", "de_auroc"], strict=True):
        rows = of(shown, metric=metric, model=MODELS[0]).drop_duplicates("perturbation")
        same(dots(axis)[:, 0], rows["mean_over_seeds"])
        first = rows.iloc[0]
        same(marks(axis, "o")[:, 0], [first["median"]])
        [line] = [line.get_xdata() for line in axis.lines if line.get_marker() == "None"]
        same(line, [first["lower_quartile"], first["upper_quartile"]])
        assert "undefined" in texts(axis)  # of the model without scores


def reads_effects(figure, table):
    span = np.ptp(table[["observed", "predicted"]].to_numpy()) / 50
    for model in MODELS:
        rows, axis = of(table, model=model), panel(figure, readable(model))
        [hexagons] = axis.collections
        assert hexagons.get_array().sum() == len(rows)
        centres = np.asarray(hexagons.get_offsets())
        points = rows[["observed", "predicted"]].to_numpy()
        distance = np.linalg.norm(points[:, None] - centres[None], axis=2).min(axis=1)
        assert distance.max() < span
        r = rows["pearson"].iloc[0]
        assert axis.get_title().endswith("(constant)" if np.isnan(r) else f"r = {r:.2f}")


def volcano_of(rows):
    return np.column_stack([rows["screen_effect"], -np.log10(rows["screen_fdr"])])


def reads_volcanoes(figure, table):
    first = of(table, model=MODELS[0])
    shown = first.drop_duplicates("perturbation").nlargest(12, "screen_n_de")
    drawn = [axis for axis in figure.axes if axis.get_title()]
    assert len(drawn) == len(shown)
    for axis in drawn:
        name, number = axis.get_title().split("\n")
        rows = of(first, perturbation=name)
        [points] = [c for c in axis.collections if isinstance(c, PathCollection)]
        found = np.column_stack([points.get_offsets(), points.get_array()])
        same(found, np.column_stack([volcano_of(rows), rows["predicted"]]))
        assert number == f"{rows['screen_n_de'].iloc[0]} DE genes"


def reads_perturbation(figure, table):
    first = of(table, model=MODELS[0])
    name = table["perturbation"].iloc[0]
    number = first["screen_n_de"].iloc[0]
    assert figure.axes[0].get_title() == f"{name}: {number} DE genes"
    same(dots(figure.axes[0]), volcano_of(first.dropna(subset="screen_fdr")))
    for model in MODELS:
        rows, axis = of(table, model=model), panel(figure, readable(model))
        same(dots(axis), rows[["observed", "predicted"]])
        r = rows["pearson_of_perturbation"].iloc[0]
        assert axis.get_title().endswith("undefined" if np.isnan(r) else f"r = {r:.2f}")


def reads_differential_expression(figure, table):
    spread, by_number = figure.axes
    same(dots(spread)[:, 0], table["auroc"])
    same(dots(by_number), table[["n_de", "auroc"]])
    once = table.drop_duplicates("model")
    same(marks(spread, "o")[:, 0], once["auroc_median"])
    ends = [line.get_xdata() for line in spread.lines if line.get_marker() == "None"]
    same(
        [end for end in ends if end[0] != end[1]],
        once[["auroc_lower_quartile", "auroc_upper_quartile"]],
    )


def reads_de_by_strength(figure, table):
    kinds = itertools.product(["n_de", "n_held_out"], ["auroc", "sign_agreement", "slope"])
    for axis, (by, metric) in zip(figure.axes, kinds, strict=True):
        rows = of(table, stratified_by=by, metric=metric)
        rows = rows.drop_duplicates(["lower", "model"])
        found = [row for row in errors(axis) if np.isfinite(row[0])]
        same(found, rows[["mean_median", "mean_lower_quartile", "mean_upper_quartile"]])
        number = rows.drop_duplicates("lower").sort_values("lower")["mean_n_perturbations"]
        assert [f"({n:.0f})" for n in number] == [t.split("\n")[1] for t in labels(axis, "x")]


def reads_combinations(figure, table):
    size, beyond, right = figure.axes
    data = of(table, model=MODELS[0]).nlargest(40, "non_additivity").set_index("perturbation")
    assert labels(size) == list(data.index)
    rows = np.arange(len(data))
    for axis, marker, name in (
        (size, "o", "effect_size"), (size, "D", "non_additivity"), (size, "|", "noise_size"),
        (beyond, "D", "non_additivity"),
    ):  # fmt: skip
        np.testing.assert_allclose(marks(axis, marker)[:, 0], data[name])
    assert texts(size)[:-1] == [str(n) for n in data["n_non_additive"]]
    for axis, name in ((beyond, "predicted_non_additivity"), (right, "non_additivity_correlation")):
        own = [of(table, model=m).set_index("perturbation").loc[data.index, name] for m in MODELS]
        found = marks(axis, "o")
        np.testing.assert_allclose(found[:, 0], np.concatenate(own))
        np.testing.assert_array_equal(found[:, 1], np.tile(rows, len(MODELS)))


def dots_of(axis, names):
    """Colour by row and column of the dots of a panel, and their areas in the order of these."""
    [points] = [
        c for c in axis.collections if isinstance(c, PathCollection) and c.get_array() is not None
    ]
    columns = labels(axis, "x")
    keys = [(names[round(row)], columns[round(column)]) for column, row in points.get_offsets()]
    return dict(zip(keys, points.get_array(), strict=True)), dict(
        zip(keys, points.get_sizes(), strict=True)
    )


def reads_dots(axis, names, expected, fdr):
    values, areas = dots_of(axis, names)
    assert set(values) == set(expected)
    for key, value in expected.items():
        assert values[key] == pytest.approx(value)
        assert areas[key] == pytest.approx(3 - 8 * np.log10(fdr[key]))


def reads_enrichment(figure, table):
    for title, model in (("observed", "observed"), ("predicted by", MODELS[0])):
        rows = of(table, model=model, method="preranked")
        names = labels(figure.axes[0])
        keys = [(s.removeprefix("HALLMARK_").replace("_", " ").lower(), p)
                for s, p in zip(rows["set"], rows["perturbation"], strict=True)]  # fmt: skip
        expected = dict(zip(keys, rows["score"], strict=True))
        reads_dots(panel(figure, title), names, expected, dict(zip(keys, rows["fdr"], strict=True)))


def reads_pathway_map(figure, table):
    for title, model in (("observed", "observed"), ("predicted by", MODELS[0])):
        rows = of(table, model=model, method="preranked")
        axis = panel(figure, title)
        expected = rows.pivot_table(index="set_order", columns="perturbation_order", values="score")
        np.testing.assert_allclose(squares(axis), expected)
        fdr = rows.pivot_table(index="set_order", columns="perturbation_order", values="fdr")
        same(marks(axis, "o")[:, ::-1] - 0.5, np.argwhere(fdr.to_numpy() < 0.05))
        sets = rows.sort_values("set_order")["set"].drop_duplicates()
        assert labels(axis) == [s[9:].replace("_", " ").lower() for s in sets]


def reads_pathway_agreement(figure, table):
    correlation, overlap, top = figure.axes
    once = table.drop_duplicates(["model", "method"])
    for axis, name in ((correlation, "correlation"), (overlap, "overlap")):
        medians = [line.get_xdata() for line in axis.lines
                   if line.get_markerfacecolor() == "white" and len(line.get_xdata())]  # fmt: skip
        same(medians, once[f"median_{name}"])
        values = [line.get_xdata() for line in axis.lines
                  if line.get_markerfacecolor() != "white" and line.get_marker() != "None"]  # fmt: skip
        same(np.concatenate(values), table[name].dropna())
    found = [line.get_xdata()[0] for line in top.lines if len(line.get_xdata())]
    same(found, once["fraction_same_top"])
    told = [f" {n}/{all_}" for n, all_ in zip(once["n_same_top"], once["n_with_top"], strict=True)]
    assert sorted(texts(top)) == sorted(told)


def reads_factor_dots(figure, table, name, value, most):
    names = labels(figure.axes[0])
    best = table.groupby(name)["pvalue"].min().nsmallest(most).index
    rows = table[table[name].isin(best)]
    factors = rows.groupby("dimension")["pvalue"].min().nsmallest(30).index
    rows = rows[rows["dimension"].isin(factors)]
    written = rows[name].str.replace("_", " ").str.lower()
    keys = list(zip(written, rows["dimension"].astype(str), strict=True))
    reads_dots(
        figure.axes[0], names, dict(zip(keys, rows[value], strict=True)),
        dict(zip(keys, rows["fdr"], strict=True)),
    )  # fmt: skip


def reads_factor_enrichment(figure, table):
    reads_factor_dots(figure, table[table["fdr"] <= 0.25], "set", "mean_effect", 20)


def reads_factor_groups(figure, table):
    reads_factor_dots(figure, table, "group", "fraction", 20)


def reads_latent_effects(figure, table):
    for model in dict.fromkeys(table["model"]):
        rows = of(table, model=model)
        rows = rows[rows["perturbation_order"].notna() & (rows["dimension_order"] < 30)]
        expected = rows.pivot_table(
            index="perturbation_order", columns="dimension_order", values="shift"
        )
        np.testing.assert_allclose(squares(panel(figure, readable(model))), expected)
    names = of(table, model=MODELS[0]).dropna(subset="perturbation_order")
    names = names.sort_values("perturbation_order")["perturbation"].drop_duplicates()
    assert labels(figure.axes[0]) == list(names)


def reads_factors(figure, table):
    bars, heat = figure.axes[0], figure.axes[1]
    own = table[table["factor_order"] < 40]
    factors = own.drop_duplicates("dimension").sort_values("factor_order")
    np.testing.assert_array_equal(heights(bars), factors["n_perturbations"])
    used = own[own["active"].astype(bool) & own["mask_order"].notna()]
    expected = used.pivot_table(index="mask_order", columns="factor_order", values="shift")
    expected = expected.reindex(
        index=range(table["mask_order"].max() + 1), columns=range(len(factors))
    )
    [image] = heat.images
    np.testing.assert_allclose(np.ma.filled(image.get_array(), np.nan), expected)
    assert heat.get_xlabel() == f"factor ({factors['n_active'].iloc[0]} used)"
    users = table.dropna(subset="mask_order").sort_values("mask_order")["perturbation"]
    assert labels(heat) == list(users.drop_duplicates())


def reads_similarity(figure, table):
    shown = table.dropna(subset=["first_order", "second_order"])
    for axis, (kind, rows) in zip(figure.axes, shown.groupby("kind", sort=False), strict=False):
        half = rows.pivot_table(index="first_order", columns="second_order", values="similarity")
        np.testing.assert_allclose(squares(axis), half.fillna(half.T))
        r = rows["correlation"].iloc[0]
        assert kind in axis.get_title()
        assert ("r =" in axis.get_title()) == np.isfinite(r)
        assert np.isnan(r) or axis.get_title().endswith(f"r = {r:.2f}")


def reads_basal(figure, table):
    table = table[(table["labels"] == "true") | (table["state"] == "basal")]
    is_all = table["perturbation"] == "all"
    once = table[~is_all].drop_duplicates(["state", "labels"])
    same(dots(figure.axes[0])[:, 0], [*table[~is_all]["accuracy"], *once["mean_accuracy"]])
    same(dots(figure.axes[1])[:, 0], table[is_all]["mean_accuracy"])
    for axis, chance in zip(figure.axes, (0.5, 0.1), strict=True):
        assert chance in [line.get_xdata()[0] for line in axis.lines]


def reads_perturbation_map(figure, table):
    for axis, kind in zip(figure.axes, ("observed", "latent"), strict=True):
        rows = of(table, kind=kind)
        assert len(axis.collections) == rows["leiden"].nunique()
        for points, cluster in zip(*axis.get_legend_handles_labels(), strict=True):
            own = of(rows, leiden=int(cluster))
            same(points.get_offsets(), own[["x", "y"]])
            same(points.get_sizes(), 60 * own["strength"] / table["strength"].max())
        named = rows.set_index("perturbation").loc[texts(axis)]
        same([text.xy for text in axis.texts], named[["x", "y"]])
        assert named["strength"].iloc[0] == rows["strength"].max()
        assert len(named) > 3


def reads_state_map(figure, table):
    for index, axis in enumerate(axis for axis in figure.axes if "UMAP" in axis.get_xlabel()):
        rows = of(table, state=("basal", "total")[index % 2])
        same(dots(axis), rows[["x", "y"]])
        named = axis.get_legend_handles_labels()
        for points, name in zip(*named, strict=True):
            column = "shown_as" if index < 2 else "batch"
            same(points.get_offsets(), of(rows, **{column: name})[["x", "y"]])
        for points in axis.collections:
            if points.get_array() is not None:
                same(points.get_array(), rows["mito"])


def reads_contexts(figure, table):
    heat, bars = figure.axes[:2]
    names = [label.get_text() for label in heat.get_yticklabels()]
    assert len(names) == min(table["perturbation"].nunique(), MOST_ROWS)
    strongest = table.groupby("perturbation")["n_de"].max()
    assert not (strongest.drop(names) > strongest[names].min()).any()
    assert list(strongest[names]) == sorted(strongest[names], reverse=True)
    contexts = [label.get_text() for label in heat.get_xticklabels()]
    expected = table.pivot_table(index="perturbation", columns="context", values="n_de")
    shown = heat.collections[0].get_array()
    np.testing.assert_array_equal(
        np.ma.filled(shown.astype(float), np.nan), expected.loc[names, contexts].to_numpy()
    )
    widths = [bar.get_width() for bar in bars.patches]
    first = table.drop_duplicates("perturbation").set_index("perturbation")
    same(widths, first.loc[names, "n_heterogeneous"])


def reads_truth(figure, table):
    images = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    for index, model in enumerate(MODELS):
        rows = of(table, model=model)
        for image, name in zip(images[2 * index :], ("true_mask", "probability"), strict=False):
            expected = rows.pivot_table(index="target", columns="dimension", values=name)
            np.testing.assert_allclose(image, expected[rows["dimension"].unique()])


def reads_reliability(figure, table):
    for axis, genes in zip(figure.axes, table["genes"].unique(), strict=True):
        rows = of(table, genes=genes).drop_duplicates(["model", "level"])
        assert f"({rows['n_effects'].max():,} effects)" in axis.get_title()
        diagonal, *lines = [line.get_xydata() for line in axis.lines if len(line.get_xdata())]
        same(diagonal[:, 0], diagonal[:, 1])
        expected = [
            of(rows, model=model)[["level", f"mean_{name}"]]
            for model in rows["model"].unique()
            for name in COVERAGES
        ]
        for line, values in zip(lines, expected, strict=True):
            same(line, values)


def reads_vcc2026(figure, table):
    known = table.dropna(subset="scaled")
    metrics = [name for name in SCORES if name in set(known["metric"])]
    for axis, metric in zip(figure.axes, metrics, strict=True):
        assert axis.get_title() == SCORES[metric].heading
        assert axis.title.get_color() == (NOT_CLEAR if metric == RETRIEVAL else "black")
        rows = of(known, metric=metric).assign(row=lambda rows: rows["model"].map(MODELS.index))
        same(dots(axis), rows[["scaled", "row"]])
        same(marks(axis, "o"), rows.drop_duplicates("model")[["mean_scaled", "row"]])
        assert labels(figure.axes[0], "y") == [readable(model) for model in MODELS]


def reads_ranking(figure, table):
    parts = [rows for _, rows in table.groupby("fraction", dropna=False)]
    for axis, rows in zip(figure.axes, parts, strict=True):
        rows = rows.sort_values("rank")
        shown = np.array(errors(axis))
        same(shown, rows[["score", "low", "high"]])
        assert labels(axis, "y") == [readable(model) for model in rows["model"]]
        told = [float(text.removesuffix(" %")) for text in texts(axis) if text.endswith(" %")]
        np.testing.assert_allclose(told, 100 * rows["probability_best"])
        heights = [bars.lines[0].get_ydata()[0] for bars in axis.containers]
        places = [bars.lines[0].get_xdata()[0] for bars in axis.containers]
        same(np.column_stack([places, heights]), np.column_stack([rows["score"], rows["rank"] - 1]))
    assert readable(table["reference"].iloc[0]) in figure.get_supxlabel()


def reads_recovery(figure, table):
    threshold, density, states = figure.axes
    f1 = of(table, measure="f1")
    for axis, x in ((threshold, "threshold"), (density, "density")):
        lines = [line.get_xydata() for line in axis.lines]
        same(np.concatenate([*lines, np.empty((0, 2))]), f1[[x, "value"]])
        same(dots(axis), of(f1, threshold=0.5)[[x, "value"]])
    once = of(table, measure="correlation").drop_duplicates(["state", "factor"])
    same(dots(states)[:, 1], once["factor_mean"])
    bars = [line.get_ydata()[0] for line in states.lines]
    same(bars, once.drop_duplicates("state")["state_mean"])


READERS = {
    name.removeprefix("reads_"): function
    for name, function in list(globals().items())
    if name.removeprefix("reads_") in {*SHOWN_FIGURES, "perturbation"} and name.startswith("reads_")
}
EMPTY = {
    "no mask", "none in use", "none", "nothing repeated", "observed alone", "pairs of their own",
}  # fmt: skip
READ = [case for case in TABLES if case[1] not in EMPTY or case == ("recovery", "no mask")]


def test_the_numbers_of_every_figure_are_read_back():
    assert set(READERS) == {*SHOWN_FIGURES, "perturbation"}
    assert {name for name, _ in READ} == set(READERS)


@pytest.mark.parametrize("case", READ, ids="-".join)
def test_a_figure_shows_the_numbers_of_its_table(case):
    use_style()
    figure = function_of(case[0])(TABLES[case], **OPTIONS)
    READERS[case[0]](figure, TABLES[case])
    plt.close(figure)


# columns whose numbers a figure shows; none of them may be replaced unnoticed
SHOWN_COLUMNS = {
    "screen": ["value"],
    "split": ["fraction", "cells"],
    "null": ["expected", "observed", "low", "high"],
    "hits": ["n_compared", "e_distance", "n_de"],
    "responders": ["density", "lower", "upper"],
    "knock_down": ["log2fc", "low", "high"],
    "guides": ["concordance", "slope"],
    "batches": ["fraction", "control_fraction"],
    "contexts": ["n_de", "n_heterogeneous"],
    "training": ["elbo"],
    "iwelbo": ["difference", "difference_low", "difference_high", "mean_iwelbo"],
    "iwelbo_particles": [
        f"mean_{of}{end}" for of in ("iwelbo", "difference") for end in ("", "_low", "_high")
    ],
    "metrics": ["value", "low", "high"],
    "paired_differences": ["difference", "low", "high"],
    "fractions": ["value", "low"],
    "perturbations": ["mean_over_seeds", "lower_quartile", "median", "upper_quartile"],
    "effects": ["observed", "predicted", "pearson"],
    "volcanoes": ["screen_effect", "screen_fdr", "predicted", "screen_n_de"],
    "perturbation": [
        "screen_effect", "screen_fdr", "observed", "predicted", "screen_n_de",
        "pearson_of_perturbation",
    ],
    "differential_expression": [
        "auroc", "n_de", "auroc_median", "auroc_lower_quartile", "auroc_upper_quartile",
    ],
    "de_by_strength": [
        "mean_median", "mean_lower_quartile", "mean_upper_quartile", "mean_n_perturbations",
    ],
    "combinations": [
        "effect_size", "non_additivity", "noise_size", "n_non_additive", "predicted_non_additivity",
        "non_additivity_correlation",
    ],
    "enrichment": ["score", "fdr"],
    "pathway_map": ["score", "set_order", "perturbation_order"],
    "pathway_agreement": [
        "correlation", "median_correlation", "median_overlap", "n_same_top", "n_with_top",
        "fraction_same_top",
    ],
    "factor_enrichment": ["mean_effect", "fdr"],
    "factor_groups": ["fraction", "fdr"],
    "latent_effects": ["shift", "perturbation_order", "dimension_order"],
    "factors": ["shift", "n_perturbations", "n_active", "factor_order", "mask_order"],
    "similarity": ["similarity", "correlation", "first_order"],
    "basal": ["accuracy", "mean_accuracy"],
    "perturbation_map": ["x", "y", "strength"],
    "state_map": ["x", "y", "mito"],
    "truth": ["true_mask", "probability"],
    "recovery": ["value", "factor_mean", "state_mean"],
    "vcc2026": ["scaled", "mean_scaled"],
    "ranking": ["score", "low", "high", "probability_best"],
    "reliability": ["n_effects", *(f"mean_{name}" for name in COVERAGES)],
}  # fmt: skip
MUTATED = {
    **{name: next(case for case in READ if case[0] == name) for name in READERS},
    "state_map": ("state_map", "covariates"),
    "similarity": ("similarity", "many"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("figure", "column"), [(name, column) for name, c in SHOWN_COLUMNS.items() for column in c]
)
def test_a_number_other_than_the_tables_is_found_out(figure, column):
    """The same figure with another number in one column is not taken for that of the table."""
    use_style()
    table = TABLES[MUTATED[figure]]
    values = table[column]
    if column.endswith("_order"):
        changed = values.max() - values
    elif pd.api.types.is_integer_dtype(values):
        changed = values * 2 + 5
    else:
        changed = values * 1.7 + 0.01
    drawn = function_of(figure)(table.assign(**{column: changed}), **OPTIONS)
    with pytest.raises(AssertionError):
        READERS[figure](drawn, table)
    plt.close(drawn)


@pytest.mark.parametrize(
    "figure", ["effects", "perturbation", "enrichment", "pathway_map", "truth"]
)
def test_observed_in_place_of_predicted_is_found_out(figure):
    use_style()
    table = TABLES[MUTATED[figure]]
    if "observed" in table:
        swapped = table.rename(columns={"observed": "predicted", "predicted": "observed"})
    elif figure == "truth":
        swapped = table.rename(columns={"true_mask": "probability", "probability": "true_mask"})
    else:
        other = {"observed": MODELS[0], MODELS[0]: "observed"}
        swapped = table.assign(model=table["model"].map(other))
    drawn = function_of(figure)(swapped, **OPTIONS)
    with pytest.raises(AssertionError):
        READERS[figure](drawn, table)
    plt.close(drawn)


# The columns that figures draw, computed another way.


def test_columns_are_added_and_none_is_changed():
    cases = [
        (with_order, enrichment_table(["observed", *MODELS]), "_order"),
        (with_orders, latents_table(9, groups=2, models=MODELS), "_order"),
        (with_quartiles, de_table(12), "auroc_"),
        (
            with_quartiles_of_scores,
            perturbation_table(4, True).drop(columns="mean_over_seeds"),
            "quartile",
        ),
        (with_differences, particles_table([0, 1]), "difference"),
        (with_intervals, bounds_table([0, 1]), "mean_"),
        (with_means, recovery_table(True), "_mean"),
    ]
    for function, table, added in cases:
        raw = table[[c for c in table if added not in c and c not in ("median", "n_perturbations")]]
        again = function(raw)
        assert set(again) >= set(table)
        pd.testing.assert_frame_equal(again[list(raw)], raw)


def test_quartiles_are_those_of_perturbations():
    table = with_quartiles(
        pd.DataFrame(
            {"model": "m", "n_de": [1, 3, 9, 30, 4], "auroc": [0.0, 0.5, 0.7, 0.9, np.nan]}
        )
    )
    row = table.iloc[0][["auroc_lower_quartile", "auroc_median", "auroc_upper_quartile"]]
    np.testing.assert_allclose(row.astype(float), np.quantile([0.5, 0.7, 0.9], [0.25, 0.5, 0.75]))
    added = ["mean_over_seeds", "lower_quartile", "median", "upper_quartile"]
    scores = perturbation_table(7, True).drop(columns=added)
    scores["tested"] = scores["perturbation"] != "P0"
    scores = with_quartiles_of_scores(scores)
    own = of(scores, metric="de_auroc", model=MODELS[0])
    mean = own.pivot_table(index="perturbation", columns="seed", values="value").mean(axis=1)
    np.testing.assert_allclose(
        own.iloc[0][["lower_quartile", "median", "upper_quartile"]].astype(float),
        np.quantile(mean.drop("P0"), [0.25, 0.5, 0.75]),
    )


def test_bounds_are_paired_by_split_and_seed():
    table = particles_table([0, 1, 4])
    for _, run in table.groupby(["seed", "scope", "particles"]):
        first, second = (of(run, model=model).iloc[0] for model in MODELS)
        assert first["difference"] == first["difference_standard_error"] == 0
        assert second["difference"] == pytest.approx(second["iwelbo"] - first["iwelbo"])
        assert second["difference_standard_error"] == pytest.approx(0.2 * np.sqrt(2))
        assert second["mean_difference"] == pytest.approx(0.1 * second["particles"])
        half = second["mean_iwelbo_high"] - second["mean_iwelbo"]
        assert half == pytest.approx(1.96 * 0.2 / np.sqrt(3))
        mean = of(table, model=MODELS[1], scope=second["scope"], particles=second["particles"])
        assert second["mean_iwelbo"] == pytest.approx(mean["iwelbo"].mean())


def test_orders_of_perturbations_make_similar_ones_neighbours():
    table = enrichment_table(["observed"])
    rising = table["perturbation"].map({"P0": 1, "P1": -1, "P2": 1.1})
    table = with_order(table.assign(score=rising * table["score"].abs()))
    order = table.drop_duplicates("perturbation").set_index("perturbation")["perturbation_order"]
    assert abs(order["P0"] - order["P2"]) == 1
    assert sorted(order) == [0, 1, 2]
    latents = latents_table(60, groups=3)
    once = latents.drop_duplicates("perturbation")
    assert once["perturbation_order"].notna().sum() == 50
    users = once.dropna(subset="mask_order").sort_values("mask_order")["group"].fillna("~")
    assert list(users) == sorted(users)  # known groups together, the others last


def test_numbers_of_users_of_factors_are_counts_of_open_masks():
    latents = latents_table(9, 6)
    is_open = latents["mask_probability"] > 0.5
    pd.testing.assert_series_equal(latents["active"].astype(bool), is_open, check_names=False)
    for dimension, rows in latents.groupby("dimension"):
        assert (rows["n_perturbations"] == is_open[latents["dimension"] == dimension].sum()).all()
    used = latents.loc[is_open, "dimension"].unique()
    assert set(latents["n_active"]) == {len(used)}
    ordered = latents.drop_duplicates("dimension").dropna(subset="factor_order")
    assert list(ordered.sort_values("factor_order")["n_perturbations"]) == sorted(
        ordered["n_perturbations"], reverse=True
    )


def test_densities_of_library_sizes_integrate_to_one():
    split = split_table(8, pairs=2)
    table = screen_table(split)
    density = of(table, measure="density")
    for _, own in density.groupby("kind"):
        width = np.log10(own["upper"]) - np.log10(own["lower"])
        assert (own["value"] * width).sum() == pytest.approx(1)
    cells = of(table, measure="cells").set_index("perturbation")["value"]
    assert cells.sum() == len(split)
    assert cells["P1"] == 5
    parts = parts_table(split)
    assert parts["cells"].sum() == len(split)
    np.testing.assert_allclose(parts.groupby("kind")["fraction"].sum(), 1)
    singles = of(parts, kind="single", part="train")["cells"].iloc[0]
    is_single = split["perturbation"].str.fullmatch(r"P\d+")
    assert singles == (is_single & (split["split"] == "train")).sum()


def test_figures_import_no_statistics():
    """What a figure shows is computed where its table is made."""
    folder = ROOT / "workflow/scripts/samsvae/figures"
    computes = re.compile(
        r"scipy|statsmodels|sklearn|corrcoef|pearson\(|spearman|linkage|polyfit|lstsq"
        r"|\.median\(|\.mean\(|\.std\(|np\.(mean|median|std|percentile)\("
    )
    for path in folder.glob("*.py"):
        assert not computes.findall(path.read_text()), path


@pytest.mark.parametrize(("control", "cut"), [(34_411, True), (700, False)])
def test_control_cells_do_not_hide_the_bars_of_perturbations(control, cut):
    use_style()
    table = pd.DataFrame(
        {
            "measure": "cells",
            "kind": ["control", "perturbed", "perturbed"],
            "perturbation": ["control", "A", "B"],
            "value": [control, 400, 90],
        }
    )
    drawn = function_of("screen")(table, **OPTIONS)
    cells = drawn.axes[0]
    assert [bar.get_height() for bar in cells.patches] == [control, 400, 90]
    assert (cells.get_ylim()[1] == 800) == cut
    assert [text.get_text() for text in cells.texts] == (["34,411"] if cut else [])
    plt.close(drawn)


def test_a_map_of_states_names_the_covariates_that_it_leaves_out():
    use_style()
    table = pd.DataFrame(
        {"state": ["basal", "total"] * 3, "shown_as": "control", "x": 0.0, "y": 0.0}
    )
    table = table.assign(**{name: [0.0, 1.0] * 3 for name in ("s_score", "g2m_score", "mito")})
    drawn = function_of("state_map")(table, **OPTIONS)
    assert drawn.get_supxlabel() == "not shown: mito"
    plt.close(drawn)
