"""How much of a simulated screen's truth a model recovers: by threshold, and cell by cell."""

from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd

from samsvae.inference.posterior import CellStates
from samsvae.metrics.agreement import r_squared
from samsvae.metrics.factors import (
    effect_correlations,
    mask_scores,
    match_factors,
    match_factors_by_effects,
)
from samsvae.metrics.truth import in_order_of_truth

THRESHOLDS = np.linspace(0.02, 0.98, 25)  # one half among them
COLUMNS = ["measure", "state", "factor", "dimension", "threshold", "density", "value"]


def mask_thresholds(
    screen: anndata.AnnData, probability: np.ndarray, perturbations: Sequence[str]
) -> pd.DataFrame:
    """Score a posterior mask at several thresholds.

    Parameters
    ----------
    screen, probability, perturbations
        As for :func:`samsvae.metrics.truth.mask_recovery`.

    Returns
    -------
    DataFrame
        One row per threshold and measure, precision, recall or f1, after the best matching at
        that threshold; density is the share of entries above it.
    """
    true_mask = screen.uns["truth"]["mask"]
    probability = in_order_of_truth(screen, probability, perturbations)
    rows = []
    for threshold in THRESHOLDS:
        mask = (probability > threshold).astype(float)
        scores = mask_scores(true_mask, mask, match_factors(true_mask, mask))
        at = {"threshold": round(threshold, 2), "density": mask.mean()}
        rows += [{"measure": name, **at, "value": value} for name, value in scores.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def state_recovery(screen: anndata.AnnData, keep: np.ndarray, states: CellStates) -> pd.DataFrame:
    """Compare inferred latent states of cells with the true ones.

    Parameters
    ----------
    screen
        A simulated screen.
    keep
        Boolean, the cells whose states were inferred.
    states
        These.

    Returns
    -------
    DataFrame
        One row per state, measure and true factor: the absolute ``correlation`` over cells with
        the dimension that matches best, one to one, and ``r_squared``, the share of the true
        factor's variance that is linear in all dimensions together, along whatever axes.
    """
    truth = screen.uns["truth"]
    basal = np.asarray(screen.obsm["true_basal"], dtype=float)[keep]
    dosage = screen.obsm["dosage"][keep]
    shift = np.zeros_like(basal)
    shift[:, : truth["mask"].shape[1]] = dosage @ (truth["mask"] * truth["embedding"])
    n_nuisance = basal.shape[1] - len(truth["factors"])
    names = [*truth["factors"], *(f"NUISANCE_{n + 1}" for n in range(n_nuisance))]
    rows = []
    for name, true, inferred in (
        ("basal", basal, states.basal),
        ("total", basal + shift, states.total),
    ):
        inferred = inferred.astype(float)
        correlation = np.abs(effect_correlations(true, inferred))
        for factor, dimension in zip(*match_factors_by_effects(true, inferred), strict=True):
            of = {"state": name, "factor": names[factor]}
            rows += [
                {
                    "measure": "correlation",
                    **of,
                    "dimension": dimension,
                    "value": correlation[factor, dimension],
                },
                {
                    "measure": "r_squared",
                    **of,
                    "value": _explained(true[:, factor], inferred),
                },
            ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _explained(true: np.ndarray, inferred: np.ndarray) -> float:
    """Share of variance that is linear in the inferred dimensions."""
    design = np.column_stack([np.ones(len(inferred)), inferred])
    fitted = design @ np.linalg.lstsq(design, true, rcond=None)[0]
    return float(r_squared(true, fitted))


def state_scores(recovered: pd.DataFrame) -> dict[str, float]:
    """Average over true factors, by state and measure, as metrics of a run."""
    of_states = recovered[recovered["state"].notna()]
    means = of_states.groupby(["state", "measure"], sort=False)["value"].mean()
    return {f"{state}_{measure}": float(value) for (state, measure), value in means.items()}
