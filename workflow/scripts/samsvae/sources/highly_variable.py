"""The most variable genes of a file of counts, by the method of Seurat v3, in bounded memory."""

from functools import partial

import numpy as np

from samsvae.contract import check_counts
from samsvae.errors import InputError
from samsvae.sources.counts import CountMatrix

LOESS_SPAN = 0.3
FEWEST_POINTS = 20  # with a handful of points the regression breaks down


def highly_variable_genes(counts: CountMatrix, n_genes: int) -> np.ndarray:
    """Choose the genes whose counts vary most for their mean.

    The genes of scanpy's ``highly_variable_genes(flavor="seurat_v3")`` (Stuart et al. 2019): a
    local regression of log10 variance on log10 mean gives each gene's expected standard deviation;
    counts are clipped at sqrt(n) of these above the mean, and genes ranked by the variance of the
    clipped counts relative to the expected one. The file is read twice.

    Parameters
    ----------
    counts
        UMI counts.
    n_genes
        How many to choose.

    Returns
    -------
    ndarray
        Their positions, ascending.

    Raises
    ------
    InputError
        If there are not so many genes, the values are no counts, or the regression fails.
    """
    from skmisc.loess import loess

    n, n_all = counts.shape
    if n_genes > n_all:
        raise InputError(f"{counts.where}: {n_genes} genes are wanted, but it has {n_all}.")
    total, squares = _sums(counts, np.full(n_all, np.inf))
    mean = total / n
    variance = (squares - n * mean**2) / (n - 1)
    varies = variance > 0
    if varies.sum() < FEWEST_POINTS:
        raise InputError(
            f"{counts.where}: {varies.sum()} genes vary, too few to regress their variance on "
            f"their mean ({FEWEST_POINTS} at least). Name the genes to keep."
        )
    fit = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=LOESS_SPAN, degree=2)
    try:
        fit.fit()
    except ValueError as error:
        raise InputError(
            f"{counts.where}: the variance of genes cannot be regressed on their mean ({error}). "
            "Name the genes to keep."
        ) from error
    expected = np.ones(n_all)
    expected[varies] = 10**fit.outputs.fitted_values
    total, squares = _sums(counts, mean + np.sqrt(n * expected))
    relative = (squares - 2 * mean * total + n * mean**2) / ((n - 1) * expected)
    return np.sort(np.argsort(-relative, kind="stable")[:n_genes])


def _sums(counts: CountMatrix, ceiling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum each gene's counts, clipped, and their squares."""
    total, squares = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for cells, values in counts.blocks():
        block = check_counts(values, counts.where, cells)
        clipped = np.minimum(block.data, ceiling[block.indices])
        add = partial(np.bincount, block.indices, minlength=counts.shape[1])
        total += add(weights=clipped)
        squares += add(weights=clipped**2)
    return total, squares
