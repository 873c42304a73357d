"""How well a screen's own tests do, and how long they take.

``python -m benchmarks.screen_quality`` prints JSON of five parts:

- ``batches``: simulated screens with a batch effect and control cells in excess in one batch, and
  the same without a batch effect. False discovery rate and power of the plain and of the
  stratified test over seeds, against the noise-free effects of the simulation, with the 95 %
  confidence interval of the false discovery rate over seeds.
- ``few_cells``: random groups of 20, 60 and 200 control cells of a shallow simulated screen (100
  counts a cell), or of ``--screen FILE`` (a canonical screen): the percentage of groups with any
  significant gene, and the percentage of planted changes that are found, genes whose counts are
  halved in the group.
- ``many_guides``: simulated screens with six perturbations in a cell and with one, of the same
  number of cells of a perturbation and of the same number of cells: correlation of marginal effects
  with the noise-free ones, as a ratio to what single perturbations reach; cells of the largest
  combinations; and how well the slope of dead guides tells them apart, with cells that escape.
- ``speed``: seconds of each step of ``assess_screen`` and the peak memory, on a synthetic screen of
  100,000 cells x 1,200 genes x 700 perturbations in four batches.
- ``marginal_speed``: the same of marginal effects, of as many cells with six perturbations each.

``--only`` runs one of them.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse, stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from benchmarks.differential_expression import synthetic
from samsvae.biology.calibration import fake_targets, null_calibration
from samsvae.biology.guides import KNOCK_DOWN, compare_guides, guide_groups
from samsvae.biology.many_guides import marginal_hits, marginal_null, marginal_screen_effects
from samsvae.biology.quality import (
    hits,
    principal_components,
    screen_effects,
)
from samsvae.evaluation.effects import group_means
from samsvae.evaluation.expression import (
    Expression,
    expression_in_blocks,
    log_cp10k,
    log_expression,
)
from samsvae.evaluation.marginal import Regression, fit
from samsvae.evaluation.strata import Strata, strata_of_cells, stratified_effects
from samsvae.evaluation.stratified import gated_tests
from samsvae.evaluation.truth import true_effects
from samsvae.screen.canonical import describe_cells, perturbations, read_screen
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL
from samsvae.sources.simulated import Simulation, simulate

PARTS = ("batches", "few_cells", "many_guides", "speed", "marginal_speed")
FDR = 0.05
MIN_CONTROLS = 10
GROUP_SIZES = (20, 60, 200)
# an effect below this is none: the smallest that a perturbation has on genes of its programmes is
# several times larger, and others change by the renormalisation of proportions alone
NO_EFFECT = 0.02  # log2(CP10k + 1)


class Laps:
    """Seconds of consecutive steps, each ended by a call with its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()

    def __call__(self, step: str) -> None:
        """End a step, and begin the next."""
        now = time.perf_counter()
        self.seconds[step] = round(now - self.started, 1)
        self.started = now


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


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlate two matrices of effects."""
    return float(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1])


def of_many_guides(n_seeds: int) -> dict[str, Any]:
    """Compare marginal effects of cells with six perturbations with those of cells with one."""
    rows: list[dict[str, float]] = []
    for seed in range(n_seeds):
        settings = Simulation(seed=seed, n_perturbations=100, n_pairs=0, cells_per_perturbation=60)
        one = simulate(settings)[0]
        names = perturbations(one)
        means = group_means(expression_in_blocks(one), names, one.n_vars)
        alone = correlation(means.effects()[0], true_effects(one, names, seed))
        row = {"one_perturbation": alone}
        for what, n_cells in (("same cells of a target", 60), ("same cells", 360)):
            several = replace(
                settings, guides_per_cell=6, unit="perturbation", cells_per_perturbation=n_cells
            )
            screen = simulate(several)[0]
            true = true_effects(screen, names, seed)
            expression = log_expression(screen)
            for how in ("controls", "complement"):
                screen.uns["compared_with"] = how
                found = fit(expression, Regression.of(screen)).effect
                row[f"{what}, {how}, ratio"] = correlation(found, true) / alone
            own = screen.obs["perturbation"].value_counts().drop(CONTROL)
            row[f"{what}, cells of the largest combination"] = int(own.max())
        rows.append({**row, **_dead_guides(seed)})
    table = pd.DataFrame(rows)
    return {
        name: {"mean": round(float(values.mean()), 3), "lowest": round(float(values.min()), 3)}
        for name, values in table.items()
    }


def _dead_guides(seed: int) -> dict[str, float]:
    """Score guides without an effect by their slopes, where cells of the others escape."""
    screen = simulate(
        Simulation(
            seed=seed, n_perturbations=40, n_pairs=0, cells_per_perturbation=240, n_controls=1000,
            guides_per_target=4, dead_guides=0.15, escapers=0.3, inert_fraction=0.0,
        )
    )[0]  # fmt: skip
    expression, names = log_expression(screen), perturbations(screen)
    strata = Strata.of(screen.obs["perturbation"], names)
    effects = screen_effects(screen, expression, strata, strata, FDR, "{}")
    group, table = guide_groups(screen, 20)
    own = stratified_effects(expression, Strata(group, 0 * strata.stratum, len(table)))[0]
    significant = pd.DataFrame(np.asarray(effects.layers["fdr"]) < FDR, names)
    compared = compare_guides(table, own, pd.DataFrame(columns=KNOCK_DOWN), significant)
    acts = pd.Series(screen.obsm["true_response"].any(axis=1), screen.obs["guide"].astype(str))
    alive = compared["guide"].map(acts.groupby(level=0).any()).to_numpy(dtype=bool)
    slope = compared["slope"].to_numpy()
    known = np.isfinite(slope)
    ranked = stats.mannwhitneyu(slope[known & alive], slope[known & ~alive])
    area = ranked.statistic / ((known & alive).sum() * (known & ~alive).sum())
    return {"dead guides among escapers, area under the ROC curve": float(area)}


def as_counts(expression: sparse.csr_matrix) -> sparse.csr_matrix:
    """Round synthetic expression up, to counts in the same places."""
    counts = expression.copy()
    counts.data = np.ceil(counts.data)
    return counts


def of_marginal_speed(
    n_cells: int, n_genes: int, n_perturbations: int, n_guides: float
) -> dict[str, Any]:
    """Time the steps of assessing a screen with several perturbations in a cell."""
    expression, _ = synthetic(n_cells, n_genes, 1, n_cells // 2)
    rng = np.random.default_rng(1)
    design = sparse.random_array(
        (n_cells, n_perturbations), density=n_guides / n_perturbations, rng=rng, format="csr",
        data_sampler=lambda size: np.ones(size),
    )  # fmt: skip
    names = [f"T{number:04d}" for number in range(n_perturbations)]
    genes = [f"G{number}" for number in range(n_genes)]
    sizes = rng.lognormal(8, 0.4, n_cells)
    declared = {"unit": "perturbation", "compared_with": "controls"}
    cells = pd.RangeIndex(n_cells).astype(str)
    batch = pd.DataFrame({"batch": pd.Categorical(rng.choice(list("abcd"), n_cells))}, cells)
    screen = describe_cells(Design.of(design, names), sizes, cells, genes, batch, declared=declared)
    settings = {"min_cells_null": 30, "fdr": FDR}
    lap = Laps()
    regression = Regression.of(screen)
    effects = marginal_screen_effects(screen, expression, True, FDR, "{}")
    lap("effects and tests, plain and with batches")
    marginal_null(screen, expression, regression, settings, 0)
    lap("null")
    screen.X = as_counts(expression)
    states = principal_components(Expression(screen), 0)
    lap("principal components")
    marginal_hits(effects, states, expression, screen.X, sizes, regression, FDR, 0)
    lap("hits")
    return {
        "cells": n_cells,
        "genes": n_genes,
        "perturbations": n_perturbations,
        "perturbations_in_a_cell": n_guides,
        "seconds": lap.seconds,
        "seconds_in_all": round(sum(lap.seconds.values()), 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def of_speed(n_cells: int, n_genes: int, n_perturbations: int, n_controls: int) -> dict[str, Any]:
    """Time the steps of assessing a screen."""
    expression, labels = synthetic(n_cells, n_genes, n_perturbations, n_controls)
    rng = np.random.default_rng(1)
    screen = anndata.AnnData(
        as_counts(expression),
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
    expression = Expression(screen)
    lap = Laps()
    stratum = strata_of_cells(screen, True)
    plain = Strata.of(labels, names)
    strata = Strata.of(labels, names, stratum, MIN_CONTROLS)
    effects = screen_effects(screen, expression, plain, strata, FDR, "{}")
    lap("effects and tests, plain and stratified")
    is_control = (labels == CONTROL).to_numpy()
    group = fake_targets(screen, stratum, 30, 0)
    null_calibration(
        log_expression(screen, is_control), group, stratum[is_control], library_size[is_control],
        MIN_CONTROLS, FDR,
    )  # fmt: skip
    lap("null")
    states = principal_components(expression, 0)
    lap("principal components")
    table = hits(effects, states, expression, strata, FDR, 0)
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
        "seconds": lap.seconds,
        "seconds_in_all": round(sum(lap.seconds.values()), 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS)
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
    if chosen.only in (None, "many_guides"):
        found["many_guides"] = of_many_guides(min(chosen.seeds, 5))
    if chosen.only in (None, "marginal_speed"):
        sizes = (chosen.cells, chosen.genes, chosen.perturbations, chosen.controls)
        found["marginal_speed"] = of_marginal_speed(*sizes[:3], n_guides=6.0)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
