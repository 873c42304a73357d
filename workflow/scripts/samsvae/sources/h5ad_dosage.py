"""Perturbations as columns: one-hot columns of obs, or a matrix in obsm; the values are doses."""

from collections.abc import Iterable, Sequence

import anndata
import h5py
import numpy as np
from scipy import sparse

from samsvae.errors import InputError
from samsvae.labels import CONTROL, canonical_labels, label_of
from samsvae.sources.guides import genes_of_guides
from samsvae.sources.h5ad_file import columns, read_column
from samsvae.sources.h5ad_source import H5adSource, check_member, member

BLOCK_BYTES = 32 * 2**20


def read_dosage(file: h5py.File, source: H5adSource) -> tuple[sparse.csr_matrix, list[str], str]:
    """Read the dose of each perturbation in each cell.

    Parameters
    ----------
    file
        An open AnnData file.
    source
        Its `perturbation_columns` or `perturbation_matrix`.

    Returns
    -------
    dosage : csr_matrix
        Cells x columns, float32, 0 where a cell has not had the perturbation.
    names : list of str
        What the columns are called.
    where : str
        File and place, for messages.

    Raises
    ------
    InputError
        If columns or names are missing, or a value is no dose.
    """
    if source.perturbation_columns is not None:
        return _read_columns(file, source)
    return _read_matrix(file, source)


def _read_columns(file: h5py.File, source: H5adSource) -> tuple[sparse.csr_matrix, list[str], str]:
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
    return _stack(file, "obs", chosen, where), [name[len(prefix) :] for name in chosen], where


def _stack(file: h5py.File, table: str, chosen: Sequence[str], where: str) -> sparse.csr_matrix:
    """Read columns one by one, since together they may be many times the file's counts."""
    stacked = []
    for name in chosen:
        try:
            numbers = read_column(file, table, name).astype(np.float32).to_numpy()
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{where}: the column {name!r} does not hold numbers ({error}). Each perturbation "
                "has a column with 1, or the dose, where a cell had it and 0 elsewhere; leave "
                "other columns out by 'except'."
            ) from error
        stacked.append(sparse.csc_matrix(numbers[:, None]))
        _check_doses(stacked[-1], [name], where)
    return sparse.hstack(stacked, format="csr", dtype=np.float32)


def _read_matrix(file: h5py.File, source: H5adSource) -> tuple[sparse.csr_matrix, list[str], str]:
    assert source.perturbation_matrix is not None
    key, names_key = source.perturbation_matrix["obsm"], source.perturbation_matrix.get("names")
    where = f"{source.path}: obsm[{key!r}]"
    held = member(file, "obsm", key, "perturbation_matrix.obsm")
    is_table = held.attrs.get("encoding-type") == "dataframe"
    chosen = columns(file, f"obsm/{key}") if is_table else []
    if is_table:
        matrix = _stack(file, f"obsm/{key}", chosen, where)
        return matrix, chosen, where
    if names_key is None:
        raise InputError(
            f"{where} is a matrix without names. Set 'perturbation_matrix.names' to the key of "
            "uns that names its columns."
        )
    matrix = _read_rows(held)
    named = member(file, "uns", names_key, "perturbation_matrix.names")
    names = [str(name) for name in np.ravel(anndata.io.read_elem(named))]
    if matrix.shape[1] != len(names):
        raise InputError(
            f"{where} has {matrix.shape[1]} columns, but uns[{names_key!r}] {len(names)} names."
        )
    _check_doses(matrix, names, where)
    return matrix, names, where


def _read_rows(held: h5py.Dataset | h5py.Group) -> sparse.csr_matrix:
    """Read a matrix into CSR, whatever it is in the file."""
    if isinstance(held, h5py.Group):
        return sparse.csr_matrix(anndata.io.read_elem(held), dtype=np.float32)
    rows = max(1, BLOCK_BYTES // (held.dtype.itemsize * max(1, held.shape[1])))
    blocks = [held[at : at + rows] for at in range(0, held.shape[0], rows)]
    return sparse.vstack([sparse.csr_matrix(block) for block in blocks], "csr", np.float32)


def _check_doses(matrix: sparse.spmatrix, names: Sequence[str], where: str) -> None:
    found = matrix.tocoo()
    for fault, wrong in (
        ("is not a finite number", ~np.isfinite(found.data)),
        ("is negative", found.data < 0),
    ):
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"{where}: the value {found.data[at]:g} of cell {found.row[at]} (counting from 0) "
                f"in the column {names[found.col[at]]!r} {fault}. A value is 0, or the dose that "
                "a cell had."
            )


def labels_of_doses(
    dosage: sparse.csr_matrix, names: Sequence[str], where: str, source: H5adSource
) -> np.ndarray:
    """Write the canonical label of each cell's doses.

    Parameters
    ----------
    dosage, names, where
        What :func:`read_dosage` gave.
    source
        How guides name their genes, and which column, if any, marks control cells.

    Returns
    -------
    ndarray of str
        ``control`` for a cell that has nothing else.

    Raises
    ------
    InputError
        If a name cannot be one of a perturbation, no cell is a control cell, or a cell has two
        guides of a gene at different doses.
    """
    if not all(name.strip() for name in names):
        raise InputError(f"{where}: a column has no name but the prefix. Leave it out by 'except'.")
    genes = genes_of_guides(names, source, where)
    canonical_labels([*genes.values(), source.control], source.control, None, where)
    dosage.sort_indices()
    dosage.eliminate_zeros()
    gene_of_column = [genes[name] for name in names]
    known: dict[bytes, str] = {}
    labels = np.empty(dosage.shape[0], dtype=object)
    for cell in range(len(labels)):
        entries = slice(dosage.indptr[cell], dosage.indptr[cell + 1])
        columns, doses = dosage.indices[entries], dosage.data[entries]
        key = columns.tobytes() + doses.tobytes()
        if key not in known:
            given = zip((gene_of_column[column] for column in columns), doses, strict=True)
            known[key] = label_of(_doses_of_cell(cell, given, source.control, where))
        labels[cell] = known[key]
    if CONTROL not in known.values():
        raise InputError(
            f"{where}: there is no control cell: each has a perturbation. Set 'control' to the "
            "column of non-targeting guides."
        )
    return labels


def _doses_of_cell(
    cell: int, given: Iterable[tuple[str, float]], control: str, where: str
) -> dict[str, float]:
    doses: dict[str, float] = {}
    for gene, dose in given:
        if gene != control and doses.setdefault(gene, dose) != dose:
            raise InputError(
                f"{where}: cell {cell} (counting from 0) has two guides of {gene!r} at the doses "
                f"{doses[gene]:g} and {dose:g}. Give them one dose."
            )
    return doses
