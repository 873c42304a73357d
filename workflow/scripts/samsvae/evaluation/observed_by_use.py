"""Observed effects by their use: those that intervals are calibrated by, and those that judge them.

Calibration uses the effects among validation cells, and coverage those among test cells. No cell
is in both.
"""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

from samsvae.evaluation.effects import as_compared, effects_table
from samsvae.evaluation.observed import observed_effects
from samsvae.screen.canonical import has_marginal_effects, perturbations
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TEST, UNUSED, VAL

PRIOR_DEGREES = 20.0  # cells that the pooled variance of a gene counts for


@dataclass(frozen=True)
class Observed:
    """Observed effects of some cells.

    Attributes
    ----------
    effect, standard_error
        Perturbations x genes, log2(CP10k + 1); NaN for a gene that too few of these cells express
        to be tested. Standard errors are moderated, see :func:`moderated`.
    significant
        Boolean, the genes that differ significantly from control cells.
    cell_variance
        Pooled variance of a gene among the cells of a perturbation, length G.
    """

    effect: np.ndarray
    standard_error: np.ndarray
    significant: np.ndarray
    cell_variance: np.ndarray


def observed_in(
    screen: anndata.AnnData, cells: np.ndarray, how: str | None, min_controls: int, fdr: float
) -> Observed:
    """Compute the observed effects of some cells.

    Parameters
    ----------
    screen
        Canonical screen.
    cells
        Boolean, one per cell of the screen.
    how
        As for :func:`samsvae.evaluation.effects.as_compared`.
    min_controls
        Smallest number of control cells of a batch whose cells are compared.
    fdr
        False discovery rate of significant genes.

    Returns
    -------
    Observed
        Of all perturbations of the screen, in its order.
    """
    names = perturbations(screen)
    shape = len(names), screen.n_vars
    if not cells.any():
        nothing = np.full(shape, np.nan)
        return Observed(nothing, nothing, np.zeros(shape, dtype=bool), nothing[0])
    # all chosen cells count as held-out ones
    parts = pd.Series(TEST, index=screen.obs_names)
    table = as_compared(observed_effects(screen, parts, "{}", cells, min_controls), how)
    row = table.obs_names.get_indexer(pd.Index(names))

    def layer(name: str) -> np.ndarray:
        values = np.asarray(table.layers[name], dtype=np.float64)
        return np.where(row[:, None] >= 0, values[row], np.nan)

    n_cells = table.obs["n_held_out"].reindex(names).to_numpy(dtype=np.float64)
    n_controls = np.inf if has_marginal_effects(screen) else table.uns["n_control_cells"]
    error, pooled = moderated(layer("standard_error_held_out"), n_cells, n_controls)
    effect, rates = layer("ate_held_out"), layer("fdr")
    tested = np.isfinite(rates) & np.isfinite(effect) & (error > 0)
    effect, error = (np.where(tested, each, np.nan) for each in (effect, error))
    return Observed(effect, error, tested & (rates < fdr), pooled)


def moderated(
    standard_error: np.ndarray, n_cells: np.ndarray, n_controls: float
) -> tuple[np.ndarray, np.ndarray]:
    """Moderate the standard errors of observed effects.

    The variance of a few cells is uncertain itself, and too small where few of them happen to
    express a gene: with 20 cells, errors exceed the normal 90 % limits in 12 % of the cases. As in
    limma (Smyth 2004), the variance among a perturbation's cells is averaged with that of the same
    gene over all perturbations, which counts for :data:`PRIOR_DEGREES` degrees of freedom.

    Parameters
    ----------
    standard_error
        Perturbations x genes; NaN where unknown.
    n_cells
        Number of cells of each perturbation.
    n_controls
        Number of control cells.

    Returns
    -------
    standard_error : ndarray
        Moderated standard errors.
    cell_variance : ndarray
        The pooled variance of a gene among cells, length G; NaN without any.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        per_cell = (1 / n_cells + 1 / np.float64(n_controls))[:, None]
        variance = standard_error**2 / per_cell
        known = np.isfinite(variance)
        degrees = np.where(known, n_cells[:, None] - 1, 0.0)
        pooled = np.where(known, degrees * variance, 0.0).sum(axis=0) / degrees.sum(axis=0)
        averaged = (degrees * variance + PRIOR_DEGREES * pooled) / (degrees + PRIOR_DEGREES)
        return np.sqrt(averaged * per_cell), pooled


def cells_by_use(labels: pd.Series, parts: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Select the cells that intervals are calibrated by, and those that coverage is measured by.

    Parameters
    ----------
    labels, parts
        Perturbation and split of each cell.

    Returns
    -------
    calibration, test : ndarray of bool
        Validation cells, and test and unused cells. Where no control cell is among the latter, a
        random half of the validation control cells is test cells: no cell is both.
    """
    calibration = (parts == VAL).to_numpy()
    test = parts.isin([TEST, UNUSED]).to_numpy()
    control = (labels == CONTROL).to_numpy()
    if not (test & control).any():
        shared = np.random.default_rng(0).permutation(np.flatnonzero(calibration & control))
        chosen = shared[: len(shared) // 2]
        test[chosen], calibration[chosen] = True, False
    return calibration, test


def observed_by_use(
    screen: anndata.AnnData,
    parts: pd.Series,
    how: str | None,
    min_controls: int,
    fdr: float,
    provenance: str,
) -> anndata.AnnData:
    """Compute the observed effects that intervals are calibrated by and compared with.

    Parameters
    ----------
    screen, how, min_controls, fdr
        As for :func:`observed_in`.
    parts
        Split of each cell, as in split.tsv.
    provenance
        Provenance record, JSON.

    Returns
    -------
    AnnData
        Perturbations x genes. ``X``: effect among test cells, with layer ``standard_error``; layers
        ``calibration`` and ``calibration_standard_error``: among validation cells; NaN for genes
        that are not tested. ``significant``: 1 for genes that differ significantly from control
        cells in cells other than test cells. ``var``: ``cell_variance`` among these.
    """
    labels = screen.obs["perturbation"].astype(str)
    calibration, test = cells_by_use(labels, parts)
    given = how, min_controls, fdr
    of_calibration, of_test, of_others = (
        observed_in(screen, cells, *given) for cells in (calibration, test, ~test)
    )
    layers = {
        "standard_error": of_test.standard_error,
        "calibration": of_calibration.effect,
        "calibration_standard_error": of_calibration.standard_error,
        "significant": of_others.significant,
    }
    names, genes = perturbations(screen), list(screen.var_names)
    table = effects_table(of_test.effect, names, genes, layers, provenance)
    table.var["cell_variance"] = np.nan_to_num(of_others.cell_variance)
    return table
