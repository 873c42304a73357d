"""The canonical screen: the one form of data that every later stage relies on.

An AnnData object with

- ``X``: UMI counts, int32 CSR, cells x genes; ``var_names`` are unique gene symbols;
- ``obs["perturbation"]``: ``"control"``, a gene, or genes in alphabetical order joined by ``+``,
  each with its dose unless that is 1: ``A@0.5+B``;
- ``obs["library_size"]``: counts of the cell over the retained genes, never 0; or its counts over
  all genes, from a column of the source;
- ``obsm["dosage"]``: doses, CSR, cells x single perturbations, named by ``uns["perturbations"]``;
- ``uns["provenance"]``: JSON text, where it came from; ``uns["content_digest"]``: a digest of
  counts, names and labels, and of what follows where a source has it:
- ``obs["batch"]``, ``obs["context"]``: categorical, where ``uns["batch_column"]`` and
  ``uns["context_column"]`` name the columns that they come from (``uns["library_size_column"]`` the
  one of library sizes); all further columns of obs are covariates;
- ``obs["guide"]``: all guides of the cell, joined by ``|``; ``obsm["guides"]``: the same as CSR,
  cells x guides, in the order of the table ``uns["guides"]``: ``guide``, ``target`` (``control``
  where it targets no gene) and ``kind`` (targeting, non-targeting or safe-targeting);
- ``uns["lost_cells"]``: cells of the source that were left out, ``reason`` and ``cells``.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.runtime.files import whole_file
from samsvae.screen.labels import CONTROL, components, doses
from samsvae.screen.validation import check_counts, check_labels, check_names, refuse_empty_cells

BATCH, CONTEXT, GUIDE = "batch", "context", "guide"  # columns of obs
# by the key of uns that declares it, and names where it is from, a column of obs
DECLARED = {
    "batch_column": BATCH,
    "context_column": CONTEXT,
    "library_size_column": "library_size",
    "guides": GUIDE,
}
LOST_CELLS = "lost_cells"  # in uns
NO_COUNT = "no count"  # the reason of a cell without a count in the genes kept
JOINED_GUIDES = "|"  # joins the guides of a cell in obs


def build_screen(
    counts: Any,
    perturbation: Sequence[str],
    cell_names: Sequence[str] | pd.Index,
    gene_names: Sequence[str],
    where: str = "the screen",
) -> anndata.AnnData:
    """Assemble and check a canonical screen in memory.

    Parameters
    ----------
    counts
        UMI counts, cells x genes, dense or sparse.
    perturbation
        Canonical label of each cell.
    cell_names, gene_names
        Unique names.
    where
        Where the data come from, for messages.

    Returns
    -------
    AnnData
        The canonical form described at the top of this module.

    Raises
    ------
    InputError
        If counts, names or labels break the contract.
    """
    matrix = sparse.csr_matrix(counts)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    check_names(cell_names, "cell", where)
    check_names(gene_names, "gene", where)
    checked = check_counts(matrix, where)
    library_size = library_sizes(checked)
    refuse_empty_cells(np.flatnonzero(library_size == 0), where)
    labels = pd.Categorical(perturbation)
    check_labels(labels, where)
    screen = describe_cells(labels, library_size, cell_names, gene_names)
    screen.X = checked
    return screen


def library_sizes(counts: sparse.csr_matrix) -> np.ndarray:
    """Sum the counts of each cell, int64."""
    return np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel()


def describe_cells(
    labels: pd.Categorical,
    library_size: np.ndarray,
    cell_names: Sequence[str] | pd.Index,
    gene_names: Sequence[str],
    covariates: pd.DataFrame | None = None,
    guides: "Guides | None" = None,
    declared: Mapping[str, str] | None = None,
) -> anndata.AnnData:
    """Assemble all of a canonical screen but its counts.

    Parameters
    ----------
    labels
        Canonical label of each cell.
    library_size
        Counts of each cell.
    cell_names, gene_names
        Unique names.
    covariates
        More columns of ``obs``, in the order of the cells.
    guides
        Guides of the cells; None if they are not known.
    declared
        By keys of :data:`DECLARED`, columns of the source from which columns of ``obs`` come.

    Returns
    -------
    AnnData
        Without X.
    """
    singles = sorted(set(itertools.chain.from_iterable(map(components, labels.categories))))
    obs = pd.DataFrame(
        {"perturbation": labels, "library_size": library_size},
        index=pd.Index(cell_names, name="cell").astype(str),
    )
    if covariates is not None:
        obs = obs.join(covariates.set_axis(obs.index))
    screen = anndata.AnnData(
        obs=obs, var=pd.DataFrame(index=pd.Index(gene_names, name="gene").astype(str))
    )
    screen.obsm["dosage"] = dosages(labels, singles)
    screen.uns["perturbations"] = np.array(singles, dtype=object)
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
        A table to add them to.

    Returns
    -------
    DataFrame
        ``reason`` and ``cells``.
    """
    known = {} if before is None else dict(before.itertuples(index=False))
    rows = [*known.items(), *numbers.items()]
    table = pd.DataFrame(rows, columns=["reason", "cells"])
    return table.astype({"reason": object, "cells": np.int64})


