"""Where in an AnnData file to find what, and how its parts are reached without reading the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import h5py
import pandas as pd

from samsvae.errors import InputError
from samsvae.labels import CONTROL
from samsvae.sources.counts import CountMatrix
from samsvae.sources.h5ad_file import columns, counts_of, read_column, read_names

RESERVED = ("perturbation", "library_size", "cell", "_index")
FORMS = ("perturbation_column", "perturbation_columns", "perturbation_matrix")

# "except" is a word of Python's own, hence not the usual form of a class
OneHotColumns = TypedDict("OneHotColumns", {"prefix": str, "except": Sequence[str]}, total=False)


class DosageMatrix(TypedDict, total=False):
    """A matrix of doses: its key in obsm, and the key in uns of the names of its columns."""

    obsm: str
    names: str | None


@dataclass(frozen=True)
class H5adSource:
    """Where in a file to find what; see the configuration's schema for each field.

    Raises
    ------
    InputError
        If settings contradict one another.
    """

    path: str
    perturbation_column: str | None = None
    control: str = CONTROL
    delimiter: str | None = "+"
    dose_column: str | None = None
    perturbation_columns: OneHotColumns | None = None
    perturbation_matrix: DosageMatrix | None = None
    guide_table: str | None = None
    guide_pattern: str | None = None
    min_cells: int = 0
    counts_layer: str | None = None
    gene_symbol_column: str | None = None
    genes: str | None = None
    min_mean: float = 0
    highly_variable: int | None = None
    covariates: Sequence[str] = ()

    def __post_init__(self) -> None:
        given = [form for form in FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            raise InputError(
                f"{self.path}: exactly one of {', '.join(map(repr, FORMS))} says which cell had "
                f"which perturbation, but {' and '.join(map(repr, given)) or 'none'} is set."
            )
        if self.dose_column is not None and self.perturbation_column is None:
            raise InputError(
                f"{self.path}: 'dose_column' goes with 'perturbation_column' alone; the values of "
                f"{given[0]!r} are doses themselves. Leave it out."
            )
        if self.guide_table is not None and self.guide_pattern is not None:
            raise InputError(
                f"{self.path}: 'guide_table' and 'guide_pattern' both say which gene a guide "
                "targets. Set one of them."
            )
        reserved = [name for name in self.covariates if name in RESERVED]
        if reserved:
            raise InputError(
                f"{self.path}: the covariate {reserved[0]!r} has a name that the canonical screen "
                f"uses itself ({', '.join(RESERVED)}). Rename the column in the file."
            )
        twice = [name for name in self.covariates if list(self.covariates).count(name) > 1]
        if twice:
            raise InputError(f"{self.path}: the covariate {twice[0]!r} is named twice.")

    @property
    def matrix(self) -> str:
        """Where the counts are, ``X`` or a layer."""
        return "X" if self.counts_layer is None else f"layers[{self.counts_layer!r}]"

    @property
    def counts_place(self) -> str:
        """File and matrix of the counts, for messages."""
        return f"{self.path}: {self.matrix}"


def member(file: h5py.File, group: str, name: str, key: str) -> Any:
    """Get a part of an open file that the configuration names.

    Parameters
    ----------
    file
        An open h5ad file.
    group
        ``layers``, ``obsm`` or ``uns``.
    name
        Of the part.
    key
        The configuration's, for the message.

    Raises
    ------
    InputError
        Naming what there is instead.
    """
    held = file.get(group, {})
    check_member(file, group, name, list(held), key)
    return held[name]


def column(file: h5py.File, table: str, name: str, key: str) -> pd.Series:
    """Read a column of obs or var that the configuration names, like :func:`member`."""
    check_member(file, table, name, columns(file, table), key)
    return read_column(file, table, name)


def check_member(file: h5py.File, group: str, name: str, known: Sequence[str], key: str) -> None:
    """Refuse a name in the configuration that is none of those known, and list these."""
    if name not in known:
        raise InputError(
            f"{file.filename}: {group} has no {name!r} (it has: "
            f"{', '.join(sorted(known)) or 'nothing'}). Set {key!r} to one of them."
        )


def counts_matrix(file: h5py.File, source: H5adSource) -> CountMatrix:
    """Get the matrix of counts; nothing but its shape is read."""
    if source.counts_layer is not None:
        member(file, "layers", source.counts_layer, "counts_layer")
    return counts_of(file, source.counts_layer)


def gene_symbols(file: h5py.File, source: H5adSource) -> list[str]:
    """Read the symbol of each gene."""
    if source.gene_symbol_column is None:
        return list(read_names(file, "var"))
    return list(column(file, "var", source.gene_symbol_column, "gene_symbol_column").astype(str))


def read_covariates(file: h5py.File, source: H5adSource) -> pd.DataFrame:
    """Read the columns of obs that the screen keeps."""
    return pd.DataFrame(
        {name: column(file, "obs", name, "covariates") for name in source.covariates}
    )
