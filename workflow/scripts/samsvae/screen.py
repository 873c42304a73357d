"""The canonical screen: the one form of data that every later stage relies on.

An AnnData object with

- ``X``: UMI counts, int32 CSR, cells x genes; ``var_names`` are unique gene symbols;
- ``obs["perturbation"]``: ``"control"``, a gene, or genes in alphabetical order joined by ``+``,
  each with its dose unless that is 1: ``A@0.5+B``;
- ``obs["library_size"]``: counts of the cell over the retained genes, never 0;
- ``obsm["dosage"]``: doses, CSR, cells x single perturbations, named by ``uns["perturbations"]``;
- ``uns["provenance"]``: JSON text, where it came from; ``uns["content_digest"]``: a digest of
  counts, names and labels.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.errors import InputError
from samsvae.files import whole_file
from samsvae.labels import CONTROL, components, doses


def check_names(names: Iterable[str], what: str, where: str) -> None:
    """Refuse duplicate names.

    Raises
    ------
    InputError
        Naming the first few duplicates.
    """
    index = pd.Index(names)
    twice = index[index.duplicated()].unique()
    if len(twice):
        raise InputError(
            f"{where}: {len(twice)} {what} name(s) occur more than once, for instance "
            f"{', '.join(map(str, twice[:5]))}. Make them unique in the file "
            f"(anndata: {'obs' if what == 'cell' else 'var'}_names_make_unique)."
        )


def check_counts(counts: sparse.csr_matrix, where: str) -> None:
    """Refuse anything but finite, non-negative integers, and cells without a count.

    Parameters
    ----------
    counts
        Cells x genes.
    where
        File and layer, for messages.

    Raises
    ------
    InputError
        Naming the first offending cell, gene and value.
    """
    values = counts.data
    faults = {
        "is not a finite number": ~np.isfinite(values),
        "is negative": values < 0,
        "is not an integer": values != np.floor(values),
    }
    for fault, wrong in faults.items():
        if wrong.any():
            at = int(np.argmax(wrong))
            cell = int(np.searchsorted(counts.indptr, at, side="right")) - 1
            raise InputError(
                f"{where}: the value {values[at]:g} of cell {cell}, gene {counts.indices[at]} "
                f"(counting from 0) {fault}; {int(wrong.sum())} such value(s). Raw UMI counts are "
                "needed: set 'counts_layer' to the layer that has them."
            )
    empty = np.flatnonzero(np.asarray(counts.sum(axis=1)).ravel() == 0)
    if len(empty):
        raise InputError(
            f"{where}: {len(empty)} cell(s) have no count at all, the first at position "
            f"{empty[0]} (counting from 0). Remove empty cells from the file."
        )


def build_screen(
    counts: Any,
    perturbation: Sequence[str],
    cell_names: Sequence[str],
    gene_names: Sequence[str],
    where: str = "the screen",
) -> anndata.AnnData:
    """Assemble and check a canonical screen.

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
    check_counts(matrix, where)
    labels = pd.Categorical(perturbation)
    present = list(labels.categories)
    if CONTROL not in present:
        raise InputError(f"{where}: there is no control cell.")
    if len(present) == 1:
        raise InputError(f"{where}: every cell is a control cell; there is nothing to model.")
    singles = sorted(set(itertools.chain.from_iterable(map(components, present))))
    screen = anndata.AnnData(
        X=matrix.astype(np.int32),
        obs=pd.DataFrame(
            {"perturbation": labels, "library_size": np.asarray(matrix.sum(axis=1)).ravel()},
            index=pd.Index(cell_names, name="cell").astype(str),
        ),
        var=pd.DataFrame(index=pd.Index(gene_names, name="gene").astype(str)),
    )
    screen.obsm["dosage"] = dosages(labels, singles)
    screen.uns["perturbations"] = np.array(singles, dtype=object)
    return screen


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


def content_digest(screen: anndata.AnnData) -> str:
    """Digest what the screen says, whatever the file looks like: counts, genes, labels."""
    digest = hashlib.sha256()
    matrix = screen.X
    for array in (matrix.data, matrix.indices, matrix.indptr):
        digest.update(np.ascontiguousarray(array).tobytes())
    for names in (screen.obs_names, screen.var_names, screen.obs["perturbation"]):
        digest.update("\n".join(map(str, names)).encode())
    return digest.hexdigest()


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


def digest_of_screen(screen: anndata.AnnData) -> str:
    """Get the digest of a screen's content, taken when it was written."""
    return str(screen.uns["content_digest"])
