"""Inspection of a screen: all errors and warnings, as text and as a table."""

import logging
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from samsvae.inspection.counts import PARTIAL_LAYERS, TOTALS, count_findings
from samsvae.inspection.design import (
    BATCH,
    cells_of_perturbations,
    design_findings,
    find_batches,
    name_findings,
)
from samsvae.inspection.evidence import ERROR, Evidence, Finding, sample_of_cells, survey_counts
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import NO_COUNT, PERTURBATION, lost_cells
from samsvae.screen.gene_sets import measured_sets, read_gmt
from samsvae.screen.labels import CONTROL
from samsvae.screen.validation import check_library_sizes, check_text
from samsvae.sources.counts import CountMatrix
from samsvae.sources.genes import read_features, select_genes
from samsvae.sources.h5ad import measured_names, unique_cell_names
from samsvae.sources.h5ad_file import RAW, AnnDataFile, columns, counts_of, n_rows
from samsvae.sources.h5ad_labels import Assignment, read_assignment
from samsvae.sources.h5ad_source import (
    H5adSource,
    column,
    counts_matrix,
    open_source,
    read_covariates,
    read_library_sizes,
)

Read = TypeVar("Read")
UNREADABLE = "cannot be used"
N_TESTED_CELLS = 200  # of a layer, enough to distinguish counts from logarithms
MOST_GUIDES = 5  # cells with more guides are counted together

logger = logging.getLogger(__name__)


@dataclass
class Inspection:
    """Facts and findings of a screen.

    Attributes
    ----------
    facts
        Summary of the screen: name and value, as text.
    tables
        Numbers of cells by name, by the title of the table.
    findings
        Errors first, then warnings.
    """

    facts: dict[str, str] = field(default_factory=dict)
    tables: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """Findings of severity ``error``."""
        return [finding for finding in self.findings if finding.severity == ERROR]


def inspect_screen(
    settings: Mapping[str, Any],
    gene_sets: Mapping[str, str],
    min_size: int = 1,
    max_size: int | None = None,
) -> Inspection:
    """Inspect the screen of a file and its settings.

    Parameters
    ----------
    settings
        Fields of an :class:`H5adSource`.
    gene_sets
        GMT files, by name, to be tested on the screen.
    min_size, max_size
        Smallest and largest number of measured genes of a tested set.

    Returns
    -------
    Inspection
        Facts and findings, as far as the file can be read.
    """
    found = Inspection()
    try:
        _inspect(found, settings, gene_sets, min_size, max_size)
    except InputError as error:
        _note(found, error)
    except Exception as error:  # one bad screen must not end the check of the others
        logger.debug("unexpected:", exc_info=True)
        path = settings.get("path")
        what = f"{path}: cannot be read: {type(error).__name__}: {' '.join(str(error).split())}."
        _note(found, InputError(f"{what} Is the file as AnnData writes it?"))
    found.findings.sort(key=lambda finding: finding.severity != ERROR)
    return found


def _inspect(
    found: Inspection,
    settings: Mapping[str, Any],
    gene_sets: Mapping[str, str],
    min_size: int,
    max_size: int | None,
) -> None:
    source = H5adSource(**settings)
    with open_source(source) as file:
        evidence = _read(file, source, found)
    for check in (count_findings, name_findings, design_findings):
        found.findings += check(evidence)
    for path in gene_sets.values():
        sets = _attempt(found, partial(read_gmt, path))
        if sets:
            measured = partial(measured_sets, sets, evidence.symbols, path, min_size, max_size)
            _attempt(found, measured)
    found.facts |= _facts(evidence)
    found.tables |= _tables(evidence)


def _note(found: Inspection, error: InputError) -> None:
    finding = Finding(ERROR, UNREADABLE, str(error))
    if finding not in found.findings:
        found.findings.append(finding)


def _attempt(found: Inspection, read: Callable[[], Read]) -> Read | None:
    """Read; on an error record a finding and return None."""
    try:
        return read()
    except InputError as error:
        _note(found, error)
        return None


