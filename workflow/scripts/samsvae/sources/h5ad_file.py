"""Partial reading of AnnData files: single columns of obs and var, and counts in blocks.

A file is an h5ad file, a zarr store, or one modality of an h5mu file or store; its genes are those
of X or of raw.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from samsvae.runtime.errors import InputError
from samsvae.sources.counts import CountMatrix
from samsvae.sources.storage import (
    Array,
    Group,
    check_length,
    explain_damage,
    is_array,
    is_group,
    open_storage,
)

NAMES_AT_ONCE = 2**16
RAW = "raw"
# names of the modality of gene counts in muon, pertpy and IGVF
RNA_MODALITIES = ("rna", "gex", "gene", "genes", "RNA", "GEX", "Gene Expression")


class AnnDataFile:
    """Lazily read AnnData object in an open file or store.

    Parameters
    ----------
    root
        The group of ``obs``, ``var`` and the other elements.
    filename
        The file, with the name of the modality if there are several, for messages.
    whole
        Root of a file of several modalities, whose ``obs`` may have more columns.
    raw
        Whether ``X`` and ``var`` are those of ``raw``.
    """

    def __init__(
        self, root: Group, filename: str, whole: Group | None = None, raw: bool = False
    ) -> None:
        self.root = root
        self.filename = filename
        self.whole = whole
        self.raw = raw

    def get(self, name: str, default: Any = None) -> Any:
        """Return an element of the file; `default` if it does not exist."""
        of_raw = self.raw and name.split("/")[0] in ("X", "var")
        path = f"{RAW}/{name}" if of_raw else name
        return self.root.get(path, default)

    def __getitem__(self, name: str) -> Any:
        """Return an element of the file."""
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: str) -> bool:
        """Whether the file has an element of that name."""
        return self.get(name) is not None

    def of_raw(self) -> "AnnDataFile":
        """Return the same file with the genes and counts of ``raw``.

        Raises
        ------
        InputError
            If the file has no ``raw``.
        """
        if not is_group(self.root.get(RAW)) or not {"X", "var"} <= set(self.root[RAW]):
            raise InputError(
                f"{self.filename}: there is no raw, and layers has no 'raw'. "
                f"{places_of_counts(self)}"
            )
        return AnnDataFile(self.root, self.filename, self.whole, raw=True)

    def modality(self, name: str, key: str) -> "AnnDataFile":
        """Return another modality of the same file.

        Raises
        ------
        InputError
            If there is no such modality, with the names of the others.
        """
        known = _modalities(self.whole)
        if name not in known:
            there = f"it has: {', '.join(known)}" if known else "it is one AnnData object"
            raise InputError(
                f"{self.filename}: there is no modality {name!r} ({there}). Set {key!r}."
            )
        assert self.whole is not None
        path = self.filename.split(": modality ")[0]
        return _checked(
            AnnDataFile(self.whole["mod"][name], f"{path}: modality {name!r}", self.whole)
        )


def _modalities(whole: Group | None) -> list[str]:
    held: Any = None if whole is None or "mod" not in whole else whole["mod"]
    return sorted(held) if is_group(held) else []


@contextmanager
def open_h5ad(
    path: str | Path, modality: str | None = None, guide_modality: str | None = None
) -> Iterator[AnnDataFile]:
    """Open an AnnData file for reading.

    Parameters
    ----------
    path
        An h5ad or h5mu file, or a zarr store of either.
    modality
        Modality of gene counts of an h5mu file; None to find it by its name.
    guide_modality
        Modality of guides, if known.

    Yields
    ------
    AnnDataFile
        With ``obs`` and ``var``.

    Raises
    ------
    InputError
        If the file does not exist, is no AnnData file, is truncated or damaged.
    """
    with explain_damage(path), open_storage(path) as root:
        if "mod" not in root:
            if modality is not None:
                raise InputError(
                    f"{path}: 'modality' is {modality!r}, but the file is one AnnData object. "
                    "Leave it out."
                )
            yield _checked(AnnDataFile(root, str(path)))
            return
        known = _modalities(root)
        chosen = modality
        if chosen is None:
            others = [name for name in known if name != guide_modality]
            named = [name for name in RNA_MODALITIES if name in others]
            chosen = named[0] if named else others[0] if len(others) == 1 else None
        if chosen is None or chosen not in known:
            raise InputError(
                f"{path}: a file of several modalities ({', '.join(known) or 'none'}). Set "
                "'modality' to the one with the counts of genes."
            )
        yield AnnDataFile(root, str(path), root).modality(chosen, "modality")


def _checked(file: AnnDataFile) -> AnnDataFile:
    """Refuse a file without named cells and genes, and name its actual format."""
    for name in ("obs", "var"):
        table: Any = file.root.get(name) if is_group(file.root) else None
        if not is_group(table):
            raise InputError(f"{file.filename}: {_kind_of_content(file.root, name)}")
        if _index(table) not in table:
            raise InputError(
                f"{file.filename}: {name} has no column of names. Write the file anew."
            )
    return file


def _kind_of_content(root: Group, missing: str) -> str:
    known = set(root) if is_group(root) else set()
    if "matrix" in known:
        return (
            "an HDF5 file of Cell Ranger, not an h5ad file. Convert it: "
            "scanpy.read_10x_h5(path, gex_only=False).write_h5ad('screen.h5ad')."
        )
    if {"row_attrs", "col_attrs"} <= known:
        return "a loom file. Convert it: anndata.io.read_loom(path).write_h5ad('screen.h5ad')."
    if is_array(root.get(missing) if missing in known else None):
        return (
            f"not an h5ad file of today: {missing!r} is a table of anndata before 0.7. Read it "
            "with that version, and write it anew."
        )
    return f"not an h5ad file of today: the group {missing!r} is missing."


def is_missing(element: Any) -> bool:
    """Whether a matrix does not exist or is None."""
    return element is None or (
        is_array(element) and (element.shape == () or element.attrs.get("encoding-type") == "null")
    )


def places_of_counts(file: AnnDataFile) -> str:
    """List the matrices of a file besides X, as advice for a message."""
    layers = sorted(file.get("layers", {}))
    matrices = [repr(name) for name in layers]
    if is_group(file.root.get(RAW)) and not is_missing(file.root[RAW].get("X")):
        matrices.append(repr(RAW))
    if not matrices:
        return "It has no layers and no raw."
    return f"Set 'counts_layer' to the one with raw counts: {', '.join(matrices)}."


def counts_of(file: AnnDataFile, layer: str | None = None) -> CountMatrix:
    """Return the matrix of counts.

    Parameters
    ----------
    file
        An open file.
    layer
        Name of a layer; None for X.

    Returns
    -------
    CountMatrix
        Only its shape is read.

    Raises
    ------
    InputError
        If the layer does not exist or is no matrix.
    """
    if layer is None:
        found, where = file.get("X"), "raw/X" if file.raw else "X"
    else:
        layers = file.get("layers", {})
        found, where = layers.get(layer), f"layers[{layer!r}]"
        if found is None:
            raise InputError(
                f"{file.filename}: layers has no {layer!r} (it has: "
                f"{', '.join(sorted(layers)) or 'nothing'})."
            )
    if is_missing(found):
        raise InputError(
            f"{file.filename}: there are no counts in {where}. {places_of_counts(file)}"
        )
    counts = CountMatrix(found, f"{file.filename}: {where}")
    for length, table, rows in zip(counts.shape, ("obs", "var"), ("cells", "genes"), strict=True):
        check_length(length, n_rows(file, table), f"{counts.where}, along {rows},", rows)
    return counts


def n_rows(file: AnnDataFile, table: str) -> int:
    """Count the cells (``obs``) or genes (``var``) by their names."""
    names = file[table][_index(file[table])]
    # categories, and strings that may be missing, are groups
    for part in ("codes", "values"):
        if is_group(names) and part in names:
            names = names[part]
    return int(names.shape[0]) if is_array(names) and names.ndim == 1 else -1


def columns(file: AnnDataFile, table: str) -> list[str]:
    """List the columns of ``obs`` or ``var`` without its index."""
    return sorted(set(file[table]) - {"__categories", _index(file[table])})


def first_column(file: AnnDataFile, table: str, names: tuple[str, ...], what: str) -> str:
    """Find the first of some columns that the file has.

    Parameters
    ----------
    file
        An open file.
    table
        ``obs`` or ``var``.
    names
        Possible columns.
    what
        Their content, for the message.

    Returns
    -------
    str
        Its name.

    Raises
    ------
    InputError
        If there is none, with the existing columns.
    """
    known = columns(file, table)
    for name in names:
        if name in known:
            return name
    raise InputError(
        f"{file.filename}: {table} has no column {' or '.join(map(repr, names))} with {what} "
        f"(it has: {', '.join(known) or 'nothing'})."
    )


def read_column(file: AnnDataFile, table: str, name: str) -> pd.Series:
    """Read a column of ``obs`` or ``var``; a categorical column stays categorical.

    Raises
    ------
    InputError
        If there is no such column, with the existing ones, or it is damaged.
    """
    first_column(file, table, (name,), "what is needed here")
    where = f"{file.filename}: {table}[{name!r}]"
    column = _read_element(file.root, file[table][name], where)
    check_length(len(column), n_rows(file, table), where, "rows")
    return column


def _read_element(root: Group, element: Array | Group, where: str) -> pd.Series:
    try:
        values = anndata.io.read_elem(element)
        # before anndata 0.8 categories were stored apart from their codes
        if is_array(element) and "categories" in element.attrs:
            categories = anndata.io.read_elem(root[element.attrs["categories"]])
            values = pd.Categorical.from_codes(values, categories)
    except Exception as error:
        raise InputError(f"{where} cannot be read: {error}.") from error
    if np.ndim(values) != 1:
        raise InputError(f"{where} cannot be read: it is no column but a matrix.")
    return pd.Series(values)


def shared_columns(file: AnnDataFile) -> list[str]:
    """List the columns of obs that are common to all modalities; none for a single modality."""
    table: Any = None if file.whole is None else file.whole.get("obs")
    if not is_group(table) or _index(table) not in table:
        return []
    return sorted(set(table) - {"__categories", _index(table)})


def read_shared_column(file: AnnDataFile, name: str) -> pd.Series:
    """Read a column of obs that is common to all modalities, in the order of this one's cells."""
    assert file.whole is not None
    path = file.filename.split(": modality ")[0]
    where = f"{path}: obs[{name!r}]"
    column = _read_element(file.whole, file.whole["obs"][name], where)
    whole = AnnDataFile(file.whole, path)
    check_length(len(column), n_rows(whole, "obs"), where, "rows")
    return column.iloc[cells_of(whole, file)].reset_index(drop=True)


