"""How well a screen's own tests do, and how long they take.

``python -m benchmarks.screen_quality`` prints JSON of three parts:

- ``batches``: simulated screens with a batch effect and control cells in excess in one batch, and
  the same without a batch effect. False discovery rate and power of the plain and of the
  stratified test over seeds, against the noise-free effects of the simulation, with the 95 %
  confidence interval of the false discovery rate over seeds.
- ``few_cells``: random groups of 20, 60 and 200 control cells of a shallow simulated screen (100
  counts a cell), or of ``--screen FILE`` (a canonical screen): the percentage of groups with any
  significant gene, and the percentage of planted changes that are found, genes whose counts are
  halved in the group.
- ``speed``: seconds of each step of ``assess_screen`` and the peak memory, on a synthetic screen of
  100,000 cells x 1,200 genes x 700 perturbations in four batches.

``--only`` runs one of them.
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
from scipy import sparse, stats

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
from samsvae.evaluation.effects import log_cp10k, log_expression
from samsvae.evaluation.stratified import Strata, gated_tests, strata_of_cells, stratified_effects
from samsvae.evaluation.truth import true_effects
from samsvae.screen.canonical import perturbations, read_screen
from samsvae.screen.labels import CONTROL
from samsvae.sources.simulated import Simulation, simulate

FDR = 0.05
MIN_CONTROLS = 10
GROUP_SIZES = (20, 60, 200)
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


def of_few_cells(path: Path | None, n_groups: int) -> dict[str, Any]:
    """Test random groups of control cells, with nothing to find and with planted changes."""
    if path is None:
        simulation = Simulation(
            n_perturbations=6, n_pairs=0, cells_per_perturbation=10, n_controls=2400,
            median_library_size=100,
        )  # fmt: skip
        screen = simulate(simulation)[0]
    else:
        screen = read_screen(path)
    cells = screen[(screen.obs["perturbation"] == CONTROL).to_numpy()].to_memory()
    library_size = cells.obs["library_size"].to_numpy(dtype=np.float64)
    counts = sparse.csr_matrix(cells.X).astype(np.int64)
    plain = log_cp10k(counts, library_size)
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for n_cells in GROUP_SIZES:
        false, tested, power = 0, [], []
        for _ in range(n_groups):
            group = np.ones(counts.shape[0], dtype=np.int64)
            group[rng.choice(len(group), n_cells, replace=False)] = 0
            strata = Strata(group, np.zeros_like(group), 1)
            fdr = gated_tests(plain, strata)[1][0]
            false += bool((fdr < FDR).any())
            tested.append(np.isfinite(fdr).sum())
            can = np.flatnonzero(np.isfinite(fdr))
            changed = rng.choice(can, max(len(can) // 10, 1), replace=False)
            planted = counts.toarray()
            own = np.ix_(group == 0, changed)
            planted[own] = rng.binomial(planted[own], 0.5)
            expression = log_cp10k(sparse.csr_matrix(planted), library_size)
            power.append((gated_tests(expression, strata)[1][0, changed] < FDR).mean())
        found[f"{n_cells} cells"] = {
            "tested_genes": round(float(np.mean(tested)), 1),
            "percent_of_groups_with_a_gene": round(100 * false / n_groups, 1),
            "percent_of_halved_genes_found": round(100 * float(np.mean(power)), 1),
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
    parser.add_argument("--only", choices=["batches", "few_cells", "speed"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--groups", type=int, default=200)
    parser.add_argument("--screen", type=Path, help="canonical screen, for few_cells")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=1_200)
    parser.add_argument("--perturbations", type=int, default=700)
    parser.add_argument("--controls", type=int, default=2_000)
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    if chosen.only in (None, "batches"):
        found["batches"] = of_batches(chosen.seeds)
    if chosen.only in (None, "few_cells"):
        found["few_cells"] = of_few_cells(chosen.screen, chosen.groups)
    if chosen.only in (None, "speed"):
        sizes = (chosen.cells, chosen.genes, chosen.perturbations, chosen.controls)
        found["speed"] = of_speed(*sizes)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
