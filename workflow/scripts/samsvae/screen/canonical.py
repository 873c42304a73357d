"""The canonical screen, the data format of every later stage.

An AnnData object with

- ``X``: UMI counts, int32 CSR, cells x genes; ``var_names`` are unique gene symbols;
- ``obs["library_size"]``: counts of the cell over the retained genes, never 0; or its counts over
  all genes, from a column of the source;
- ``obsm["dosage"]``: the design matrix, CSR, cells x single perturbations, named by
  ``uns["perturbations"]``: 0, 1 or the dose;
- ``obs["perturbation"]``: label of the cell's condition, which is its row of the design matrix:
  ``"control"``, a gene, or genes in alphabetical order joined by ``+``, each with its dose unless
  that is 1: ``A@0.5+B``;
- ``uns["provenance"]``: provenance record, JSON; ``uns["content_digest"]``: a digest of counts,
  names and labels, and of the following, if the source has it:
- ``obs["batch"]``, ``obs["context"]``: categorical, where ``uns["batch_column"]`` and
  ``uns["context_column"]`` name the columns that they come from (``uns["library_size_column"]`` the
  one of library sizes); all further columns of obs are covariates;
- ``obs["guide"]``: all guides of the cell, joined by ``|``; ``obsm["guides"]``: the same as CSR,
  cells x guides, in the order of the table ``uns["guides"]``: ``guide``, ``target`` (``control``
  if it targets no gene) and ``kind`` (targeting, non-targeting or safe-targeting);
- ``uns["unit"]``: ``perturbation`` where effects are those of single perturbations in all cells
  that have them, whatever else these have, relative to ``uns["compared_with"]`` (``controls`` or
  ``complement``); without it effects are those of conditions;
- ``uns["lost_cells"]``: numbers of cells of the source that were left out, ``reason`` and
  ``cells``.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, sparse_dataset
from scipy import sparse

from samsvae.runtime.files import whole_file
from samsvae.screen.design import Design, Guides
from samsvae.screen.labels import CONTROL
from samsvae.screen.validation import (
    check_agreement,
    check_counts,
    check_design,
    check_names,
    refuse_empty_cells,
)

BATCH, CONTEXT, GUIDE = "batch", "context", "guide"  # columns of obs
# column of obs, by the key of uns that declares it and names its source
DECLARED = {
    "batch_column": BATCH,
    "context_column": CONTEXT,
    "library_size_column": "library_size",
    "guides": GUIDE,
}
LOST_CELLS, UNIT, COMPARED_WITH = "lost_cells", "unit", "compared_with"  # in uns
PERTURBATION = "perturbation"  # the unit of marginal effects
NO_COUNT = "no count"  # reason of a cell without counts of the retained genes


def build_screen(
    counts: Any,
    design: Design,
    cell_names: Sequence[str] | pd.Index,
    gene_names: Sequence[str],
    where: str = "the screen",
) -> anndata.AnnData:
    """Assemble and check a canonical screen in memory.

    Parameters
    ----------
    counts
        UMI counts, cells x genes, dense or sparse.
    design
        Design matrix of the cells.
    cell_names, gene_names
        Unique names.
    where
        Source of the data, for messages.

    Returns
    -------
    AnnData
        The canonical form described at the top of this module.

    Raises
    ------
    InputError
        If counts, names or labels are not valid.
    """
    matrix = sparse.csr_matrix(counts)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    check_names(cell_names, "cell", where)
    check_names(gene_names, "gene", where)
    checked = check_counts(matrix, where)
    library_size = library_sizes(checked)
    refuse_empty_cells(np.flatnonzero(library_size == 0), where)
    check_design(design, where)
    screen = describe_cells(design, library_size, cell_names, gene_names)
    screen.X = checked
    return screen


def library_sizes(counts: sparse.csr_matrix) -> np.ndarray:
    """Sum the counts of each cell, int64."""
    return np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel()


def describe_cells(
    design: Design,
    library_size: np.ndarray,
    cell_names: Sequence[str] | pd.Index,
    gene_names: Sequence[str],
    covariates: pd.DataFrame | None = None,
    guides: Guides | None = None,
    declared: Mapping[str, str] | None = None,
) -> anndata.AnnData:
    """Assemble a canonical screen without its counts.

    Parameters
    ----------
    design
        Design matrix of the cells, from which their labels are written.
    library_size
        Counts of each cell.
    cell_names, gene_names
        Unique names.
    covariates
        Further columns of ``obs``, in the order of the cells.
    guides
        Guides of the cells; None if unknown.
    declared
        Source columns of columns of ``obs``, by keys of :data:`DECLARED`; and, if the unit of
        effects is the perturbation, ``unit`` and ``compared_with``.

    Returns
    -------
    AnnData
        Without X.
    """
    obs = pd.DataFrame(
        {"perturbation": design.labels(), "library_size": library_size},
        index=pd.Index(cell_names, name="cell").astype(str),
    )
    if covariates is not None:
        obs = obs.join(covariates.set_axis(obs.index))
    screen = anndata.AnnData(
        obs=obs, var=pd.DataFrame(index=pd.Index(gene_names, name="gene").astype(str))
    )
    screen.obsm["dosage"] = design.matrix
    screen.uns["perturbations"] = np.array(design.names, dtype=object)
    screen.uns.update(declared or {})
    if guides is not None:
        screen.obs[GUIDE] = guides.names()
        screen.obsm["guides"] = guides.present
        screen.uns["guides"] = guides.table
    return screen


def lost_cells(numbers: Mapping[str, int], before: pd.DataFrame | None = None) -> pd.DataFrame:
    """Tabulate cells that are left out, by reason.

    Parameters
    ----------
    numbers
        Cells by reason.
    before
        Table to add them to.

    Returns
    -------
    DataFrame
        ``reason`` and ``cells``.
    """
    known = {} if before is None else dict(before.itertuples(index=False))
    rows = [*known.items(), *numbers.items()]
    table = pd.DataFrame(rows, columns=["reason", "cells"])
    return table.astype({"reason": object, "cells": np.int64})


class ContentDigest:
    """Digest of counts, names and labels of a screen, independent of its file format.

    Counts may be added in blocks of cells of any sizes.
    """

    def __init__(self) -> None:
        self._counts, self._genes, self._cells = (hashlib.sha256() for _ in range(3))

    def add(self, counts: sparse.csr_matrix) -> None:
        """Add the next cells."""
        for digest, array in (
            (self._counts, counts.data),
            (self._genes, counts.indices.astype(np.int32, copy=False)),
            (self._cells, np.diff(counts.indptr).astype(np.int64)),
        ):
            digest.update(np.ascontiguousarray(array).data)

    def of(self, screen: anndata.AnnData) -> str:
        """Digest the counts so far together with a screen's names and labels."""
        digest = hashlib.sha256()
        for part in (self._counts, self._genes, self._cells):
            digest.update(part.digest())
        for names in (screen.obs_names, screen.var_names, screen.obs["perturbation"]):
            digest.update("\n".join(names).encode())
        # declared columns only, so that digests of screens without them stay the same
        for key, column in DECLARED.items():
            if key in screen.uns:
                digest.update(f"{key}\n".encode())
                digest.update("\n".join(screen.obs[column].astype(str)).encode())
        if UNIT in screen.uns:
            digest.update(f"{UNIT}\n{screen.uns[UNIT]} {screen.uns[COMPARED_WITH]}".encode())
        return digest.hexdigest()


