"""How well a screen's own tests do, and how long they take.

``python -m benchmarks.screen_quality`` prints JSON of two parts:

- ``batches``: simulated screens with a batch effect and control cells in excess in one batch, and
  the same without a batch effect. False discovery rate and power of the plain and of the
  stratified test over seeds, against the noise-free effects of the simulation, with the 95 %
  confidence interval of the false discovery rate over seeds.
- ``speed``: seconds of each step of ``assess_screen`` and the peak memory, on a synthetic screen of
  100,000 cells x 1,200 genes x 700 perturbations in four batches.

``--only batches`` or ``--only speed`` runs one of them.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from benchmarks.differential_expression import synthetic
from samsvae.biology.guides import guide_groups
from samsvae.biology.quality import (
    fake_targets,
    hits,
    null_calibration,
    principal_components,
    screen_effects,
)
from samsvae.evaluation.effects import log_expression
from samsvae.evaluation.stratified import Strata, gated_tests, strata_of_cells, stratified_effects
from samsvae.evaluation.truth import true_effects
from samsvae.screen.canonical import perturbations
from samsvae.screen.labels import CONTROL
from samsvae.sources.simulated import Simulation, simulate

FDR = 0.05
MIN_CONTROLS = 10
# an effect below this is none: the smallest that a perturbation has on genes of its programmes is
# several times larger, and others change by the renormalisation of proportions alone
NO_EFFECT = 0.02  # log2(CP10k + 1)


def discoveries(screen: anndata.AnnData, true: np.ndarray, by_batch: bool) -> dict[str, float]:
    """Count false and true discoveries of the test of all cells of perturbations."""
    names = perturbations(screen)
    stratum = strata_of_cells(screen, by_batch)
    strata = Strata.of(screen.obs["perturbation"], names, stratum, MIN_CONTROLS)
    _, fdr = gated_tests(log_expression(screen), strata)
    found = fdr < FDR
    is_null = np.abs(true) < NO_EFFECT
    inert = is_null.all(axis=1)
    return {
        "false": int((found & is_null).sum()),
        "false_in_inert": int(found[inert].sum()),
        "false_discovery_rate": float((found & is_null).sum() / max(found.sum(), 1)),
        "power": float(found[np.abs(true) > 0.2].mean()),
    }


def of_batches(n_seeds: int) -> dict[str, Any]:
    """Compare plain and stratified tests with and without a batch effect."""
    rows: list[dict[str, Any]] = []
    for seed in range(n_seeds):
        for effect, imbalance in ((0.3, 0.5), (0.0, 0.5)):
            settings = Simulation(
                seed=seed, n_pairs=0, inert_fraction=0.25, n_batches=3, batch_effect=effect,
                batch_imbalance=imbalance,
            )  # fmt: skip
            screen = simulate(settings)[0]
            true = true_effects(screen, perturbations(screen), seed=0)
            for by_batch in (False, True):
                counted = discoveries(screen, true, by_batch)
                rows.append({"batch_effect": effect, "stratified": by_batch, **counted})
    table = pd.DataFrame(rows)
    found: dict[str, Any] = {}
    for (effect, by_batch), own in table.groupby(["batch_effect", "stratified"]):
        rate = own["false_discovery_rate"]
        half = stats.t.ppf(0.975, len(own) - 1) * rate.sem()
        found[f"effect {effect:g}, {'stratified' if by_batch else 'plain'}"] = {
            "false_genes_per_screen": round(own["false"].mean(), 1),
            "false_genes_of_inert_targets": round(own["false_in_inert"].mean(), 1),
            "false_discovery_rate": round(rate.mean(), 4),
            "interval": [round(rate.mean() - half, 4), round(rate.mean() + half, 4)],
            "power": round(own["power"].mean(), 4),
        }
    return found


def of_speed(n_cells: int, n_genes: int, n_perturbations: int, n_controls: int) -> dict[str, Any]:
    """Time the steps of assessing a screen."""
    expression, labels = synthetic(n_cells, n_genes, n_perturbations, n_controls)
    rng = np.random.default_rng(1)
    screen = anndata.AnnData(
        obs=pd.DataFrame(
            {
                "perturbation": pd.Categorical(labels),
                "batch": rng.choice(list("abcd"), n_cells),
                "guide": [f"{label}_{at % 3}" for at, label in enumerate(labels)],
                "library_size": rng.lognormal(8, 0.4, n_cells),
            },
            index=labels.index.astype(str),
        ),
        var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]),
    )
    names = perturbations(screen)
    library_size = screen.obs["library_size"].to_numpy()
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal started
        seconds[step] = round(time.perf_counter() - started, 1)
        started = time.perf_counter()

    stratum = strata_of_cells(screen, True)
    plain = Strata.of(labels, names)
    strata = Strata.of(labels, names, stratum, MIN_CONTROLS)
    effects = screen_effects(screen, expression, plain, strata, FDR, "{}")
    lap("effects and tests, plain and stratified")
    is_control = (labels == CONTROL).to_numpy()
    group = fake_targets(screen, stratum, 30, 0)
    null_calibration(
        expression[is_control], group, stratum[is_control], library_size[is_control],
        MIN_CONTROLS, FDR,
    )  # fmt: skip
    lap("null")
    states = principal_components(expression, 0)
    lap("principal components")
    table = hits(effects, states, expression, library_size, strata, FDR, 0)
    lap("hits")
    of_guide, guides = guide_groups(screen, 20)
    stratified_effects(expression, Strata(of_guide, stratum, len(guides), MIN_CONTROLS))
    lap("effects of guides")
    return {
        "cells": n_cells,
        "genes": n_genes,
        "perturbations": len(names),
        "guides": len(guides),
        "hits": int(table["is_hit"].sum()),
        "seconds": seconds,
        "seconds_in_all": round(sum(seconds.values()), 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["batches", "speed"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=1_200)
    parser.add_argument("--perturbations", type=int, default=700)
    parser.add_argument("--controls", type=int, default=2_000)
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    if chosen.only != "speed":
        found["batches"] = of_batches(chosen.seeds)
    if chosen.only != "batches":
        sizes = (chosen.cells, chosen.genes, chosen.perturbations, chosen.controls)
        found["speed"] = of_speed(*sizes)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