def _read(file: AnnDataFile, source: H5adSource, found: Inspection) -> Evidence:
    features = _attempt(found, lambda: read_features(file, source.gene_symbol_column))
    features = features or read_features(file, None)
    counts = _attempt(found, lambda: counts_matrix(file, source))
    measured = measured_names(features)
    assigned: Assignment | None = None
    # guides among the features need the matrix of counts
    if counts is not None or source.guide_features is None:
        assigned = _attempt(found, lambda: read_assignment(file, source, measured))
    n_cells = n_rows(file, "obs")
    cells = np.arange(n_cells) if assigned is None else np.flatnonzero(assigned.kept)
    genes, survey = features.genes, None
    lost = lost_cells({}) if assigned is None else assigned.lost()
    if counts is not None:
        sampled = sample_of_cells(counts, cells)
        chosen = _attempt(found, partial(select_genes, counts, sampled, features, source))
        genes = genes if chosen is None else chosen
        survey = survey_counts(counts, cells, genes, sampled)
        if len(genes) < len(features.table) and not survey.is_sample:
            survey = survey.with_counts()
            n_empty = len(cells) - len(survey.cells)
            if n_empty:
                lost = lost_cells({NO_COUNT: n_empty}, lost)
            cells = survey.cells
    cell_names, renamed = unique_cell_names(file, cells)
    names = np.array(features.names, dtype=object)
    _check_texts(found, source, cell_names, names[genes], assigned)
    sizes = _attempt(found, partial(read_library_sizes, file, source))
    if sizes is not None and survey is not None and not survey.faults:
        where = source.counts_place
        _attempt(found, partial(check_library_sizes, sizes[survey.cells], survey.total, where))
    _attempt(found, partial(read_covariates, file, source))
    notes = dict(features.notes) | ({} if assigned is None else assigned.notes)
    if renamed:
        notes["duplicate cell names"] = renamed
    obs = pd.DataFrame(_columns(file, source, found), index=range(n_cells)).iloc[cells]
    barcodes = np.array(cell_names, dtype=object)
    return Evidence(
        matrix=source.matrix,
        integer_layers=_integer_layers(file, source) if survey and survey.faults else (),
        survey=survey,
        design=None if assigned is None else assigned.design[cells],
        written=[] if assigned is None else assigned.written,
        delimiter=source.delimiter if source.perturbation_column is not None else None,
        from_matrix=source.perturbation_column is None,
        control=source.controls,
        excluded=source.excluded,
        controls=frozenset() if assigned is None else assigned.controls,
        cell_names=barcodes,
        symbols=names[genes],
        measured=frozenset(measured),
        obs=obs,
        batches=find_batches(obs, barcodes, [*source.covariates, *source.batch_columns]),
        covariates=tuple(source.covariates),
        n_in_file=(n_cells, len(features.table)),
        lost=lost,
        notes=notes,
        n_guides=None if assigned is None else assigned.n_guides,
        guides=None if assigned is None or assigned.guides is None else assigned.guides.table,
        library_size_column=source.library_size_column,
        by_perturbation=source.unit == PERTURBATION,
    )


def _check_texts(
    found: Inspection,
    source: H5adSource,
    cell_names: list[str],
    genes: Iterable[str],
    assigned: Assignment | None,
) -> None:
    """Check names as the canonical screen does."""
    where = source.counts_place
    _attempt(found, partial(check_text, cell_names, "cell name", where))
    _attempt(found, partial(check_text, genes, "gene name", where))
    if assigned is not None:
        names = assigned.design[assigned.kept].names
        _attempt(found, partial(check_text, names, "label", source.path))


def _integer_layers(file: AnnDataFile, source: H5adSource) -> tuple[str, ...]:
    """Find matrices with integers, by the first cells of each."""
    found = []
    layers = [name for name in file.get("layers", {}) if not PARTIAL_LAYERS.fullmatch(name)]
    matrices: dict[str, Callable[[], CountMatrix]]
    matrices = {name: partial(counts_of, file, name) for name in sorted(layers)}
    if not file.raw and RAW not in matrices:
        matrices[RAW] = lambda: counts_of(file.of_raw())
    for name, counts in matrices.items():
        if name == source.counts_layer:
            continue
        try:
            first = counts()
        except InputError:
            continue
        few = np.arange(min(N_TESTED_CELLS, first.shape[0]))
        values = np.concatenate([block.data for _, block in first.blocks(few, None)])
        if len(values) and (values >= 0).all() and (values == np.floor(values)).all():
            found.append(str(name))
    return tuple(found)


