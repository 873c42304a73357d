"""Reader of a user's own screen: an AnnData file of raw counts, of any size."""

import logging
from pathlib import Path

import numpy as np

from samsvae.sources.counts import Selection, write_selection
from samsvae.sources.genes import Features, listed_genes, read_features, select_genes
from samsvae.sources.guides import target_finder
from samsvae.sources.h5ad_file import AnnDataFile, read_names
from samsvae.sources.h5ad_guides import check_guide_matrix
from samsvae.sources.h5ad_labels import read_assignment
from samsvae.sources.h5ad_source import (
    H5adSource,
    counts_matrix,
    open_source,
    read_covariates,
    read_library_sizes,
)

COUNTED_FORMS = ("guide_features", "guide_modality")  # forms whose labels need counts

logger = logging.getLogger(__name__)


def check_header(source: H5adSource) -> list[str]:
    """Check a file without reading counts, in about a second.

    Parameters
    ----------
    source
        Settings of the source.

    Returns
    -------
    list of str
        Names of the genes that the screen may have.

    Raises
    ------
    InputError
        If the file is missing, is no AnnData file, lacks a column, layer or the control label, or
        has an invalid label or dose.
    """
    with open_source(source) as file:
        counts_matrix(file, source)
        read_covariates(file, source)
        read_library_sizes(file, source)
        features = read_features(file, source.gene_symbol_column)
        if source.form in COUNTED_FORMS:
            check_guide_matrix(file, source)
            target_finder(source)
        else:
            read_assignment(file, source, measured_names(features))
        chosen = listed_genes(features, source.genes, source.path)
    return list(features.table["name"].iloc[chosen])


def measured_names(features: Features) -> set[str]:
    """Collect the names and symbols of genes."""
    genes = features.table.iloc[features.genes]
    return {*genes["name"], *genes["symbol"]}


def write_h5ad_screen(source: H5adSource, provenance: str, output: str | Path) -> None:
    """Convert a user's file to a canonical screen, in memory independent of its counts.

    Parameters
    ----------
    source
        Settings of the source.
    provenance
        Provenance record, JSON.
    output
        The canonical screen. Genes without counts are kept unless a filter removes them. If genes
        are removed, cells without counts of the others are removed, too.

    Raises
    ------
    InputError
        If the file or its content is not valid, with what to change.
    """
    with open_source(source) as file:
        features = read_features(file, source.gene_symbol_column)
        assigned = read_assignment(file, source, measured_names(features))
        notes = features.notes | assigned.notes
        counts = counts_matrix(file, source)
        cells = np.flatnonzero(assigned.kept)
        genes = select_genes(counts, cells, features, source)
        cell_names, renamed = unique_cell_names(file, cells)
        for note in [*notes.values(), *([renamed] if renamed else [])]:
            logger.warning("%s: %s", source.path, note)
        lost = assigned.lost()
        for reason, number in lost.itertuples(index=False):
            logger.warning("%s: left out %d cells: %s", source.path, number, reason)
        covariates = read_covariates(file, source)
        library_sizes = read_library_sizes(file, source)
        kept = Selection(
            cells,
            genes,
            cell_names,
            list(np.array(features.names, dtype=object)[genes]),
            assigned.design[cells],
            covariates.iloc[cells] if len(covariates.columns) else None,
            None if library_sizes is None else library_sizes[cells],
            None if assigned.guides is None else assigned.guides.of(cells),
            source.declared,
            lost,
        )
        filtered = len(genes) < len(features.table)
        write_selection(counts, kept, provenance, output, drop_empty=filtered)


def unique_cell_names(file: AnnDataFile, cells: np.ndarray) -> tuple[list[str], str]:
    """Read the names of cells, and make duplicates unique by numbers, as anndata does.

    Parameters
    ----------
    file
        An open file.
    cells
        Indices of the cells, ascending.

    Returns
    -------
    names : list of str
        Unique names, unless a name is empty.
    note : str
        Description of the changes; empty without changes.
    """
    names = read_names(file, "obs", cells)
    twice = names.duplicated()
    if not twice.any():
        return list(names), ""
    unique, taken, number = list(names), set(names), 0
    last: dict[str, int] = {}
    for at in np.flatnonzero(twice):
        name = unique[at]
        number = last.get(name, 0) + 1
        while f"{name}-{number}" in taken:
            number += 1
        last[name] = number
        unique[at] = f"{name}-{number}"
        taken.add(unique[at])
    shown = ", ".join(dict.fromkeys(names[twice][:5]))
    return unique, (
        f"{int(twice.sum()):,} cell(s) have the name of another ({shown}), as where samples were "
        "joined without a suffix, and were given a number each."
    )
