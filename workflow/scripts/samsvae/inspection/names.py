"""Checks of labels and gene names: dates, spellings, delimiters, controls, identifiers."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from samsvae.inspection.evidence import WARNING, Evidence, Finding, some
from samsvae.screen.labels import (
    CONTROL,
    CONTROL_LIKE,
    NO_GUIDE_LIKE,
    likely_delimiter,
)

MONTH = "jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec"
DATE = re.compile(
    rf"\d{{1,2}}[-/ ]({MONTH})|({MONTH})[-/ ]\d{{1,4}}|\d{{4}}-\d\d-\d\d.*", re.IGNORECASE
)
GUIDE = re.compile(r"(?:sg)?(.+?)(?:[_.]\d+|[-_.]?(?:sg|g|grna|guide)[-_]?\d+)", re.IGNORECASE)
WORDS_OF_YAML = re.compile(r"no|n|yes|y|on|off|true|false|null|nan", re.IGNORECASE)
LISTED = 8
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?")


def name_findings(evidence: Evidence) -> Iterator[Finding]:
    """Check the labels of perturbations, and the names of cells and genes.

    Parameters
    ----------
    evidence
        Evidence of the screen.

    Yields
    ------
    Finding
        Duplicates first.
    """
    for name, message in evidence.notes.items():
        yield Finding(WARNING, name, message)
    yield from _dates(evidence.symbols, "genes")
    yield from _orders(evidence)
    parts = _parts(evidence.written, evidence.delimiter)
    yield from _dates(parts, "labels")
    yield from _look_alikes(parts)
    targets = [
        name
        for name in parts
        if name not in evidence.control
        and name not in evidence.excluded
        and name not in evidence.controls
        and name != CONTROL
    ]
    yield from _other_delimiter(evidence)
    yield from _no_perturbations(targets, evidence)
    if evidence.design is not None:
        yield from _unmeasured(evidence.design.names, evidence)


def _parts(written: Iterable[str], delimiter: str | None) -> list[str]:
    split = (label.split(delimiter) if delimiter else [label] for label in written)
    return sorted({part.strip() for parts in split for part in parts})


def _other_delimiter(evidence: Evidence) -> Iterator[Finding]:
    """Find labels that look like combinations although no delimiter is set."""
    if evidence.delimiter is not None or evidence.from_matrix:
        return
    found = likely_delimiter(evidence.written, evidence.measured)
    if found is not None:
        torn = [label for label in evidence.written if found in label.strip()]
        yield Finding(
            WARNING,
            "labels that look like combinations",
            f"labels such as {some(torn)} are measured genes joined by {found!r}. If they are "
            f"combinations, set delimiter: {found!r}; as they are, each is a perturbation of its "
            "own.",
        )


def _dates(names: Iterable[str], what: str) -> Iterator[Finding]:
    dates = [name for name in names if DATE.fullmatch(name.strip())]
    if dates:
        yield Finding(
            WARNING,
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
        if len(parts) > 1 and not any(part in evidence.control for part in parts):
            orders[tuple(sorted(parts))].add(evidence.delimiter.join(parts))
    twice = [" = ".join(sorted(labels)) for labels in orders.values() if len(labels) > 1]
    if twice:
        yield Finding(
            WARNING,
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
            WARNING,
            "look-alike labels",
            f"labels differ in case, white space or punctuation alone: "
            f"{some(groups)}. If they mean the same gene, write them alike.",
        )


def _no_perturbations(targets: list[str], evidence: Evidence) -> Iterator[Finding]:
    unassigned = [name for name in targets if NO_GUIDE_LIKE.fullmatch(name)]
    if unassigned:
        yield Finding(
            WARNING,
            "labels that are no perturbation",
            f"cells labelled {some(unassigned)} would be taken for cells of a "
            f"perturbation of that name. Leave them out: exclude: {_listed(unassigned)}.",
        )
    controls = [name for name in targets if CONTROL_LIKE.fullmatch(name) and name not in unassigned]
    if controls:
        yield Finding(
            WARNING,
            "several labels of control",
            f"the labels {some(controls)} may be of control cells, too, but only "
            f"{evidence.control} is. If they are, list them, control: "
            f"{_listed([*sorted(evidence.control.names), *controls])}, or give a pattern.",
        )


def _listed(names: Collection[str]) -> str:
    """Format the first labels as a list in YAML."""
    shown = [
        name
        if re.fullmatch(r"[A-Za-z][\w-]*", name) and not WORDS_OF_YAML.fullmatch(name)
        else f'"{name}"'
        for name in list(names)[:LISTED]
    ]
    return f"[{', '.join(shown)}{', ...' if len(names) > LISTED else ''}]"


def _unmeasured(singles: list[str], evidence: Evidence) -> Iterator[Finding]:
    measured = set(evidence.symbols)
    absent = [name for name in singles if name not in measured]
    genes = [found[1] for name in absent if (found := GUIDE.fullmatch(name))]
    if len(genes) > len(singles) / 2 and len(set(genes)) < len(genes):
        yield Finding(
            WARNING,
            "labels of guides",
            f"the labels {some(absent)} seem to be guides, several to a gene. As they are, "
            "each is a perturbation of its own; 'guide_table' or 'guide_pattern' joins them.",
        )
    identifiers = [name for name in evidence.symbols if ENSEMBL.fullmatch(name)]
    if len(identifiers) > len(evidence.symbols) / 2 and not any(map(ENSEMBL.fullmatch, singles)):
        yield Finding(
            WARNING,
            "genes named by identifiers",
            f"{len(identifiers):,} genes have Ensembl identifiers for names "
            f"({some(identifiers[:2])}), but perturbations are named by symbols. Set "
            "'gene_symbol_column' to the column of var that has symbols.",
        )
    elif absent:
        all_of_them = len(absent) == len(singles)
        yield Finding(
            WARNING,
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
