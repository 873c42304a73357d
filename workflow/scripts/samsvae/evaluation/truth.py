"""Recovery of the truth of a simulated screen: effects, masks, latent states."""

from collections.abc import Sequence
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import torch

from samsvae.evaluation.agreement import (
    MASK_THRESHOLD,
    effect_correlations,
    mask_scores,
    match_factors,
    match_factors_by_effects,
    pearson,
    r_squared,
    rmse,
)
from samsvae.evaluation.predicted import LIBRARY_SIZE, ExpectedLogCounts
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.posterior import CellStates, cell_states, mask_probability
from samsvae.screen.labels import doses

N_BASAL_STATES = 1000
THRESHOLDS = np.linspace(0.02, 0.98, 25)  # one half among them
COLUMNS = ["measure", "state", "factor", "dimension", "threshold", "density", "value"]
MASK_COLUMNS = ["target", "factor", "dimension", "true_mask", "probability"]


@dataclass
class Recovery:
    """Recovery of a simulated screen's truth by one run.

    Attributes
    ----------
    scores
        By metric.
    masks
        True and inferred masks, as of :func:`matched_masks`; empty without masks.
    curves
        Scores of masks by threshold and of latent states, as of :func:`mask_thresholds` and
        :func:`state_recovery`; empty for a run that is not of a trained model.
    """

    scores: dict[str, float]
    masks: pd.DataFrame
    curves: pd.DataFrame


def recovery(
    screen: anndata.AnnData,
    effects: tuple[np.ndarray, np.ndarray] | None,
    trained: TrainedModel | None,
    unseen: np.ndarray,
) -> Recovery:
    """Compare what one run inferred with the truth of its simulated screen.

    Parameters
    ----------
    screen
        A simulated screen.
    effects
        True and predicted effects, both perturbations x genes; None where true ones are unknown.
    trained
        The trained model; None for a baseline.
    unseen
        Boolean, the cells that the model was not trained on.

    Returns
    -------
    Recovery
    """
    scores = effect_recovery(*effects) if effects else {}
    masks = pd.DataFrame(columns=MASK_COLUMNS)
    if trained is None:
        return Recovery(scores, masks, pd.DataFrame(columns=COLUMNS))
    curves = [state_recovery(screen, unseen, cell_states(trained, screen, unseen, seed=0))]
    scores |= state_scores(curves[0])
    probability = mask_probability(trained.model)
    names = trained.encoding.names
    if probability is not None and set(screen.uns["truth"]["targets"]) <= set(names):
        inferred = probability.numpy()
        masks = matched_masks(screen, inferred, names)
        scores |= mask_recovery(screen, inferred, names)
        curves.append(mask_thresholds(screen, inferred, names))
    return Recovery(scores, masks, pd.concat(curves))


def true_effects(screen: anndata.AnnData, perturbations: Sequence[str], seed: int) -> np.ndarray:
    """Compute the noise-free effects of a simulation.

    Parameters
    ----------
    screen
        A simulated screen.
    perturbations
        Canonical labels.
    seed
        Seed of the basal states that are averaged over, common to treatment and control arms.

    Returns
    -------
    ndarray
        Perturbations x genes, log2(CP10k + 1); the counts are integrated out exactly.
    """
    truth = screen.uns["truth"]
    rng = np.random.default_rng(seed)
    basal = rng.normal(size=(N_BASAL_STATES, truth["loadings"].shape[0]))
    baseline = torch.from_numpy(basal @ truth["loadings"] + truth["log_proportion"])
    expected_log = ExpectedLogCounts(torch.from_numpy(truth["inverse_dispersion"]), LIBRARY_SIZE)

    def average(shift: np.ndarray | float) -> np.ndarray:
        logits = baseline + torch.as_tensor(shift)
        return expected_log(LIBRARY_SIZE * torch.softmax(logits, -1)).double().mean(0).numpy()

    row = {target: index for index, target in enumerate(truth["targets"])}
    shifts = truth["mask"] * truth["embedding"]
    loadings = truth["loadings"][: shifts.shape[1]]
    control = average(0.0)

    def effect(name: str) -> np.ndarray:
        parts = doses(name)
        shift = sum(dose * shifts[row[part]] for part, dose in parts.items()) @ loadings
        if "own_gene" in truth:
            for part, dose in parts.items():
                shift[truth["own_gene"][row[part]]] -= dose * np.log(2) * truth["knock_down"]
        return average(shift) - control

    return np.array([effect(name) for name in perturbations])