def content_digest(screen: anndata.AnnData) -> str:
    """Digest a screen in memory."""
    digest = ContentDigest()
    digest.add(screen.X)
    return digest.of(screen)


def has_marginal_effects(screen: anndata.AnnData) -> bool:
    """Whether a screen's effects are of single perturbations, not of conditions."""
    return str(screen.uns.get(UNIT, "")) == PERTURBATION


def perturbations(screen: anndata.AnnData) -> list[str]:
    """List the perturbations whose effects are compared, in alphabetical order.

    These are the conditions of a screen's cells but control, or else the columns of its design
    matrix, where :func:`has_marginal_effects`.
    """
    if has_marginal_effects(screen):
        return list(Design.of_screen(screen).names)
    return conditions(screen)


def conditions(screen: anndata.AnnData) -> list[str]:
    """List the conditions of a screen's cells (without control), in alphabetical order."""
    return sorted(set(screen.obs["perturbation"]) - {CONTROL})


def write_source_screen(screen: anndata.AnnData, provenance: str, path: str | Path) -> None:
    """Write a screen of a source atomically.

    Parameters
    ----------
    screen
        Canonical screen.
    provenance
        Provenance record, JSON; the digest of the content is stored with it.
    path
        The file.
    """
    screen.uns["provenance"] = provenance
    screen.uns["content_digest"] = content_digest(screen)
    with whole_file(path) as temporary:
        screen.write_h5ad(temporary, compression="lzf")


