"""The most variable genes of a file of counts, by the method of Seurat v3, in bounded memory."""

from dataclasses import dataclass

import numpy as np

from samsvae.errors import InputError
from samsvae.sources.counts import CountMatrix

LOESS_SPAN = 0.3
LOESS_DEGREE = 2
FEWEST_POINTS = 20  # of the regression, which breaks down when given a handful


def highly_variable_genes(counts: CountMatrix, n_genes: int) -> np.ndarray:
    """Choose the genes whose counts vary most for their mean, over all cells; reads them twice.

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
    n_cells, n_all = counts.shape
    if n_genes > n_all:
        raise InputError(f"{counts.where}: {n_genes} genes are wanted, but it has {n_all}.")
    cells, genes = np.arange(n_cells), np.arange(n_all)
    moments = gene_moments(counts, cells, genes)
    if not np.isfinite(moments.mean).all() or (moments.mean < 0).any():
        raise InputError(f"{counts.where}: there are negative or infinite values, so no counts.")
    varying = int((moments.variance > 0).sum())
    if varying < FEWEST_POINTS:
        raise InputError(
            f"{counts.where}: {varying} genes vary, too few to regress their variance on "
            f"their mean ({FEWEST_POINTS} at least). Name the genes to keep."
        )
    variable = standardised_variance(counts, cells, genes, moments)
    return np.sort(np.argsort(-variable, kind="stable")[:n_genes])


@dataclass(frozen=True)
class Moments:
    """Mean and variance (by n - 1) of each gene's counts over so many cells."""

    mean: np.ndarray
    variance: np.ndarray
    n_cells: int

    def of(self, genes: np.ndarray) -> "Moments":
        """Keep some of the genes."""
        return Moments(self.mean[genes], self.variance[genes], self.n_cells)


def gene_moments(counts: CountMatrix, cells: np.ndarray, genes: np.ndarray) -> Moments:
    """Take the moments of genes in one pass.

    Parameters
    ----------
    counts
        UMI counts, cells x genes.
    cells, genes
        Positions of those that count.
    """
    total, square = _sums(counts, cells, genes, np.full(len(genes), np.inf))
    n = len(cells)
    mean = total / n
    return Moments(mean, np.maximum(square - n * mean**2, 0) / max(n - 1, 1), n)


def standardised_variance(
    counts: CountMatrix, cells: np.ndarray, genes: np.ndarray, moments: Moments
) -> np.ndarray:
    """Take the variance of genes relative to that expected of their mean, in one pass.

    The method of Seurat v3 (Stuart et al. 2019, scanpy's ``seurat_v3``): the expected standard
    deviation comes from a local regression of log10 variance on log10 mean over the genes, and a
    count is clipped at sqrt(n) of them above the mean.

    Parameters
    ----------
    counts
        UMI counts, cells x genes.
    cells, genes
        Positions of those that count.
    moments
        Of these genes.

    Returns
    -------
    ndarray
        Variance of the clipped and standardised counts of each gene.

    Raises
    ------
    InputError
        If the regression fails.
    """
    deviation = np.sqrt(10 ** _expected_log_variance(moments, counts.where))
    n, mean = moments.n_cells, moments.mean
    total, square = _sums(counts, cells, genes, deviation * np.sqrt(n) + mean)
    return (n * mean**2 + square - 2 * total * mean) / ((n - 1) * deviation**2)


def _expected_log_variance(moments: Moments, where: str) -> np.ndarray:
    from skmisc.loess import loess

    expected = np.zeros(len(moments.mean))
    varies = moments.variance > 0
    fit = loess(
        np.log10(moments.mean[varies]),
        np.log10(moments.variance[varies]),
        span=LOESS_SPAN,
        degree=LOESS_DEGREE,
    )
    try:
        fit.fit()
    except ValueError as error:
        raise InputError(
            f"{where}: the variance of genes cannot be regressed on their mean ({error}). Name the "
            "genes to keep."
        ) from error
    expected[varies] = fit.outputs.fitted_values
    return expected


def _sums(
    counts: CountMatrix, cells: np.ndarray, genes: np.ndarray, most: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the counts of genes and their squares, each count clipped to its gene's most."""
    total, square = np.zeros(len(genes)), np.zeros(len(genes))
    for _, block in counts.blocks(cells, genes):
        clipped = np.minimum(block.data.astype(np.float64), most[block.indices])
        total += np.bincount(block.indices, clipped, len(genes))
        square += np.bincount(block.indices, clipped**2, len(genes))
    return total, square
