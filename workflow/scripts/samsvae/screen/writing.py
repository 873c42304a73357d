"""Streaming writer of canonical screens, for screens that exceed memory."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from scipy import sparse

from samsvae.runtime.files import whole_file
from samsvae.screen.canonical import (
    LOST_CELLS,
    NO_COUNT,
    UNIT,
    ContentDigest,
    describe_cells,
    library_sizes,
    lost_cells,
)
from samsvae.screen.design import Design, Guides
from samsvae.screen.validation import (
    check_counts,
    check_design,
    check_library_sizes,
    check_names,
    refuse_empty_cells,
)

CHUNK = 2**17  # entries, half a MiB
CHUNKS_AT_ONCE = 2

logger = logging.getLogger(__name__)


def write_screen_in_blocks(
    blocks: Iterable[tuple[np.ndarray, sparse.csr_matrix]],
    design: Design,
    cell_names: Sequence[str] | pd.Index,
    gene_names: Sequence[str],
    provenance: str,
    path: str | Path,
    *,
    where: str = "the screen",
    genes: np.ndarray | None = None,
    covariates: pd.DataFrame | None = None,
    known_sizes: np.ndarray | None = None,
    guides: Guides | None = None,
    declared: Mapping[str, str] | None = None,
    lost: pd.DataFrame | None = None,
    drop_empty: bool = False,
) -> tuple[int, int]:
    """Write a canonical screen atomically from blocks of counts.

    The file has the contents and the digest of one by
    :func:`samsvae.screen.canonical.write_source_screen`. Memory holds one
    block, and the name, label and covariates of every cell.

    Parameters
    ----------
    blocks
        Cells in order: their indices in the source, for messages, and their counts, canonical
        CSR, cells x genes.
    design
        Design matrix of the cells.
    cell_names, gene_names
        Unique names.
    provenance
        Provenance record, JSON.
    path
        The file.
    where
        Source of the counts, for messages.
    genes
        Indices of the genes in the source, for messages; None if all are retained.
    covariates
        Further columns of ``obs``, in the order of the cells.
    known_sizes
        Library size of each cell; None if it is the sum of its counts.
    guides
        Guides of each cell; None if unknown.
    declared
        As of :func:`samsvae.screen.canonical.describe_cells`.
    lost
        Numbers of cells that were left out before: ``reason`` and ``cells``; None if unknown.
    drop_empty
        Whether to leave out cells without counts, with a line in the log, instead of refusing
        them: a filter of genes may remove all counts of a cell.

    Returns
    -------
    tuple of int
        Numbers of cells and genes written.

    Raises
    ------
    InputError
        If counts, names or labels are not valid.
    """
    check_names(cell_names, "cell", where)
    check_names(gene_names, "gene", where)
    needs_control = UNIT not in (declared or {})
    check_design(design, where, needs_control)
    # no chunk cache, since only complete chunks are written
    with whole_file(path) as temporary, h5py.File(temporary, "w", rdcc_nbytes=0) as file:
        counts = _Counts(file, len(gene_names))
        for positions, values in blocks:
            counts.append(check_counts(values, where, positions, genes), positions)
        total = np.concatenate(counts.library_sizes)
        library_size = total if known_sizes is None else known_sizes
        kept = np.flatnonzero(total)
        check_library_sizes(library_size, total, where)
        if not drop_empty:
            refuse_empty_cells(np.concatenate(counts.empty), where)
        elif len(kept) < len(design):
            n_lost = len(design) - len(kept)
            logger.warning(
                "%s: left out %d of %d cells, which have no counts of the %d retained genes",
                where, n_lost, len(design), len(gene_names),
            )  # fmt: skip
            design = design[kept]
            check_design(design, where, needs_control)
            if lost is not None:
                lost = lost_cells({NO_COUNT: n_lost}, lost)
        screen = describe_cells(
            design,
            library_size[kept],
            pd.Index(cell_names)[kept],
            gene_names,
            None if covariates is None else covariates.iloc[kept],
            None if guides is None else guides.of(kept),
            declared,
        )
        if lost is not None:
            screen.uns[LOST_CELLS] = lost.reset_index(drop=True)
        screen.uns["provenance"] = provenance
        screen.uns["content_digest"] = counts.digest.of(screen)
        counts.finish()
        _write_rest(file, screen)
    return screen.n_obs, screen.n_vars


class _Counts:
    """Appendable CSR element X of a file.

    Parameters
    ----------
    file
        The file, empty.
    n_genes
        Number of columns.
    """

    def __init__(self, file: h5py.File, n_genes: int) -> None:
        self.group = file.create_group("X")
        self.n_genes = n_genes
        self.digest = ContentDigest()
        self.library_sizes: list[np.ndarray] = []
        self.empty: list[np.ndarray] = []
        self.sizes: list[np.ndarray] = []
        # small counts compress best with shuffled bytes
        self.columns = [
            _Column(
                self.group.create_dataset(
                    name, (0,), np.int32, maxshape=(None,), chunks=(CHUNK,),
                    compression="lzf", shuffle=True,
                )
            )
            for name in ("data", "indices")
        ]  # fmt: skip

    def append(self, counts: sparse.csr_matrix, positions: np.ndarray) -> None:
        """Append cells but for empty ones, whose indices are recorded."""
        self.library_sizes.append(library_sizes(counts))
        empty = self.library_sizes[-1] == 0
        if empty.any():
            counts = counts[~empty]
        self.empty.append(positions[empty])
        self.digest.add(counts)
        self.sizes.append(np.diff(counts.indptr))
        for column, values in zip(self.columns, (counts.data, counts.indices), strict=True):
            column.append(values)

    def finish(self) -> None:
        """Write the index pointers and the attributes of an AnnData element."""
        for column in self.columns:
            column.write(0)
        indptr = np.concatenate([[0], *self.sizes]).cumsum()
        small = indptr[-1] <= np.iinfo(np.int32).max
        self.group["indptr"] = indptr.astype(np.int32 if small else np.int64)
        self.group.attrs["encoding-type"] = "csr_matrix"
        self.group.attrs["encoding-version"] = "0.1.0"
        self.group.attrs["shape"] = np.array([len(indptr) - 1, self.n_genes])


class _Column:
    """Data set that is appended by complete chunks, since each write to a chunk recompresses it."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self.waiting: list[np.ndarray] = []
        self.n_waiting = 0

    def append(self, values: np.ndarray) -> None:
        """Buffer values, and write them once there are enough."""
        self.waiting.append(values)
        self.n_waiting += len(values)
        if self.n_waiting >= CHUNKS_AT_ONCE * CHUNK:
            self.write(self.n_waiting % CHUNK)

    def write(self, n_left: int) -> None:
        """Write the buffered values but for the last `n_left`."""
        values = np.concatenate([np.empty(0, np.int32), *self.waiting])
        whole, rest = np.split(values, [len(values) - n_left])
        start = len(self.dataset)
        self.dataset.resize((start + len(whole),))
        self.dataset[start:] = whole
        self.waiting, self.n_waiting = [rest.copy()], len(rest)


def _write_rest(file: h5py.File, screen: anndata.AnnData) -> None:
    file.attrs["encoding-type"] = "anndata"
    file.attrs["encoding-version"] = "0.1.0"
    screen.strings_to_categoricals()
    for name in ("obs", "var"):
        write_elem(file, name, getattr(screen, name))
    for name in ("obsm", "uns", "varm", "obsp", "varp", "layers"):
        write_elem(file, name, dict(getattr(screen, name)), dataset_kwargs={"compression": "lzf"})