def read_screen(path: str | Path) -> anndata.AnnData:
    """Read a screen that :func:`write_source_screen` wrote.

    Raises
    ------
    InputError
        If the label of a cell is not that of its row of the design matrix.
    """
    screen = anndata.read_h5ad(path)
    check_agreement(screen, str(path))
    return screen


@contextmanager
def open_screen(path: str | Path, names: bool = True) -> Iterator[anndata.AnnData]:
    """Open a screen in backed mode: counts stay in the file until their rows are accessed.

    Parameters
    ----------
    path
        The file.
    names
        Whether to read the names of cells, most of what a cell needs in memory; else all are "".

    Yields
    ------
    AnnData
        Valid within the context.

    Raises
    ------
    InputError
        If the label of a cell is not that of its row of the design matrix.
    """
    screen = anndata.read_h5ad(path, backed="r") if names else _without_names(path)
    try:
        check_agreement(screen, str(path))
        yield screen
    finally:
        screen.file.close() if names else screen.X.group.file.close()


def _without_names(path: str | Path) -> anndata.AnnData:
    """Open a screen whose cells have empty names; counts stay in the file."""
    file = h5py.File(path, "r")
    columns = {name: read_elem(file["obs"][name]) for name in file["obs"].attrs["column-order"]}
    n_cells = int(file["obsm/dosage"].attrs["shape"][0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        return anndata.AnnData(
            X=sparse_dataset(file["X"]),
            obs=pd.DataFrame(columns, index=np.full(n_cells, "", dtype=object)),
            var=read_elem(file["var"]),
            obsm=read_elem(file["obsm"]),
            uns=read_elem(file["uns"]),
        )


def counts_in_blocks(
    screen: anndata.AnnData, cells: np.ndarray | None, largest_block: int
) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
    """Iterate over the counts of cells in order, block by block.

    Parameters
    ----------
    screen
        Canonical screen, whose counts may be in a file.
    cells
        Boolean, one per cell of the screen; None for all.
    largest_block
        Largest number of elements of a block, cells x genes, zeros included.

    Yields
    ------
    positions : ndarray
        Indices of the block's cells in the screen.
    counts : csr_matrix
        The same cells x genes.
    """
    counts, block_size = screen.X, max(1, largest_block // screen.n_vars)
    for first in range(0, screen.n_obs, block_size):
        positions = np.arange(first, min(first + block_size, screen.n_obs))
        if cells is not None:
            positions = positions[cells[positions]]
        if len(positions):
            block = sparse.csr_matrix(counts[first : first + block_size])
            whole = len(positions) == block.shape[0]
            yield positions, block if whole else block[positions - first]


def nonzero_counts(screen: anndata.AnnData) -> np.ndarray:
    """Return the number of non-zero counts of each cell, without reading the counts."""
    counts = screen.X
    ends = counts.indptr if sparse.issparse(counts) else counts.group["indptr"][:]
    return np.diff(ends)


def digest_of_screen(screen: anndata.AnnData) -> str:
    """Return the digest of a screen's content, computed when it was written."""
    return str(screen.uns["content_digest"])


def read_digest(path: str | Path) -> str:
    """Read the digest of a screen's content without its data."""
    with h5py.File(path, "r") as file:
        return str(file["uns/content_digest"].asstr()[()])