def cells_of(other: AnnDataFile, file: AnnDataFile, some_missing: bool = False) -> np.ndarray:
    """Find the indices of a modality's cells in another modality.

    Parameters
    ----------
    other
        The modality to search in.
    file
        The modality of the cells.
    some_missing
        Whether missing cells get the index -1 instead of an error.

    Raises
    ------
    InputError
        If a cell is missing, or names occur more than once.
    """
    here, there = read_names(file, "obs"), read_names(other, "obs")
    if here.equals(there):
        return np.arange(len(here))
    if here.has_duplicates or there.has_duplicates:
        raise InputError(
            f"{other.filename}: names of cells occur more than once, so that its cells cannot be "
            f"matched with those of {file.filename}. Make them unique in the file."
        )
    found = there.get_indexer(here)
    if (found < 0).all() or (not some_missing and (found < 0).any()):
        raise InputError(
            f"{other.filename}: {int((found < 0).sum()):,} of the {len(here):,} cells of "
            f"{file.filename} are not there, for instance {here[found < 0][0]!r}."
        )
    return found


def read_names(file: AnnDataFile, table: str, chosen: np.ndarray | None = None) -> pd.Index:
    """Read names of cells or genes.

    Parameters
    ----------
    file
        An open file.
    table
        ``obs`` for cells, ``var`` for genes.
    chosen
        Indices, ascending; None for all. No others are kept in memory.

    Returns
    -------
    Index
        The names, str.
    """
    element = file[table][_index(file[table])]
    where = f"{file.filename}: names of {table}"
    if not is_array(element):
        names = pd.Index(_read_element(file.root, element, where))
        return (names if chosen is None else names[chosen]).astype(str).astype(object)
    n_names = int(element.shape[0])
    if chosen is None:
        chosen = np.arange(n_names)
    kept: list[Any] = []
    try:
        for first in range(0, n_names, NAMES_AT_ONCE):
            last = first + NAMES_AT_ONCE
            here = chosen[slice(*np.searchsorted(chosen, [first, last]))]
            if len(here):
                kept.extend(map(_text, element[first:last][here - first]))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{where} cannot be read: {error}.") from error
    return pd.Index(kept, dtype=object).astype(str)


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _index(group: Group) -> str:
    return str(group.attrs.get("_index", "_index"))
