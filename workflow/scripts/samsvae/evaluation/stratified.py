"""Tests of perturbations stratified by batch, against control cells of the same batch.

With one stratum, tests of genes are the Wilcoxon rank-sum test. See
:mod:`samsvae.evaluation.strata` for strata and effects.
"""

import numba
import numpy as np
from scipy import sparse, stats

from samsvae.evaluation.expression import Expression, matrices
from samsvae.evaluation.strata import LEFT_OUT, Strata


def stratified_rank_sum(
    expression: sparse.csr_matrix, strata: Strata, skewed: bool = False
) -> np.ndarray:
    """Test each gene of each perturbation by van Elteren's stratified rank-sum test, two-sided.

    The statistic is the sum over strata of the centred Mann-Whitney statistic divided by the
    number of compared cells plus 1 (van Elteren 1960); its variance is corrected for ties. The
    approximation has a continuity correction of half the smallest step. With one stratum this is
    the Wilcoxon rank-sum test.

    Own code, since Python libraries have no stratified rank-sum test.

    Parameters
    ----------
    expression
        Cells x genes, non-negative.
    strata
        Groups and strata of the cells.
    skewed
        Whether the null distribution is a Pearson type III distribution with the skewness of the
        permutation distribution (Mielke and Berry 2007), not a normal one. If few cells express a
        gene and groups differ in size, the normal tail is too light.

    Returns
    -------
    ndarray
        p-values, perturbations x genes; NaN for a perturbation that is compared in no stratum, 1
        for a gene with equal values in all compared cells.
    """
    kept = strata.group != LEFT_OUT
    columns = sparse.csc_matrix(expression[kept])
    compared, sizes = strata.compared, strata.sizes
    bucket = strata.stratum[kept] * (strata.n_groups + 1) + strata.group[kept]
    statistic, variance, third_moment = _van_elteren(
        columns.indptr, columns.indices, columns.data, bucket, sizes, compared
    )
    moments_under_null = statistic, variance, third_moment
    return _pvalues(*moments_under_null, compared, compared + sizes[:, -1:], skewed)


