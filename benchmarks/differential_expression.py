"""How long differential expression takes, against scipy's rank-sum test run beside it.

``python -m benchmarks.differential_expression`` prints JSON for a synthetic screen the size of a
genome-wide one, 100,000 cells x 1,200 genes x 700 perturbations: seconds and peak memory of all
tests, seconds that scipy takes for some of the perturbations, how many times faster a perturbation
is, and the largest relative difference of their p-values. ``--screen FILE`` takes the cells of a
canonical screen, results/screens/<screen>/screen.h5ad, instead.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse, stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from samsvae.evaluation.expression import log_expression
from samsvae.evaluation.strata import Strata
from samsvae.evaluation.stratified import stratified_rank_sum
from samsvae.screen.canonical import read_screen
from samsvae.screen.labels import CONTROL

MEAN_OF_GENES = 0.3  # counts per cell, median gene; about what UMI counts of K562 cells are
SPREAD_OF_GENES = 1.3  # standard deviation of log means
INVERSE_DISPERSION = 2.0
SMALLEST_PVALUE = 1e-300  # below that, 64-bit numbers are no longer exact
BLOCK = 10_000


def synthetic(
    n_cells: int, n_genes: int, n_perturbations: int, n_controls: int
) -> tuple[sparse.csr_matrix, pd.Series]:
    """Draw negative-binomial counts as log2(1 + x), and a label for each cell."""
    rng = np.random.default_rng(0)
    mean = MEAN_OF_GENES * np.exp(SPREAD_OF_GENES * rng.normal(size=n_genes))
    blocks = []
    for first in range(0, n_cells, BLOCK):
        rate = mean * rng.gamma(INVERSE_DISPERSION, 1 / INVERSE_DISPERSION, (BLOCK, n_genes))
        counts = sparse.csr_matrix(rng.poisson(rate[: n_cells - first]).astype(np.float64))
        counts.data = np.log2(1 + counts.data)
        blocks.append(counts)
    number = rng.integers(0, n_perturbations, n_cells)
    labels = pd.Series([f"P{index:04d}" for index in number])
    labels[:n_controls] = CONTROL
    return sparse.csr_matrix(sparse.vstack(blocks)), labels


def scipys(
    expression: sparse.csr_matrix, labels: pd.Series, names: list[str]
) -> tuple[np.ndarray, float]:
    """Test some perturbations by scipy; p-values and seconds."""
    started = time.perf_counter()
    control = expression[(labels == CONTROL).to_numpy()].toarray()
    found = [
        stats.mannwhitneyu(
            expression[(labels == name).to_numpy()].toarray(), control, method="asymptotic"
        ).pvalue
        for name in names
    ]
    return np.array(found), time.perf_counter() - started


def main() -> None:
    """Read the options, test, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screen", type=Path)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=1_200)
    parser.add_argument("--perturbations", type=int, default=700)
    parser.add_argument("--controls", type=int, default=2_000)
    parser.add_argument("--sample", type=int, default=3, help="perturbations that scipy tests")
    chosen = parser.parse_args()
    if chosen.screen is None:
        expression, labels = synthetic(
            chosen.cells, chosen.genes, chosen.perturbations, chosen.controls
        )
    else:
        screen = read_screen(chosen.screen)
        expression, labels = log_expression(screen), screen.obs["perturbation"].astype(str)
    names = sorted(set(labels) - {CONTROL})
    started = time.perf_counter()
    pvalue = stratified_rank_sum(expression, Strata.of(labels, names))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    theirs, scipy_seconds = scipys(expression, labels, names[: chosen.sample])
    ours = pvalue[: len(theirs)]
    compared = theirs > SMALLEST_PVALUE
    difference = np.abs(ours[compared] / theirs[compared] - 1).max()
    print(
        json.dumps(
            {
                "cells": expression.shape[0],
                "genes": expression.shape[1],
                "perturbations": len(names),
                "controls": int((labels == CONTROL).sum()),
                "seconds": round(seconds, 2),
                "peak_memory_mb": round(peak),
                "scipy_perturbations": len(theirs),
                "scipy_seconds": round(scipy_seconds, 2),
                "times_faster_per_perturbation": round(
                    scipy_seconds / len(theirs) / (seconds / len(names)), 1
                ),
                "largest_relative_difference": float(difference),
            }
        )
    )


if __name__ == "__main__":
    main()