def dosages(perturbation: Sequence[str] | pd.Categorical, singles: Sequence[str]) -> Any:
    """Encode labels as the sum of their single perturbations, each at its dose.

    Parameters
    ----------
    perturbation
        Canonical labels, length N.
    singles
        Names of the T columns.

    Returns
    -------
    scipy.sparse.csr_matrix
        N x T, float32; the dose of each single perturbation, 0 where the label has it not.
    """
    column = {name: index for index, name in enumerate(singles)}
    labels = pd.Categorical(perturbation)
    rows = sparse.lil_matrix((len(labels.categories), len(singles)), dtype=np.float32)
    for row, label in enumerate(labels.categories):
        for part, dose in doses(label).items():
            rows[row, column[part]] = dose
    return rows.tocsr()[labels.codes]


class ContentDigest:
    """Digest of what a screen says, whatever the file looks like: counts, genes, labels.

    The counts may be given in blocks of cells, of any sizes.
    """

    def __init__(self) -> None:
        self._counts, self._genes, self._cells = (hashlib.sha256() for _ in range(3))

    def add(self, counts: sparse.csr_matrix) -> None:
        """Take in the next cells."""
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
        # only what a screen declares, so that other screens keep the digest that they have had
        for key, column in DECLARED.items():
            if key in screen.uns:
                digest.update(f"{key}\n".encode())
                digest.update("\n".join(screen.obs[column].astype(str)).encode())
        return digest.hexdigest()


def content_digest(screen: anndata.AnnData) -> str:
    """Digest a screen in memory."""
    digest = ContentDigest()
    digest.add(screen.X)
    return digest.of(screen)


def perturbations(screen: anndata.AnnData) -> list[str]:
    """List the perturbations of a screen (without control), in alphabetical order."""
    return sorted(set(screen.obs["perturbation"]) - {CONTROL})


def write_source_screen(screen: anndata.AnnData, provenance: str, path: str | Path) -> None:
    """Write a screen that a source has made, whole or not at all.

    Parameters
    ----------
    screen
        Canonical screen.
    provenance
        What made it, as JSON; the digest of the content is kept beside it.
    path
        The file.
    """
    screen.uns["provenance"] = provenance
    screen.uns["content_digest"] = content_digest(screen)
    with whole_file(path) as temporary:
        screen.write_h5ad(temporary, compression="lzf")


def read_screen(path: str | Path) -> anndata.AnnData:
    """Read a screen that :func:`write_source_screen` wrote."""
    return anndata.read_h5ad(path)


@contextmanager
def open_screen(path: str | Path) -> Iterator[anndata.AnnData]:
    """Read all of a screen but its counts, which stay in the file until their rows are asked for.

    Yields
    ------
    AnnData
        Of use until the context is left.
    """
    screen = anndata.read_h5ad(path, backed="r")
    try:
        yield screen
    finally:
        screen.file.close()


