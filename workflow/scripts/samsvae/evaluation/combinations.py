"""Non-additivity of combinations (genetic interactions), observed and predicted."""

from collections.abc import Mapping
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import stats

from samsvae.evaluation.agreement import pearson
from samsvae.evaluation.effects import strongest_genes
from samsvae.screen.labels import doses, label_of

Matrix = np.ndarray

MOST_NAMED = 5
ROUNDING = 1e-5  # relative to the largest effect, since effects are stored with 7 digits
MIN_SIGNAL = 0.2  # fraction of the squared sum of effects that is not noise
COLUMNS = [
    "model", "perturbation", "n_cells", "trained", "correlation_with_sum", "slope_on_sum",
    "effect_size", "non_additivity", "noise_size", "n_non_additive", "non_additive_genes",
    "predicted_non_additivity", "non_additivity_correlation",
]  # fmt: skip


def parts_of(combination: str) -> list[str]:
    """List the single perturbations of a combination, at their doses."""
    return [label_of({gene: dose}) for gene, dose in doses(combination).items()]


@dataclass(frozen=True)
class NonAdditivity:
    """Non-additivity of combinations whose single perturbations are observed.

    Attributes
    ----------
    names
        The combinations.
    members
        Combinations x perturbations of the screen, 1 for each part.
    row
        Index of each combination among the screen's perturbations.
    effect, non_additivity, standard_error
        Combinations x genes, log2(CP10k + 1): the observed effect, its difference from the sum of
        the parts' effects, and the standard error of this difference. With the means of n parts,
        of the combination and of control cells the difference is
        mean - (sum of parts' means) + (n - 1) mean of control cells.
    effect_standard_error
        Standard error of `effect`.
    slope
        Slope of `effect` on the sum, over genes, through 0: 1 for additive effects, below 1 for
        effects that weaken each other. Least squares, corrected for noise in both sums of
        products; NaN where less than a fifth of the sum of squares is signal.
    fdr
        False discovery rate of Welch's t-test of `non_additivity` against 0, two-sided,
        Benjamini-Hochberg over the genes of a combination; NaN for genes without a standard error.
    """

    names: list[str]
    members: Matrix
    row: np.ndarray
    effect: Matrix
    non_additivity: Matrix
    standard_error: Matrix
    effect_standard_error: Matrix
    slope: np.ndarray
    fdr: Matrix


