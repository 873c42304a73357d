"""Symbols of the genes of a published file, and names that are unique."""

import re

import h5py
import numpy as np
import pandas as pd

from samsvae.sources.h5ad_file import columns, read_column, read_names

SYMBOLS = ("gene_symbols", "gene_name", "gene_symbol")
IDENTIFIERS = ("ensembl_id", "ensemble_id", "gene_id", "gene_ids")
NUMBERED = re.compile(r"(.+)-\d+")


def read_genes(file: h5py.File) -> pd.DataFrame:
    """Read the symbols and identifiers of a file's genes.

    Symbols are in a column of ``var``, and then the index identifies the genes; or they are the
    index. Where anndata has made an index of symbols unique, as in ``TBCE`` and ``TBCE-1``, both
    stand for the symbol ``TBCE``.

    Parameters
    ----------
    file
        An open h5ad file.

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


def _text(file: h5py.File, column: str) -> np.ndarray:
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
