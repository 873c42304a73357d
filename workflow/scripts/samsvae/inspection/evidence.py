"""Input of the checks: statistics of one pass over a screen's counts, labels and names.

A file with more than 256 MiB of counts is sampled by evenly spread runs of neighbouring cells.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.screen.design import Design
from samsvae.screen.labels import LabelSet
from samsvae.screen.validation import MOST_COUNTS
from samsvae.sources.counts import CountMatrix

ERROR = "error"
WARNING = "warning"
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """Error or warning of a check.

    Attributes
    ----------
    severity
        ``error``: the screen cannot be used as it is. ``warning``: it can be used, but should be
        reviewed.
    name
        Name in a few words.
    message
        Location, consequence and remedy.
    """

    severity: str
    name: str
    message: str


def some(names: Collection[object]) -> str:
    """Format the first few names, and the number of the others."""
    shown = ", ".join(str(name) for name in list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN:,} more"


MOST_BYTES = 2**28  # of counts that are read completely
RUNS = 64  # of neighbouring cells in a sample
MOST_EXAMPLES = 20  # cells whose values show a transformation

# faults of single values
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
        Number of such values.
    cell, gene
        Index of the first, counted from 0.
    value
        Its value.
    """

    number: int
    cell: int
    gene: int
    value: float


@dataclass
class CountSurvey:
    """Statistics of one pass over the counts.

    Attributes
    ----------
    cells, genes
        Indices in the file of the surveyed cells and genes.
    rows
        Indices of these cells among those that the screen keeps.
    total, detected
        Total counts and number of detected genes of each cell.
    gene_total, gene_detected
        Total counts and number of cells with counts of each gene.
    cell_sketch, gene_sketch
        Random projections, equal for cells (genes) with equal counts.
    is_sample
        Whether the surveyed cells are a sample of the cells that the screen keeps.
    largest
        The largest value.
    faults
        Values that are not counts, by fault.
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
        """Select the cells with counts."""
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
    """Sample cells so that their counts are read within seconds.

    Parameters
    ----------
    counts
        Cells x genes.
    cells
        Indices of the cells to sample from, ascending.
    most_bytes
        Approximate number of bytes to read.

    Returns
    -------
    ndarray of int
        All cells of a small file, and of a file that is stored gene by gene, from which some cells
        are not faster to read than all.
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
    """Compute statistics of the counts in one pass.

    Parameters
    ----------
    counts
        Cells x genes.
    cells, genes
        Indices of the cells and genes that the screen keeps, ascending.
    sampled
        Indices of the cells to survey; None for all.
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
    """Input of the checks of a screen; elements that cannot be read are None.

    Attributes
    ----------
    matrix
        Matrix of the counts, ``X``, ``raw/X`` or a layer.
    integer_layers
        Values of 'counts_layer' with integers, if `matrix` does not have raw counts.
    survey
        Statistics of the counts of the cells and genes that the screen keeps, or of a sample of
        these cells.
    design
        Design matrix of the cells that the screen keeps.
    written
        Distinct labels, or names of columns, as in the file.
    delimiter
        Delimiter of the genes of a combination in `written`.
    from_matrix
        Whether `written` are names of columns.
    control, excluded
        The labels of control cells, and of cells that are left out, in `written`.
    controls
        Parts of `written` that are controls, for instance by a table of guides.
    cell_names, symbols
        Names of the cells and genes that the screen keeps.
    measured
        Names of all measured genes of the file.
    obs
        Columns of obs that may be batches, covariates or totals, of these cells.
    batches
        Possible batches, see :func:`samsvae.inspection.design.find_batches`.
    covariates
        Columns that the screen keeps.
    n_in_file
        Numbers of cells and genes of the file.
    lost
        Numbers of cells that are left out: ``reason`` and ``cells``.
    notes
        Messages of the reader on changes and ambiguous labels, by name.
    n_guides
        Number of guides of each cell of the file, if they are from a matrix.
    guides
        Guides, their targets and kinds; None if unknown.
    library_size_column
        The column of library sizes, if one is set.
    by_perturbation
        Whether effects are of single perturbations in all cells that have them.
    """

    matrix: str
    integer_layers: tuple[str, ...]
    survey: CountSurvey | None
    design: Design | None
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
    by_perturbation: bool = False

    @property
    def surveyed(self) -> np.ndarray:
        """Indices of the surveyed cells among those that the screen keeps."""
        assert self.survey is not None
        return self.survey.rows
