"""Assignment of cells to perturbations and guides, for all supported forms of files.

Every cell gets a row of the design matrix, or the reason why it is left out.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import PERTURBATION, lost_cells
from samsvae.screen.design import Design, Guides, group_rows, span_of_row
from samsvae.screen.labels import (
    CONTROL,
    LabelGrammar,
    ReadLabel,
    read_doses,
    refuse_no_control,
)
from samsvae.sources.guides import guide_frame, refuse_unknown_guides, target_finder
from samsvae.sources.h5ad_file import AnnDataFile
from samsvae.sources.h5ad_guides import GuideMatrix, read_guide_matrix
from samsvae.sources.h5ad_source import H5adSource, column

# reasons to leave out a cell, in order of priority
NO_LABEL, EXCLUDED, NO_GUIDE, SEVERAL, FEW_CELLS = range(1, 6)
REASONS = {
    NO_LABEL: "no label",
    EXCLUDED: "excluded",
    NO_GUIDE: "no guide",
    SEVERAL: "several perturbations",
    FEW_CELLS: "below min_cells",
}
MISSING = ("", "nan", "none", "null", "<na>")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """Perturbations and guides of the cells of a file.

    Attributes
    ----------
    design
        Design matrix of all cells; rows of cells that are left out are not used.
    reasons
        0, or the reason to leave out each cell, see :data:`REASONS`.
    written
        Distinct labels, or names of columns, as in the file.
    guides
        Guides of each cell; None if unknown.
    notes
        Messages on ambiguous labels, by name.
    n_guides
        Number of guides of each cell, if they are from a matrix.
    controls
        Labels, parts of labels or columns that are controls.
    """

    design: Design
    reasons: np.ndarray
    written: list[str]
    guides: Guides | None = None
    notes: dict[str, str] = field(default_factory=dict)
    n_guides: np.ndarray | None = None
    controls: frozenset[str] = frozenset()

    @property
    def kept(self) -> np.ndarray:
        """Whether each cell is kept."""
        return np.asarray(self.reasons == 0)

    def lost(self) -> pd.DataFrame:
        """Count the cells that are left out, by reason.

        Returns
        -------
        DataFrame
            ``reason`` and ``cells``, for reasons with cells.
        """
        numbers = np.bincount(self.reasons, minlength=len(REASONS) + 1)
        return lost_cells({name: int(numbers[at]) for at, name in REASONS.items() if numbers[at]})


def read_assignment(
    file: AnnDataFile, source: H5adSource, measured: Collection[str] = frozenset()
) -> Assignment:
    """Read the perturbations and guides of cells.

    Parameters
    ----------
    file
        An open AnnData file.
    source
        Settings of its labels or guides.
    measured
        Symbols of the measured genes, which help to split labels.

    Returns
    -------
    Assignment
        All cells of the file, with a reason for those that are left out.

    Raises
    ------
    InputError
        If a column is missing, a label, guide or dose is not valid, or no perturbations remain, or
        no control cells where these are needed.
    """
    if source.form == "perturbation_column":
        read = _from_labels(file, source, frozenset(measured))
    else:
        read = _from_matrix(read_guide_matrix(file, source), source)
    has_control = (read.kept & (read.design.n_perturbations == 0)).any()
    if not has_control and source.unit != PERTURBATION:
        if source.form == "perturbation_column":
            raise refuse_no_control(
                read.written, source.controls, f"{source.path}: obs[{source.perturbation_column!r}]"
            )
        raise InputError(
            f"{source.path}: there is no control cell: each has a perturbation, or no guide. Set "
            "'control' to the column of non-targeting guides"
            + ("." if source.no_guide == "control" else ", or no_guide: control.")
        )
    return _with_few(_with_several(read, source), source)


# ---------------------------------------------------------------------------------- labels in obs


def _from_labels(file: AnnDataFile, source: H5adSource, measured: frozenset[str]) -> Assignment:
    name = str(source.perturbation_column)
    where = f"{source.path}: obs[{name!r}]"
    written = _read_label_column(file, source, where)
    labels = [str(label).strip() for label in written.categories]
    target_of, only_controls = target_finder(source)
    grammar = LabelGrammar(source.controls, source.delimiter, where, measured, target_of)
    excluded = [label in source.excluded for label in labels]
    parts = [
        [] if out else grammar.split(label) for label, out in zip(labels, excluded, strict=True)
    ]
    if not only_controls:
        refuse_unknown_guides((p for of_label in parts for p in of_label), target_of, source, where)
    out = np.array(
        [
            one or _leaves_out(of, target_of, source)
            for one, of in zip(excluded, parts, strict=True)
        ],
        dtype=bool,
    )
    used = [at for at in range(len(labels)) if not out[at]]
    read = dict(zip(used, grammar.read([labels[at] for at in used]), strict=True))
    reasons = np.zeros(len(written), dtype=np.uint8)
    reasons[written.codes < 0] = NO_LABEL
    codes = written.codes.astype(np.int64)
    reasons[(codes >= 0) & np.append(out, False)[codes]] = EXCLUDED
    if source.dose_column is None:
        # the last for cells without a label
        conditions = [read[at].doses if at in read else {} for at in range(len(labels))] + [{}]
        design = Design.of_conditions(conditions, codes)
    else:
        doses = column(file, "obs", source.dose_column, "dose_column")
        design = _with_doses(codes, labels, read, doses, source)
    guides = None
    if source.guide_column is not None:
        guides = _guides_beside(file, source, codes, read)
    elif target_of is not None:
        guides = _guides_of_labels(codes, read, target_of, source)
    names = list(map(str, written.categories))
    controls = _controls(read.values())
    return Assignment(design, reasons, names, guides, _notes(read, grammar), controls=controls)


def _controls(read: Iterable[ReadLabel]) -> frozenset[str]:
    return frozenset(
        part
        for one in read
        for part, target in zip(one.parts, one.targets, strict=True)
        if target is None
    )


def _read_label_column(file: AnnDataFile, source: H5adSource, where: str) -> pd.Categorical:
    name = str(source.perturbation_column)
    values = column(file, "obs", name, "perturbation_column")
    labels = pd.Categorical(values) if values.dtype != bool else pd.Categorical(values.astype(str))
    if not all(isinstance(label, str) for label in labels.categories):
        as_text = [str(label) for label in labels.categories]
        labels = pd.Categorical.from_codes(labels.codes, as_text)
    # strings that pandas writes for missing labels
    named = [label for label in labels.categories if label.strip().casefold() not in MISSING]
    labels = labels.set_categories(named).remove_unused_categories()
    missing = int((labels.codes < 0).sum())
    if missing and not source.excluded.missing:
        raise InputError(
            f"{where}: {missing} cell(s) have no label. Give each cell a label, or leave these "
            "cells out with exclude: [nan]."
        )
    return labels


def _leaves_out(parts: list[str], target_of: object, source: H5adSource) -> bool:
    """Whether a part of a label, or the target gene of a guide, is excluded."""
    for part in parts:
        target = target_of(part) if callable(target_of) else None
        if part in source.excluded or (target is not None and target in source.excluded):
            return True
    return False


def _notes(read: Mapping[int, ReadLabel], grammar: LabelGrammar) -> dict[str, str]:
    if not grammar.delimiter:
        return {}
    whole = sorted(
        {part for one in read.values() for part in one.parts if grammar.delimiter in part}
        - set(grammar.control.names)
    )
    if not whole:
        return {}
    return {
        "delimiter within names": (
            f"the delimiter {grammar.delimiter!r} is a part of {len(whole)} known name(s), which "
            f"were kept whole: {', '.join(whole[:5])}. Set 'delimiter' to null if labels are never "
            "combinations."
        )
    }


def _with_doses(
    codes: np.ndarray,
    labels: list[str],
    read: Mapping[int, ReadLabel],
    doses: pd.Series,
    source: H5adSource,
) -> Design:
    undosed = np.array(
        [not any(read[at].targets) if at in read else True for at in range(len(labels))]
    )
    is_dosed = (codes >= 0) & ~np.append(undosed, True)[codes]
    given = np.where(is_dosed, doses.to_numpy(dtype=object), None)
    pairs = pd.DataFrame({"label": codes, "dose": given})
    number = pairs.groupby(["label", "dose"], sort=False, dropna=False).ngroup().to_numpy()
    first = np.flatnonzero(~pd.Series(number).duplicated().to_numpy())
    where = f"{source.path}: obs[{source.dose_column!r}]"
    dosed: list[dict[str, float]] = []
    for cell in first:
        one = read.get(int(codes[cell]))
        if one is None:
            dosed.append({})
            continue
        label = labels[codes[cell]]
        dosed.append(read_doses(given[cell], label, one.targets, source.delimiter, where))
    return Design.of_conditions(dosed, number)


def _guides_of_labels(
    codes: np.ndarray, read: Mapping[int, ReadLabel], target_of: object, source: H5adSource
) -> Guides:
    """Build guides from the parts of labels."""
    assert callable(target_of)
    parts = {at: list(dict.fromkeys(one.parts)) for at, one in read.items()}
    known = sorted({part for of_label in parts.values() for part in of_label})
    table = guide_frame({guide: target_of(guide) for guide in known}, source.controls)
    return Guides(table, _membership(codes, parts, known))


def _membership(
    codes: np.ndarray, members: Mapping[int, list[str]], known: list[str]
) -> sparse.csr_matrix:
    """Build the matrix cells x names from the names of each distinct label."""
    index = {name: at for at, name in enumerate(known)}
    n_labels = max([int(codes.max(initial=-1)), *members], default=-1) + 1
    rows = sparse.lil_matrix((n_labels + 1, len(known)), dtype=np.float32)  # the last for no label
    for at, names in members.items():
        for name in names:
            rows[at, index[name]] = 1
    return sparse.csr_matrix(rows.tocsr()[np.where(codes < 0, n_labels, codes)])


def _guides_beside(
    file: AnnDataFile, source: H5adSource, codes: np.ndarray, read: Mapping[int, ReadLabel]
) -> Guides:
    """Read guides from a column; their targets are the genes of the cells' labels."""
    name = str(source.guide_column)
    where = f"{source.path}: obs[{name!r}]"
    written = pd.Categorical(column(file, "obs", name, "guide_column"))
    texts = [str(text).strip() for text in written.categories]
    targets: dict[str, str | None] = {}
    members: dict[int, list[str]] = {}
    pairs = pd.DataFrame({"guide": written.codes, "label": codes}).drop_duplicates()
    in_use = (pairs["guide"] >= 0) & pairs["label"].isin(list(read))
    pairs = pairs[in_use].sort_values(["guide", "label"])
    for guide, label in pairs.itertuples(index=False):
        genes = sorted(read[label].doses)
        split = texts[guide].split(source.delimiter) if source.delimiter else [texts[guide]]
        # one guide per gene, in the order of the label, or else a single construct
        named = [part.strip() for part in split]
        of_each = len(named) == len(genes) > 1 and all(
            g in n for g, n in zip(genes, named, strict=True)
        )
        found = dict(zip(named, genes, strict=True)) if of_each else {texts[guide]: "+".join(genes)}
        members[guide] = list(found)
        for one, target in found.items():
            known = targets.setdefault(one, target or None)
            if known != (target or None):
                raise InputError(
                    f"{where}: cells with the guide {one!r} are labelled {known or CONTROL!r} and "
                    f"{target or CONTROL!r}. A guide has one target: correct the labels, or leave "
                    "out 'guide_column'."
                )
    known_guides = sorted(targets)
    table = guide_frame({guide: targets[guide] for guide in known_guides}, source.controls)
    return Guides(table, _membership(written.codes.astype(np.int64), members, known_guides))


