"""Genes of a file: symbols, identifiers, unique names, and selection of genes."""

import logging
import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from samsvae.runtime.errors import InputError
from samsvae.runtime.files import read_lines
from samsvae.sources.counts import CountMatrix
from samsvae.sources.h5ad_file import AnnDataFile, columns, read_column, read_names
from samsvae.sources.h5ad_source import H5adSource

SYMBOLS = ("gene_symbols", "gene_name", "gene_symbol")
IDENTIFIERS = ("ensembl_id", "ensemble_id", "gene_id", "gene_ids")
NUMBERED = re.compile(r"(.+)-\d+")
VERSION = re.compile(r"(ENS[A-Z]*\d{11})\.\d+")

FEATURE_TYPES = "feature_types"
GENE_EXPRESSION = "Gene Expression"
# features that other assays of Cell Ranger and muon measure beside genes
OTHER_FEATURES = re.compile(
    r"antibody.*|crispr.*|custom|peaks?|multiplexing.*|antigen.*|vdj.*|adt|hto|atac|gdo|guides?|grna"
    r"|protein.*",
    re.IGNORECASE,
)


def read_genes(file: AnnDataFile) -> pd.DataFrame:
    """Read the symbols and identifiers of a file's genes.

    Symbols are in a column of ``var``, and then the index identifies the genes; or they are the
    index. Where anndata has made an index of symbols unique, as in ``TBCE`` and ``TBCE-1``, both
    stand for the symbol ``TBCE``.

    Parameters
    ----------
    file
        An open file.

    Returns
    -------
    DataFrame
        ``symbol`` and ``identifier`` of each gene; the identifier is the name in the index where
        the file has no other.
    """
    known = columns(file, "var")
    index = read_names(file, "var").to_numpy()
    symbol = next((name for name in SYMBOLS if name in known), None)
    if symbol is not None:
        return pd.DataFrame({"symbol": _text(file, symbol), "identifier": index})
    present = set(index)
    numbered = [NUMBERED.fullmatch(name) for name in index]
    symbols = [
        match[1] if match and match[1] in present else name
        for name, match in zip(index, numbered, strict=True)
    ]
    identifier = next((name for name in IDENTIFIERS if name in known), None)
    return pd.DataFrame(
        {"symbol": symbols, "identifier": index if identifier is None else _text(file, identifier)}
    )


def _text(file: AnnDataFile, column: str) -> np.ndarray:
    return read_column(file, "var", column).astype(str).to_numpy()


def unique_names(genes: pd.DataFrame) -> list[str]:
    """Make symbols of genes unique by appending identifiers to duplicates.

    Parameters
    ----------
    genes
        Of :func:`read_genes`.

    Returns
    -------
    list of str
        ``KLF1``, or ``TBCE_ENSG00000116957`` where two genes are called ``TBCE``.
    """
    shared = genes["symbol"].duplicated(keep=False)
    return list(genes["symbol"].where(~shared, genes["symbol"] + "_" + genes["identifier"]))


