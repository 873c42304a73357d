"""What the checks look at: all of a file that can be read, whatever else is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from samsvae.inspection.survey import CountSurvey
from samsvae.labels import LabelSet


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