# ------------------------------------------------------------------------------------- a matrix


def _from_matrix(matrix: GuideMatrix, source: H5adSource) -> Assignment:
    where = matrix.where
    if not all(name.strip() for name in matrix.names):
        raise InputError(f"{where}: a column has no name but the prefix. Leave it out by 'except'.")
    target_of, only_controls = target_finder(source, matrix.genes)
    if not only_controls:
        refuse_unknown_guides(matrix.names, target_of, source, where)
    excluded = np.array(
        [name in source.excluded or _leaves_out([name], target_of, source) for name in matrix.names]
    )
    # each name is a single guide or perturbation, even if it contains a delimiter
    grammar = LabelGrammar(source.controls, None, where, frozenset(), target_of)
    used = [name for name, out in zip(matrix.names, excluded, strict=True) if not out]
    read = dict(zip(used, grammar.read(used), strict=True))
    targets = [read[name].targets[0] if name in read else None for name in matrix.names]
    doses = matrix.doses
    doses.sort_indices()
    doses.eliminate_zeros()
    codes, rows = group_rows(doses)
    conditions: list[dict[str, float]] = []
    reason_of = np.zeros(len(rows), dtype=np.uint8)
    has_control_column = any(
        target is None for name, target in zip(matrix.names, targets, strict=True) if name in read
    )
    empty_is_control = source.no_guide == "control" or (
        source.no_guide is None and not matrix.called
    )
    for number, row in enumerate(rows):
        span = span_of_row(doses, row)
        columns = doses.indices[span]
        condition: dict[str, float] = {}
        if excluded[columns].any():
            reason_of[number] = EXCLUDED
        elif not len(columns) and not empty_is_control:
            reason_of[number] = NO_GUIDE
        else:
            given = zip([targets[at] for at in columns], doses.data[span], strict=True)
            condition = _doses_of_cell(int(row), given, where)
        conditions.append(condition)
    reasons = reason_of[codes]
    if matrix.known is not None:
        reasons[~matrix.known] = NO_GUIDE
    guides = None
    if source.knows_guides or matrix.genes is not None:
        table = guide_frame(dict(zip(matrix.names, targets, strict=True)), source.controls)
        guides = Guides(table, sparse.csr_matrix(doses > 0, dtype=np.float32))
    notes = {}
    n_guides = np.diff(doses.indptr)
    n_empty = int(((n_guides == 0) & (reasons == 0)).sum())
    if n_empty and has_control_column and source.no_guide is None:
        notes["cells without a guide"] = (
            f"{n_empty:,} cells have none of the {len(matrix.names):,} columns, beside those with "
            "non-targeting guides, and are taken for control cells. If no guide was found in them, "
            "set no_guide: exclude; if they are controls, no_guide: control."
        )
    if matrix.thresholds is not None:
        low, middle, high = np.nanquantile(matrix.thresholds, [0, 0.5, 1])
        logger.info(
            "%s: guides called from %g UMIs on (median over guides; %g to %g)",
            where,
            middle,
            low,
            high,
        )
    design = Design.of_conditions(conditions, codes)
    return Assignment(
        design, reasons, matrix.names, guides, notes, n_guides, _controls(read.values())
    )


