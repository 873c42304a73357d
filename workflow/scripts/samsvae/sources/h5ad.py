"""Anyone's own screen: an AnnData file of raw counts, of any size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samsvae.sources.counts import CountMatrix
from samsvae.sources.gene_selection import listed_genes, select_genes
from samsvae.sources.h5ad_file import open_h5ad, read_names
from samsvae.sources.h5ad_labels import read_labels, with_enough_cells
from samsvae.sources.h5ad_source import (
    H5adSource,
    counts_matrix,
    gene_symbols,
    read_covariates,
)
from samsvae.sources.selection import Selection, write_selection


def check_header(source: H5adSource) -> list[str]:
    """Check what can be known without reading a count, in about a second.

    Parameters
    ----------
    source
        The file and where it has what.

    Returns
    -------
    list of str
        Symbols of the genes that may stand in the screen.

    Raises
    ------
    InputError
        If the file is missing, is no h5ad, lacks a column, layer or the control label, or a label
        or dose cannot be used.
    """
    with open_h5ad(source.path) as file:
        counts_matrix(file, source)
        read_covariates(file, source)
        with_enough_cells(read_labels(file, source), source.min_cells, source.path)
        symbols = gene_symbols(file, source)
    if source.genes is None:
        return symbols
    return [symbols[gene] for gene in listed_genes(symbols, source.genes, source.path)]


def write_h5ad_screen(source: H5adSource, provenance: str, output: str | Path) -> None:
    """Bring a user's file into the canonical form; memory does not grow with its counts.

    Parameters
    ----------
    source
        The file and where it has what.
    provenance
        What made the screen, as JSON.
    output
        The canonical screen. Genes without any count are kept, unless a filter leaves them out.
        Where genes are left out, cells without a count in the others are left out as well.

    Raises
    ------
    InputError
        If the file or what it holds cannot be used; the message says what to change.
    """
    with open_h5ad(source.path) as file:
        labels, symbols = read_labels(file, source), gene_symbols(file, source)
        counts = counts_matrix(file, source)
        cells, genes = choose(counts, labels, symbols, source)
        kept = Selection(
            cells,
            genes,
            read_names(file, "obs", cells),
            [symbols[gene] for gene in genes],
            labels[cells],
            read_covariates(file, source).iloc[cells] if source.covariates else None,
        )
        filtered = len(genes) < len(symbols)
        write_selection(counts, kept, provenance, output, drop_empty=filtered)


def choose(
    counts: CountMatrix, labels: np.ndarray, symbols: Sequence[str], source: H5adSource
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the cells and genes of a screen.

    Parameters
    ----------
    counts
        Of the file, cells x genes.
    labels, symbols
        Canonical label of each cell of the file, and symbol of each gene.
    source
        Its filters.

    Returns
    -------
    cells, genes : ndarray of int
        Their positions in the file, ascending.

    Raises
    ------
    InputError
        If nothing is left.
    """
    cells = np.flatnonzero(with_enough_cells(labels, source.min_cells, source.path))
    return cells, select_genes(counts, cells, symbols, source)
