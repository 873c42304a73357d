"""One pass over a screen's counts, for all that has to be known of them."""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from samsvae.sources.counts import CountMatrix

# what may be wrong with a value, as far as the value alone tells
FAULTS = {
    "not a finite number": lambda values: ~np.isfinite(values),
    "negative": lambda values: values < 0,
    "not an integer": lambda values: np.isfinite(values) & (values != np.floor(values)),
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
    total, detected
        Counts of each cell, and its genes with a count.
    gene_total, gene_detected
        Counts of each gene, and its cells with a count.
    cell_sketch, gene_sketch
        Random projections: the same for cells (genes) whose counts are the same.
    largest
        The largest value.
    faults
        Values that are no counts, by what is wrong with them.
    """

    cells: np.ndarray
    genes: np.ndarray
    total: np.ndarray
    detected: np.ndarray
    gene_total: np.ndarray
    gene_detected: np.ndarray
    cell_sketch: np.ndarray
    gene_sketch: np.ndarray
    largest: float = 0.0
    faults: dict[str, Fault] = field(default_factory=dict)

    def with_counts(self) -> "CountSurvey":
        """Leave out the cells without a count."""
        kept = self.total != 0
        per_cell = {
            name: getattr(self, name)[kept]
            for name in ("cells", "total", "detected", "cell_sketch")
        }
        return replace(self, **per_cell)

    @property
    def filled(self) -> float:
        """Fraction of the entries that are not 0."""
        entries = len(self.cells) * len(self.genes)
        return float(self.detected.sum()) / entries if entries else 0.0


def survey_counts(counts: CountMatrix, cells: np.ndarray, genes: np.ndarray) -> CountSurvey:
    """Read the counts once, block by block.

    Parameters
    ----------
    counts
        Cells x genes.
    cells, genes
        Positions of those to look at, ascending.
    """
    rng = np.random.default_rng(0)
    weight_of_gene, weight_of_cell = rng.random(len(genes)), rng.random(len(cells))
    survey = CountSurvey(
        cells=cells,
        genes=genes,
        total=np.zeros(len(cells)),
        detected=np.zeros(len(cells)),
        gene_total=np.zeros(len(genes)),
        gene_detected=np.zeros(len(genes)),
        cell_sketch=np.zeros(len(cells)),
        gene_sketch=np.zeros(len(genes)),
    )
    for positions, read in counts.blocks(cells, genes):
        block = read.astype(np.float64)
        rows = np.searchsorted(cells, positions)
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
        if name in survey.faults:
            survey.faults[name].number += number
            continue
        at = int(np.argmax(wrong))
        row = int(np.searchsorted(block.indptr, at, side="right")) - 1
        gene = int(survey.genes[block.indices[at]])
        survey.faults[name] = Fault(number, int(positions[row]), gene, float(block.data[at]))