def non_additivity(observed: anndata.AnnData) -> NonAdditivity:
    """Compute the non-additivity of each combination.

    Parameters
    ----------
    observed
        Observed effects with the layers ``ate`` and ``standard_error``, all cells.
    """
    index = {name: row for row, name in enumerate(observed.obs_names)}
    enough = observed.obs["n_cells"].to_numpy() > 1
    names = [
        name
        for name in observed.obs_names
        if len(parts := parts_of(name)) > 1
        and all(part in index and enough[index[part]] for part in [name, *parts])
    ]
    members = np.zeros((len(names), len(index)))
    for row, name in enumerate(names):
        members[row, [index[part] for part in parts_of(name)]] = 1
    own = np.array([index[name] for name in names], dtype=int)
    ate = np.asarray(observed.layers["ate"], dtype=np.float64)
    of_effect = np.asarray(observed.layers["standard_error"], dtype=np.float64)
    of_control = observed.var["control_standard_error"].to_numpy(dtype=np.float64) ** 2
    # variance of an effect is that of its cells plus that of control cells, common to all effects
    of_cells = np.clip(np.nan_to_num(of_effect**2) - of_control, 0, None)
    n_parts = members.sum(axis=1)[:, None]
    shared = (n_parts - 1) ** 2 * of_control
    variance = of_cells[own] + members @ of_cells + shared
    freedom = _degrees_of_freedom(observed, of_cells, own, members, shared, variance)
    total = members @ np.nan_to_num(ate)
    excess = ate[own] - total
    # the control mean enters the effect once and the sum n times
    products = np.sum(total * ate[own] - n_parts * of_control, axis=1)
    squares = np.sum(total**2 - members @ of_cells - n_parts**2 * of_control, axis=1)
    known = squares > MIN_SIGNAL * np.sum(total**2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        pvalue = 2 * stats.t.sf(np.abs(excess) / np.sqrt(variance), freedom)
    pvalue[variance == 0] = np.nan
    return NonAdditivity(
        names, members, own, ate[own], excess, np.sqrt(variance), of_effect[own],
        products / np.where(known, squares, np.nan), _false_discovery_rates(pvalue),
    )  # fmt: skip


def tabulate_non_additivity(
    observed: anndata.AnnData, predicted: Mapping[str, anndata.AnnData], fdr: float
) -> pd.DataFrame:
    """Tabulate the observed and predicted non-additivity of each combination.

    Parameters
    ----------
    observed
        Observed effects.
    predicted
        Predicted effects by model.
    fdr
        False discovery rate below which a gene's effect is non-additive.

    Returns
    -------
    DataFrame
        A row per model and combination whose parts are observed. Observed: n_cells,
        correlation_with_sum (of its effect, over genes), slope_on_sum (1 for additive effects),
        effect_size and non_additivity (root mean square over genes, log2(CP10k + 1), corrected for
        noise), noise_size (non_additivity expected from sampling noise), n_non_additive (number of
        non-additive genes) and non_additive_genes, the strongest with their non-additivity.
        Predicted: whether the model was trained on the combination, predicted_non_additivity, and
        non_additivity_correlation with the observed non-additivity, NaN for additive predictions.
    """
    found = non_additivity(observed)
    total = found.effect - found.non_additivity
    is_non_additive = found.fdr < fdr
    of_data = pd.DataFrame(
        {
            "perturbation": found.names,
            "n_cells": observed.obs["n_cells"].to_numpy()[found.row],
            "trained": observed.obs["n_train"].to_numpy()[found.row] > 0,
            "correlation_with_sum": pearson(total, found.effect),
            "slope_on_sum": found.slope,
            "effect_size": _size_beyond_noise(found.effect, found.effect_standard_error),
            "non_additivity": _size_beyond_noise(found.non_additivity, found.standard_error),
            "noise_size": np.sqrt(np.mean(np.nan_to_num(found.standard_error) ** 2, axis=1)),
            "n_non_additive": is_non_additive.sum(axis=1),
            "non_additive_genes": [
                strongest_genes(excess, chosen, observed.var_names, MOST_NAMED)
                for excess, chosen in zip(found.non_additivity, is_non_additive, strict=True)
            ],
        }
    )
    parts = []
    for model, effects in predicted.items():
        guess = np.asarray(effects[observed.obs_names, observed.var_names].X, dtype=np.float64)
        beyond = guess[found.row] - found.members @ guess
        beyond[np.abs(beyond) < ROUNDING * np.abs(guess).max(initial=0)] = 0
        of_model = {
            "model": model,
            "predicted_non_additivity": np.sqrt(np.mean(beyond**2, axis=1)),
            "non_additivity_correlation": pearson(found.non_additivity, beyond),
        }
        parts.append(of_data.assign(**of_model))
    return pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)


def _degrees_of_freedom(
    observed: anndata.AnnData,
    of_cells: Matrix,
    own: np.ndarray,
    members: Matrix,
    of_control: Matrix,
    variance: Matrix,
) -> Matrix:
    """Approximate the degrees of freedom of sums of variances (Welch 1947)."""
    n_cells = observed.obs["n_cells"].to_numpy(dtype=float)
    squares = of_cells**2 / np.maximum(n_cells - 1, 1)[:, None]
    n_control = max(int(observed.uns["n_control_cells"]) - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return variance**2 / (squares[own] + members @ squares + of_control**2 / n_control)


def _size_beyond_noise(effect: Matrix, standard_error: Matrix) -> np.ndarray:
    """Compute the root mean square over genes, corrected for noise and at least 0."""
    excess = np.mean(effect**2 - np.nan_to_num(standard_error) ** 2, axis=1)
    return np.sqrt(np.clip(excess, 0, None))


def _false_discovery_rates(pvalue: Matrix) -> Matrix:
    rates = np.full_like(pvalue, np.nan)
    for row, values in enumerate(pvalue):
        tested = ~np.isnan(values)
        if tested.any():
            rates[row, tested] = stats.false_discovery_control(values[tested])
    return rates