def _pvalues(
    statistic: np.ndarray,
    variance: np.ndarray,
    third_moment: np.ndarray,
    compared: np.ndarray,
    n_all: np.ndarray,
    skewed: bool,
) -> np.ndarray:
    """Compute p-values of :func:`stratified_rank_sum` from moments under the null.

    `compared` and `n_all` are the numbers of compared cells of a group, and of these and the cells
    that they are compared with, strata x groups.
    """
    step = np.where(compared > 0, 1 / (n_all + 1.0), np.inf).min(axis=0, initial=np.inf)
    distance = np.clip(np.abs(statistic) - step[:, None] / 2, 0, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(variance > 0, distance / np.sqrt(variance), 0.0)
        skewness = np.where(variance > 0, third_moment / variance**1.5, 0.0)
    if skewed:
        pvalue = 2 * stats.pearson3.sf(z, np.sign(statistic) * skewness)
    else:
        pvalue = 2 * stats.norm.sf(z)
    pvalue[compared.sum(axis=0) == 0] = np.nan
    return np.minimum(pvalue, 1.0)


@numba.njit(cache=True)
def _van_elteren(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    bucket: np.ndarray,
    sizes: np.ndarray,
    compared: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the statistic, its variance and third moment under the null, perturbations x genes.

    `bucket` is the stratum and group of each cell, as a position in the flattened `sizes`.
    """
    n_genes = len(indptr) - 1
    n_strata, n_groups = compared.shape
    statistic = np.zeros((n_groups, n_genes))
    variance = np.zeros((n_groups, n_genes))
    third_moment = np.zeros((n_groups, n_genes))
    starts = np.zeros(n_strata * (n_groups + 1) + 1, dtype=np.int64)
    for gene in range(n_genes):
        first, last = indptr[gene], indptr[gene + 1]
        starts[:] = 0
        for at in range(first, last):
            if data[at] != 0:
                starts[bucket[indices[at]] + 1] += 1
        for at in range(1, len(starts)):
            starts[at] += starts[at - 1]
        values = np.empty(starts[-1], dtype=data.dtype)
        filled = starts[:-1].copy()
        for at in range(first, last):
            if data[at] != 0:
                own = bucket[indices[at]]
                values[filled[own]] = data[at]
                filled[own] += 1
        for stratum in range(n_strata):
            at_control = stratum * (n_groups + 1) + n_groups
            controls = np.sort(values[starts[at_control] : starts[at_control + 1]])
            ties, centres = _ties(controls)
            n_controls = sizes[stratum, n_groups]
            for group in range(n_groups):
                n_cells = compared[stratum, group]
                if n_cells == 0:
                    continue
                own = stratum * (n_groups + 1) + group
                cells = np.sort(values[starts[own] : starts[own + 1]])
                ranks, squares, cubes = _ranks(cells, controls, ties, centres, n_cells, n_controls)
                n, m = float(n_cells), float(n_controls)
                n_all = n + m
                weight = 1 / (n_all + 1)
                statistic[group, gene] += weight * ranks
                # moments of the sum of n of N ranks, drawn without replacement
                spread = n * m / (n_all * (n_all - 1)) * squares
                variance[group, gene] += weight**2 * spread
                if n_all > 2:
                    skew = n * m * (m - n) / (n_all * (n_all - 1) * (n_all - 2)) * cubes
                    third_moment[group, gene] += weight**3 * skew
    return statistic, variance, third_moment


@numba.njit(cache=True)
def _ties(controls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum t^3 - t over the ties of sorted values, and the same times the mean rank of each tie.

    Returns
    -------
    ties, centres : ndarray
        Cumulative sums: item i is over the ties among the first i values.
    """
    n = len(controls)
    ties, centres = np.zeros(n + 1), np.zeros(n + 1)
    first = 0
    while first < n:
        last = first + 1
        while last < n and controls[last] == controls[first]:
            last += 1
        t = float(last - first)
        ties[first + 1 : last + 1] = ties[first] + (t**3 - t)
        centres[first + 1 : last + 1] = centres[first] + (first + (t + 1) / 2) * (t**3 - t)
        first = last
    return ties, centres


@numba.njit(cache=True)
def _ranks(
    cells: np.ndarray,
    controls: np.ndarray,
    ties: np.ndarray,
    centres: np.ndarray,
    n_cells: int,
    n_controls: int,
) -> tuple[float, float, float]:
    """Rank cells and controls together, about the mean rank, ties at their middle.

    Each of the cells is sought among the controls, which are many more. Without ties the sum of
    squares of N ranks is (N^3 - N) / 12 and that of cubes 0; a tie of t ranks about c lowers the
    first by (t^3 - t) / 12 and the second by c (t^3 - t) / 4. All sums are of integers and halves,
    so that they are exact.

    Parameters
    ----------
    cells, controls
        Positive values, sorted; the other cells are 0.
    ties, centres
        As of :func:`_ties`, of the controls.
    n_cells, n_controls
        Numbers of cells.

    Returns
    -------
    ranks, squares, cubes : float
        Sum of the ranks of the cells; sums of squares and cubes of the ranks of all.
    """
    n_all = float(n_cells + n_controls)
    middle = (n_all + 1) / 2
    zeros = n_cells - len(cells) + n_controls - len(controls)
    rank, tied = (zeros + 1) / 2 - middle, float(zeros) ** 3 - zeros
    ranks = (n_cells - len(cells)) * rank
    all_ties, moment = tied, rank * tied
    at, passed = 0, 0
    while at < len(cells):
        value, first = cells[at], at
        while at < len(cells) and cells[at] == value:
            at += 1
        below = np.searchsorted(controls, value)
        equal = below
        while equal < len(controls) and controls[equal] == value:
            equal += 1
        between = ties[below] - ties[passed]
        all_ties += between
        moment += centres[below] - centres[passed] + (zeros + first - middle) * between
        both = float(at - first + equal - below)
        rank = zeros + first + below + (both + 1) / 2 - middle
        ranks += (at - first) * rank
        all_ties += both**3 - both
        moment += rank * (both**3 - both)
        passed = equal
    between = ties[-1] - ties[passed]
    all_ties += between
    moment += centres[-1] - centres[passed] + (zeros + len(cells) - middle) * between
    return ranks, (n_all**3 - n_all - all_ties) / 12, -moment / 4


FEWEST_EXPECTED = 5.0  # cells of the smaller group in which a tested gene is detected, expected


def testable_genes(expression: sparse.csr_matrix, strata: Strata) -> np.ndarray:
    """Choose the genes to test, by the control cells alone.

    The normal approximation of the rank sum does not hold for a gene that few cells express. The
    choice ignores the perturbed cells, since a choice by these would favour one sign.

    Returns
    -------
    ndarray of bool
        Perturbations x genes: at least five cells of the smaller group are expected to express
        the gene, at the fraction of expressing cells among the control cells of the compared
        strata.
    """
    compared, sizes = strata.compared, strata.sizes
    kept = strata.group == strata.n_groups
    n_strata = len(sizes)
    member = sparse.csr_matrix(
        (np.ones(kept.sum()), (strata.stratum[kept], np.flatnonzero(kept))),
        shape=(n_strata, expression.shape[0]),
    )
    detected = np.asarray((member @ (expression != 0)).todense(), dtype=float)
    fraction = detected / np.maximum(sizes[:, -1:], 1)
    smaller = np.minimum(compared, sizes[:, -1:])
    return np.asarray(smaller.T @ fraction >= FEWEST_EXPECTED)


def gated_tests(
    expression: sparse.csr_matrix | Expression, strata: Strata
) -> tuple[np.ndarray, np.ndarray]:
    """Test the testable genes of each perturbation, and correct over them.

    Returns
    -------
    pvalue, fdr : ndarray
        Perturbations x genes; rates by Benjamini-Hochberg over the tested genes of a perturbation,
        NaN for a gene that is not tested.
    """
    parts = []
    for part in matrices(expression):
        pvalue = stratified_rank_sum(part, strata, skewed=True)
        pvalue[~testable_genes(part, strata)] = np.nan
        parts.append(pvalue)
    pvalue = np.concatenate(parts, axis=1)
    return pvalue, discovery_rates(pvalue)


def gated_tests_against_rest(
    expression: sparse.csr_matrix, strata: Strata
) -> tuple[np.ndarray, np.ndarray]:
    """Test each group against all other cells of the same strata, as :func:`gated_tests` does.

    Cells of no group are among the others. All groups are compared within the same cells, so that
    one ranking serves all.

    Parameters
    ----------
    expression
        Cells x genes, non-negative.
    strata
        Groups and strata of the cells, none of which is a control cell.

    Returns
    -------
    pvalue, fdr : ndarray
        Groups x genes.
    """
    own = strata.sizes[:, :-1]
    total = np.bincount(strata.stratum, minlength=len(own))
    rest = total[:, None] - own
    compared = np.where(rest >= max(strata.min_controls, 1), own, 0)
    columns = sparse.csc_matrix(expression)
    moments_under_null = _van_elteren_against_rest(
        columns.indptr, columns.indices, columns.data, strata.stratum, strata.group, total, compared
    )
    n_all = np.broadcast_to(total[:, None], compared.shape)
    pvalue = _pvalues(*moments_under_null, compared, n_all, skewed=True)
    detected = sparse.csr_matrix(expression != 0, dtype=float)
    bucket = np.where(strata.group == LEFT_OUT, strata.n_groups, strata.group) + strata.stratum * (
        strata.n_groups + 1
    )
    shape = len(total) * (strata.n_groups + 1), len(bucket)
    member = sparse.csr_matrix((np.ones(len(bucket)), (bucket, np.arange(len(bucket)))), shape)
    expected = np.zeros(pvalue.shape)
    for stratum, smaller in enumerate(np.minimum(compared, rest)):
        first = stratum * (strata.n_groups + 1)
        number = (member[first : first + strata.n_groups + 1] @ detected).toarray()
        of_rest = number.sum(axis=0) - number[:-1]
        expected += smaller[:, None] * (of_rest / np.maximum(rest[stratum], 1)[:, None])
    pvalue[expected < FEWEST_EXPECTED] = np.nan
    return pvalue, discovery_rates(pvalue)


@numba.njit(cache=True)
def _van_elteren_against_rest(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    cell_stratum: np.ndarray,
    cell_group: np.ndarray,
    total: np.ndarray,
    compared: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute :func:`_van_elteren` of groups against all other cells, `total` in a stratum."""
    n_genes = len(indptr) - 1
    n_strata, n_groups = compared.shape
    statistic = np.zeros((n_groups, n_genes))
    variance = np.zeros((n_groups, n_genes))
    third_moment = np.zeros((n_groups, n_genes))
    ranks, positive = np.zeros(n_groups), np.zeros(n_groups, dtype=np.int64)
    for gene in range(n_genes):
        cells = indices[indptr[gene] : indptr[gene + 1]]
        expressed = data[indptr[gene] : indptr[gene + 1]]
        for stratum in range(n_strata):
            inside = np.flatnonzero((cell_stratum[cells] == stratum) & (expressed != 0))
            inside = inside[np.argsort(expressed[inside])]
            n_all = float(total[stratum])
            middle, zeros = (n_all + 1) / 2, n_all - len(inside)
            of_zero = (zeros + 1) / 2 - middle
            all_ties = zeros**3 - zeros
            moment = of_zero * all_ties
            ranks[:], positive[:] = 0, 0
            first = 0
            while first < len(inside):
                last = first + 1
                while last < len(inside) and expressed[inside[last]] == expressed[inside[first]]:
                    last += 1
                tied = float(last - first)
                rank = zeros + first + (tied + 1) / 2 - middle
                all_ties += tied**3 - tied
                moment += rank * (tied**3 - tied)
                for at in range(first, last):
                    group = cell_group[cells[inside[at]]]
                    if group >= 0:
                        ranks[group] += rank
                        positive[group] += 1
                first = last
            squares, cubes = (n_all**3 - n_all - all_ties) / 12, -moment / 4
            weight = 1 / (n_all + 1)
            for group in range(n_groups):
                n = float(compared[stratum, group])
                if n == 0:
                    continue
                m = n_all - n
                own = ranks[group] + (n - positive[group]) * of_zero
                statistic[group, gene] += weight * own
                variance[group, gene] += weight**2 * n * m / (n_all * (n_all - 1)) * squares
                if n_all > 2:
                    skew = n * m * (m - n) / (n_all * (n_all - 1) * (n_all - 2)) * cubes
                    third_moment[group, gene] += weight**3 * skew
    return statistic, variance, third_moment


def discovery_rates(pvalue: np.ndarray) -> np.ndarray:
    """Adjust the p-values of each row by Benjamini-Hochberg; NaN where a gene is not tested."""
    rates = np.full_like(pvalue, np.nan)
    for own, rate in zip(pvalue, rates, strict=True):
        tested = np.isfinite(own)
        if tested.any():
            rate[tested] = stats.false_discovery_control(own[tested])
    return rates
