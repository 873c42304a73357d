"""Names of genes: symbols and identifiers of a file, names that are unique, and what is no gene."""

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from samsvae.errors import InputError
from samsvae.sources.h5ad_file import AnnDataFile, columns, read_column, read_names

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
    """Name genes by symbol, and those that share one by symbol and identifier.

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
    """The features of a file, and which of them are genes.

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
    """Read the names of a file's features, and tell genes from what else was measured.

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
