"""Calibration of tests: control cells as if they had perturbations, and depths of groups of cells.

Effects are in log2(CP10k + 1). A group of control cells has no effect, so that its p-values are
uniform if tests are calibrated, and if its cells are as deep as the others.
"""

from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse, stats

from samsvae.evaluation.strata import Strata
from samsvae.evaluation.stratified import gated_tests_against_rest
from samsvae.screen.canonical import GUIDE
from samsvae.screen.labels import CONTROL

NULL = [
    "fake_target", "n_cells", "n_genes", "fraction_p05", "fraction_p01", "fraction_p001", "lambda",
    "n_significant", "depth_ratio",
]  # fmt: skip
QUANTILES = ["expected", "observed", "low", "high"]
N_QUANTILES = 200
MEDIAN_CHI_SQUARE = stats.chi2.ppf(0.5, 1)  # of one degree of freedom, 0.4549
FEWEST_FAKE = 4  # groups of control cells, at least, so that others remain to compare with
MOST_FAKE = 100  # groups of control cells, since each is compared with all other control cells


def fake_targets(
    screen: anndata.AnnData, stratum: np.ndarray, min_cells: int, seed: int
) -> pd.Series:
    """Divide the control cells into groups that have no effect.

    Parameters
    ----------
    screen
        Canonical screen.
    stratum
        Stratum of each cell.
    min_cells
        Smallest number of cells of a group.
    seed
        Seed of random groups.

    Returns
    -------
    Series
        Group of each control cell, NaN for one in none. A group is a non-targeting guide; where
        guides are unknown or fewer than two have enough cells, groups are random within strata, of
        the median size of a perturbation, at most a quarter of the control cells each. There are at
        most 100 groups: of more guides, those with most cells.
    """
    is_control = (screen.obs["perturbation"] == CONTROL).to_numpy()
    controls = screen.obs_names[is_control]
    if GUIDE in screen.obs:
        guides = screen.obs.loc[is_control, GUIDE].astype(str)
        counted = guides.value_counts()
        usable = counted.index[(counted >= min_cells) & (counted.index != "")][:MOST_FAKE]
        if len(usable) > 1:
            return guides.where(guides.isin(usable))
    sizes = screen.obs.loc[~is_control, "perturbation"].value_counts()
    size = int(min(max(sizes.median(), min_cells), len(controls) // FEWEST_FAKE))
    group = pd.Series(np.nan, controls, dtype=object)
    if size < min_cells:
        return group
    n_groups = len(controls) // size
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(controls))
    # consecutive cells of a stratum go to different groups, so that each has its fraction of all
    order = shuffled[np.argsort(stratum[is_control][shuffled], kind="stable")]
    group.iloc[order] = [f"random_{at % n_groups + 1}" for at in range(len(order))]
    return group.where(group.isin([f"random_{number + 1}" for number in range(MOST_FAKE)]))


def null_calibration(
    expression: sparse.csr_matrix,
    group: pd.Series,
    stratum: np.ndarray,
    library_size: np.ndarray,
    min_controls: int,
    fdr: float,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test groups of control cells against the other control cells.

    Parameters
    ----------
    expression
        log2(CP10k + 1) of control cells, cells x genes.
    group
        Group of each control cell, as of :func:`fake_targets`.
    stratum, library_size
        Of each control cell.
    min_controls
        Smallest number of control cells of a stratum, where there are several strata.
    fdr
        False discovery rate below which a gene is significant.

    Returns
    -------
    table : DataFrame
        One row per group: cells, tested genes, fractions of p-values below 0.05, 0.01 and 0.001,
        ``lambda`` (median of the chi-square statistics over that expected), significant genes, and
        the median library size relative to the other cells of the stratum.
    quantiles : DataFrame
        Quantiles of all p-values as -log10: expected, observed, and a 95 % interval of the
        observed ones if all p-values were independent.
    """
    rows, pooled = [], []
    names = sorted(group.dropna().unique())
    codes = pd.Index(names).get_indexer(group)
    fewest = min_controls if len(np.unique(stratum)) > 1 else 1
    pvalues, rates = gated_tests_against_rest(
        expression, Strata(codes, stratum, len(names), fewest)
    )
    for number, (name, pvalue, rate) in enumerate(zip(names, pvalues, rates, strict=True)):
        tested = pvalue[np.isfinite(pvalue)]
        if not len(tested):
            continue
        pooled.append(tested)
        is_other = (codes != number).astype(np.int64)
        depth = depth_ratios(library_size, Strata(is_other, stratum, 1, fewest))[0]
        rows.append(null_row(name, int((~is_other.astype(bool)).sum()), tested, rate, depth, fdr))
    values = np.concatenate(pooled) if pooled else np.empty(0)
    return pd.DataFrame(rows, columns=NULL), quantiles(values)


def null_row(
    name: str, n_cells: int, tested: np.ndarray, rate: np.ndarray, depth: float, fdr: float
) -> dict[str, Any]:
    """Summarise the p-values of a group without an effect, as of :func:`null_calibration`."""
    return {
        "fake_target": name,
        "n_cells": n_cells,
        "n_genes": len(tested),
        "fraction_p05": np.mean(tested < 0.05),
        "fraction_p01": np.mean(tested < 0.01),
        "fraction_p001": np.mean(tested < 0.001),
        "lambda": np.median(stats.chi2.isf(tested, 1)) / MEDIAN_CHI_SQUARE,
        "n_significant": int(np.sum(rate < fdr)),
        "depth_ratio": depth,
    }


def quantiles(pvalues: np.ndarray) -> pd.DataFrame:
    """Compute the quantiles of p-values for a QQ plot, with the interval of order statistics."""
    n = len(pvalues)
    if n == 0:
        return pd.DataFrame(columns=QUANTILES, dtype=float)
    ranks = np.unique(np.geomspace(1, n, min(N_QUANTILES, n)).round().astype(int))
    low, high = stats.beta.ppf([[0.975], [0.025]], ranks, n + 1 - ranks)
    observed = np.maximum(np.sort(pvalues)[ranks - 1], np.finfo(float).tiny)
    columns = (ranks / (n + 1), observed, low, high)
    return pd.DataFrame({k: -np.log10(v) for k, v in zip(QUANTILES, columns, strict=True)})


def depth_ratios(library_size: np.ndarray, strata: Strata) -> np.ndarray:
    """Compute the median library size of each perturbation relative to control cells.

    Each cell's library size is divided by the median of the control cells of its stratum.
    """
    ratio = np.full(strata.n_groups, np.nan)
    relative = np.full(len(library_size), np.nan)
    is_control = strata.group == strata.n_groups
    for stratum in np.flatnonzero(strata.compared.any(axis=1)):
        inside = strata.stratum == stratum
        relative[inside] = library_size[inside] / np.median(library_size[inside & is_control])
    order = np.argsort(strata.group, kind="stable")
    starts = np.searchsorted(strata.group[order], np.arange(strata.n_groups + 1))
    for group in np.flatnonzero(strata.compared.sum(axis=0)):
        ratio[group] = np.nanmedian(relative[order[starts[group] : starts[group + 1]]])
    return ratio
