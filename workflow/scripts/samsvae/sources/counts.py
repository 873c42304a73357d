"""Counts of an open file in blocks of cells, and the canonical screen of those that are kept.

The element is a dense data set, or a group of AnnData's sparse format: CSR (cell by cell) or CSC
(gene by gene). A block has the selected cells and genes alone. Besides a block, memory holds 8
bytes for each cell of a CSR element (its index pointer) and about 32 for each cell of a CSC
element.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design, Guides
from samsvae.screen.writing import write_screen_in_blocks
from samsvae.sources.blocks import (
    Block,
    Rows,
    Stored,
    canonical,
    chosen_columns,
    chosen_rows,
    compressed,
    dense_reads,
    inverse_index,
    length,
    read_ahead,
    sparse_reads,
    transposed,
    with_progress,
    within,
)
from samsvae.sources.storage import Array, Group, first_chunk, is_array, read_into

BLOCK_BYTES = 2**23

SPARSE_FORMATS = {"csr_matrix": "csr", "csr": "csr", "csc_matrix": "csc", "csc": "csc"}


class CountMatrix:
    """Count matrix in an open file, cells x genes.

    Parameters
    ----------
    element
        Data set or group, as written by current or former versions of AnnData.
    where
        File and layer, for messages.
    block_bytes
        Approximate number of bytes of a block. A larger cell is read completely.

    Attributes
    ----------
    layout
        ``dense``, ``csr`` or ``csc``.
    shape
        Numbers of cells and genes.

    Raises
    ------
    InputError
        If the element is no matrix.
    """

    def __init__(self, element: Array | Group, where: str, block_bytes: int = BLOCK_BYTES) -> None:
        self.element = element
        self.where = where
        self.block_bytes = block_bytes
        if is_array(element):
            self.layout, shape = "dense", element.shape
        else:
            name = element.attrs.get("encoding-type", element.attrs.get("h5sparse_format"))
            self.layout = SPARSE_FORMATS.get(str(name), "")
            shape = element.attrs.get("shape", element.attrs.get("h5sparse_shape", ()))
            whole = {"data", "indices", "indptr"} <= set(element)
            self.layout = self.layout if whole else ""
        if not self.layout or len(np.ravel(shape)) != 2 or not self._holds_numbers():
            raise InputError(
                f"{where}: not a matrix (dense, CSR or CSC) as AnnData writes it. Write the file "
                "anew with anndata."
            )
        self.shape = (int(shape[0]), int(shape[1]))

    def _holds_numbers(self) -> bool:
        if self.layout == "dense":
            return self.element.dtype.kind in "iufb"
        parts = [self.element[name] for name in ("data", "indices", "indptr")]
        return all(
            is_array(part) and part.ndim == 1 and part.dtype.kind in kinds
            for part, kinds in zip(parts, ("iufb", "iu", "iu"), strict=True)
        )

    def blocks(
        self, cells: np.ndarray | None = None, genes: np.ndarray | None = None
    ) -> Iterator[Block]:
        """Read cells in the order of the file, block by block.

        Parts of the file without selected cells are not read. A CSC element is read twice, and its
        selected entries pass through a temporary file, 12 or 16 bytes each.

        Parameters
        ----------
        cells
            Indices of the cells, ascending; None for all.
        genes
            Indices of the genes, in the desired order; None for all.

        Yields
        ------
        positions : ndarray
            Indices of the block's cells in the file.
        values : scipy.sparse.csr_matrix
            Block x genes, with the file's values in canonical form: ascending indices, no
            duplicates, no explicit zeros.

        Raises
        ------
        InputError
            If the file is damaged.
        """
        chosen = np.arange(self.shape[0]) if cells is None else np.asarray(cells, dtype=np.int64)
        if (np.diff(chosen) <= 0).any():
            raise ValueError("positions of cells must ascend")
        if self.layout == "dense":
            return self._dense_blocks(chosen, genes)
        if self.layout == "csr":
            return self._csr_blocks(chosen, genes)
        return self._csc_blocks(chosen, genes)

    def reads(self, chosen: np.ndarray) -> list[Rows]:
        """Plan the reads of the file.

        Parameters
        ----------
        chosen
            Indices of cells, or for CSC of genes, ascending.

        Returns
        -------
        list
            Each a slice of indices, or scattered indices.
        """
        if self.layout != "dense":
            return list(self._sparse_reads(chosen))
        row_bytes = self.shape[1] * self.element.dtype.itemsize
        chunk = first_chunk(self.element)
        return dense_reads(chosen, self.shape[0], row_bytes, chunk, self.block_bytes)

    @property
    def n_bytes(self) -> int:
        """Number of uncompressed bytes of the stored values and indices."""
        if self.layout == "dense":
            return int(np.prod(self.shape)) * int(self.element.dtype.itemsize)
        parts = [self.element[name] for name in ("data", "indices")]
        return sum(int(part.shape[0]) * int(part.dtype.itemsize) for part in parts)

    def _sparse_reads(self, chosen: np.ndarray) -> list[slice]:
        values, indices = self.element["data"], self.element["indices"]
        entry_bytes = values.dtype.itemsize + indices.dtype.itemsize
        return sparse_reads(
            chosen, self._starts, entry_bytes, first_chunk(values), self.block_bytes
        )

    def _dense_blocks(self, cells: np.ndarray, genes: np.ndarray | None) -> Iterator[Block]:
        reads = self.reads(cells)
        most = max(map(length, reads), default=0)
        buffer = np.empty((most, self.shape[1]), self.element.dtype)
        for rows in reads:
            block = buffer[: length(rows)]
            self._read(self.element, (rows, slice(None)), block)
            positions = within(cells, rows)
            local = positions - rows.start if isinstance(rows, slice) else np.arange(len(rows))
            kept = block[local] if genes is None else block[local[:, None], genes]
            yield positions, compressed(kept)

    def _csr_blocks(self, cells: np.ndarray, genes: np.ndarray | None) -> Iterator[Block]:
        if genes is None:
            genes = np.arange(self.shape[1])
        column = inverse_index(genes, self.shape[1])
        for positions, stored in self._stored_rows(cells):
            yield positions, canonical(chosen_columns(stored, column, len(genes)))

    def _csc_blocks(self, cells: np.ndarray, genes: np.ndarray | None) -> Iterator[Block]:
        wanted = np.arange(self.shape[1]) if genes is None else np.asarray(genes, dtype=np.int64)
        row = inverse_index(cells, self.shape[0])
        column = inverse_index(wanted, self.shape[1])

        def by_gene() -> Iterator[Block]:
            for positions, stored in self._stored_rows(np.sort(wanted)):
                yield column[positions], chosen_columns(stored, row, len(cells))

        shape = (len(cells), len(wanted))
        for local, values in transposed(by_gene, shape, self.block_bytes):
            yield cells[local], canonical(values)

    def _stored_rows(self, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, Stored]]:
        """Read selected cells of a CSR element, or selected genes of a CSC one.

        Yields indices of rows, and their values, column indices and index pointers; the next block
        overwrites them.
        """
        starts = self._starts
        n_columns = self.shape[0] if self.layout == "csc" else self.shape[1]
        reads = self._sparse_reads(chosen)
        most = max((starts[rows.stop] - starts[rows.start] for rows in reads), default=0)
        parts = [self.element[name] for name in ("data", "indices")]
        buffers = [np.empty(most, part.dtype) for part in parts]
        for rows in reads:
            first, last = starts[rows.start], starts[rows.stop]
            values, indices = (buffer[: last - first] for buffer in buffers)
            for part, buffer in zip(parts, (values, indices), strict=True):
                self._read(part, slice(first, last), buffer)
            positions = within(chosen, rows)
            edges = starts[rows.start : rows.stop + 1] - first
            stored = values, indices, edges
            if len(positions) < len(edges) - 1:
                stored = chosen_rows(stored, positions - rows.start)
            # as unsigned integers, negative indices are large
            if stored[1].size and stored[1].view(f"u{indices.itemsize}").max() >= n_columns:
                raise self._damage("an index is out of bounds")
            yield positions, stored

    @cached_property
    def _starts(self) -> np.ndarray:
        n_rows = self.shape[1] if self.layout == "csc" else self.shape[0]
        if self.element["indptr"].shape != (n_rows + 1,):
            raise self._damage("'indptr' does not fit the matrix")
        starts = np.asarray(self.element["indptr"][:], dtype=np.int64)
        n_entries = min(self.element["data"].shape[0], self.element["indices"].shape[0])
        if starts[0] < 0 or (np.diff(starts) < 0).any() or starts[-1] > n_entries:
            raise self._damage("'indptr' does not fit the matrix")
        return starts

    def _read(self, dataset: Array, selection: Rows | tuple[Rows, Rows], into: np.ndarray) -> None:
        if not into.size:
            return
        try:
            read_into(dataset, selection, into)
        except (OSError, RuntimeError, ValueError) as error:
            raise self._damage(str(error)) from error

    def _damage(self, what: str) -> InputError:
        return InputError(
            f"{self.where}: cannot be read: {what}. The file is damaged or was cut short; get it "
            "again."
        )


@dataclass(frozen=True)
class Selection:
    """Selected cells and genes of a file.

    Attributes
    ----------
    cells, genes
        Indices in the file; those of cells are ascending.
    cell_names, gene_names
        Their unique names.
    design
        Design matrix of these cells.
    covariates
        Further columns of ``obs`` of these cells; None if there are none.
    library_sizes
        Library size of each of these cells; None if it is the sum of the retained counts.
    guides
        Guides of these cells; None if unknown.
    declared
        Source columns of columns of ``obs``, see :data:`samsvae.screen.canonical.DECLARED`.
    lost
        Numbers of cells that are left out before counts are read: ``reason`` and ``cells``.
    """

    cells: np.ndarray
    genes: np.ndarray
    cell_names: pd.Index
    gene_names: Sequence[str]
    design: Design
    covariates: pd.DataFrame | None = None
    library_sizes: np.ndarray | None = None
    guides: Guides | None = None
    declared: Mapping[str, str] | None = None
    lost: pd.DataFrame | None = None


def write_selection(
    counts: CountMatrix,
    kept: Selection,
    provenance: str,
    output: str | Path,
    *,
    drop_empty: bool = True,
) -> None:
    """Write the canonical screen of a selection atomically, in bounded memory.

    Parameters
    ----------
    counts
        Counts of the open file.
    kept
        The selection.
    provenance
        Provenance record, JSON.
    output
        The screen.
    drop_empty
        Whether cells without counts of the retained genes are left out, with a line in the log,
        or refused.

    Raises
    ------
    InputError
        If counts, names or labels are not valid.
    """
    write_screen_in_blocks(
        with_progress(read_ahead(counts.blocks(kept.cells, kept.genes)), len(kept.cells)),
        kept.design,
        kept.cell_names,
        kept.gene_names,
        provenance,
        output,
        where=counts.where,
        genes=kept.genes,
        covariates=kept.covariates,
        known_sizes=kept.library_sizes,
        guides=kept.guides,
        declared=kept.declared,
        lost=kept.lost,
        drop_empty=drop_empty,
    )


PUBLISHED = "published"


def check_screen_size(
    found: Mapping[str, int],
    expected: Mapping[str, int | str | None],
    published: Mapping[str, int],
    where: str,
) -> None:
    """Refuse a file whose screen is not of the expected size.

    Parameters
    ----------
    found
        Numbers by name.
    expected
        Expected number by name, ``"published"``, or None for any number.
    published
        Published number by name.
    where
        The file, for messages.

    Raises
    ------
    InputError
        Naming all differences.
    """
    wanted = {name: published[name] if n == PUBLISHED else n for name, n in expected.items()}
    differences = [
        f"{found[name]:,} {name} instead of {n:,}"
        for name, n in wanted.items()
        if n is not None and found[name] != n
    ]
    if differences:
        keys = ", ".join(f"expected_{name.replace(' ', '_')}" for name in expected)
        raise InputError(
            f"{where}: the screen has {'; '.join(differences)}. Is the file a part of the "
            f"published one, or another version? To use it as it is, set {keys} to its numbers, "
            "or to null."
        )
