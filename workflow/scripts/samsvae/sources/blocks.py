"""Blocks of count matrices: read planning, selection, transposition, prefetching."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from scipy import sparse

from samsvae.runtime.script import Progress

# indices of cells in the file, and their counts, cells x genes; genes and genes x cells while a
# CSC element is read
Block = tuple[np.ndarray, sparse.csr_matrix]
Item = TypeVar("Item")

# values, column indices and index pointers
Stored = tuple[np.ndarray, np.ndarray, np.ndarray]


def inverse_index(chosen: np.ndarray, n: int) -> np.ndarray:
    """Map each of n indices to its position among the selected ones, -1 if not selected."""
    position = np.full(n, -1, dtype=np.int32)
    position[chosen] = np.arange(len(chosen), dtype=np.int32)
    return position


def chosen_rows(stored: Stored, rows: np.ndarray) -> Stored:
    """Select rows."""
    values, indices, starts = stored
    sizes = starts[rows + 1] - starts[rows]
    edges = np.concatenate([[0], np.cumsum(sizes)])
    taken = np.arange(edges[-1]) + np.repeat(starts[rows] - edges[:-1], sizes)
    return values[taken], indices[taken], edges


def chosen_columns(stored: Stored, position: np.ndarray, n: int) -> sparse.csr_matrix:
    """Select columns, as a copy.

    Parameters
    ----------
    stored
        All columns of the rows.
    position
        Inverse index of the columns, see :func:`inverse_index`.
    n
        Number of selected columns.
    """
    values, indices, edges = stored
    columns = position[indices]
    kept = np.flatnonzero(columns >= 0)
    indptr = np.searchsorted(kept, edges)
    return sparse.csr_matrix((values[kept], columns[kept], indptr), shape=(len(edges) - 1, n))


def canonical(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Sort indices, sum duplicates and remove explicit zeros, in place."""
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def compressed(dense: np.ndarray) -> sparse.csr_matrix:
    """Convert a dense block to CSR, in half the time of scipy."""
    stored = dense != 0
    sizes = np.count_nonzero(stored, axis=1)
    flat = np.flatnonzero(stored)
    starts = np.arange(len(dense)) * dense.shape[1]
    indices = (flat - np.repeat(starts, sizes)).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    return sparse.csr_matrix((dense.ravel()[flat], indices, indptr), shape=dense.shape)


SKIPPED_BYTES = 2**18  # shorter gaps are read, since a separate read takes longer
SCATTERED = 0.25  # fraction of selected cells below which rows are read one by one

# a slice of indices, or scattered indices
Rows = slice | np.ndarray


