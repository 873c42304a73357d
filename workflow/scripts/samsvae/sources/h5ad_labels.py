"""Which cell had which perturbation, in any of the forms that files have."""

import logging
from collections.abc import Sequence

import h5py
import numpy as np
import pandas as pd

from samsvae.doses import read_doses
from samsvae.errors import InputError
from samsvae.labels import CONTROL, canonical_labels, label_of
from samsvae.sources.guides import genes_of_guides
from samsvae.sources.h5ad_dosage import labels_of_doses, read_dosage
from samsvae.sources.h5ad_source import H5adSource, column

logger = logging.getLogger(__name__)


def read_labels(file: h5py.File, source: H5adSource) -> np.ndarray:
    """Read the canonical label of each cell.

    Parameters
    ----------
    file
        An open AnnData file.
    source
        Where its labels are, and how they are written.

    Returns
    -------
    ndarray of str
        One label a cell, as :mod:`samsvae.screen` defines them.

    Raises
    ------
    InputError
        If a column is missing, or a label, guide or dose cannot be used.
    """
    if source.perturbation_column is None:
        return labels_of_doses(*read_dosage(file, source), source)
    where = f"{source.path}: obs[{source.perturbation_column!r}]"
    written = read_label_column(file, source)
    genes = _name_genes(list(written.categories), source, where)
    cells = pd.Categorical(np.array(genes, dtype=object)[written.codes])
    canonical = canonical_labels(list(cells.categories), source.control, source.delimiter, where)
    undosed = np.array(canonical, dtype=object)[cells.codes]
    if source.dose_column is None:
        return undosed
    doses = column(file, "obs", source.dose_column, "dose_column")
    return _with_doses(cells, undosed, doses, source)


def read_label_column(file: h5py.File, source: H5adSource) -> pd.Categorical:
    """Read the column of labels as the file has them.

    Raises
    ------
    InputError
        If there is no such column, or a cell without a label.
    """
    name = str(source.perturbation_column)
    labels = column(file, "obs", name, "perturbation_column")
    missing = int(pd.isna(labels).sum())
    if missing:
        raise InputError(
            f"{source.path}: obs[{name!r}]: {missing} cell(s) have no label. Give each cell a "
            "label."
        )
    return pd.Categorical(labels.astype(str))


def _name_genes(labels: Sequence[str], source: H5adSource, where: str) -> list[str]:
    """Put a gene in the place of each guide of a label."""
    if source.guide_table is None and source.guide_pattern is None:
        return list(labels)
    joint = source.delimiter
    parts = [
        [part.strip() for part in label.split(joint)] if joint and label != source.control
        else [label]
        for label in labels
    ]  # fmt: skip
    genes = genes_of_guides({p for guides in parts for p in guides if p}, source, where)
    return [(joint or "").join(genes.get(guide, guide) for guide in guides) for guides in parts]


def _with_doses(
    cells: pd.Categorical, undosed: np.ndarray, doses: pd.Series, source: H5adSource
) -> np.ndarray:
    given = np.where(undosed == CONTROL, None, doses.to_numpy(dtype=object))
    pairs = pd.DataFrame({"label": cells, "dose": given})
    number = pairs.groupby(["label", "dose"], observed=True, sort=False, dropna=False).ngroup()
    first = (~number.duplicated()).to_numpy()
    where = f"{source.path}: obs[{source.dose_column!r}]"
    dosed = [
        label_of(read_doses(dose, label, source.control, source.delimiter, where))
        for label, dose in zip(cells[first], given[first], strict=True)
    ]
    return np.array(dosed, dtype=object)[number]


def with_enough_cells(labels: np.ndarray, min_cells: int, where: str) -> np.ndarray:
    """Choose the cells of control, and of perturbations that have enough.

    A combination is judged by its own cells, whether or not its single genes stay.

    Parameters
    ----------
    labels
        Canonical label of each cell.
    min_cells
        Smallest number of cells of a perturbation that is kept.
    where
        File, for messages.

    Returns
    -------
    ndarray of bool
        Whether each cell stays. What goes is logged, with its number of cells.

    Raises
    ------
    InputError
        If no perturbation has so many cells.
    """
    cells = pd.Series(labels).value_counts().drop(CONTROL, errors="ignore")
    few = cells[cells < min_cells].sort_index()
    if len(few):
        if len(few) == len(cells):
            raise InputError(
                f"{where}: no perturbation has {min_cells} cells or more (the largest has "
                f"{cells.max()}). Lower 'min_cells'."
            )
        logger.info(
            "min_cells %d: left out %d of %d perturbations with %d cells in all: %s",
            min_cells, len(few), len(cells), few.sum(),
            ", ".join(f"{name} {number}" for name, number in few.items()),
        )  # fmt: skip
    return ~np.isin(labels.astype(str), list(few.index))
