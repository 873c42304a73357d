"""Settings of an AnnData source, and access to the elements that they name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import BATCH, COMPARED_WITH, CONTEXT, GUIDE, PERTURBATION, UNIT
from samsvae.screen.labels import CONTROL, LabelSet
from samsvae.sources.counts import CountMatrix
from samsvae.sources.h5ad_file import (
    RAW,
    AnnDataFile,
    columns,
    counts_of,
    open_h5ad,
    places_of_counts,
    read_column,
    read_shared_column,
    shared_columns,
)

RESERVED = ("perturbation", "library_size", "cell", "_index")
FORMS = (
    "perturbation_column",
    "perturbation_columns",
    "perturbation_matrix",
    "guide_features",
    "guide_modality",
)
MIXTURES = ("poisson_gaussian", "poisson")
JOINED_BATCHES = "|"  # joins the values of several columns of batches


class Values(TypedDict, total=False):
    """Kind of the values of a matrix of guides or perturbations.

    UMI counts, from which `threshold` or a `mixture` call guides; `doses`; or, without any of the
    three, 0 and 1.
    """

    threshold: int | None
    mixture: str | None
    doses: bool


# "except" is a keyword of Python, so that a class cannot have it as a field
OneHotColumns = TypedDict(
    "OneHotColumns",
    {
        "prefix": str, "except": Sequence[str], "threshold": int | None, "mixture": str | None,
        "doses": bool,
    },
    total=False,
)  # fmt: skip


class PerturbationMatrix(Values, total=False):
    """Matrix in obsm: its key, and the key in uns of the names of its columns."""

    obsm: str
    names: str | None


class GuideFeatures(Values, total=False):
    """Guides among the features of the count matrix, by their ``var["feature_types"]``."""

    feature_type: str
    gene_column: str | None


class GuideModality(Values, total=False):
    """Modality of an h5mu file whose features are guides."""

    name: str
    layer: str | None
    gene_column: str | None


@dataclass(frozen=True)
class H5adSource:
    """Settings of an AnnData source; the configuration's schema describes each field.

    Raises
    ------
    InputError
        If settings contradict each other.
    """

    path: str
    perturbation_column: str | None = None
    control: str | Sequence[str] | Mapping[str, str] = CONTROL
    delimiter: str | None = "+"
    dose_column: str | None = None
    perturbation_columns: OneHotColumns | None = None
    perturbation_matrix: PerturbationMatrix | None = None
    guide_features: GuideFeatures | None = None
    guide_modality: GuideModality | None = None
    guide_column: str | None = None
    guide_table: str | None = None
    guide_pattern: str | None = None
    no_guide: str | None = None
    exclude: Sequence[str | None] | Mapping[str, str] = ()
    max_perturbations: int | None = None
    min_cells: int = 0
    modality: str | None = None
    counts_layer: str | None = None
    gene_symbol_column: str | None = None
    genes: str | None = None
    min_mean: float = 0
    highly_variable: int | None = None
    library_size_column: str | None = None
    batch_column: str | Sequence[str] | None = None
    context_column: str | None = None
    unit: str = "combination"
    compared_with: str = "controls"
    covariates: Sequence[str] = ()

    def __post_init__(self) -> None:
        given = [form for form in FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            raise InputError(
                f"{self.path}: exactly one of {', '.join(map(repr, FORMS))} says which cell had "
                f"which perturbation, but {' and '.join(map(repr, given)) or 'none'} is set."
            )
        if self.perturbation_column is None:
            for key in ("dose_column", "guide_column"):
                if getattr(self, key) is not None:
                    raise InputError(
                        f"{self.path}: {key!r} goes with 'perturbation_column' alone, and "
                        f"{given[0]!r} is set. Leave it out."
                    )
        by = [key for key in ("guide_table", "guide_pattern", "guide_column") if getattr(self, key)]
        if len(by) > 1:
            raise InputError(
                f"{self.path}: {' and '.join(map(repr, by))} both say which gene a guide "
                "targets. Set one of them."
            )
        self._check_values(given[0])
        self._check_columns()
        _ = self.controls, self.excluded

    def _check_values(self, form: str) -> None:
        values = getattr(self, form)
        if form == "perturbation_column":
            return
        chosen = [key for key in ("threshold", "mixture", "doses") if values.get(key)]
        if len(chosen) > 1:
            raise InputError(
                f"{self.path}: {form!r} sets {' and '.join(map(repr, chosen))}: its values are "
                "counts of guides, or doses. Set one of them."
            )
        if values.get("mixture") not in (None, *MIXTURES):
            raise InputError(f"{self.path}: 'mixture' is none of {', '.join(MIXTURES)}.")

    def _check_columns(self) -> None:
        own = {BATCH: self.batch_columns, CONTEXT: [self.context_column]}
        own[GUIDE] = [self.guide_column] if self.knows_guides else None
        reserved = dict.fromkeys(RESERVED) | {k: v for k, v in own.items() if v}
        for name in self.covariates:
            # a column that the screen keeps under its own name
            if name in reserved and reserved[name] != [name]:
                raise InputError(
                    f"{self.path}: the covariate {name!r} has a name that the canonical screen "
                    f"uses itself ({', '.join(reserved)}). Rename the column in the file."
                )
        twice = [name for name in self.covariates if list(self.covariates).count(name) > 1]
        if twice:
            raise InputError(f"{self.path}: the covariate {twice[0]!r} is named twice.")

    @property
    def form(self) -> str:
        """Key of the perturbations of cells, one of :data:`FORMS`."""
        return next(form for form in FORMS if getattr(self, form) is not None)

    @cached_property
    def controls(self) -> LabelSet:
        """Labels of control cells, names of non-targeting guides, or the targets of these."""
        return LabelSet.of(self.control, "control")

    @cached_property
    def excluded(self) -> LabelSet:
        """Labels of cells that are left out."""
        return LabelSet.of(self.exclude, "exclude")

    @property
    def batch_columns(self) -> list[str]:
        """Columns of obs that define the batch."""
        if self.batch_column is None:
            return []
        return [self.batch_column] if isinstance(self.batch_column, str) else [*self.batch_column]

    @property
    def knows_guides(self) -> bool:
        """Whether the screen has guides and their target genes."""
        values: Any = getattr(self, self.form)
        return bool(
            self.guide_table
            or self.guide_pattern
            or self.guide_column
            or (self.form in FORMS[3:] and values.get("gene_column"))
        )

    @property
    def declared(self) -> dict[str, str]:
        """Source columns of columns of the canonical screen, by configuration key, and its unit."""
        given = {
            UNIT: self.unit if self.unit == PERTURBATION else None,
            COMPARED_WITH: self.compared_with if self.unit == PERTURBATION else None,
            "batch_column": JOINED_BATCHES.join(self.batch_columns),
            "context_column": self.context_column,
            "library_size_column": self.library_size_column,
        }
        return {key: name for key, name in given.items() if name}

    @property
    def matrix(self) -> str:
        """Matrix of the counts, ``X``, ``raw/X`` or a layer."""
        if self.counts_layer == RAW:
            return "raw/X"
        return "X" if self.counts_layer is None else f"layers[{self.counts_layer!r}]"

    @property
    def counts_place(self) -> str:
        """File and matrix of the counts, for messages."""
        return f"{self.path}: {self.matrix}"


@contextmanager
def open_source(source: H5adSource) -> Iterator[AnnDataFile]:
    """Open the file of a source, at the modality and genes of the counts.

    Raises
    ------
    InputError
        If the file cannot be read, or has no such modality.
    """
    guides = None if source.guide_modality is None else source.guide_modality["name"]
    with open_h5ad(source.path, source.modality, guides) as file:
        # a layer with the name "raw" has priority over AnnData's raw
        of_raw = source.counts_layer == RAW and RAW not in file.get("layers", {})
        yield file.of_raw() if of_raw else file


def member(file: AnnDataFile, group: str, name: str, key: str) -> Any:
    """Return an element of an open file that the configuration names.

    Parameters
    ----------
    file
        An open file.
    group
        ``layers``, ``obsm`` or ``uns``.
    name
        Name of the element.
    key
        Configuration key, for the message.

    Raises
    ------
    InputError
        If it does not exist, with the existing names.
    """
    held = file.get(group, {})
    check_member(file, group, name, list(held), key)
    return held[name]


def column(file: AnnDataFile, table: str, name: str, key: str) -> pd.Series:
    """Read a column of obs or var that the configuration names; see :func:`member`.

    A column of obs may be common to all modalities of the file.
    """
    known = columns(file, table)
    shared = shared_columns(file) if table == "obs" and name not in known else []
    if name in shared:
        return read_shared_column(file, name)
    check_member(file, table, name, known, key)
    return read_column(file, table, name)


def check_member(file: AnnDataFile, group: str, name: str, known: Sequence[str], key: str) -> None:
    """Refuse a name in the configuration that does not exist, and list the existing names."""
    if name not in known:
        raise InputError(
            f"{file.filename}: {group} has no {name!r} (it has: "
            f"{', '.join(sorted(known)) or 'nothing'}). Set {key!r} to one of them."
        )


def counts_matrix(file: AnnDataFile, source: H5adSource) -> CountMatrix:
    """Return the matrix of counts; only its shape is read."""
    if file.raw or source.counts_layer is None:
        return counts_of(file)
    layers = file.get("layers", {})
    if source.counts_layer not in layers:
        raise InputError(
            f"{file.filename}: layers has no {source.counts_layer!r} (it has: "
            f"{', '.join(sorted(layers)) or 'nothing'}). {places_of_counts(file)}"
        )
    return counts_of(file, source.counts_layer)


def read_covariates(file: AnnDataFile, source: H5adSource) -> pd.DataFrame:
    """Read the columns of obs that the screen keeps: batch, context and covariates.

    Raises
    ------
    InputError
        If one is missing, or a cell has no batch or context.
    """
    kept: dict[str, pd.Series] = {}
    if source.batch_columns:
        parts = [_group(file, name, "batch_column") for name in source.batch_columns]
        joined = parts[0]
        for part in parts[1:]:
            joined = joined.str.cat(part, sep=JOINED_BATCHES)
        kept[BATCH] = joined.astype("category")
    if source.context_column is not None:
        kept[CONTEXT] = _group(file, source.context_column, "context_column").astype("category")
    for name in source.covariates:
        if name not in kept:
            kept[name] = column(file, "obs", name, "covariates")
    return pd.DataFrame(kept)


def _group(file: AnnDataFile, name: str, key: str) -> pd.Series:
    values = column(file, "obs", name, key)
    missing = values.isna()
    if missing.any():
        raise InputError(
            f"{file.filename}: obs[{name!r}]: {int(missing.sum()):,} cell(s) have no value, the "
            f"first at position {int(np.argmax(missing))} (counting from 0). Give each cell one, "
            f"or set {key!r} to another column."
        )
    return values.astype(str)


def read_library_sizes(file: AnnDataFile, source: H5adSource) -> np.ndarray | None:
    """Read the library size of each cell of the file; None if it is the sum of its counts.

    Returns
    -------
    ndarray of int64 or None
        Counts over all genes, including genes that are not in the file.

    Raises
    ------
    InputError
        If the column is missing, or a value is not a positive integer.
    """
    name = source.library_size_column
    if name is None:
        return None
    where = f"{source.path}: obs[{name!r}]"
    values = column(file, "obs", name, "library_size_column")
    try:
        numbers = values.astype(np.float64).to_numpy()
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} does not hold numbers ({error}).") from error
    wrong = ~(np.isfinite(numbers) & (numbers > 0) & (numbers == np.floor(numbers)))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InputError(
            f"{where}: the value {numbers[at]:g} of cell {at} (counting from 0) is no library size "
            f"({int(wrong.sum()):,} such values). Each is the number of all counts of a cell."
        )
    return numbers.astype(np.int64)
