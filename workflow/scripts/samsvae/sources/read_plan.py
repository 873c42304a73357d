"""What of a matrix in a file is read at once: few calls, little in vain, and bounded memory."""

import numpy as np

SKIPPED_BYTES = 2**18  # a shorter gap costs less to read than to skip
SCATTERED = 0.25  # where fewer of the cells are wanted, rows are best read one by one

# a slice of positions, or scattered positions
Rows = slice | np.ndarray


def dense_reads(
    chosen: np.ndarray, n_rows: int, row_bytes: int, chunk: int | None, block_bytes: int
) -> list[Rows]:
    """Plan the reads of a dense matrix.

    Parameters
    ----------
    chosen
        Positions of rows, ascending.
    n_rows
        Rows of the matrix.
    row_bytes
        Bytes of each.
    chunk
        Rows that the file keeps together; None where rows follow one another freely.
    block_bytes
        About how much is read at once.
    """
    at_once = max(block_bytes // max(row_bytes, 1), 1)
    if chunk is None and len(chosen) < SCATTERED * n_rows:
        return [chosen[first : first + at_once] for first in range(0, len(chosen), at_once)]
    apart = np.diff(chosen) > max(chunk or 1, SKIPPED_BYTES // max(row_bytes, 1))
    return list(_slices(chosen, chosen // _grid(at_once, chunk or 1), apart))


def sparse_reads(
    chosen: np.ndarray, starts: np.ndarray, entry_bytes: int, chunk: int | None, block_bytes: int
) -> list[slice]:
    """Plan the reads of a matrix of which the entries are stored row by row.

    Parameters
    ----------
    chosen
        Positions of rows, ascending.
    starts
        Where the entries of each row begin, and where the last ends.
    entry_bytes
        Bytes of an entry.
    chunk
        Entries that the file keeps together; None where they follow one another freely.
    block_bytes
        About how much is read at once.
    """
    gap = starts[chosen[1:]] - starts[chosen[:-1] + 1]
    apart = gap > max(chunk or 1, SKIPPED_BYTES // entry_bytes)
    return _slices(chosen, starts[chosen] // _grid(block_bytes // entry_bytes, chunk or 1), apart)


def length(rows: Rows) -> int:
    """Count the rows of a read."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def within(chosen: np.ndarray, rows: Rows) -> np.ndarray:
    """Keep the chosen positions that a read contains."""
    if not isinstance(rows, slice):
        return rows
    first, last = np.searchsorted(chosen, [rows.start, rows.stop])
    return chosen[first:last]


def _grid(size: int, chunk: int) -> int:
    """Fill a size with whole chunks, so that few are read twice."""
    return size // chunk * chunk or max(size, 1)


def _slices(chosen: np.ndarray, cell_of_grid: np.ndarray, apart: np.ndarray) -> list[slice]:
    """Cut positions where the grid says so, and where neighbours lie far apart."""
    if not len(chosen):
        return []
    cuts = np.flatnonzero((np.diff(cell_of_grid) != 0) | apart) + 1
    firsts = chosen[np.concatenate([[0], cuts])]
    lasts = chosen[np.concatenate([cuts - 1, [len(chosen) - 1]])]
    return [slice(int(a), int(b) + 1) for a, b in zip(firsts, lasts, strict=True)]
