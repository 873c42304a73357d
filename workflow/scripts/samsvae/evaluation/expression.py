"""Expression of cells on the log2(CP10k + 1) scale, by blocks of cells or of genes.

A screen is stored by cells. Means need one block of cells at a time; tests need all cells, but of
one gene at a time. :class:`Expression` arranges a screen for both in bounded memory.
"""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.screen.canonical import counts_in_blocks

CP10K = 1e4
LARGEST_BLOCK = 2**26  # elements, of cells x genes, zeros among them
LARGEST_PART = 2**25  # non-zero counts of some genes in memory at once


def cp10k(counts: sparse.csr_matrix, library_size: np.ndarray) -> sparse.csr_matrix:
    """Scale counts to 10,000 per cell, cells x genes; the positions of values are shared."""
    if not counts.has_sorted_indices:  # scipy sorts them in place, and would leave the values
        counts = counts.sorted_indices()
    per_cell = CP10K / np.asarray(library_size, dtype=np.float64)
    values = counts.data * np.repeat(per_cell, np.diff(counts.indptr))
    return sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)


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
    """Iterate over expression and labels of cells, block by block.

    Parameters
    ----------
    screen
        Canonical screen, whose counts may be in a file.
    cells
        Boolean, one per cell of the screen; None for all.
    scale
        :func:`log_cp10k` or :func:`cp10k`.

    Yields
    ------
    expression : csr_matrix
        Cells of a block x genes.
    labels : Series
        Perturbation of each of these cells.
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
    """Count the cells in which each gene is detected."""
    seen = np.zeros(screen.n_vars, dtype=int)
    for _, counts in counts_in_blocks(screen, cells, LARGEST_BLOCK):
        seen += np.asarray((counts > 0).sum(axis=0)).ravel()
    return seen


class Part(NamedTuple):
    """All cells of consecutive genes.

    Attributes
    ----------
    genes
        Positions of the genes in the screen.
    counts
        UMI counts, cells x these genes.
    log
        The same in log2(CP10k + 1).
    """

    genes: slice
    counts: sparse.csr_matrix
    log: sparse.csr_matrix


class Expression:
    """Expression of cells, read by consecutive genes.

    Up to :data:`LARGEST_PART` non-zero counts stay in memory, as a single part. More are sorted by
    gene in a temporary file, 4 bytes and those of a count each, which vanishes with the object.

    Own code, since AnnData reads a few genes of counts that are stored by cells only by reading all
    of them.

    Parameters
    ----------
    screen
        Canonical screen, whose counts may be in a file.
    cells
        Boolean, one per cell of the screen; None for all.
    """

    def __init__(self, screen: anndata.AnnData, cells: np.ndarray | None = None) -> None:
        self.screen, self.cells = screen, cells
        size = screen.obs["library_size"].to_numpy(dtype=np.float64)
        self.library_size = size if cells is None else size[cells]
        self.shape = len(self.library_size), screen.n_vars
        self._stored: _SortedByGene | None = None
        held: list[sparse.csr_matrix] = []
        number = 0
        for _, counts in counts_in_blocks(screen, cells, LARGEST_BLOCK):
            held.append(counts)
            number += counts.nnz
            if number > LARGEST_PART:
                self._stored = self._stored or _SortedByGene(screen.n_vars)
                for block in held:
                    self._stored.add(block)
                held.clear()
        if self._stored is not None:
            for block in held:
                self._stored.add(block)
            return
        empty = sparse.csr_matrix((0, screen.n_vars))
        everything = sparse.csr_matrix(sparse.vstack(held or [empty], format="csr"))
        self._whole = self._part(slice(0, screen.n_vars), everything)

    def _part(self, genes: slice, counts: sparse.csr_matrix) -> Part:
        return Part(genes, counts, log_cp10k(counts, self.library_size))

    def parts(self) -> Iterator[Part]:
        """Iterate over the genes in order, some at a time."""
        if self._stored is None:
            yield self._whole
            return
        for genes in self._stored.parts():
            yield self._part(genes, self._stored.read(genes))

    def by_cells(self) -> Iterator[sparse.csr_matrix]:
        """Iterate over the cells in order, log2(CP10k + 1), cells x all genes."""
        if self._stored is None:
            yield self._whole.log
            return
        for expression, _ in expression_in_blocks(self.screen, self.cells):
            yield expression


class _SortedByGene:
    """Counts in a temporary file, in blocks of cells, those of a block sorted by gene."""

    def __init__(self, n_genes: int) -> None:
        self.n_genes = n_genes
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the object)
        # of each block: cells; first bytes of indices and counts; first count of each gene
        self.blocks: list[tuple[int, int, int, np.ndarray]] = []
        self.dtype = np.dtype(np.float64)

    def add(self, counts: sparse.csr_matrix) -> None:
        """Append the next cells."""
        columns = sparse.csc_matrix(counts)
        self.dtype = columns.data.dtype
        at_indices = self.file.seek(0, os.SEEK_END)
        self.file.write(columns.indices.astype(np.int32, copy=False).tobytes())
        at_counts = self.file.tell()
        self.file.write(columns.data.tobytes())
        self.file.flush()
        self.blocks.append((counts.shape[0], at_indices, at_counts, columns.indptr.astype(int)))

    def parts(self) -> list[slice]:
        """Divide the genes so that few have about :data:`LARGEST_PART` counts together."""
        number = sum(np.diff(starts) for *_, starts in self.blocks)
        part = (np.cumsum(number) - number) // LARGEST_PART
        edges = [0, *(np.flatnonzero(np.diff(part)) + 1), self.n_genes]
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]

    def read(self, genes: slice) -> sparse.csr_matrix:
        """Read the counts of some genes, cells x genes."""
        blocks = []
        for n_cells, at_indices, at_counts, starts in self.blocks:
            own = starts[genes.start : genes.stop + 1]
            indices = self._values(np.dtype(np.int32), at_indices, own[0], own[-1])
            counts = self._values(self.dtype, at_counts, own[0], own[-1])
            shape = n_cells, len(own) - 1
            columns = sparse.csc_matrix((counts, indices, own - own[0]), shape=shape)
            blocks.append(columns.tocsr())
        return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))

    def _values(self, kind: np.dtype, at: int, first: int, last: int) -> np.ndarray:
        size = kind.itemsize
        read = os.pread(self.file.fileno(), int(last - first) * size, at + int(first) * size)
        return np.frombuffer(read, dtype=kind)


def matrices(expression: sparse.csr_matrix | Expression) -> Iterator[sparse.csr_matrix]:
    """Iterate over log2(CP10k + 1) of consecutive genes, cells x genes; a matrix is one part."""
    if isinstance(expression, Expression):
        for part in expression.parts():
            yield part.log
    else:
        yield expression