def _doses_of_cell(
    cell: int, given: "zip[tuple[str | None, float]]", where: str
) -> dict[str, float]:
    doses: dict[str, float] = {}
    for gene, dose in given:
        if gene is not None and doses.setdefault(gene, dose) != dose:
            raise InputError(
                f"{where}: cell {cell} (counting from 0) has two guides of {gene!r} at the doses "
                f"{doses[gene]:g} and {dose:g}. Give them one dose."
            )
    return doses


# ---------------------------------------------------------------------------- what is left out


def _with_several(read: Assignment, source: H5adSource) -> Assignment:
    most = source.max_perturbations
    if most is None:
        return read
    return _without(read, read.design.n_perturbations > most, SEVERAL)


def _with_few(read: Assignment, source: H5adSource) -> Assignment:
    """Leave out perturbations with few cells.

    Only a combination's own cells count, whether or not its single genes are kept. Where effects
    are of single perturbations, all cells that have these count, and a cell with others stays.
    """
    labels = read.design.labels()
    if source.unit == PERTURBATION:
        kept = read.design[np.flatnonzero(read.kept)]
        cells = pd.Series(kept.matrix.getnnz(axis=0), index=kept.names)
    else:
        cells = labels[read.kept].remove_unused_categories().value_counts()
        cells = cells.drop(CONTROL, errors="ignore")
    few = cells[cells < source.min_cells].sort_index()
    if not len(few):
        return read
    if len(few) == len(cells):
        raise InputError(
            f"{source.path}: no perturbation has {source.min_cells} cells or more (the largest has "
            f"{cells.max()}). Lower 'min_cells'."
        )
    logger.info(
        "min_cells %d: left out %d of %d perturbations with %d cells in all: %s",
        source.min_cells, len(few), len(cells), few.sum(),
        ", ".join(f"{name} {number}" for name, number in few.items()),
    )  # fmt: skip
    if source.unit == PERTURBATION:
        columns = ~np.isin(read.design.names, few.index)
        names = np.array(read.design.names, dtype=object)[columns]
        frequent = Design(sparse.csr_matrix(read.design.matrix[:, columns]), list(names))
        has_none = (frequent.n_perturbations == 0) & (read.design.n_perturbations > 0)
        return _without(replace(read, design=frequent), has_none, FEW_CELLS)
    return _without(read, labels.isin(few.index), FEW_CELLS)


def _without(read: Assignment, is_out: np.ndarray, reason: int) -> Assignment:
    reasons = np.where(is_out & read.kept, reason, read.reasons).astype(np.uint8)
    return replace(read, reasons=reasons)