def _columns(
    file: AnnDataFile, source: H5adSource, found: Inspection
) -> dict[str, "pd.Series[Any]"]:
    named = [*source.covariates, *source.batch_columns]
    wanted = [name for name in columns(file, "obs") if _may_matter(name) and name not in named]
    read = {
        name: _attempt(found, partial(column, file, "obs", name, "covariates"))
        for name in [*wanted, *dict.fromkeys(named)]
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
    if evidence.design is not None:
        labels, conditions = evidence.design.conditions()
        cells = cells_of_perturbations(evidence, labels.value_counts())
        n_controls = int((labels == CONTROL).sum())
        sizes = np.array([len(condition) for condition in conditions])
        of_size = [f"{(sizes == 1).sum()} single genes", f"{(sizes == 2).sum()} pairs"]
        if (sizes > 2).any():
            of_size.append(f"{(sizes > 2).sum()} of three or more")
        n_guides = evidence.design.n_perturbations
        several = f"in cells with {n_guides.mean():.1f} on average"
        facts |= {
            "perturbations": f"{len(cells):,}: "
            f"{several if evidence.by_perturbation else ', '.join(of_size)}",
            "control cells": f"{n_controls:,} ({100 * n_controls / len(labels):.1f} %)",
        }
        if len(cells):
            facts["cells per perturbation"] = _spread(cells)
    if evidence.guides is not None:
        kinds = evidence.guides["kind"].value_counts()
        listed = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        facts["guides"] = f"{len(evidence.guides):,}: {listed}"
    survey = evidence.survey
    if survey is not None and not survey.faults:
        facts |= {
            "counts per cell": _spread(pd.Series(survey.total)),
            "genes per cell": _spread(pd.Series(survey.detected)),
            "entries that are not 0": f"{100 * survey.filled:.1f} %",
        }
        if survey.is_sample:
            facts["counts looked at"] = (
                f"those of {len(survey.cells):,} cells, evenly spread, as the file is large"
            )
    for name, batch in evidence.batches.items():
        numbers = batch.value_counts()
        facts[f"batches by {name}"] = (
            f"{len(numbers)}, of {numbers.min():,} to {numbers.max():,} cells"
        )
    if evidence.covariates:
        facts["covariates"] = ", ".join(evidence.covariates)
    return facts


def _tables(evidence: Evidence) -> dict[str, dict[str, int]]:
    tables = {}
    if len(evidence.lost):
        lost = evidence.lost.groupby("reason", sort=False)["cells"].sum()
        tables["Cells left out"] = {str(reason): int(n) for reason, n in lost.items()}
    if evidence.n_guides is not None:
        numbers = np.bincount(np.minimum(evidence.n_guides, MOST_GUIDES))
        names = [*map(str, range(MOST_GUIDES)), f"{MOST_GUIDES} or more"]
        tables["Cells by number of guides or perturbations"] = {
            name: int(number) for name, number in zip(names, numbers, strict=False)
        }
    return tables


def _of(kept: int, all_of_them: int) -> str:
    return f"{kept:,}" if kept == all_of_them else f"{kept:,} of {all_of_them:,} in the file"


def _spread(values: pd.Series) -> str:
    low, middle, high = values.quantile([0.05, 0.5, 0.95])
    ends = f"5-95 % {low:,.0f} to {high:,.0f}, all {values.min():,.0f} to {values.max():,.0f}"
    return f"median {middle:,.0f}, {ends}"


WIDTH = 100


def to_text(inspection: Inspection, name: str, path: str) -> str:
    """Format an inspection as text.

    Parameters
    ----------
    inspection
        Facts and findings.
    name
        Name of the screen.
    path
        File of the screen.
    """
    lines = [f"Screen {name} ({path})"]
    width = max(map(len, inspection.facts), default=0)
    lines += [f"  {fact:<{width}}  {value}" for fact, value in inspection.facts.items()]
    for title, rows in inspection.tables.items():
        widest = max(map(len, rows))
        lines += [title, *(f"  {name:<{widest}}  {value:>10,}" for name, value in rows.items())]
    errors = inspection.errors
    warnings = [finding for finding in inspection.findings if finding.severity != ERROR]
    lines += _section(errors, "Errors", "the screen cannot be used")
    lines += _section(warnings, "Warnings", "the screen can be used; look at these")
    return "\n".join(lines) + "\n"


def _section(findings: list[Finding], what: str, meaning: str) -> list[str]:
    if not findings:
        return [f"{what}: none"]
    lines = [f"{what}: {len(findings)} ({meaning})"]
    for number, finding in enumerate(findings, start=1):
        lines += _wrapped(number, finding)
    return lines


def _wrapped(number: int, finding: Finding) -> list[str]:
    text = f"{number}. {finding.name}: {finding.message}"
    return textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent="     ", break_on_hyphens=False
    )


def format_warnings(findings: pd.DataFrame, name: str) -> str:
    """Format the warnings of a table as text; empty if there are none.

    Errors are not included: the job that reads the screen ends with the first of them.

    Parameters
    ----------
    findings
        A table of :func:`to_table`.
    name
        Name of the screen.
    """
    found = findings[findings["severity"] != ERROR]
    if not len(found):
        return ""
    listed = [Finding(*map(str, row)) for row in found.itertuples(index=False)]
    lines = [f"Warnings of the check of the screen {name} (details: make check):"]
    for number, finding in enumerate(listed, start=1):
        lines += _wrapped(number, finding)
    return "\n".join(lines) + "\n"


def to_table(inspection: Inspection) -> pd.DataFrame:
    """Tabulate the findings: severity, name, message."""
    columns = ["severity", "name", "message"]
    rows = [[getattr(finding, column) for column in columns] for finding in inspection.findings]
    return pd.DataFrame(rows, columns=columns)