def dense_reads(
    chosen: np.ndarray, n_rows: int, row_bytes: int, chunk: int | None, block_bytes: int
) -> list[Rows]:
    """Plan the reads of a dense matrix.

    Parameters
    ----------
    chosen
        Indices of rows, ascending.
    n_rows
        Number of rows of the matrix.
    row_bytes
        Number of bytes of a row.
    chunk
        Number of rows of a chunk; None for contiguous storage.
    block_bytes
        Approximate number of bytes of a block.
    """
    block_rows = max(block_bytes // max(row_bytes, 1), 1)
    if chunk is None and len(chosen) < SCATTERED * n_rows:
        return [chosen[first : first + block_rows] for first in range(0, len(chosen), block_rows)]
    apart = np.diff(chosen) > max(chunk or 1, SKIPPED_BYTES // max(row_bytes, 1))
    return list(_slices(chosen, chosen // _grid(block_rows, chunk or 1), apart))


def sparse_reads(
    chosen: np.ndarray, starts: np.ndarray, entry_bytes: int, chunk: int | None, block_bytes: int
) -> list[slice]:
    """Plan the reads of a sparse matrix that is stored row by row.

    Parameters
    ----------
    chosen
        Indices of rows, ascending.
    starts
        Index pointers.
    entry_bytes
        Number of bytes of an entry.
    chunk
        Number of entries of a chunk; None for contiguous storage.
    block_bytes
        Approximate number of bytes of a block.
    """
    gap = starts[chosen[1:]] - starts[chosen[:-1] + 1]
    apart = gap > max(chunk or 1, SKIPPED_BYTES // entry_bytes)
    return _slices(chosen, starts[chosen] // _grid(block_bytes // entry_bytes, chunk or 1), apart)


def length(rows: Rows) -> int:
    """Count the rows of a read."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def within(chosen: np.ndarray, rows: Rows) -> np.ndarray:
    """Select the indices that a read contains."""
    if not isinstance(rows, slice):
        return rows
    first, last = np.searchsorted(chosen, [rows.start, rows.stop])
    return chosen[first:last]


def _grid(size: int, chunk: int) -> int:
    """Round a size down to a multiple of chunks, so that few are read twice."""
    return size // chunk * chunk or max(size, 1)


def _slices(chosen: np.ndarray, cell_of_grid: np.ndarray, apart: np.ndarray) -> list[slice]:
    """Cut indices into slices at the lines of a grid and at large gaps."""
    if not len(chosen):
        return []
    cuts = np.flatnonzero((np.diff(cell_of_grid) != 0) | apart) + 1
    firsts = chosen[np.concatenate([[0], cuts])]
    lasts = chosen[np.concatenate([cuts - 1, [len(chosen) - 1]])]
    return [slice(int(a), int(b) + 1) for a, b in zip(firsts, lasts, strict=True)]


def transposed(
    by_gene: Callable[[], Iterator[Block]],
    shape: tuple[int, int],
    block_bytes: int,
) -> Iterator[Block]:
    """Transpose blocks of genes to blocks of cells.

    The first pass counts the entries of each cell to divide cells into blocks. The second sorts
    the entries by block into a temporary file, from which the blocks are read.

    Parameters
    ----------
    by_gene
        Called for each pass; yields indices of genes, and their values, genes x all cells.
    shape
        Numbers of cells and genes of the result.
    block_bytes
        Approximate number of bytes of a block.

    Yields
    ------
    cells : ndarray
        Indices of the block's cells.
    values : scipy.sparse.csr_matrix
        Block x genes.
    """
    sizes = np.zeros(shape[0], dtype=np.int64)
    record = _record(np.dtype(np.float32))
    for _, values in by_gene():
        sizes += np.bincount(values.indices, minlength=shape[0])
        record = _record(values.dtype)
    ends = np.cumsum(sizes)
    block_of = (ends - sizes) // max(block_bytes // record.itemsize, 1)
    # number the blocks in which a cell starts
    block_of = np.unique(block_of, return_inverse=True)[1]
    n_blocks = int(block_of.max(initial=-1)) + 1
    firsts = np.searchsorted(block_of, np.arange(n_blocks + 1))
    with tempfile.TemporaryFile() as file:
        pieces = _sort_by_block(by_gene(), block_of, record, file)
        for block in range(n_blocks):
            entries = _read_pieces(file, pieces, block, record)
            first, last = firsts[block], firsts[block + 1]
            yield (
                np.arange(first, last),
                sparse.csr_matrix(
                    (entries["value"], (entries["cell"] - first, entries["gene"])),
                    shape=(last - first, shape[1]),
                ),
            )


def _record(value: np.dtype) -> np.dtype:
    return np.dtype([("cell", "i4"), ("gene", "i4"), ("value", value)])


def _sort_by_block(
    genes: Iterator[Block],
    block_of: np.ndarray,
    record: np.dtype,
    file: Any,
) -> list[np.ndarray]:
    """Write entries to the file by block; return the offsets of blocks in each piece."""
    pieces, written = [], 0
    n_blocks = int(block_of.max(initial=-1)) + 1
    for positions, values in genes:
        entries = np.empty(values.nnz, dtype=record)
        block = block_of[values.indices]
        order = np.argsort(block, kind="stable")
        entries["cell"] = values.indices[order]
        entries["gene"] = np.repeat(positions, np.diff(values.indptr))[order]
        entries["value"] = values.data[order]
        file.write(entries.tobytes())
        sizes = np.bincount(block, minlength=n_blocks)
        pieces.append(written + np.concatenate([[0], np.cumsum(sizes)]))
        written += values.nnz
    return pieces


def _read_pieces(file: Any, pieces: list[np.ndarray], block: int, record: np.dtype) -> np.ndarray:
    found = [np.empty(0, dtype=record)]
    for starts in pieces:
        file.seek(int(starts[block]) * record.itemsize)
        wanted = int(starts[block + 1] - starts[block]) * record.itemsize
        found.append(np.frombuffer(file.read(wanted), dtype=record))
    return np.concatenate(found)


def read_ahead(blocks: Iterable[Item]) -> Iterator[Item]:
    """Prefetch one block in a separate thread.

    h5py releases the interpreter's lock while it reads and decompresses.

    Parameters
    ----------
    blocks
        Blocks of cells, read lazily.

    Yields
    ------
    Item
        The blocks, in order. Errors of their reading are raised here.
    """
    source = iter(blocks)
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = reader.submit(next, source, None)
        while (block := waiting.result()) is not None:
            waiting = reader.submit(next, source, None)
            yield block


logger = logging.getLogger(__name__)


def with_progress(blocks: Iterable[Block], n_cells: int) -> Iterator[Block]:
    """Pass blocks on, and log their progress.

    Parameters
    ----------
    blocks
        Indices and counts of cells.
    n_cells
        Total number of cells.

    Yields
    ------
    tuple
        The blocks.
    """
    progress = Progress("cell", n_cells, " cells")
    for positions, counts in blocks:
        yield positions, counts
        progress.update(len(positions))
    logger.info("%d cells in %s", progress.n, progress.elapsed)
