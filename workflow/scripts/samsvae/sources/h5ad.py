"""Anyone's own screen: an AnnData file of raw counts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd

from samsvae.doses import read_doses
from samsvae.errors import InputError
from samsvae.labels import CONTROL, canonical_labels, label_of
from samsvae.screen import build_screen


@dataclass(frozen=True)
class H5adSource:
    """Where in a file to find what; see the configuration's schema for each field."""

    path: str
    perturbation_column: str
    control: str
    delimiter: str | None = "+"
    counts_layer: str | None = None
    gene_symbol_column: str | None = None
    dose_column: str | None = None


def check_header(source: H5adSource) -> list[str]:
    """Check what can be known from the file's header, in well under a second.

    Parameters
    ----------
    source
        The file and its columns.

    Returns
    -------
    list of str
        Gene symbols, as they will stand in the screen.

    Raises
    ------
    InputError
        If the file is missing, is no h5ad, lacks a column, layer or the control label, or a label
        or dose cannot be used.
    """
    path = Path(source.path)
    if not path.is_file():
        raise InputError(f"{path}: no such file. Set 'path' to an existing h5ad file.")
    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: not an h5ad file (it is not HDF5, or it was cut short).")
    try:
        with h5py.File(path, "r") as file:
            return _check_groups(file, source)
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read as an h5ad file: {error}.") from error


def _check_groups(file: h5py.File, source: H5adSource) -> list[str]:
    for group in ("X", "obs", "var"):
        if group not in file:
            raise InputError(f"{source.path}: not an h5ad file: {group!r} is missing.")
    _check_member(file["obs"], source.perturbation_column, "perturbation_column", "obs", source)
    if source.counts_layer is not None:
        layers = file.get("layers", {})
        _check_member(layers, source.counts_layer, "counts_layer", "layers", source)
    where = f"{source.path}: obs[{source.perturbation_column!r}]"
    labels = _column(file["obs"], source.perturbation_column)
    missing = int(pd.isna(labels).sum())
    if missing:
        raise InputError(f"{where}: {missing} cell(s) have no label. Give each cell a label.")
    _canonical_labels(labels, _doses(file["obs"], source), source)
    symbols = source.gene_symbol_column
    if symbols is not None:
        _check_member(file["var"], symbols, "gene_symbol_column", "var", source)
    return list(_column(file["var"], symbols or _index_name(file["var"])).astype(str))


def _check_member(group: Any, name: str, key: str, what: str, source: H5adSource) -> None:
    if name not in group:
        known = ", ".join(sorted(set(group) - {"_index"})) or "nothing"
        raise InputError(
            f"{source.path}: {what} has no {name!r} (it has: {known}). Set {key!r} to one of them."
        )


def _doses(obs: h5py.Group, source: H5adSource) -> pd.Series | None:
    if source.dose_column is None:
        return None
    _check_member(obs, source.dose_column, "dose_column", "obs", source)
    return _column(obs, source.dose_column)


def _canonical_labels(labels: pd.Series, doses: pd.Series | None, source: H5adSource) -> list[str]:
    """Bring the label of each cell into canonical form, its doses included."""
    where = f"{source.path}: obs[{source.perturbation_column!r}]"
    column = pd.Categorical(labels.astype(str))
    names = list(column.categories)
    canonical = canonical_labels(names, source.control, source.delimiter, where)
    undosed = np.array(canonical, dtype=object)[column.codes]
    if doses is None:
        return list(undosed)
    given = np.where(undosed == CONTROL, None, doses.to_numpy(dtype=object))
    cells = pd.DataFrame({"label": column, "dose": given})
    number = cells.groupby(["label", "dose"], observed=True, sort=False, dropna=False).ngroup()
    first = (~number.duplicated()).to_numpy()
    where = f"{source.path}: obs[{source.dose_column!r}]"
    dosed = [
        label_of(read_doses(dose, label, source.control, source.delimiter, where))
        for label, dose in zip(column[first], given[first], strict=True)
    ]
    return [dosed[index] for index in number]


def _index_name(group: h5py.Group) -> str:
    return str(group.attrs.get("_index", "_index"))


def _column(group: h5py.Group, name: str) -> pd.Series:
    return pd.Series(anndata.io.read_elem(group[name]))


def read_h5ad_screen(source: H5adSource) -> anndata.AnnData:
    """Read a user's file into the canonical form.

    Parameters
    ----------
    source
        The file and its columns.

    Returns
    -------
    AnnData
        Canonical screen; genes without any count are kept.

    Raises
    ------
    InputError
        If the file or what it holds cannot be used; the message says what to change.
    """
    gene_names = check_header(source)
    try:
        data = anndata.read_h5ad(source.path)
    except Exception as error:
        raise InputError(f"{source.path}: cannot be read as an h5ad file: {error}.") from error
    layer = source.counts_layer
    counts = data.X if layer is None else data.layers[layer]
    where = f"{source.path}: {'X' if layer is None else f'layers[{layer!r}]'}"
    doses = None if source.dose_column is None else data.obs[source.dose_column]
    return build_screen(
        counts,
        perturbation=_canonical_labels(data.obs[source.perturbation_column], doses, source),
        cell_names=list(data.obs_names),
        gene_names=gene_names,
        where=where,
    )
