"""From a matrix that is stored gene by gene to blocks of cells, in bounded memory."""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from samsvae.sources.blocks import Block


def transposed(
    by_gene: Callable[[], Iterator[Block]],
    shape: tuple[int, int],
    block_bytes: int,
) -> Iterator[Block]:
    """Turn blocks of genes into blocks of cells.

    The first pass counts the entries of each cell, and so finds cells that together fill a block.
    The second sorts the entries by block into a temporary file, from which the blocks are read.

    Parameters
    ----------
    by_gene
        Called for each pass; gives positions of genes, and their values, genes x all cells.
    shape
        Numbers of cells and genes of the result.
    block_bytes
        About the size of a block.

    Yields
    ------
    cells : ndarray
        Positions of the block's cells.
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
    # blocks that no cell begins in are left out of the numbering
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
    """Write entries to the file; tell for each piece where each block's entries begin in it."""
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
