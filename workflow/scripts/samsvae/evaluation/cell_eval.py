"""Held-out and predicted cells, laid out as cell-eval reads them.

cell-eval (Arc Institute, https://github.com/ArcInstitute/cell-eval) compares two files of cells of
the same perturbations and the same genes in the same order. It expects log(1 + CP10k) of at least
0 and below 15, and a column of obs that names perturbations, control cells among them. What a file
needs is checked by :mod:`cell_eval._types._anndata` and :mod:`cell_eval.utils` of version 0.8.
"""

from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.evaluation.effects import CP10K
from samsvae.evaluation.observed import half_of_held_out
from samsvae.evaluation.samples import sample_cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.runtime.errors import InputError
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TEST, held_out_cells

# what cell-eval takes the column and the control cells to be called, unless it is told
PERTURBATION_COLUMN, CONTROL_LABEL = "target_gene", "non-targeting"


def compared_cells(screen: anndata.AnnData, parts: pd.Series) -> np.ndarray:
    """Choose the real cells that predicted ones are compared with.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Split of each cell.

    Returns
    -------
    ndarray of bool
        The held-out cells of tested perturbations, or of all where none is tested; and held-out
        control cells.

    Raises
    ------
    InputError
        If the screen has no counts, or no control cell is held out.
    """
    if not np.issubdtype(screen.X.dtype, np.integer):
        raise InputError(
            "cell-eval compares log-normalised counts, and this screen has none. Ask for another "
            "screen's files."
        )
    labels = screen.obs["perturbation"].astype(str)
    held_out = held_out_cells(labels, parts)
    if not (held_out & (labels == CONTROL)).any():
        raise InputError(
            f"cell-eval compares effects, differences from held-out cells of {CONTROL!r}, and the "
            "split has none. More control cells are needed."
        )
    tested = set(labels[parts == TEST]) - {CONTROL}
    return held_out & labels.isin({*tested, CONTROL}).to_numpy() if tested else held_out


def halves(
    screen: anndata.AnnData, parts: pd.Series, compared: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the cells for the ceiling, in which one half of them predicts the other.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Split of each cell.
    compared
        What :func:`compared_cells` gave.
    seed
        Seed of the choice, as of :func:`samsvae.evaluation.observed.split_half`.

    Returns
    -------
    predicted, real : ndarray of bool
        Perturbations with a single cell are in neither.
    """
    labels = screen.obs["perturbation"].astype(str)
    half = compared & half_of_held_out(labels, parts, seed)
    return half, compared & ~half & labels.isin(set(labels[half])).to_numpy()


def log_normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Transform counts to log(1 + 1e4 x / l), l the cell's own sum, as scanpy does; float32."""
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    expression = sparse.csr_matrix(sparse.diags_array(CP10K / np.maximum(totals, 1)) @ counts)
    expression.data = np.log1p(expression.data)
    return expression.astype(np.float32)


def cells_of_model(
    trained: TrainedModel, names: Sequence[str], number: int, library_sizes: np.ndarray, seed: int
) -> anndata.AnnData:
    """Draw cells of control and of each perturbation from a model.

    Few cells are as noisy as few measured ones, and hide what the model predicts in the mean.

    Parameters
    ----------
    trained
        The model.
    names
        Perturbations, without control.
    number
        Cells of each.
    library_sizes
        Counts per cell to resample from.
    seed
        Seed of the draws.

    Returns
    -------
    AnnData
        As of :func:`laid_out`.
    """
    cells = sample_cells(trained, [CONTROL, *names], number, library_sizes, seed)
    return laid_out(log_normalised(cells.X), list(cells.obs["perturbation"]), trained.genes)


def cells_of_effects(
    effects: anndata.AnnData,
    control: sparse.csr_matrix,
    names: Sequence[str],
    number: int,
    seed: int,
) -> anndata.AnnData:
    """Make cells of a baseline, which predicts mean effects alone, from control cells.

    Control cells are drawn with replacement. Then each gene is moved until its mean over them is
    that of the drawn control cells plus the predicted effect: up by the same amount in every
    cell, down in proportion, so that nothing falls below 0. Where the predicted mean is below 0
    it becomes 0. The spread of such cells is no prediction.

    Parameters
    ----------
    effects
        Predicted effects, log2(CP10k + 1).
    control
        Counts of training control cells, cells x genes.
    names
        Perturbations, without control.
    number
        Cells of each.
    seed
        Seed of the choice of control cells.

    Returns
    -------
    AnnData
        As of :func:`laid_out`.
    """
    rng = np.random.default_rng(seed)
    expression = log_normalised(control)

    def draw() -> sparse.csr_matrix:
        return expression[rng.integers(expression.shape[0], size=number)]

    blocks = [draw()]
    unperturbed = _means(blocks[0])
    for name in names:
        effect = np.log(2) * np.asarray(effects[name].X, dtype=np.float64).ravel()
        blocks.append(_moved(draw(), unperturbed + effect))
    perturbation = [name for name in (CONTROL, *names) for _ in range(number)]
    return laid_out(sparse.vstack(blocks, format="csr"), perturbation, list(effects.var_names))


def real_cells(screen: anndata.AnnData, chosen: np.ndarray) -> anndata.AnnData:
    """Lay out some cells of a screen."""
    cells = screen[chosen]
    perturbation = cells.obs["perturbation"].astype(str)
    table = laid_out(log_normalised(cells.X), perturbation, list(screen.var_names))
    table.obs_names = cells.obs_names
    return table


def laid_out(
    expression: sparse.csr_matrix, perturbation: Sequence[str], genes: Sequence[str]
) -> anndata.AnnData:
    """Put cells into the form of cell-eval.

    Parameters
    ----------
    expression
        log(1 + CP10k), cells x genes.
    perturbation
        Canonical label of each cell.
    genes
        Gene symbols.

    Returns
    -------
    AnnData
        ``X`` float32 CSR. ``obs`` has ``perturbation``, and the same as ``target_gene`` with
        ``non-targeting`` for control cells, which are cell-eval's own names.

    Raises
    ------
    InputError
        If a perturbation has the name of cell-eval's control cells.
    """
    labels = pd.Series(np.asarray(perturbation, dtype=object))
    if CONTROL_LABEL in set(labels):
        raise InputError(
            f"A perturbation is called {CONTROL_LABEL!r}, as cell-eval calls control cells. "
            "Rename it, or set the screen's 'control' to it."
        )
    number = labels.groupby(labels).cumcount().astype(str)
    return anndata.AnnData(
        X=sparse.csr_matrix(expression, dtype=np.float32),
        obs=pd.DataFrame(
            {
                "perturbation": pd.Categorical(labels),
                PERTURBATION_COLUMN: pd.Categorical(labels.replace(CONTROL, CONTROL_LABEL)),
            },
        ).set_axis(pd.Index(labels + "-" + number, name="cell")),
        var=pd.DataFrame(index=pd.Index(genes, name="gene")),
    )


def _means(expression: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(expression.mean(axis=0, dtype=np.float64)).ravel()


def _moved(expression: sparse.csr_matrix, mean: np.ndarray) -> sparse.csr_matrix:
    """Move each gene's values until their mean is the one wanted, and none is below 0."""
    now, wanted = _means(expression), np.maximum(mean, 0)
    factor = np.divide(wanted, now, out=np.ones_like(now), where=wanted < now)
    return sparse.csr_matrix(expression.toarray() * factor + np.maximum(wanted - now, 0))