def effect_recovery(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Compare predicted with true effects, both perturbations x genes."""
    flat = true.ravel(), predicted.ravel()
    return {"effect_pearson": float(pearson(*flat)), "effect_rmse": float(rmse(*flat))}


def mask_recovery(
    screen: anndata.AnnData, probability: np.ndarray, perturbations: Sequence[str]
) -> dict[str, float]:
    """Score a posterior mask, thresholded at 1/2, after the best matching.

    Parameters
    ----------
    screen
        A simulated screen.
    probability
        Posterior mask probabilities, perturbations of the model x latent dimensions.
    perturbations
        Names of the perturbations of the model.

    Returns
    -------
    dict of float
        mask_precision, mask_recall, mask_f1 as of :func:`samsvae.evaluation.agreement.mask_scores`,
        and mask_density, the fraction of entries above 1/2.
    """
    true_mask = screen.uns["truth"]["mask"]
    mask = in_order_of_truth(screen, probability, perturbations) > MASK_THRESHOLD
    scores = mask_scores(true_mask, mask, match_factors(true_mask, mask.astype(float)))
    return {
        **{f"mask_{name}": value for name, value in scores.items()},
        "mask_density": float(mask.mean()),
    }


def matched_masks(
    screen: anndata.AnnData, probability: np.ndarray, perturbations: Sequence[str]
) -> pd.DataFrame:
    """Tabulate the true and the inferred mask, factor by factor.

    Parameters
    ----------
    screen, probability, perturbations
        As for :func:`mask_recovery`.

    Returns
    -------
    DataFrame
        Columns target, factor (the true one; empty for a dimension that matches none),
        dimension, true_mask and probability. Shown are the dimensions that match
        a factor, and others with an inferred target.
    """
    truth = screen.uns["truth"]
    probability = in_order_of_truth(screen, probability, perturbations)
    factor, dimension = match_factors(truth["mask"], (probability > MASK_THRESHOLD).astype(float))
    matched = {int(d): int(f) for f, d in zip(factor, dimension, strict=True)}
    used = np.flatnonzero((probability > MASK_THRESHOLD).any(axis=0)).tolist()
    shown = sorted({*used, *matched}, key=lambda d: (matched.get(d, len(truth["factors"])), d))
    return pd.DataFrame(
        [
            {
                "target": target,
                "factor": truth["factors"][matched[d]] if d in matched else "",
                "dimension": d,
                "true_mask": float(truth["mask"][row, matched[d]]) if d in matched else 0.0,
                "probability": float(probability[row, d]),
            }
            for d in shown
            for row, target in enumerate(truth["targets"])
        ]
    )


def in_order_of_truth(
    screen: anndata.AnnData, probability: np.ndarray, perturbations: Sequence[str]
) -> np.ndarray:
    """Sort the rows of a mask in the order of the true targets."""
    row = {name: index for index, name in enumerate(perturbations)}
    return probability[[row[target] for target in screen.uns["truth"]["targets"]]]


def mask_thresholds(
    screen: anndata.AnnData, probability: np.ndarray, perturbations: Sequence[str]
) -> pd.DataFrame:
    """Score a posterior mask at several thresholds.

    Parameters
    ----------
    screen, probability, perturbations
        As for :func:`samsvae.evaluation.truth.mask_recovery`.

    Returns
    -------
    DataFrame
        One row per threshold and measure (precision, recall, f1), after the best matching at that
        threshold; density is the fraction of entries above it.
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
        The inferred states.

    Returns
    -------
    DataFrame
        One row per state, measure and true factor: the absolute ``correlation`` over cells with
        the matched dimension, one to one, and ``r_squared``, the fraction of the true factor's
        variance that a linear regression on all dimensions explains.
    """
    truth = screen.uns["truth"]
    basal = np.asarray(screen.obsm["true_basal"], dtype=float)[keep]
    design = screen.obsm["dosage"][keep]
    shift = np.zeros_like(basal)
    shift[:, : truth["mask"].shape[1]] = design @ (truth["mask"] * truth["embedding"])
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
    """Compute the fraction of variance that a regression on the inferred dimensions explains."""
    design = np.column_stack([np.ones(len(inferred)), inferred])
    fitted = design @ np.linalg.lstsq(design, true, rcond=None)[0]
    return float(r_squared(true, fitted))


def state_scores(recovered: pd.DataFrame) -> dict[str, float]:
    """Average scores over true factors, by state and measure, as metrics of a run."""
    of_states = recovered[recovered["state"].notna()]
    means = of_states.groupby(["state", "measure"], sort=False)["value"].mean()
    return {f"{state}_{measure}": float(value) for (state, measure), value in means.items()}
