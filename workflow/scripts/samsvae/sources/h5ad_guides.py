"""Matrices of guides or perturbations: one-hot columns, a matrix in obsm, features, a modality."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.sources.counts import CountMatrix
from samsvae.sources.genes import FEATURE_TYPES
from samsvae.sources.guides import call_guides
from samsvae.sources.h5ad_file import (
    AnnDataFile,
    cells_of,
    columns,
    counts_of,
    is_missing,
    n_rows,
    read_column,
    read_names,
)
from samsvae.sources.h5ad_source import H5adSource, check_member, counts_matrix, member
from samsvae.sources.storage import Array, Group, is_group

BLOCK_BYTES = 32 * 2**20
GUIDE_FEATURES = "CRISPR Guide Capture"


@dataclass(frozen=True)
class GuideMatrix:
    """Matrix of guides or perturbations by cells.

    Attributes
    ----------
    doses
        Cells x columns, float32: 1, or the dose, for a cell with the guide or perturbation.
    names
        Names of the columns.
    where
        File and element, for messages.
    genes
        Target gene of each column, if the file has it.
    called
        Whether guides were called from UMI counts, so that a cell may have no detected guide.
    known
        Whether each cell is in the matrix.
    thresholds
        Smallest UMI count of each called guide; None if guides were not called.
    """

    doses: sparse.csr_matrix
    names: list[str]
    where: str
    genes: dict[str, str] | None = None
    called: bool = False
    known: np.ndarray | None = None
    thresholds: np.ndarray | None = None


def read_guide_matrix(file: AnnDataFile, source: H5adSource) -> GuideMatrix:
    """Read the matrix of guides or perturbations of a source, and call guides from counts.

    Parameters
    ----------
    file
        An open file.
    source
        Any form but `perturbation_column`.

    Raises
    ------
    InputError
        If columns or names are missing, a value is neither count nor dose, or values are counts
        although no setting says how to call guides.
    """
    matrix = {
        "perturbation_columns": _read_columns,
        "perturbation_matrix": _read_matrix,
        "guide_features": _read_features,
        "guide_modality": _read_modality,
    }[source.form](file, source)
    _check_values(matrix.doses, matrix.names, matrix.where)
    values: Any = getattr(source, source.form)
    threshold, mixture = values.get("threshold"), values.get("mixture")
    if threshold or mixture:
        calls = call_guides(matrix.doses, threshold, mixture, matrix.where)
        return GuideMatrix(
            calls.present, matrix.names, matrix.where, matrix.genes, True, matrix.known,
            calls.thresholds,
        )  # fmt: skip
    declared = values.get("doses") or _is_canonical(file, source)
    if not declared and matrix.doses.nnz and matrix.doses.data.max() > 1:
        at = int(np.argmax(matrix.doses.data > 1))
        name = matrix.names[matrix.doses.indices[at]]
        counts = matrix.doses.data.max()
        raise InputError(
            f"{matrix.where}: values above 1 (in the column {name!r}; the largest of all is "
            f"{counts:g}), as if they were UMI counts of guides. If so, set 'threshold' in "
            f"{source.form!r} to the UMIs from which on a guide is present, for instance "
            "threshold: 5, or mixture: poisson_gaussian; if they are doses, set doses: true"
            + (
                "; if the column is no perturbation, leave it out by 'except'."
                if source.form == "perturbation_columns"
                else "."
            )
        )
    return matrix


def _is_canonical(file: AnnDataFile, source: H5adSource) -> bool:
    """Whether the matrix is the design matrix of a canonical screen, whose values are doses."""
    matrix = source.perturbation_matrix
    return matrix is not None and matrix["obsm"] == "dosage" and "uns/content_digest" in file


def check_guide_matrix(file: AnnDataFile, source: H5adSource) -> None:
    """Check that features or a modality of guides exist, without reading counts.

    Raises
    ------
    InputError
        If they do not exist.
    """
    if source.guide_features is not None:
        _feature_positions(file, source)
    elif source.guide_modality is not None:
        _modality_counts(file, source)


def _read_columns(file: AnnDataFile, source: H5adSource) -> GuideMatrix:
    assert source.perturbation_columns is not None
    prefix = source.perturbation_columns["prefix"]
    others = source.perturbation_columns.get("except", ())
    where = f"{source.path}: obs[{prefix + '*'!r}]"
    known = columns(file, "obs")
    for name in others:
        check_member(file, "obs", name, known, "perturbation_columns.except")
    chosen = [name for name in known if name.startswith(prefix) and name not in others]
    if not chosen:
        raise InputError(
            f"{source.path}: no column of obs begins with {prefix!r} (it has: "
            f"{', '.join(known) or 'nothing'}). Set 'perturbation_columns.prefix'."
        )
    matrix = _stack(file, "obs", chosen, where)
    return GuideMatrix(matrix, [name[len(prefix) :] for name in chosen], where)


def _stack(file: AnnDataFile, table: str, chosen: Sequence[str], where: str) -> sparse.csr_matrix:
    """Read columns one by one, since all dense columns may exceed memory."""
    stacked = []
    for name in chosen:
        column = read_column(file, table, name)
        if column.isna().any():
            at = int(np.argmax(column.isna()))
            raise InputError(
                f"{where}: the value of cell {at} (counting from 0) in the column {name!r} "
                "is not a finite number: it is missing. Write 0 where a cell had none."
            )
        try:
            numbers = column.astype(np.float32).to_numpy()
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{where}: the column {name!r} does not hold numbers ({error}). Each perturbation "
                "has a column with 1, or the dose, where a cell had it and 0 elsewhere; leave "
                "other columns out by 'except'."
            ) from error
        stacked.append(sparse.csc_matrix(numbers[:, None]))
        _check_values(stacked[-1], [name], where)
    return sparse.hstack(stacked, format="csr", dtype=np.float32)


def _read_matrix(file: AnnDataFile, source: H5adSource) -> GuideMatrix:
    assert source.perturbation_matrix is not None
    key, names_key = source.perturbation_matrix["obsm"], source.perturbation_matrix.get("names")
    where = f"{source.path}: obsm[{key!r}]"
    held = member(file, "obsm", key, "perturbation_matrix.obsm")
    if held.attrs.get("encoding-type") == "dataframe":
        chosen = columns(file, f"obsm/{key}")
        return GuideMatrix(_stack(file, f"obsm/{key}", chosen, where), chosen, where)
    if names_key is None:
        raise InputError(
            f"{where} is a matrix without names. Set 'perturbation_matrix.names' to the key of "
            "uns that names its columns."
        )
    matrix = _read_rows(held, where)
    named = member(file, "uns", names_key, "perturbation_matrix.names")
    names = [str(name) for name in np.ravel(anndata.io.read_elem(named))]
    if matrix.shape[1] != len(names):
        raise InputError(
            f"{where} has {matrix.shape[1]} columns, but uns[{names_key!r}] {len(names)} names."
        )
    if matrix.shape[0] != n_rows(file, "obs"):
        raise InputError(f"{where} has {matrix.shape[0]:,} rows, which are not the cells of obs.")
    return GuideMatrix(matrix, names, where)


def _read_rows(held: Array | Group, where: str) -> sparse.csr_matrix:
    """Read a matrix of any layout as CSR, block by block."""
    if is_missing(held) or (not is_group(held) and held.ndim != 2):
        raise InputError(f"{where} is no matrix of cells x perturbations.")
    return _in_blocks(CountMatrix(held, where, BLOCK_BYTES))


def _in_blocks(
    counts: CountMatrix, cells: np.ndarray | None = None, features: np.ndarray | None = None
) -> sparse.csr_matrix:
    blocks = [block.astype(np.float32) for _, block in counts.blocks(cells, features)]
    n_features = counts.shape[1] if features is None else len(features)
    if not blocks:
        return sparse.csr_matrix((0, n_features), dtype=np.float32)
    return sparse.vstack(blocks, "csr", np.float32)


def _read_features(file: AnnDataFile, source: H5adSource) -> GuideMatrix:
    assert source.guide_features is not None
    positions = _feature_positions(file, source)
    counts = counts_matrix(file, source)
    names = [str(name) for name in read_names(file, "var")[positions]]
    where = f"{source.counts_place}, features of guides"
    genes = _genes_named(file, names, positions, source.guide_features.get("gene_column"))
    return GuideMatrix(_in_blocks(counts, None, positions), names, where, genes)


def _feature_positions(file: AnnDataFile, source: H5adSource) -> np.ndarray:
    assert source.guide_features is not None
    wanted = source.guide_features.get("feature_type", GUIDE_FEATURES)
    if FEATURE_TYPES not in columns(file, "var"):
        raise InputError(
            f"{source.path}: var has no {FEATURE_TYPES!r}, which tells guides from genes. Leave "
            "out 'guide_features'."
        )
    types = read_column(file, "var", FEATURE_TYPES).astype(str)
    found = np.flatnonzero(types == wanted)
    if not len(found):
        raise InputError(
            f"{source.path}: no feature is of the type {wanted!r} (there are: "
            f"{', '.join(sorted(types.unique()))}). Set 'guide_features.feature_type'."
        )
    return found


def _modality_counts(file: AnnDataFile, source: H5adSource) -> tuple[AnnDataFile, CountMatrix]:
    assert source.guide_modality is not None
    name, layer = source.guide_modality["name"], source.guide_modality.get("layer")
    guides = file.modality(name, "guide_modality.name")
    if layer is not None:
        member(guides, "layers", layer, "guide_modality.layer")
    return guides, counts_of(guides, layer)


def _read_modality(file: AnnDataFile, source: H5adSource) -> GuideMatrix:
    assert source.guide_modality is not None
    guides, counts = _modality_counts(file, source)
    names = [str(name) for name in read_names(guides, "var")]
    positions = np.arange(len(names))
    genes = _genes_named(guides, names, positions, source.guide_modality.get("gene_column"))
    rows = cells_of(guides, file, some_missing=True)
    matrix = _in_blocks(counts)
    known = rows >= 0
    if known.all():
        chosen = matrix[rows]
    else:
        empty = sparse.csr_matrix((1, matrix.shape[1]), dtype=np.float32)
        chosen = sparse.vstack([matrix, empty], "csr")[np.where(known, rows, matrix.shape[0])]
    return GuideMatrix(chosen, names, counts.where, genes, known=known)


def _genes_named(
    file: AnnDataFile, names: Sequence[str], positions: np.ndarray, gene_column: str | None
) -> dict[str, str] | None:
    if gene_column is None:
        return None
    check_member(file, "var", gene_column, columns(file, "var"), "gene_column")
    genes = read_column(file, "var", gene_column).iloc[positions]
    pairs = zip(names, genes, strict=True)
    return {name: str(gene).strip() for name, gene in pairs if not pd.isna(gene) and str(gene)}


def _check_values(matrix: sparse.spmatrix, names: Sequence[str], where: str) -> None:
    found = matrix.tocoo()
    for fault, wrong in (
        ("is not a finite number", ~np.isfinite(found.data)),
        ("is negative", found.data < 0),
    ):
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"{where}: the value {found.data[at]:g} of cell {found.row[at]} (counting "
                f"from 0) in the column {names[found.col[at]]!r} {fault}. A value is 0, or "
                "the dose that a cell had."
            )
