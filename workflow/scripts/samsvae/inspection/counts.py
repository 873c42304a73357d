"""Checks of counts: raw counts, sequencing depth, duplicated cells and genes."""

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from samsvae.inspection.evidence import ERROR, WARNING, CountSurvey, Evidence, Finding, some

LOW_COUNTS = 500  # median counts per cell below which single cells are hardly informative
SPARSE = 0.05
CONSTANT_SPREAD = 0.02  # coefficient of variation; that of raw library sizes is far larger
EXTREME = 5.0  # robust standard deviations of the log library size
DOMINANT = 0.3
DIFFERENT_DEPTH = 1.5
ENOUGH_TO_COMPARE = 20  # cells or genes with counts, below which equality may be chance
SUBSET_RATIO = 2.0
TOTALS = re.compile(
    r"(^|_)n?_?(umis?|counts?)$|^total_(counts|umis?)$|^ncount_rna$|^(rna|umi)_count$|^library_size$",
    re.IGNORECASE,
)
# layers of RNA velocity: integers, but a part of the counts
PARTIAL_LAYERS = re.compile(
    r".*(un)?spliced.*|ambiguous|.*intron.*|.*exon.*|mature|nascent", re.IGNORECASE
)
LARGEST_LOG = np.log1p(1e6)
SAME = 1e-5  # relative difference of values that are equal up to rounding
NEARLY, MOST_UNITS = 0.02, 100


def count_findings(evidence: Evidence) -> Iterator[Finding]:
    """Check the values, cells and genes of the matrix.

    Parameters
    ----------
    evidence
        Evidence of the screen.

    Yields
    ------
    Finding
        Most severe first.
    """
    if evidence.survey is None:
        return
    for check in (_values, _empty, _depth, _duplicates):
        yield from check(evidence, evidence.survey)


def _values(evidence: Evidence, survey: CountSurvey) -> Iterator[Finding]:
    for name, fault in survey.faults.items():
        message = (
            f"{fault.number:,} value(s) of {evidence.matrix} are {name}, the first "
            f"{fault.value:g} in cell {fault.cell}, gene {fault.gene} (counting from 0)."
        )
        if name == "not an integer":
            message += _kind_of_transformation(survey)
        yield Finding(ERROR, name, f"{message} Raw UMI counts are needed: {_remedy(evidence)}")
    if survey.largest == 1 and not survey.faults:
        yield Finding(
            WARNING,
            "binary counts",
            "no value is larger than 1, as if only detection had been kept. Give raw counts.",
        )
    total = survey.total[survey.total > 0]
    if len(total) > 1 and not survey.faults and total.std() < CONSTANT_SPREAD * total.mean():
        yield Finding(
            WARNING,
            "constant library size",
            f"counts add up to about {np.median(total):,.0f} in every cell, "
            "which raw counts never do: they seem normalised or down-sampled. Give raw counts.",
        )


def _remedy(evidence: Evidence) -> str:
    if evidence.integer_layers:
        layers = " or ".join(map(repr, evidence.integer_layers))
        return f"set 'counts_layer' to {layers}, which has integers."
    return "set 'counts_layer' to the layer that has them, or get the file with raw counts."


def _kind_of_transformation(survey: CountSurvey) -> str:
    if "negative" in survey.faults:
        return " Some are negative as well: the matrix seems to be scaled."
    if survey.largest < LARGEST_LOG and _are_multiples([np.expm1(v) for v in survey.examples]):
        return f" The largest is {survey.largest:.3g}: they seem to be log-normalised."
    if _are_multiples(survey.examples):
        return f" The largest is {survey.largest:,.0f}: they seem to be normalised."
    if survey.largest < LARGEST_LOG:
        return f" The largest is {survey.largest:.3g}: they seem to be logarithms, or corrected."
    return (
        f" The largest is {survey.largest:,.0f}, and those of a cell are no multiples of one "
        "number: they seem to be counts corrected for ambient RNA (CellBender, SoupX, decontX), "
        "which models of counts cannot take."
    )


def _are_multiples(examples: list[np.ndarray]) -> bool:
    """Whether the values of each cell are integer multiples of a factor, as normalised counts."""
    found = []
    for values in examples:
        levels = np.unique(values[values > 0].astype(np.float64))
        if len(levels) < 2:
            continue
        steps = np.diff(levels)
        unit = min(levels[0], steps[steps > SAME * levels[-1]].min(initial=np.inf))
        ratio = levels / unit
        ratio = ratio[ratio < MOST_UNITS]
        if not len(ratio):
            continue
        found.append(np.mean(np.abs(ratio - np.round(ratio)) < NEARLY) > 0.95)
    return bool(found) and float(np.mean(found)) > 0.5


