"""Whether labels and gene names mean what they seem to."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

import pandas as pd

from samsvae.inspection.evidence import Evidence
from samsvae.inspection.finding import ERROR, SUSPICION, Finding, some
from samsvae.labels import CONTROL, components

MONTH = "jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec"
DATE = re.compile(
    rf"\d{{1,2}}[-/ ]({MONTH})|({MONTH})[-/ ]\d{{1,4}}|\d{{4}}-\d\d-\d\d.*", re.IGNORECASE
)
NO_LABEL = re.compile(
    r"|nan|none|null|n/?a|unknown|unassigned|unmapped|undetermined|multiplet|doublet|ambiguous"
    r"|multiple|negative|no[ _-]guide|\*",
    re.IGNORECASE,
)
CONTROL_LIKE = re.compile(
    r"ctrl|control|ntc?|(non|no)[-_ ]?target(ing)?.*|neg(ative)?[-_ ]?(ctrl|control).*"
    r"|safe[-_ ]?(targeting|harbou?r).*|scrambled?.*|unperturbed|untreated|wt|wild[-_ ]?type|mock"
    r"|dmso",
    re.IGNORECASE,
)
GUIDE = re.compile(r"(?:sg)?(.+?)(?:[_.]\d+|[-_.]?(?:sg|g|grna|guide)[-_]?\d+)", re.IGNORECASE)
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?")


def name_findings(evidence: Evidence) -> Iterator[Finding]:
    """Look at the labels of perturbations, and at the names of cells and genes.

    Parameters
    ----------
    evidence
        Of the screen.

    Yields
    ------
    Finding
        Duplicates first.
    """
    yield from _duplicates(evidence.cell_names, "cell", "obs")
    yield from _duplicates(evidence.symbols, "gene", "var")
    yield from _dates(evidence.symbols, "genes")
    yield from _orders(evidence)
    parts = _parts(evidence.written, evidence.delimiter)
    yield from _dates(parts, "labels")
    yield from _look_alikes(parts)
    targets = sorted({part.strip() for part in parts} - {evidence.control, CONTROL})
    yield from _no_perturbations(targets, evidence)
    if evidence.labels is not None:
        singles = sorted({c for label in set(evidence.labels) for c in components(label)})
        yield from _unmeasured(singles, evidence)


def _duplicates(names: Collection[str], what: str, axis: str) -> Iterator[Finding]:
    index = pd.Index(names)
    twice = index[index.duplicated()].unique()
    if len(twice):
        yield Finding(
            ERROR,
            f"duplicate {what} names",
            f"{len(twice):,} {what} name(s) occur more than once: {some(twice)}. "
            f"Make them unique in the file (anndata: {axis}_names_make_unique).",
        )


def _parts(written: Iterable[str], delimiter: str | None) -> list[str]:
    split = (label.split(delimiter) if delimiter else [label] for label in written)
    return sorted({part for parts in split for part in parts})


def _dates(names: Iterable[str], what: str) -> Iterator[Finding]:
    dates = [name for name in names if DATE.fullmatch(name.strip())]
    if dates:
        yield Finding(
            SUSPICION,
            f"{what} that are dates",
            f"{len(dates)} of the {what} read as dates: {some(dates)}. A "
            "spreadsheet turns SEPT1 into 1-Sep and MARCH1 into 1-Mar; put the symbols back.",
        )


def _orders(evidence: Evidence) -> Iterator[Finding]:
    if not evidence.delimiter:
        return
    orders: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for label in evidence.written:
        parts = [part.strip() for part in label.split(evidence.delimiter)]
        if len(parts) > 1:
            orders[tuple(sorted(parts))].add(evidence.delimiter.join(parts))
    twice = [" = ".join(sorted(labels)) for labels in orders.values() if len(labels) > 1]
    if twice:
        yield Finding(
            SUSPICION,
            "pairs in two orders",
            f"{len(twice)} combination(s) are written in more than one order: "
            f"{some(twice)}. They become one perturbation.",
        )


def _look_alikes(parts: Iterable[str]) -> Iterator[Finding]:
    alike: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        alike[re.sub(r"[\s_.-]", "", part).casefold()].append(part)
    groups = [" ~ ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    if groups:
        yield Finding(
            SUSPICION,
            "look-alike labels",
            f"labels differ in case, white space or punctuation alone: "
            f"{some(groups)}. If they mean the same gene, write them alike.",
        )


def _no_perturbations(targets: list[str], evidence: Evidence) -> Iterator[Finding]:
    unassigned = [name for name in targets if NO_LABEL.fullmatch(name)]
    if unassigned:
        yield Finding(
            SUSPICION,
            "labels that are no perturbation",
            f"cells labelled {some(unassigned)} would be taken for cells of a "
            "perturbation of that name. Remove them from the file.",
        )
    controls = [name for name in targets if CONTROL_LIKE.fullmatch(name)]
    if controls:
        yield Finding(
            SUSPICION,
            "several labels of control",
            f"the labels {some(controls)} may be of control cells, too, but only "
            f"{evidence.control!r} is. Give them that label in the file, or by 'guide_table'.",
        )


def _unmeasured(singles: list[str], evidence: Evidence) -> Iterator[Finding]:
    measured = set(evidence.symbols)
    absent = [name for name in singles if name not in measured]
    genes = [found[1] for name in absent if (found := GUIDE.fullmatch(name))]
    if len(genes) > len(singles) / 2 and len(set(genes)) < len(genes):
        yield Finding(
            SUSPICION,
            "labels of guides",
            f"the labels {some(absent)} seem to be guides, several to a gene. As they are, "
            "each is a perturbation of its own; 'guide_table' or 'guide_pattern' joins them.",
        )
    identifiers = [name for name in evidence.symbols if ENSEMBL.fullmatch(name)]
    if len(identifiers) > len(evidence.symbols) / 2 and not any(map(ENSEMBL.fullmatch, singles)):
        yield Finding(
            SUSPICION,
            "genes named by identifiers",
            f"{len(identifiers):,} genes have Ensembl identifiers for names "
            f"({some(identifiers[:2])}), but perturbations are named by symbols. Set "
            "'gene_symbol_column' to the column of var that has symbols.",
        )
    elif absent:
        all_of_them = len(absent) == len(singles)
        yield Finding(
            SUSPICION,
            "targets that are not measured",
            f"{len(absent)} of {len(singles)} targeted genes are not among the measured ones: "
            f"{some(absent)}. "
            + (
                "Labels and genes may be named differently; and the model 'bilinear', which knows "
                "a perturbation by the expression of its target, cannot be used."
                if all_of_them
                else "Whether these were hit cannot be seen in their own counts."
            ),
        )
