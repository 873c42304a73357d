"""Which genes a screen keeps: those of a list, those with enough counts, the most variable."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samsvae.errors import InputError
from samsvae.sources.counts import CountMatrix
from samsvae.sources.h5ad_source import H5adSource
from samsvae.sources.highly_variable import FEWEST_POINTS, gene_moments, standardised_variance

logger = logging.getLogger(__name__)


def listed_genes(symbols: Sequence[str], path: str, where: str) -> np.ndarray:
    """Choose the genes of a list.

    Parameters
    ----------
    symbols
        Gene symbols of the file.
    path
        A text file with a gene symbol on each line.
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
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file. Set 'genes' to an existing list of genes.")
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    wanted = dict.fromkeys(line for line in lines if line)
    chosen = np.flatnonzero([symbol in wanted for symbol in symbols])
    if not len(chosen):
        raise InputError(
            f"{path}: none of its {len(wanted)} genes is in {where} (a gene there: "
            f"{next(iter(symbols), None)!r}; a gene of the list: {next(iter(wanted), None)!r}). "
            "Write one symbol on each line, or set 'gene_symbol_column'."
        )
    absent = sorted(set(wanted) - set(symbols))
    if absent:
        logger.info(
            "genes: %d of the %d listed are not in the file, for instance %s",
            len(absent), len(wanted), ", ".join(absent[:5]),
        )  # fmt: skip
    return chosen


def select_genes(
    counts: CountMatrix, cells: np.ndarray, symbols: Sequence[str], source: H5adSource
) -> np.ndarray:
    """Choose the genes of a screen: of the list, of these with the mean, of these variable.

    Parameters
    ----------
    counts
        UMI counts of the file, cells x genes.
    cells
        Positions of the cells that stay.
    symbols
        Gene symbols of the file.
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
    chosen = np.arange(len(symbols))
    if source.genes is not None:
        chosen = listed_genes(symbols, source.genes, source.path)
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
    logger.info("kept %d of %d genes", len(chosen), len(symbols))
    return chosen
