"""Expression of cells on the log2(CP10k + 1) scale, and its means by perturbation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.labels import CONTROL
from samsvae.screen import counts_in_blocks

CP10K = 1e4
LARGEST_BLOCK = 2**26  # elements, of cells x genes, zeros among them


def cp10k(counts: sparse.csr_matrix, library_size: np.ndarray) -> sparse.csr_matrix:
    """Scale counts to 10,000 per cell, cells x genes."""
    per_cell = CP10K / np.asarray(library_size, dtype=np.float64)
    return sparse.csr_matrix(sparse.diags_array(per_cell) @ counts)


def log_cp10k(counts: sparse.csr_matrix, library_size: np.ndarray) -> sparse.csr_matrix:
    """Transform counts to log2(1 + 1e4 x / l), cells x genes; zeros stay zeros."""
    expression = cp10k(counts, library_size)
    expression.data = np.log2(1 + expression.data)
    return expression


def expression_in_blocks(
    screen: anndata.AnnData,
    cells: np.ndarray | None = None,
    scale: Callable[[sparse.csr_matrix, np.ndarray], sparse.csr_matrix] = log_cp10k,
) -> Iterator[tuple[sparse.csr_matrix, pd.Series]]:
    """Go through cells in order.

    Parameters
    ----------
    screen
        Canonical screen, whose counts may be in a file.
    cells
        Boolean, one per cell of the screen, those to go through; None for all.
    scale
        :func:`log_cp10k` or :func:`cp10k`.

    Yields
    ------
    expression : csr_matrix
        Some cells x genes.
    labels : Series
        Perturbation of each of them.
    """
    library_size = screen.obs["library_size"].to_numpy()
    labels = screen.obs["perturbation"]
    for rows, counts in counts_in_blocks(screen, cells, LARGEST_BLOCK):
        yield scale(counts, library_size[rows]), labels.iloc[rows]


def log_expression(screen: anndata.AnnData, cells: np.ndarray | None = None) -> sparse.csr_matrix:
    """Transform the counts of cells, all by default, to log2(CP10k + 1), cells x genes."""
    empty = sparse.csr_matrix((0, screen.n_vars))
    blocks = [expression for expression, _ in expression_in_blocks(screen, cells)]
    return sparse.csr_matrix(sparse.vstack(blocks or [empty], format="csr"))


def n_cells_with_gene(screen: anndata.AnnData, cells: np.ndarray) -> np.ndarray:
    """Count the cells in which each gene was seen."""
    seen = np.zeros(screen.n_vars, dtype=int)
    for _, counts in counts_in_blocks(screen, cells, LARGEST_BLOCK):
        seen += np.asarray((counts > 0).sum(axis=0)).ravel()
    return seen


@dataclass(frozen=True)
class GroupMeans:
    """Mean expression of each perturbation's cells.

    Attributes
    ----------
    mean
        Perturbations (control last) x genes.
    standard_error
        Of the mean, same shape; NaN for fewer than two cells.
    n_cells
        Cells in each group.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    n_cells: np.ndarray

    def effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Difference from control and its standard error, perturbations x genes."""
        difference = self.mean[:-1] - self.mean[-1]
        return difference, np.sqrt(self.standard_error[:-1] ** 2 + self.standard_error[-1] ** 2)


def group_means(
    blocks: Iterable[tuple[sparse.csr_matrix, pd.Series]], names: Sequence[str], n_genes: int
) -> GroupMeans:
    """Average expression by perturbation, control last.

    Parameters
    ----------
    blocks
        Expression, cells x genes, and the canonical label of each cell.
    names
        Perturbations; a group without cells gets NaN.
    n_genes
        G.
    """
    groups = [*names, CONTROL]
    total, squares = (np.zeros((len(groups), n_genes)) for _ in range(2))
    n_cells = np.zeros(len(groups))
    for expression, labels in blocks:
        codes = pd.Categorical(labels, categories=groups).codes
        known = codes >= 0
        member = sparse.csr_matrix(
            (np.ones(known.sum()), (codes[known], np.flatnonzero(known))),
            shape=(len(groups), len(labels)),
        )
        n_cells += np.asarray(member.sum(axis=1)).ravel()
        total += (member @ expression).toarray()
        squares += (member @ expression.multiply(expression)).toarray()
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n_cells[:, None]
        variance = np.clip(squares / n_cells[:, None] - mean**2, 0, None) / (n_cells - 1)[:, None]
        variance[n_cells < 2] = np.nan
    return GroupMeans(mean, np.sqrt(variance), n_cells.astype(int))
