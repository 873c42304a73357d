"""An AnnData file that is read in parts: single columns of obs and var, and counts in blocks.

It is an h5ad file, a zarr store, or one modality of an h5mu file or store; its genes are those of
X, or those of raw.
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
    damage_told,
    is_array,
    is_group,
    open_storage,
)

NAMES_AT_ONCE = 2**16
RAW = "raw"
# modalities that hold the counts of genes, by the names that muon, pertpy and IGVF give them
RNA_MODALITIES = ("rna", "gex", "gene", "genes", "RNA", "GEX", "Gene Expression")


class AnnDataFile:
    """An AnnData object in an open file or store, whose parts are read when they are asked for.

    Parameters
    ----------
    root
        The group that holds ``obs``, ``var`` and the rest.
    filename
        The file, and of several modalities the name of this one, for messages.
    whole
        Of a file of several modalities its root, whose ``obs`` may have more columns.
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
        """Get a part of the file, ``default`` if there is none of that name."""
        of_raw = self.raw and name.split("/")[0] in ("X", "var")
        place = f"{RAW}/{name}" if of_raw else name
        return self.root.get(place, default)

    def __getitem__(self, name: str) -> Any:
        """Get a part of the file."""
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: str) -> bool:
        """Whether the file has a part of that name."""
        return self.get(name) is not None

    def of_raw(self) -> "AnnDataFile":
        """Get the same file with the genes and counts of ``raw``.

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
        """Get another modality of the same file.

        Raises
        ------
        InputError
            If there is none of that name; the message names those that there are.
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
        Of an h5mu file, the one with the counts of genes; None for the one that is called so.
    guide_modality
        One that is another, if known.

    Yields
    ------
    AnnDataFile
        With ``obs`` and ``var``.

    Raises
    ------
    InputError
        If there is no such file, it is no AnnData file, was cut short or is damaged.
    """
    with damage_told(path), open_storage(path) as root:
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
    """Refuse what has no cells or genes with names, and say what it is instead."""
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
    """Whether a matrix is not there, or stands for None."""
    return element is None or (
        is_array(element) and (element.shape == () or element.attrs.get("encoding-type") == "null")
    )


def places_of_counts(file: AnnDataFile) -> str:
    """Say which matrices of a file there are beside X."""
    layers = sorted(file.get("layers", {}))
    places = [repr(name) for name in layers]
    if is_group(file.root.get(RAW)) and not is_missing(file.root[RAW].get("X")):
        places.append(repr(RAW))
    if not places:
        return "It has no layers and no raw."
    return f"Set 'counts_layer' to the one with raw counts: {', '.join(places)}."


def counts_of(file: AnnDataFile, layer: str | None = None) -> CountMatrix:
    """Get the matrix of counts.

    Parameters
    ----------
    file
        An open file.
    layer
        Name of a layer; None for X.

    Returns
    -------
    CountMatrix
        Nothing but its shape has been read.

    Raises
    ------
    InputError
        If there is no such layer, or it is no matrix.
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
    """Count the cells (``obs``) or genes (``var``) that have a name."""
    names = file[table][_index(file[table])]
    # categories, and strings that may be missing, are groups
    for part in ("codes", "values"):
        if is_group(names) and part in names:
            names = names[part]
    return int(names.shape[0]) if is_array(names) and names.ndim == 1 else -1


def columns(file: AnnDataFile, table: str) -> list[str]:
    """Name the columns of ``obs`` or ``var``, without its index."""
    return sorted(set(file[table]) - {"__categories", _index(file[table])})


def first_column(file: AnnDataFile, table: str, names: tuple[str, ...], what: str) -> str:
    """Choose the first of some columns that the file has.

    Parameters
    ----------
    file
        An open file.
    table
        ``obs`` or ``var``.
    names
        The columns that would do.
    what
        What they hold, for the message.

    Returns
    -------
    str
        Its name.

    Raises
    ------
    InputError
        If there is none, listing the columns that there are.
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
    """Read one column of ``obs`` or ``var``; a categorical one stays so.

    Raises
    ------
    InputError
        If there is no such column, listing those that there are, or it is damaged.
    """
    first_column(file, table, (name,), "what is needed here")
    where = f"{file.filename}: {table}[{name!r}]"
    column = _read_element(file.root, file[table][name], where)
    check_length(len(column), n_rows(file, table), where, "rows")
    return column


def _read_element(root: Group, element: Array | Group, where: str) -> pd.Series:
    try:
        values = anndata.io.read_elem(element)
        # before anndata 0.8 the categories lay apart from their codes
        if is_array(element) and "categories" in element.attrs:
            categories = anndata.io.read_elem(root[element.attrs["categories"]])
            values = pd.Categorical.from_codes(values, categories)
    except Exception as error:
        raise InputError(f"{where} cannot be read: {error}.") from error
    if np.ndim(values) != 1:
        raise InputError(f"{where} cannot be read: it is no column but a matrix.")
    return pd.Series(values)


def shared_columns(file: AnnDataFile) -> list[str]:
    """Name the columns of obs that belong to all modalities of a file; none if it has but one."""
    table: Any = None if file.whole is None else file.whole.get("obs")
    if not is_group(table) or _index(table) not in table:
        return []
    return sorted(set(table) - {"__categories", _index(table)})


def read_shared_column(file: AnnDataFile, name: str) -> pd.Series:
    """Read a column of obs that belongs to all modalities, in the order of this one's cells."""
    assert file.whole is not None
    path = file.filename.split(": modality ")[0]
    where = f"{path}: obs[{name!r}]"
    column = _read_element(file.whole, file.whole["obs"][name], where)
    whole = AnnDataFile(file.whole, path)
    check_length(len(column), n_rows(whole, "obs"), where, "rows")
    return column.iloc[cells_of(whole, file)].reset_index(drop=True)


def cells_of(other: AnnDataFile, file: AnnDataFile, some_missing: bool = False) -> np.ndarray:
    """Look up the cells of a file in another modality of it.

    Parameters
    ----------
    other
        Where to look.
    file
        Whose cells are wanted.
    some_missing
        Whether cells that are not there get the position -1, in place of an error.

    Raises
    ------
    InputError
        If a cell is not there, or names occur more than once.
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
        Positions, ascending; None for all. No others are kept in memory.

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
