"""Export of held-out and predicted cells for cell-eval.

cell-eval (Arc Institute, https://github.com/ArcInstitute/cell-eval) compares two files of cells of
the same perturbations and the same genes in the same order. It expects log(1 + CP10k) of at least
0 and below 15, and a column of obs with perturbations, control cells included. The modules
``cell_eval._types._anndata`` and ``cell_eval.utils`` of version 0.8 check these requirements.
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

# cell-eval's default names of the column and of control cells
PERTURBATION_COLUMN, CONTROL_LABEL = "target_gene", "non-targeting"


def compared_cells(screen: anndata.AnnData, parts: pd.Series) -> np.ndarray:
    """Select the measured cells to compare predicted cells with.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Split of each cell.

    Returns
    -------
    ndarray of bool
        The held-out cells of tested perturbations, or of all if none is tested, and held-out
        control cells.

    Raises
    ------
    InputError
        If the screen has no counts, or no control cells are held out.
    """
    if not np.issubdtype(screen.X.dtype, np.integer):
        raise InputError(
            "cell-eval compares log-normalised counts, but X of this screen has no counts. Export "
            "cells of a screen with counts."
        )
    labels = screen.obs["perturbation"].astype(str)
    held_out = held_out_cells(labels, parts)
    if not (held_out & (labels == CONTROL)).any():
        raise InputError(
            f"cell-eval compares effects with held-out cells of {CONTROL!r}, but the split has "
            "none. Add control cells to the screen."
        )
    tested = set(labels[parts == TEST]) - {CONTROL}
    return held_out & labels.isin({*tested, CONTROL}).to_numpy() if tested else held_out


def halves(
    screen: anndata.AnnData, parts: pd.Series, compared: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide cells into halves for the ceiling, where one half predicts the other.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Split of each cell.
    compared
        Cells of :func:`compared_cells`.
    seed
        Seed of the division, as of :func:`samsvae.evaluation.observed.split_half`.

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
    """Draw predictive samples of control and of each perturbation.

    Means of few samples are noisy; use enough to resolve the predicted mean.

    Parameters
    ----------
    trained
        The model.
    names
        Perturbations, without control.
    number
        Number of cells of each.
    library_sizes
        Library sizes to resample from.
    seed
        Seed of the draws.

    Returns
    -------
    AnnData
        As of :func:`to_cell_eval`.
    """
    cells = sample_cells(trained, [CONTROL, *names], number, library_sizes, seed)
    return to_cell_eval(log_normalised(cells.X), list(cells.obs["perturbation"]), trained.genes)


def cells_of_effects(
    effects: anndata.AnnData,
    control: sparse.csr_matrix,
    names: Sequence[str],
    number: int,
    seed: int,
) -> anndata.AnnData:
    """Build cells of a baseline, which predicts mean effects alone, from control cells.

    Control cells are drawn with replacement. Then each gene is shifted until its mean is that of
    the drawn control cells plus the predicted effect: up by the same amount in every cell, down in
    proportion, so that no value falls below 0. A predicted mean below 0 becomes 0. The variance of
    such cells is no prediction.

    Parameters
    ----------
    effects
        Predicted effects, log2(CP10k + 1).
    control
        Counts of training control cells, cells x genes.
    names
        Perturbations, without control.
    number
        Number of cells of each.
    seed
        Seed of the choice of control cells.

    Returns
    -------
    AnnData
        As of :func:`to_cell_eval`.
    """
    rng = np.random.default_rng(seed)
    expression = log_normalised(control)

    def draw() -> sparse.csr_matrix:
        return expression[rng.integers(expression.shape[0], size=number)]

    blocks = [draw()]
    control_mean = _means(blocks[0])
    for name in names:
        effect = np.log(2) * np.asarray(effects[name].X, dtype=np.float64).ravel()
        blocks.append(_shifted(draw(), control_mean + effect))
    perturbation = [name for name in (CONTROL, *names) for _ in range(number)]
    return to_cell_eval(sparse.vstack(blocks, format="csr"), perturbation, list(effects.var_names))


def measured_cells(screen: anndata.AnnData, chosen: np.ndarray) -> anndata.AnnData:
    """Convert some cells of a screen to the form of cell-eval."""
    cells = screen[chosen]
    perturbation = cells.obs["perturbation"].astype(str)
    table = to_cell_eval(log_normalised(cells.X), perturbation, list(screen.var_names))
    table.obs_names = cells.obs_names
    return table


def to_cell_eval(
    expression: sparse.csr_matrix, perturbation: Sequence[str], genes: Sequence[str]
) -> anndata.AnnData:
    """Convert cells to the form of cell-eval.

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
        ``X`` float32 CSR. ``obs`` has ``perturbation``, and ``target_gene`` with ``non-targeting``
        for control cells, cell-eval's default names.

    Raises
    ------
    InputError
        If a perturbation has the name of cell-eval's control cells.
    """
    labels = pd.Series(np.asarray(perturbation, dtype=object))
    if CONTROL_LABEL in set(labels):
        raise InputError(
            f"A perturbation has the name {CONTROL_LABEL!r}, which cell-eval uses for control "
            "cells. Rename it, or set the screen's 'control' to it."
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


def _shifted(expression: sparse.csr_matrix, mean: np.ndarray) -> sparse.csr_matrix:
    """Shift each gene's values to a given mean, without values below 0."""
    now, wanted = _means(expression), np.maximum(mean, 0)
    factor = np.divide(wanted, now, out=np.ones_like(now), where=wanted < now)
    return sparse.csr_matrix(expression.toarray() * factor + np.maximum(wanted - now, 0))
