"""An h5ad file that is read in parts: single columns of obs and var, and counts in blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd

from samsvae.errors import InputError
from samsvae.sources.counts import CountMatrix
from samsvae.sources.h5ad_safety import check_contents, check_length, damage_told

NAMES_AT_ONCE = 2**16
CHUNK_CACHE_BYTES = 2**20  # of each data set; blocks share at most the chunk between them


@contextmanager
def open_h5ad(path: str | Path) -> Iterator[h5py.File]:
    """Open an h5ad file for reading.

    Parameters
    ----------
    path
        The file.

    Yields
    ------
    h5py.File
        With groups ``obs`` and ``var``.

    Raises
    ------
    InputError
        If there is no such file, it is no h5ad file, was cut short or is damaged.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file. Set 'path' to an existing h5ad file.")
    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: not an h5ad file (it is not HDF5, or it was cut short).")
    try:
        file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as an h5ad file: {error}.") from error
    with file, damage_told(path):
        check_contents(file)
        for name in ("obs", "var"):
            if not isinstance(file.get(name), h5py.Group):
                raise InputError(
                    f"{path}: not an h5ad file of today: the group {name!r} is missing."
                )
            if not isinstance(file[name].get(_index(file[name])), h5py.Dataset | h5py.Group):
                raise InputError(f"{path}: {name} has no column of names. Write the file anew.")
        yield file


def counts_of(file: h5py.File, layer: str | None = None) -> CountMatrix:
    """Get the matrix of counts.

    Parameters
    ----------
    file
        An open h5ad file.
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
        found, where = file.get("X"), "X"
    else:
        layers = file.get("layers", {})
        found, where = layers.get(layer), f"layers[{layer!r}]"
        if found is None:
            raise InputError(
                f"{file.filename}: layers has no {layer!r} (it has: "
                f"{', '.join(sorted(layers)) or 'nothing'})."
            )
    if found is None:
        raise InputError(f"{file.filename}: not an h5ad file: 'X' is missing.")
    counts = CountMatrix(found, f"{file.filename}: {where}")
    for length, table, rows in zip(counts.shape, ("obs", "var"), ("cells", "genes"), strict=True):
        check_length(length, n_rows(file, table), f"{counts.where}, along {rows},", rows)
    return counts


def n_rows(file: h5py.File, table: str) -> int:
    """Count the cells (``obs``) or genes (``var``) that have a name."""
    element = file[table][_index(file[table])]
    names = element["codes"] if isinstance(element, h5py.Group) and "codes" in element else element
    return len(names) if isinstance(names, h5py.Dataset) and names.ndim == 1 else -1


def columns(file: h5py.File, table: str) -> list[str]:
    """Name the columns of ``obs`` or ``var``, without its index."""
    return sorted(set(file[table]) - {"__categories", _index(file[table])})


def first_column(file: h5py.File, table: str, names: tuple[str, ...], what: str) -> str:
    """Choose the first of some columns that the file has.

    Parameters
    ----------
    file
        An open h5ad file.
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


def read_column(file: h5py.File, table: str, name: str) -> pd.Series:
    """Read one column of ``obs`` or ``var``; a categorical one stays so.

    Raises
    ------
    InputError
        If there is no such column, listing those that there are, or it is damaged.
    """
    first_column(file, table, (name,), "what is needed here")
    element = file[table][name]
    try:
        values = anndata.io.read_elem(element)
        # before anndata 0.8 the categories lay apart from their codes
        if isinstance(element, h5py.Dataset) and "categories" in element.attrs:
            categories = anndata.io.read_elem(file[element.attrs["categories"]])
            values = pd.Categorical.from_codes(values, categories)
    except Exception as error:
        raise _damaged(file, f"{table}[{name!r}]", error) from error
    if np.ndim(values) != 1:
        raise _damaged(file, f"{table}[{name!r}]", ValueError("it is no column but a matrix"))
    column = pd.Series(values)
    check_length(len(column), n_rows(file, table), f"{file.filename}: {table}[{name!r}]", "rows")
    return column


def read_names(file: h5py.File, table: str, chosen: np.ndarray | None = None) -> pd.Index:
    """Read names of cells or genes.

    Parameters
    ----------
    file
        An open h5ad file.
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
    if not isinstance(element, h5py.Dataset):
        names = pd.Index(anndata.io.read_elem(element))
        return (names if chosen is None else names[chosen]).astype(str)
    if chosen is None:
        chosen = np.arange(len(element))
    kept: list[Any] = []
    try:
        for first in range(0, len(element), NAMES_AT_ONCE):
            last = first + NAMES_AT_ONCE
            here = chosen[slice(*np.searchsorted(chosen, [first, last]))]
            if len(here):
                kept.extend(map(_text, element[first:last][here - first]))
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise _damaged(file, f"names of {table}", error) from error
    return pd.Index(kept, dtype=object).astype(str)


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _index(group: h5py.Group) -> str:
    return str(group.attrs.get("_index", "_index"))


def _damaged(file: h5py.File, what: str, error: Exception) -> InputError:
    return InputError(f"{file.filename}: {what} cannot be read: {error}.")
