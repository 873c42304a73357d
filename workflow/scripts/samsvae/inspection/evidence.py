"""Evidence of the checks: one pass over a screen's counts, labels and names, and their findings.

A file of more than a quarter of a gibibyte is sampled: runs of neighbouring cells, evenly spread.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.screen.labels import LabelSet
from samsvae.screen.validation import MOST_COUNTS
from samsvae.sources.counts import CountMatrix

ERROR = "error"
WARNING = "warning"
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """Something wrong, or strange.

    Attributes
    ----------
    severity
        ``error``: the screen cannot be used as it is. ``warning``: it can, but should be looked
        at.
    name
        What it is, in a few words.
    message
        Where it is, why it matters, and what to do about it.
    """

    severity: str
    name: str
    message: str


def some(names: Collection[object]) -> str:
    """Name the first few of many."""
    shown = ", ".join(str(name) for name in list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN:,} more"


MOST_BYTES = 2**28  # of counts that are all looked at
RUNS = 64  # of neighbouring cells in a sample
MOST_EXAMPLES = 20  # cells whose values tell what was done to them

# what may be wrong with a value, as far as the value alone tells
FAULTS = {
    "not a finite number": lambda values: ~np.isfinite(values),
    "negative": lambda values: values < 0,
    "not an integer": lambda values: np.isfinite(values) & (values != np.floor(values)),
    f"above {MOST_COUNTS}": lambda values: np.isfinite(values) & (values > MOST_COUNTS),
}


@dataclass
class Fault:
    """Values that cannot be counts.

    Attributes
    ----------
    number
        How many there are.
    cell, gene
        Position of the first, counting from 0.
    value
        Its value.
    """

    number: int
    cell: int
    gene: int
    value: float


@dataclass
class CountSurvey:
    """What one pass over the counts gives.

    Attributes
    ----------
    cells, genes
        Positions in the file of the cells and genes that were looked at.
    rows
        Positions of these cells among those that the screen keeps.
    total, detected
        Counts of each cell, and its genes with a count.
    gene_total, gene_detected
        Counts of each gene, and its cells with a count.
    cell_sketch, gene_sketch
        Random projections: the same for cells (genes) whose counts are the same.
    is_sample
        Whether they are a part of the cells that the screen keeps.
    largest
        The largest value.
    faults
        Values that are no counts, by what is wrong with them.
    examples
        Values of a few cells that have such values.
    """

    cells: np.ndarray
    genes: np.ndarray
    rows: np.ndarray
    total: np.ndarray
    detected: np.ndarray
    gene_total: np.ndarray
    gene_detected: np.ndarray
    cell_sketch: np.ndarray
    gene_sketch: np.ndarray
    is_sample: bool = False
    largest: float = 0.0
    faults: dict[str, Fault] = field(default_factory=dict)
    examples: list[np.ndarray] = field(default_factory=list)

    def with_counts(self) -> "CountSurvey":
        """Leave out the cells without a count."""
        kept = self.total != 0
        per_cell = {
            name: getattr(self, name)[kept]
            for name in ("cells", "total", "detected", "cell_sketch")
        }
        return replace(self, rows=np.arange(int(kept.sum())), **per_cell)

    @property
    def filled(self) -> float:
        """Fraction of the entries that are not 0."""
        entries = len(self.cells) * len(self.genes)
        return float(self.detected.sum()) / entries if entries else 0.0


def sample_of_cells(
    counts: CountMatrix, cells: np.ndarray, most_bytes: int = MOST_BYTES
) -> np.ndarray:
    """Choose cells whose counts are few enough to be looked at within seconds.

    Parameters
    ----------
    counts
        Cells x genes.
    cells
        Positions of the cells that may be chosen, ascending.
    most_bytes
        About how much may be read.

    Returns
    -------
    ndarray of int
        All of them where they are few, and where the file is stored gene by gene, so that a part
        of the cells is no faster to read.
    """
    fraction = counts.n_bytes / max(counts.shape[0], 1) * len(cells) / most_bytes
    if fraction <= 1 or counts.layout == "csc":
        return cells
    size = max(int(len(cells) / fraction / RUNS), 1)
    firsts = np.linspace(0, len(cells) - size, RUNS).astype(np.int64)
    chosen = np.unique((firsts[:, None] + np.arange(size)).ravel())
    return cells[chosen]


def survey_counts(
    counts: CountMatrix, cells: np.ndarray, genes: np.ndarray, sampled: np.ndarray | None = None
) -> CountSurvey:
    """Read the counts once, block by block.

    Parameters
    ----------
    counts
        Cells x genes.
    cells, genes
        Positions of those that the screen keeps, ascending.
    sampled
        Positions of the cells to look at; None for all.
    """
    chosen = cells if sampled is None else sampled
    rng = np.random.default_rng(0)
    weight_of_gene, weight_of_cell = rng.random(len(genes)), rng.random(len(chosen))
    survey = CountSurvey(
        cells=chosen,
        genes=genes,
        rows=np.searchsorted(cells, chosen),
        total=np.zeros(len(chosen)),
        detected=np.zeros(len(chosen)),
        gene_total=np.zeros(len(genes)),
        gene_detected=np.zeros(len(genes)),
        cell_sketch=np.zeros(len(chosen)),
        gene_sketch=np.zeros(len(genes)),
        is_sample=len(chosen) < len(cells),
    )
    for positions, read in counts.blocks(chosen, genes):
        block = read.astype(np.float64)
        rows = np.searchsorted(chosen, positions)
        _note_faults(survey, block, positions)
        block.data[~np.isfinite(block.data)] = 0
        survey.total[rows] = block.sum(axis=1).A1
        survey.detected[rows] = np.diff(block.indptr)
        survey.gene_total += block.sum(axis=0).A1
        survey.gene_detected += np.bincount(block.indices, minlength=len(genes))
        survey.cell_sketch[rows] = block @ weight_of_gene
        survey.gene_sketch += weight_of_cell[rows] @ block
        survey.largest = max(survey.largest, block.data.max(initial=0))
    return survey


def _note_faults(survey: CountSurvey, block: sparse.csr_matrix, positions: np.ndarray) -> None:
    for name, is_wrong in FAULTS.items():
        wrong = is_wrong(block.data)
        number = int(wrong.sum())
        if not number:
            continue
        at = int(np.argmax(wrong))
        row = int(np.searchsorted(block.indptr, at, side="right")) - 1
        if len(survey.examples) < MOST_EXAMPLES:
            for near in range(row, min(row + MOST_EXAMPLES, block.shape[0])):
                survey.examples.append(block.data[block.indptr[near] : block.indptr[near + 1]])
        if name in survey.faults:
            survey.faults[name].number += number
            continue
        gene = int(survey.genes[block.indices[at]])
        survey.faults[name] = Fault(number, int(positions[row]), gene, float(block.data[at]))


@dataclass(frozen=True)
class Evidence:
    """What could be read of a screen; what could not is None.

    Attributes
    ----------
    matrix
        Where the counts are, ``X``, ``raw/X`` or a layer.
    integer_layers
        Values of 'counts_layer' that may lead to raw counts, if `matrix` does not hold them.
    survey
        What one pass over the counts of the cells and genes that the screen keeps gave, or of a
        sample of these cells.
    labels
        Canonical label of each cell that the screen keeps.
    written
        Distinct labels, or names of columns, as the file has them.
    delimiter
        What joins the genes of a combination in `written`.
    from_matrix
        Whether `written` are names of columns.
    control, excluded
        The labels of control cells, and of cells that are left out, in `written`.
    controls
        Parts of `written` that were taken for controls, for instance by a table of guides.
    cell_names, symbols
        Names of the cells and genes that the screen keeps.
    measured
        Names of all measured genes of the file.
    obs
        Columns of obs that may be batches, covariates or totals, of these cells.
    batches
        What may be batches among them, see :func:`samsvae.inspection.design.find_batches`.
    covariates
        Which of these columns the screen keeps.
    n_in_file
        Cells and genes of the file, before any was left out.
    lost
        Cells that are left out: ``reason`` and ``cells``.
    notes
        What reading the file changed or decided on evidence, in words, by a name for it.
    n_guides
        Guides of each cell of the file, where they come from a matrix.
    guides
        Guides, their targets and kinds; None if the file does not tell them.
    library_size_column
        The column of library sizes, if one is set.
    """

    matrix: str
    integer_layers: tuple[str, ...]
    survey: CountSurvey | None
    labels: np.ndarray | None
    written: list[str]
    delimiter: str | None
    from_matrix: bool
    control: LabelSet
    excluded: LabelSet
    controls: frozenset[str]
    cell_names: np.ndarray
    symbols: np.ndarray
    measured: frozenset[str]
    obs: pd.DataFrame
    batches: Mapping[str, pd.Categorical]
    covariates: tuple[str, ...]
    n_in_file: tuple[int, int]
    lost: pd.DataFrame
    notes: Mapping[str, str] = field(default_factory=dict)
    n_guides: np.ndarray | None = None
    guides: pd.DataFrame | None = None
    library_size_column: str | None = None

    @property
    def surveyed(self) -> np.ndarray:
        """Positions among the kept cells of those in the survey."""
        assert self.survey is not None
        return self.survey.rows
