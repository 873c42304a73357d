"""Blocks of cells that are read from a file: which cells they are, and their counts as CSR."""

import numpy as np
from scipy import sparse

# positions of cells in the file, and their counts, cells x genes; of genes and genes x cells on the
# way from a file that is stored gene by gene
Block = tuple[np.ndarray, sparse.csr_matrix]

# values, indices, and where each row begins among these
Stored = tuple[np.ndarray, np.ndarray, np.ndarray]


def places(chosen: np.ndarray, n: int) -> np.ndarray:
    """Tell for each of n positions its place among those chosen, -1 if it is not."""
    place = np.full(n, -1, dtype=np.int32)
    place[chosen] = np.arange(len(chosen), dtype=np.int32)
    return place


def chosen_rows(stored: Stored, rows: np.ndarray) -> Stored:
    """Keep some of the rows."""
    values, indices, starts = stored
    sizes = starts[rows + 1] - starts[rows]
    edges = np.concatenate([[0], np.cumsum(sizes)])
    taken = np.arange(edges[-1]) + np.repeat(starts[rows] - edges[:-1], sizes)
    return values[taken], indices[taken], edges


def chosen_columns(stored: Stored, place: np.ndarray, n: int) -> sparse.csr_matrix:
    """Make a matrix of the chosen columns; it shares no memory with what it is made of.

    Parameters
    ----------
    stored
        All columns of the rows.
    place
        What :func:`places` gave for the columns.
    n
        How many are chosen.
    """
    values, indices, edges = stored
    moved = place[indices]
    kept = np.flatnonzero(moved >= 0)
    indptr = np.searchsorted(kept, edges)
    return sparse.csr_matrix((values[kept], moved[kept], indptr), shape=(len(edges) - 1, n))


def canonical(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Let indices ascend, sum duplicates and leave out zeros, in place."""
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def compressed(dense: np.ndarray) -> sparse.csr_matrix:
    """Make CSR of a dense block, in half the time that scipy takes."""
    stored = dense != 0
    sizes = np.count_nonzero(stored, axis=1)
    flat = np.flatnonzero(stored)
    starts = np.arange(len(dense)) * dense.shape[1]
    indices = (flat - np.repeat(starts, sizes)).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    return sparse.csr_matrix((dense.ravel()[flat], indices, indptr), shape=dense.shape)