def _empty(evidence: Evidence, survey: CountSurvey) -> Iterator[Finding]:
    empty = np.flatnonzero(survey.total == 0)
    if len(empty):
        yield Finding(
            ERROR,
            "cells without a count",
            f"{len(empty):,} cell(s) have no count at all, the first at position "
            f"{survey.cells[empty[0]]} (counting from 0). Remove empty cells from the file.",
        )
    silent = survey.gene_total == 0
    if silent.any() and not survey.is_sample:
        yield Finding(
            WARNING,
            "genes without a count",
            f"{silent.sum():,} of {len(silent):,} genes have no count in any "
            f"cell: {some(evidence.symbols[silent])}. Nothing can be learnt of them; 'min_mean' "
            "leaves them out.",
        )


def _depth(evidence: Evidence, survey: CountSurvey) -> Iterator[Finding]:
    total = survey.total[survey.total > 0]
    if not len(total) or survey.faults:
        return
    median = float(np.median(total))
    if median < LOW_COUNTS:
        yield Finding(
            WARNING,
            "low counts per cell",
            f"the median cell has {median:,.0f} counts. Effects of single genes "
            "will be noisy, however many cells there are.",
        )
    if survey.filled < SPARSE:
        yield Finding(
            WARNING,
            "sparse counts",
            f"{100 * survey.filled:.1f} % of the entries are not 0. Keep the "
            "genes that are expressed, by 'min_mean' or 'highly_variable'.",
        )
    yield from _subset(evidence, survey)
    largest = int(np.argmax(survey.gene_total))
    fraction = survey.gene_total[largest] / survey.gene_total.sum()
    if fraction > DOMINANT and len(evidence.symbols) > ENOUGH_TO_COMPARE:
        yield Finding(
            WARNING,
            "dominant gene",
            f"the gene {evidence.symbols[largest]} alone has {100 * fraction:.0f} % of all "
            "counts, so that a change in it seems to change every other gene.",
        )
    log_total = np.log(np.where(survey.total > 0, survey.total, np.nan))
    spread = 1.4826 * np.nanmedian(np.abs(log_total - np.log(median)))
    far = np.abs(log_total - np.log(median)) > EXTREME * max(spread, CONSTANT_SPREAD)
    if far.any():
        outliers = np.flatnonzero(far)[np.argsort(-np.abs(log_total[far] - np.log(median)))]
        names = evidence.cell_names[evidence.surveyed]
        shown = [f"{names[i]} {survey.total[i]:,.0f}" for i in outliers]
        yield Finding(
            WARNING,
            "cells with extreme counts",
            f"{far.sum():,} cell(s) have far more or fewer counts than "
            f"the median of {median:,.0f}: {some(shown)}. They may be doublets or debris.",
        )
    yield from _depth_of_control(evidence, survey)


def _depth_of_control(evidence: Evidence, survey: CountSurvey) -> Iterator[Finding]:
    if evidence.design is None:
        return
    control = evidence.design.n_perturbations[evidence.surveyed] == 0
    if not control.any() or control.all():
        return
    of_control = float(np.median(survey.total[control]))
    of_others = float(np.median(survey.total[~control]))
    low, high = sorted([of_control, of_others])
    if high > DIFFERENT_DEPTH * low:
        yield Finding(
            WARNING,
            "different depth of control cells",
            f"the median control cell has {of_control:,.0f} counts, the median "
            f"perturbed cell {of_others:,.0f}. If they were sequenced apart, every effect contains "
            "the difference.",
        )


def _subset(evidence: Evidence, survey: CountSurvey) -> Iterator[Finding]:
    if evidence.library_size_column is not None:
        return
    total = survey.total
    for name in evidence.obs:
        column = evidence.obs[name]
        if not TOTALS.search(str(name)) or not pd.api.types.is_numeric_dtype(column):
            continue
        noted = column.to_numpy(dtype=float, na_value=np.nan)[evidence.surveyed]
        if np.mean(noted >= total) > 0.95 and np.nanmedian(noted) > SUBSET_RATIO * np.median(total):
            yield Finding(
                WARNING,
                "part of the genes",
                f"the column obs[{name!r}] has a median of {np.nanmedian(noted):,.0f}, but "
                f"the counts of the {len(evidence.symbols):,} genes add up to "
                f"{np.median(total):,.0f}. The library size is that of these genes alone; "
                f"library_size_column: {name} takes the column's.",
            )
            return


def _duplicates(evidence: Evidence, survey: CountSurvey) -> Iterator[Finding]:
    cells = pd.Series(survey.cell_sketch, index=evidence.cell_names[evidence.surveyed])
    cells = cells[survey.detected >= ENOUGH_TO_COMPARE]
    yield from _same(cells, "cells", "duplicated cells")
    genes = pd.Series(survey.gene_sketch, index=evidence.symbols)
    genes = genes[survey.gene_detected >= ENOUGH_TO_COMPARE]
    yield from _same(genes, "genes", "duplicated genes")


def _same(sketch: pd.Series, what: str, name: str) -> Iterator[Finding]:
    equal = sketch[sketch.duplicated(keep=False)].sort_values(kind="stable")
    if len(equal):
        yield Finding(
            WARNING,
            name,
            f"{len(equal):,} {what} have exactly the counts of another: "
            f"{some(list(equal.index))}. Copies in training and test make a test easy; remove "
            "them.",
        )
