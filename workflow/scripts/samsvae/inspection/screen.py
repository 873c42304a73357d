"""Inspects a screen: finds everything that is wrong or strange in it, not just the first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import h5py
import numpy as np
import pandas as pd

from samsvae.biology.gene_sets import measured_sets, read_gmt
from samsvae.errors import InputError
from samsvae.inspection.counts import TOTALS, count_findings
from samsvae.inspection.design import BATCH, batches, design_findings
from samsvae.inspection.evidence import Evidence
from samsvae.inspection.finding import ERROR, Finding
from samsvae.inspection.names import name_findings
from samsvae.inspection.survey import survey_counts
from samsvae.labels import CONTROL, components
from samsvae.sources.h5ad import choose
from samsvae.sources.h5ad_dosage import read_dosage
from samsvae.sources.h5ad_file import columns, counts_of, open_h5ad, read_names
from samsvae.sources.h5ad_labels import read_label_column, read_labels
from samsvae.sources.h5ad_source import H5adSource, column, counts_matrix, gene_symbols

Read = TypeVar("Read")
UNREADABLE = "cannot be used"
LOOKED_AT = 200  # cells of a layer, which are enough to tell counts from logarithms


@dataclass
class Inspection:
    """What was found in a screen.

    Attributes
    ----------
    facts
        What the screen consists of: name and value, in words.
    findings
        Errors first, then suspicions.
    """

    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """Findings for which the screen cannot be used."""
        return [finding for finding in self.findings if finding.severity == ERROR]


def inspect_screen(
    settings: Mapping[str, Any],
    gene_sets: Mapping[str, str],
    min_size: int = 1,
    max_size: int | None = None,
) -> Inspection:
    """Inspect a file as the screen that its settings make of it.

    Parameters
    ----------
    settings
        Fields of an :class:`H5adSource`: the file, and where it has what.
    gene_sets
        GMT files by name that will be tested on the screen.
    min_size, max_size
        Smallest and largest number of measured genes of a set that is tested.

    Returns
    -------
    Inspection
        Facts and findings, as far as the file can be read.
    """
    found = Inspection()
    try:
        source = H5adSource(**settings)
        with open_h5ad(source.path) as file:
            evidence = _read(file, source, found)
    except InputError as error:
        found.findings.append(Finding(ERROR, UNREADABLE, str(error)))
        return found
    for look in (count_findings, name_findings, design_findings):
        found.findings += look(evidence)
    for path in gene_sets.values():
        sets = _attempt(found, partial(read_gmt, path))
        if sets:
            measured = partial(measured_sets, sets, evidence.symbols, path, min_size, max_size)
            _attempt(found, measured)
    found.findings.sort(key=lambda finding: finding.severity != ERROR)
    found.facts |= _facts(evidence)
    return found


def _attempt(found: Inspection, read: Callable[[], Read]) -> Read | None:
    """Read, or note why that cannot be done and go on."""
    try:
        return read()
    except InputError as error:
        found.findings.append(Finding(ERROR, UNREADABLE, str(error)))
        return None


def _read(file: h5py.File, source: H5adSource, found: Inspection) -> Evidence:
    labels = _attempt(found, lambda: read_labels(file, source))
    symbols = _attempt(found, lambda: gene_symbols(file, source)) or list(read_names(file, "var"))
    counts = _attempt(found, lambda: counts_matrix(file, source))
    cell_names = read_names(file, "obs").to_numpy()
    obs = pd.DataFrame(_columns(file, source, found), index=range(len(cell_names)))
    cells, genes, survey = np.arange(len(cell_names)), np.arange(len(symbols)), None
    if counts is not None:
        chosen = None
        if labels is not None:
            chosen = _attempt(found, partial(choose, counts, labels, symbols, source))
        cells, genes = chosen or (cells, genes)
        survey = survey_counts(counts, cells, genes)
        if len(genes) < len(symbols):
            survey = survey.with_counts()
            cells = survey.cells
    return Evidence(
        matrix=source.matrix,
        integer_layers=_integer_layers(file) if survey and survey.faults else (),
        survey=survey,
        labels=None if labels is None else labels[cells],
        written=_written(file, source),
        delimiter=source.delimiter if source.perturbation_column is not None else None,
        control=source.control,
        cell_names=cell_names[cells],
        symbols=np.array(symbols, dtype=object)[genes],
        obs=obs.iloc[cells],
        covariates=tuple(source.covariates),
        n_in_file=(len(cell_names), len(symbols)),
    )


def _integer_layers(file: h5py.File) -> tuple[str, ...]:
    """Find the layers that may hold raw counts, by their first cells."""
    found = []
    for name in file.get("layers", {}):
        first = counts_of(file, name)
        few = np.arange(min(LOOKED_AT, first.shape[0]))
        values = np.concatenate([block.data for _, block in first.blocks(few, None)])
        if len(values) and (values >= 0).all() and (values == np.floor(values)).all():
            found.append(str(name))
    return tuple(found)


def _written(file: h5py.File, source: H5adSource) -> list[str]:
    """Read labels as they are written; why they cannot be read has been noted already."""
    try:
        if source.perturbation_column is not None:
            return list(read_label_column(file, source).categories)
        return read_dosage(file, source)[1]
    except InputError:
        return []


def _columns(file: h5py.File, source: H5adSource, found: Inspection) -> dict[str, pd.Series]:
    wanted = [name for name in columns(file, "obs") if _may_matter(name)]
    wanted += [name for name in source.covariates if name not in wanted]
    read = {
        name: _attempt(found, partial(column, file, "obs", name, "covariates")) for name in wanted
    }
    return {name: values for name, values in read.items() if values is not None}


def _may_matter(name: str) -> bool:
    return bool(BATCH.search(name) or TOTALS.search(name))


def _facts(evidence: Evidence) -> dict[str, str]:
    n_cells, n_genes = evidence.n_in_file
    facts = {
        "cells": _of(len(evidence.cell_names), n_cells),
        "genes": _of(len(evidence.symbols), n_genes),
    }
    if evidence.labels is not None:
        cells = pd.Series(evidence.labels).value_counts()
        n_controls = int(cells.get(CONTROL, 0))
        cells = cells.drop(CONTROL, errors="ignore")
        sizes = pd.Series([len(components(label)) for label in cells.index])
        of_size = [f"{(sizes == 1).sum()} single genes", f"{(sizes == 2).sum()} pairs"]
        if (sizes > 2).any():
            of_size.append(f"{(sizes > 2).sum()} of three or more")
        facts |= {
            "perturbations": f"{len(cells):,}: {', '.join(of_size)}",
            "control cells": f"{n_controls:,} ({100 * n_controls / len(evidence.labels):.1f} %)",
        }
        if len(cells):
            facts["cells per perturbation"] = _spread(cells)
    survey = evidence.survey
    if survey is not None and not survey.faults:
        facts |= {
            "counts per cell": _spread(pd.Series(survey.total)),
            "genes per cell": _spread(pd.Series(survey.detected)),
            "entries that are not 0": f"{100 * survey.filled:.1f} %",
        }
    for name, batch in batches(evidence).items():
        numbers = batch.value_counts()
        facts[f"batches by {name}"] = (
            f"{len(numbers)}, of {numbers.min():,} to {numbers.max():,} cells"
        )
    if evidence.covariates:
        facts["covariates"] = ", ".join(evidence.covariates)
    return facts


def _of(kept: int, all_of_them: int) -> str:
    return f"{kept:,}" if kept == all_of_them else f"{kept:,} of {all_of_them:,} in the file"


def _spread(values: pd.Series) -> str:
    low, middle, high = values.quantile([0.05, 0.5, 0.95])
    ends = f"5-95 % {low:,.0f} to {high:,.0f}, all {values.min():,.0f} to {values.max():,.0f}"
    return f"median {middle:,.0f}, {ends}"
