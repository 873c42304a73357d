"""Which genes a screen keeps: those of a list, those with enough counts, the most variable."""

import logging

import numpy as np

from samsvae.errors import InputError
from samsvae.files import read_lines
from samsvae.sources.counts import CountMatrix
from samsvae.sources.gene_names import Features, without_version
from samsvae.sources.h5ad_source import H5adSource
from samsvae.sources.highly_variable import FEWEST_POINTS, gene_moments, standardised_variance

logger = logging.getLogger(__name__)


def listed_genes(features: Features, path: str | None, where: str) -> np.ndarray:
    """Choose the genes of a list.

    Parameters
    ----------
    features
        Of the AnnData file.
    path
        A text file with a gene on each line, by symbol or identifier; None for all genes.
    where
        The AnnData file, for messages.

    Returns
    -------
    ndarray of int
        Positions of the listed genes, in the order of the AnnData file. Genes of the list that
        are not in the file are logged.

    Raises
    ------
    InputError
        If the list is missing, or shares no gene with the file.
    """
    if path is None:
        return features.genes
    lines = (line.strip() for line in read_lines(path, "'genes'"))
    wanted = dict.fromkeys(line for line in lines if line)
    genes = features.table.iloc[features.genes]
    identifiers = genes["identifier"].astype(str)
    known_as = [genes["name"], genes["symbol"], identifiers, identifiers.map(without_version)]
    is_listed = np.column_stack([names.isin(wanted) for names in known_as]).any(axis=1)
    chosen = features.genes[is_listed]
    if not len(chosen):
        raise InputError(
            f"{path}: none of its {len(wanted)} genes is in {where} (a gene there: "
            f"{next(iter(genes['name']), None)!r}; a gene of the list: "
            f"{next(iter(wanted), None)!r}). "
            "Write one symbol on each line, or set 'gene_symbol_column'."
        )
    absent = sorted(set(wanted).difference(*known_as))
    if absent:
        logger.info(
            "genes: %d of the %d listed are not in the file, for instance %s",
            len(absent), len(wanted), ", ".join(absent[:5]),
        )  # fmt: skip
    return chosen


def select_genes(
    counts: CountMatrix, cells: np.ndarray, features: Features, source: H5adSource
) -> np.ndarray:
    """Choose the genes of a screen: of the list, of these with the mean, of these variable.

    Parameters
    ----------
    counts
        UMI counts of the file, cells x genes.
    cells
        Positions of the cells that stay.
    features
        Of the file.
    source
        Its `genes`, `min_mean` and `highly_variable`.

    Returns
    -------
    ndarray of int
        Positions of the chosen genes, ascending.

    Raises
    ------
    InputError
        If no gene is left.
    """
    chosen = listed_genes(features, source.genes, source.path)
    if source.min_mean == 0 and source.highly_variable is None:
        return chosen
    moments = gene_moments(counts, cells, chosen)
    if not np.isfinite(moments.mean).all() or (moments.mean < 0).any():
        raise InputError(
            f"{source.counts_place}: there are negative or infinite values. Raw UMI counts are "
            "needed: set 'counts_layer' to the layer that has them."
        )
    enough = moments.mean >= source.min_mean
    if not enough.any():
        raise InputError(
            f"{source.counts_place}: no gene has a mean of {source.min_mean:g} counts per cell "
            f"(the largest is {moments.mean.max():.3g}). Lower 'min_mean'."
        )
    chosen, moments = chosen[enough], moments.of(enough)
    if source.highly_variable is not None:
        if source.highly_variable > len(chosen):
            raise InputError(
                f"{source.counts_place}: 'highly_variable' asks for {source.highly_variable} "
                f"genes, but there are {len(chosen)} to choose from. Lower it."
            )
        varying = int((moments.variance > 0).sum())
        if varying < FEWEST_POINTS:
            raise InputError(
                f"{source.counts_place}: {varying} genes with a variance are too few for a "
                f"regression of variance on mean ({FEWEST_POINTS} at least). Leave out "
                "'highly_variable'."
            )
        variable = standardised_variance(counts, cells, chosen, moments)
        most = np.argsort(-variable, kind="stable")[: source.highly_variable]
        chosen = np.sort(chosen[most])
    logger.info("kept %d of %d genes", len(chosen), len(features.genes))
    return chosen