def counts_in_blocks(
    screen: anndata.AnnData, cells: np.ndarray | None, largest_block: int
) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
    """Go through the counts of cells in order.

    Parameters
    ----------
    screen
        Canonical screen, whose counts may be in a file.
    cells
        Boolean, one per cell of the screen, those to go through; None for all.
    largest_block
        Most elements of a block, cells x genes, zeros among them.

    Yields
    ------
    positions : ndarray
        Of some cells in the screen.
    counts : csr_matrix
        The same cells x genes.
    """
    counts, at_once = screen.X, max(1, largest_block // screen.n_vars)
    for first in range(0, screen.n_obs, at_once):
        positions = np.arange(first, min(first + at_once, screen.n_obs))
        if cells is not None:
            positions = positions[cells[positions]]
        if len(positions):
            block = sparse.csr_matrix(counts[first : first + at_once])
            whole = len(positions) == block.shape[0]
            yield positions, block if whole else block[positions - first]


def digest_of_screen(screen: anndata.AnnData) -> str:
    """Get the digest of a screen's content, taken when it was written."""
    return str(screen.uns["content_digest"])


def read_digest(path: str | Path) -> str:
    """Read the digest of a screen's content, and nothing else."""
    with h5py.File(path, "r") as file:
        return str(file["uns/content_digest"].asstr()[()])


@dataclass(frozen=True)
class Guides:
    """Guides beside the genes that they target.

    Attributes
    ----------
    table
        ``guide``, ``target`` and ``kind`` of each guide.
    present
        Cells x guides, 1 where a cell has the guide.
    """

    table: pd.DataFrame
    present: sparse.csr_matrix

    def of(self, cells: np.ndarray) -> "Guides":
        """Keep some cells, and the guides that they have."""
        present = self.present[cells]
        held = np.flatnonzero(np.asarray(present.sum(axis=0)).ravel() > 0)
        table = self.table.iloc[held].reset_index(drop=True)
        return Guides(table, sparse.csr_matrix(present[:, held]))

    def names(self) -> pd.Categorical:
        """Join the names of each cell's guides; an empty text where it has none."""
        guides = self.table["guide"].to_numpy(dtype=object)
        codes, rows = group_rows(self.present)
        joined = [
            JOINED_GUIDES.join(
                guides[np.sort(self.present.indices[span_of_row(self.present, row)])]
            )
            for row in rows
        ]
        return categories_of(codes, joined)


def span_of_row(matrix: sparse.csr_matrix, row: int) -> slice:
    """Tell which entries of a sparse matrix are those of a row."""
    return slice(matrix.indptr[row], matrix.indptr[row + 1])


def group_rows(matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct rows of a sparse matrix with sorted indices.

    Parameters
    ----------
    matrix
        In canonical form.

    Returns
    -------
    codes : ndarray of int
        For each row the number of its distinct row.
    rows : ndarray of int
        Where each distinct row first occurs.
    """
    # two sums of random numbers, modulo 2**64, tell rows apart but for a chance of 2**-128 a pair
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2**63, (2, matrix.shape[1] + 1), dtype=np.uint64) * 2 + 1
    bits = matrix.data.astype(np.float32).view(np.uint32).astype(np.uint64) + 1
    sums = np.zeros((matrix.shape[0], 2), dtype=np.uint64)
    edges = matrix.indptr.astype(np.int64)
    for number, weight in enumerate(weights):
        mixed = weight[matrix.indices] * bits
        mixed ^= mixed >> np.uint64(29)
        totals = np.concatenate([[np.uint64(0)], np.cumsum(mixed * weight[-1], dtype=np.uint64)])
        sums[:, number] = totals[edges[1:]] - totals[edges[:-1]]
    frame = pd.DataFrame(sums)
    codes = frame.groupby([0, 1], sort=False).ngroup().to_numpy()
    rows = np.flatnonzero(~pd.Series(codes).duplicated().to_numpy())
    return codes, rows


def categories_of(codes: np.ndarray, labels: Sequence[str | None]) -> pd.Categorical:
    """Make a categorical of codes into labels, which may repeat; None is missing."""
    known = sorted({label for label in labels if label is not None})
    place = {label: at for at, label in enumerate(known)}
    moved = np.array([place.get(label, -1) if label is not None else -1 for label in labels] + [-1])
    found = pd.Categorical.from_codes(moved[np.asarray(codes, dtype=np.int64)], known)
    return found.remove_unused_categories()
