"""Checks of labels, gene names and numbers of cells by perturbation and batch."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.inspection.evidence import ERROR, WARNING, Evidence, Finding, some
from samsvae.screen.design import Design, group_rows
from samsvae.screen.labels import (
    CONTROL,
    CONTROL_LIKE,
    NO_GUIDE_LIKE,
    label_of,
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


FEW_CONTROLS = 200
FEW_CELLS = 20
UNEQUAL = 10
MANY_DOSES = 10
MOST_BATCHES = 200
BY_CHANCE = 1e-4  # probability below which an absence from a batch is not by chance
BATCH = re.compile(
    r"(^|_)(batch|rep|replicate|lane|sample|donor|plate|gem_?group|library|channel|pool|run)"
    r"s?(_?id)?($|_)",
    re.IGNORECASE,
)
LONGEST_SUFFIX = 3
BY_CHANCE_ALONE = 0.1  # combinations per cell, above which they are not designed
LARGE_LOSS = 0.05  # fraction of the cells


def design_findings(evidence: Evidence) -> Iterator[Finding]:
    """Check numbers of cells by perturbation and batch.

    Parameters
    ----------
    evidence
        Evidence of the screen; without labels there are no findings.

    Yields
    ------
    Finding
        Controls first.
    """
    if evidence.design is None:
        return
    labels, conditions = evidence.design.conditions()
    cells = pd.Series(np.asarray(labels)).value_counts()
    n_controls = int(cells.get(CONTROL, 0))
    yield from _losses(evidence)
    if not evidence.by_perturbation:
        yield from _many_guides(evidence.design.n_perturbations, conditions)
    if n_controls == len(labels):
        yield Finding(
            ERROR, "no perturbation", "every cell is a control cell; there is nothing to model."
        )
    if n_controls < FEW_CONTROLS and not evidence.by_perturbation:
        yield Finding(
            WARNING,
            "few control cells",
            f"there are {n_controls} control cells. Every effect is a difference "
            "from their mean, so their noise is in all of them.",
        )
    yield from _sizes(cells_of_perturbations(evidence, cells))
    if not evidence.by_perturbation:
        yield from _lone_pairs(conditions)
    yield from _doses_like_counts(conditions)
    if evidence.by_perturbation:
        yield from _same_cells(evidence.design)
    for name, batch in evidence.batches.items():
        if evidence.by_perturbation:
            yield from _confined(name, *_cells_in_batches(evidence.design, batch))
        else:
            yield from _unbalanced(name, batch, labels)


def cells_of_perturbations(evidence: Evidence, cells: pd.Series) -> pd.Series:
    """Count the cells of each condition, or of each single perturbation, without control.

    Parameters
    ----------
    evidence
        Evidence of the screen, with its design matrix.
    cells
        Number of cells of each condition.
    """
    if evidence.by_perturbation and evidence.design is not None:
        design = evidence.design
        return pd.Series(design.matrix.getnnz(axis=0), index=design.names)
    return cells.drop(CONTROL, errors="ignore")


def find_batches(
    obs: pd.DataFrame, cell_names: np.ndarray, covariates: Collection[str]
) -> dict[str, pd.Categorical]:
    """Find possible batches: covariates, columns with names of batches, suffixes of barcodes.

    Parameters
    ----------
    obs
        Columns of obs.
    cell_names
        Names of the same cells.
    covariates
        Columns that the screen keeps.

    Returns
    -------
    dict of Categorical
        Batch of each cell, for columns with 2 to 200 batches.
    """
    found: dict[str, pd.Categorical] = {}
    for name in obs:
        column = obs[name]
        chosen = name in covariates or BATCH.search(str(name))
        if chosen and not pd.api.types.is_float_dtype(column) and not column.isna().any():
            found[f"obs[{name!r}]"] = pd.Categorical(column.astype(str))
    suffixes = [name.rpartition("-")[2] for name in cell_names]
    if all(len(suffix) <= LONGEST_SUFFIX and suffix.isdecimal() for suffix in set(suffixes)):
        found["the suffix of barcodes"] = pd.Categorical(suffixes)
    return {n: b for n, b in found.items() if 1 < len(b.categories) <= MOST_BATCHES}


def _losses(evidence: Evidence) -> Iterator[Finding]:
    n_cells = evidence.n_in_file[0]
    n_lost = int(evidence.lost["cells"].sum())
    if n_lost > LARGE_LOSS * n_cells:
        by_reason = [
            f"{cells:,} {reason}" for reason, cells in evidence.lost.itertuples(index=False)
        ]
        yield Finding(
            WARNING,
            "many cells left out",
            f"{n_lost:,} of {n_cells:,} cells ({100 * n_lost / n_cells:.0f} %) are left out: "
            f"{', '.join(by_reason)}. Are they cells that you want to lose?",
        )


def _many_guides(sizes: np.ndarray, conditions: list[dict[str, float]]) -> Iterator[Finding]:
    perturbed = sizes > 0
    n_combinations, n_several = sum(len(one) > 1 for one in conditions), int((sizes > 1).sum())
    # designed pairs have many cells each, pairs by chance have few
    if 2 * n_several > perturbed.sum() and n_combinations > BY_CHANCE_ALONE * n_several:
        yield Finding(
            WARNING,
            "many guides per cell",
            f"{100 * n_several / perturbed.sum():.0f} % of the perturbed cells have several "
            f"perturbations (median {np.median(sizes[perturbed]):.0f}), in "
            f"{n_combinations:,} combinations that seem to be of chance, as at a high multiplicity "
            "of infection (MOI). Few combinations have cells enough for an observed effect of "
            "their own. Set unit: perturbation, by which effects, tests and predictions are of "
            "single perturbations in all cells that have them (and combinations: additive in the "
            "models); or max_perturbations: 1, which keeps the cells with one perturbation alone. "
            "Without these, 'min_cells' would leave out nearly every cell.",
        )


def _sizes(cells: pd.Series) -> Iterator[Finding]:
    few = cells[cells < FEW_CELLS].sort_values(kind="stable")
    if len(few):
        shown = [f"{name} {number}" for name, number in few.items()]
        yield Finding(
            WARNING,
            "perturbations with few cells",
            f"{len(few)} of {len(cells)} perturbations have fewer than "
            f"{FEW_CELLS} cells: {some(shown)}. Some may be left without training or test cells; "
            "'min_cells' leaves them out.",
        )
    if len(cells) > 1 and cells.max() > UNEQUAL * cells.min():
        yield Finding(
            WARNING,
            "unequal cells per perturbation",
            f"perturbations have between {cells.min():,} cells "
            f"({cells.idxmin()}) and {cells.max():,} ({cells.idxmax()}). Effects of the small ones "
            "are far noisier, and summaries over cells show the large ones.",
        )


def _lone_pairs(conditions: list[dict[str, float]]) -> Iterator[Finding]:
    alone = {name for one in conditions if len(one) == 1 for name in one}
    pairs = [one for one in conditions if len(one) > 1]
    lone = sorted(label_of(pair) for pair in pairs if not alone.issuperset(pair))
    if lone:
        yield Finding(
            WARNING,
            "pairs without their single genes",
            f"in {len(lone)} of {len(pairs)} combinations, a gene was never "
            f"perturbed alone: {some(lone)}. The sum of single effects says little of them; in a "
            "split by combinations set 'untrained_perturbations'.",
        )


def _doses_like_counts(conditions: list[dict[str, float]]) -> Iterator[Finding]:
    of_gene: dict[str, set[float]] = defaultdict(set)
    for condition in conditions:
        for gene, dose in condition.items():
            of_gene[gene].add(dose)
    many = sorted(
        gene
        for gene, seen in of_gene.items()
        if len(seen) > MANY_DOSES and all(dose == int(dose) for dose in seen)
    )
    if many:
        yield Finding(
            WARNING,
            "doses that look like counts",
            f"the perturbations {some(many)} had more than {MANY_DOSES} doses, all of them "
            "integers, as if they were UMI counts of guides. Each is a condition of its own: write "
            "1 where a guide was found.",
        )


def _unbalanced(what: str, batch: pd.Categorical, labels: pd.Categorical) -> Iterator[Finding]:
    pairs = labels.codes.astype(np.int64) * len(batch.categories) + batch.codes
    shape = (len(labels.categories), len(batch.categories))
    numbers = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    table = pd.DataFrame(numbers, index=labels.categories, columns=batch.categories)
    fraction = table.sum() / table.to_numpy().sum()
    if CONTROL in table.index:
        without = list(table.columns[table.loc[CONTROL] == 0])
        if without:
            yield Finding(
                WARNING,
                "batches without control cells",
                f"by {what}, {len(without)} of {len(fraction)} batches have no "
                f"control cell: {some(without)}. Effects of the batch will be taken for effects "
                "of perturbations. With 'batch_column', cells are compared with control cells of "
                "their own batch, and the cells of these batches with none.",
            )
    yield from _confined(what, table.drop(CONTROL, errors="ignore"), fraction)


def _confined(what: str, others: pd.DataFrame, fraction: pd.Series) -> Iterator[Finding]:
    """Check whether perturbations are missing from batches; cells of each, and of all."""
    absent = (others == 0).to_numpy() @ fraction.to_numpy()
    # probability that as many random cells would all belong to the other batches
    confined = others[(1 - absent) ** others.sum(axis=1).to_numpy() < BY_CHANCE]
    if len(confined):
        shown = [
            f"{label} in {', '.join(row.index[row > 0])}" for label, row in confined.iterrows()
        ]
        yield Finding(
            WARNING,
            "perturbations confined to batches",
            f"by {what}, {len(confined)} of {len(others)} perturbations are "
            f"missing from batches where they should be by chance: {some(shown)}. Effects of batch "
            "and perturbation are confounded; with 'batch_column', cells are compared within "
            "batches.",
        )


def _cells_in_batches(design: Design, batch: pd.Categorical) -> tuple[pd.DataFrame, pd.Series]:
    """Count the cells of each single perturbation in each batch; with each batch's fraction."""
    member = pd.get_dummies(batch, dtype=float)
    counted = (design.matrix != 0).astype(float).T @ member.to_numpy()
    numbers = pd.DataFrame(counted.astype(int), index=design.names, columns=list(member.columns))
    return numbers, member.mean()


def _same_cells(design: Design) -> Iterator[Finding]:
    """Check whether perturbations have the same cells, by which their effects are one."""
    columns = sparse.csr_matrix((design.matrix != 0).T, dtype=np.float32)
    columns.sort_indices()
    together = pd.Series(design.names).groupby(group_rows(columns)[0]).agg(list)
    same = [" = ".join(names) for names in together if len(names) > 1]
    if same:
        yield Finding(
            WARNING,
            "perturbations with the same cells",
            f"perturbations always occur together, so that their effects cannot be separated, and "
            f"each has the effect of both: {some(same)}. Give them one name.",
        )
