"""Reader of Norman et al. 2019: CRISPRa of single genes and pairs in K562, two published files.

The authors' processed file (copy ``original``) has raw counts in ``layers["counts"]``, the most
variable genes marked in ``var["highly_variable"]``, and for each targeted gene a column
``guide_<GENE>`` of ``obs``, 1 in the cells that have its guide; a cell with none is a control. Of
the scPerturb copy this module assumes what that collection documents: raw counts of all genes in
X, and in ``obs["perturbation"]`` a gene, two genes joined by ``_``, or ``control``.

Both have the same labels and counts for common cells and genes. The scPerturb copy does not mark
the genes that the authors kept: list them in `genes`, or the most variable genes are selected
again, by the same method but over the copy's cells, so that some of them differ.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL, JOIN, LabelGrammar, LabelSet, refuse_no_control
from samsvae.sources.counts import (
    PUBLISHED,
    CountMatrix,
    Selection,
    check_screen_size,
    write_selection,
)
from samsvae.sources.genes import highly_variable_genes, read_genes, unique_names
from samsvae.sources.h5ad_file import (
    AnnDataFile,
    columns,
    counts_of,
    first_column,
    open_h5ad,
    read_column,
    read_names,
)

PUBLISHED_CELLS = {"original": 111_255, "scperturb": 111_445}
PUBLISHED_GENES = 5_000
PUBLISHED_TARGETS = 105

GUIDE = "guide_"
NO_GUIDES = ("guide_identity", "guide_ids")  # the columns of that prefix that name no single gene
COVARIATES = ("guide_identity", "gemgroup")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NormanSource:
    """File of the screen, and its expected size.

    Attributes
    ----------
    path
        The file.
    copy
        ``original`` or ``scperturb``.
    genes
        For ``scperturb``, the genes to keep: a text file with a symbol on each line, or the
        original h5ad file; None for the most variable.
    n_genes
        For ``scperturb`` without `genes`, the number of genes to select.
    expected_cells, expected_genes, expected_target_genes
        Cells, genes and targeted genes: a number, ``"published"``, or None if any will do.
    """

    path: str
    copy: str = "original"
    genes: str | None = None
    n_genes: int = PUBLISHED_GENES
    expected_cells: int | str | None = PUBLISHED
    expected_genes: int | str | None = PUBLISHED
    expected_target_genes: int | str | None = PUBLISHED

    def __post_init__(self) -> None:
        if self.copy not in PUBLISHED_CELLS:
            raise InputError(f"copy: {self.copy!r} is none of {', '.join(PUBLISHED_CELLS)}.")
        if self.genes is not None and self.copy == "original":
            raise InputError("genes: the original file marks its genes; leave this out.")


def write_norman_screen(source: NormanSource, provenance: str, output: str | Path) -> None:
    """Write the canonical screen of a published file, in bounded memory.

    Cells without counts of the retained genes are left out, with a line in the log.

    Parameters
    ----------
    source
        The file.
    provenance
        Provenance record, JSON.
    output
        The screen.

    Raises
    ------
    InputError
        If the file lacks what is needed, is not of the expected size, or holds no counts.
    """
    with open_h5ad(source.path) as file:
        original = source.copy == "original"
        design = _one_hot(file) if original else _joined_labels(file)
        counts = counts_of(file, "counts" if original else None)
        table = read_genes(file)
        genes = _marked_genes(file) if original else _chosen_genes(counts, table, source)
        check_screen_size(
            {"cells": len(design), "genes": len(genes), "target genes": len(design.names)},
            {
                "cells": source.expected_cells,
                "genes": source.expected_genes,
                "target genes": source.expected_target_genes,
            },
            {
                "cells": PUBLISHED_CELLS[source.copy],
                "genes": PUBLISHED_GENES,
                "target genes": PUBLISHED_TARGETS,
            },
            source.path,
        )
        known = columns(file, "obs")
        kept = Selection(
            np.arange(len(design)),
            genes,
            read_names(file, "obs"),
            unique_names(table.iloc[genes]),
            design,
            pd.DataFrame(
                {name: read_column(file, "obs", name) for name in COVARIATES if name in known},
                index=pd.RangeIndex(len(design)),
            ),
        )
        write_selection(counts, kept, provenance, output)


def _one_hot(file: AnnDataFile) -> Design:
    names = [
        name for name in columns(file, "obs") if name.startswith(GUIDE) and name not in NO_GUIDES
    ]
    if not names:
        first_column(file, "obs", (f"{GUIDE}<GENE>",), "1 in the cells that have the gene's guide")
    has_guide = np.column_stack([_has_guide(file, name) for name in names])
    return Design.of(has_guide, [name.removeprefix(GUIDE) for name in names])


def _has_guide(file: AnnDataFile, name: str) -> np.ndarray:
    try:
        values = read_column(file, "obs", name).astype(float).to_numpy()
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if not np.isin(values, (0, 1)).all():
        raise InputError(f"{file.filename}: obs[{name!r}] has values other than 0 and 1.")
    return values == 1


def _joined_labels(file: AnnDataFile) -> Design:
    where = f"{file.filename}: obs['perturbation']"
    column = read_column(file, "obs", "perturbation")
    if column.isna().any():
        raise InputError(f"{where}: {int(column.isna().sum())} cell(s) have no label.")
    found = pd.Categorical(column.astype(str).str.replace(JOIN, "_", regex=False))
    control = LabelSet.of(CONTROL, "control")
    conditions = [one.doses for one in LabelGrammar(control, "_", where).read(found.categories)]
    if {} not in conditions:
        raise refuse_no_control(found.categories, control, where)
    return Design.of_conditions(conditions, found.codes)


def _marked_genes(file: AnnDataFile) -> np.ndarray:
    return np.flatnonzero(read_column(file, "var", "highly_variable").to_numpy(dtype=bool))


def _chosen_genes(counts: CountMatrix, table: pd.DataFrame, source: NormanSource) -> np.ndarray:
    if source.genes is None:
        logger.info(
            "%s does not say which genes the authors kept: choosing the %d most variable over its "
            "%d cells (Seurat v3). For the authors' own, name the original file in 'genes'.",
            source.path, source.n_genes, counts.shape[0],
        )  # fmt: skip
        return highly_variable_genes(counts, source.n_genes)
    wanted = _listed_genes(source.genes, table)
    chosen = table["identifier"].isin(wanted) | table["symbol"].isin(wanted)
    absent = set(wanted) - set(table["identifier"]) - set(table["symbol"])
    if absent:
        raise InputError(
            f"{source.genes}: {len(absent)} of {len(wanted)} genes are not in {source.path}, for "
            f"instance {', '.join(sorted(absent)[:5])}. Correct the list."
        )
    return np.flatnonzero(chosen)


def _listed_genes(path: str, table: pd.DataFrame) -> Sequence[str]:
    """Read the genes to keep, by identifier if both files have it, else by symbol."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file. Set 'genes' to a list of genes, or to null.")
    if not h5py.is_hdf5(path):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()]
    with open_h5ad(path) as file:
        genes = read_genes(file).iloc[_marked_genes(file)]
    shared = genes["identifier"].isin(table["identifier"])
    return list(genes["identifier"].where(shared, genes["symbol"]))