@dataclass(frozen=True)
class Features:
    """Features of a file, and the genes among them.

    Attributes
    ----------
    table
        ``name`` (unique), ``symbol`` and ``identifier`` of each feature.
    genes
        Positions of those that are genes.
    notes
        What was changed or left out, in words, by a name for it.
    """

    table: pd.DataFrame
    genes: np.ndarray
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Name of each feature of the file."""
        return list(self.table["name"])


def read_features(file: AnnDataFile, symbol_column: str | None) -> Features:
    """Read the names of a file's features, and find the genes among them.

    Parameters
    ----------
    file
        An open file.
    symbol_column
        Column of ``var`` with gene symbols; None where the index has them. A gene without a symbol
        is called by its name in the index, and those that share one by symbol and identifier.

    Returns
    -------
    Features
        Names are unique.

    Raises
    ------
    InputError
        If there is no such column.
    """
    index = read_names(file, "var").to_numpy()
    symbols, notes = index, {}
    known = columns(file, "var")
    if symbol_column is not None:
        if symbol_column not in known:
            raise InputError(
                f"{file.filename}: var has no {symbol_column!r} (it has: "
                f"{', '.join(known) or 'nothing'}). Set 'gene_symbol_column' to one of them."
            )
        column = read_column(file, "var", symbol_column)
        written = column.astype(str).str.strip().to_numpy()
        absent = column.isna().to_numpy() | np.isin(written, ["", "nan", "None", "<NA>"])
        symbols = np.where(absent, index, written).astype(object)
        if absent.any():
            notes["genes without a symbol"] = (
                f"{int(absent.sum()):,} of {len(index):,} genes have no symbol in "
                f"var[{symbol_column!r}] and are called by their names in the index: "
                f"{_some(index[absent])}."
            )
    identifiers = index
    if symbol_column is None:
        column_name = next((name for name in IDENTIFIERS if name in known), None)
        identifiers = index if column_name is None else _text(file, column_name)
    table = pd.DataFrame({"symbol": symbols, "identifier": identifiers}, dtype=object)
    genes = _genes(file, len(index), notes)
    table["name"] = _unique(table, genes, notes)
    return Features(table, genes, notes)


def _genes(file: AnnDataFile, n_features: int, notes: dict[str, str]) -> np.ndarray:
    if FEATURE_TYPES not in columns(file, "var"):
        return np.arange(n_features)
    types = read_column(file, "var", FEATURE_TYPES).astype(str).to_numpy()
    if (types == GENE_EXPRESSION).any():
        others = (types != GENE_EXPRESSION) & (types != "nan")
    else:
        others = np.array([bool(OTHER_FEATURES.fullmatch(name)) for name in types], dtype=bool)
    if others.all():  # a modality of its own, which somebody chose
        return np.arange(n_features)
    if others.any():
        numbers = pd.Series(types[others]).value_counts()
        listed = ", ".join(f"{number:,} of {name}" for name, number in numbers.items())
        notes["features that are no genes"] = (
            f"{int(others.sum()):,} features are no genes by var[{FEATURE_TYPES!r}] ({listed}) and "
            "are left out. 'guide_features' calls the guides among them."
        )
    return np.flatnonzero(~others)


def _unique(table: pd.DataFrame, genes: np.ndarray, notes: dict[str, str]) -> list[str]:
    """Make the names of genes unique: by their identifiers, or else by numbers as anndata does."""
    of_genes = table.iloc[genes]
    symbol, identifier = of_genes["symbol"], of_genes["identifier"]
    shared = symbol.duplicated(keep=False)
    named = symbol.where(~shared | (symbol == identifier), symbol + "_" + identifier)
    unique, taken = named.to_numpy(dtype=object, copy=True), set(named)
    for at in np.flatnonzero(named.duplicated()):
        number = 1
        while f"{named.iloc[at]}-{number}" in taken:
            number += 1
        unique[at] = f"{named.iloc[at]}-{number}"
        taken.add(unique[at])
    if shared.any():
        twice = symbol[shared].unique()
        notes["duplicate gene names"] = (
            f"{len(twice):,} gene name(s) occur more than once ({_some(twice)}) and were made "
            f"unique: {_some(unique[shared])}."
        )
    names = table["symbol"].to_numpy(dtype=object, copy=True)
    names[genes] = unique
    return list(names)


def _some(names: np.ndarray) -> str:
    shown = ", ".join(map(str, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5:,} more"


def without_version(name: str) -> str:
    """Drop the version of an Ensembl identifier, as in ``ENSG00000105610.6``."""
    found = VERSION.fullmatch(name)
    return found[1] if found else name


LOESS_SPAN = 0.3
LOESS_DEGREE = 2
FEWEST_POINTS = 20  # of the regression, which breaks down when given a handful


def highly_variable_genes(counts: CountMatrix, n_genes: int) -> np.ndarray:
    """Select highly variable genes over all cells by the method of Seurat v3, in two passes.

    Parameters
    ----------
    counts
        UMI counts.
    n_genes
        How many to choose.

    Returns
    -------
    ndarray
        Their positions, ascending.

    Raises
    ------
    InputError
        If there are fewer genes, the values are not counts, or the regression fails.
    """
    n_cells, n_all = counts.shape
    if n_genes > n_all:
        raise InputError(f"{counts.where}: {n_genes} genes are wanted, but it has {n_all}.")
    cells, genes = np.arange(n_cells), np.arange(n_all)
    moments = gene_moments(counts, cells, genes)
    if not np.isfinite(moments.mean).all() or (moments.mean < 0).any():
        raise InputError(f"{counts.where}: there are negative or infinite values, so no counts.")
    varying = int((moments.variance > 0).sum())
    if varying < FEWEST_POINTS:
        raise InputError(
            f"{counts.where}: {varying} genes vary, too few to regress their variance on "
            f"their mean ({FEWEST_POINTS} at least). Name the genes to keep."
        )
    variable = standardised_variance(counts, cells, genes, moments)
    return np.sort(np.argsort(-variable, kind="stable")[:n_genes])


@dataclass(frozen=True)
class Moments:
    """Mean and sample variance of each gene's counts over a number of cells."""

    mean: np.ndarray
    variance: np.ndarray
    n_cells: int

    def of(self, genes: np.ndarray) -> "Moments":
        """Select some of the genes."""
        return Moments(self.mean[genes], self.variance[genes], self.n_cells)


