"""What the checks look at: all of a file that can be read, whatever else is wrong with it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from samsvae.inspection.survey import CountSurvey


@dataclass(frozen=True)
class Evidence:
    """What could be read of a screen; what could not is None.

    Attributes
    ----------
    matrix
        Where the counts are, ``X`` or a layer.
    integer_layers
        Layers that may hold raw counts, if `matrix` does not.
    survey
        What one pass over the counts of the cells and genes that the screen keeps gave.
    labels
        Canonical label of each of these cells.
    written
        Distinct labels, or names of columns, as the file has them.
    delimiter
        What joins the genes of a combination in `written`.
    control
        The label of control cells in `written`.
    cell_names, symbols
        Names of these cells and genes.
    obs
        Columns of obs that may be batches, covariates or totals, of these cells.
    covariates
        Which of these columns the screen keeps.
    n_in_file
        Cells and genes of the file, before any was left out.
    """

    matrix: str
    integer_layers: tuple[str, ...]
    survey: CountSurvey | None
    labels: np.ndarray | None
    written: list[str]
    delimiter: str | None
    control: str
    cell_names: np.ndarray
    symbols: np.ndarray
    obs: pd.DataFrame
    covariates: tuple[str, ...]
    n_in_file: tuple[int, int]