def gene_moments(counts: CountMatrix, cells: np.ndarray, genes: np.ndarray) -> Moments:
    """Compute mean and variance of genes in one pass.

    Parameters
    ----------
    counts
        UMI counts, cells x genes.
    cells, genes
        Positions of those that count.
    """
    total, square = _sums(counts, cells, genes, np.full(len(genes), np.inf))
    n = len(cells)
    mean = total / n
    return Moments(mean, np.maximum(square - n * mean**2, 0) / max(n - 1, 1), n)


def standardised_variance(
    counts: CountMatrix, cells: np.ndarray, genes: np.ndarray, moments: Moments
) -> np.ndarray:
    """Compute the variance of genes relative to that expected from their mean, in one pass.

    The method of Seurat v3 (Stuart et al. 2019, scanpy's ``seurat_v3``): the expected standard
    deviation comes from a local regression of log10 variance on log10 mean over the genes, and a
    count is clipped at sqrt(n) of them above the mean.

    :func:`scanpy.pp.highly_variable_genes` holds all counts in memory; this reads them in blocks,
    at every size, so that the choice does not depend on the memory there is. Tests compare the two.

    Parameters
    ----------
    counts
        UMI counts, cells x genes.
    cells, genes
        Positions of those that count.
    moments
        Of these genes.

    Returns
    -------
    ndarray
        Variance of the clipped and standardised counts of each gene.

    Raises
    ------
    InputError
        If the regression fails.
    """
    std = np.sqrt(10 ** _expected_log_variance(moments, counts.where))
    n, mean = moments.n_cells, moments.mean
    total, square = _sums(counts, cells, genes, std * np.sqrt(n) + mean)
    return (n * mean**2 + square - 2 * total * mean) / ((n - 1) * std**2)


def _expected_log_variance(moments: Moments, where: str) -> np.ndarray:
    from skmisc.loess import loess

    expected = np.zeros(len(moments.mean))
    varies = moments.variance > 0
    fit = loess(
        np.log10(moments.mean[varies]),
        np.log10(moments.variance[varies]),
        span=LOESS_SPAN,
        degree=LOESS_DEGREE,
    )
    try:
        fit.fit()
    except ValueError as error:
        raise InputError(
            f"{where}: the variance of genes cannot be regressed on their mean ({error}). Name the "
            "genes to keep."
        ) from error
    expected[varies] = fit.outputs.fitted_values
    return expected


def _sums(
    counts: CountMatrix, cells: np.ndarray, genes: np.ndarray, most: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the counts of genes and their squares, each count clipped to its gene's most."""
    total, square = np.zeros(len(genes)), np.zeros(len(genes))
    for _, block in counts.blocks(cells, genes):
        clipped = np.minimum(block.data.astype(np.float64), most[block.indices])
        total += np.bincount(block.indices, clipped, len(genes))
        square += np.bincount(block.indices, clipped**2, len(genes))
    return total, square


logger = logging.getLogger(__name__)


def listed_genes(features: Features, path: str | None, where: str) -> np.ndarray:
    """Select the genes of a list.

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
        If the list is missing, or has no gene in common with the file.
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
    """Select the genes of a screen by list, then by mean, then by variability.

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
