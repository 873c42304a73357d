"""Posterior intervals of predicted effects, and their coverage of effects among held-out cells.

A model's uncertainty about an effect is that of its masks and embeddings (and on-target effects)
under the guide, and that between training seeds; basal states and counts are integrated out. An
observed effect has sampling noise beside it. An interval of level L is right if a fraction L of
observed effects lies between the quantiles of the distribution of both together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyro
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from samsvae.evaluation.effects import effects_table
from samsvae.evaluation.predicted import (
    design_of,
    expected_expression,
    library_sizes_of,
    strata_of,
    weights_of_strata,
)
from samsvae.evaluation.scores import LEVEL, coverage_table
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import BasalCells, GlobalDraws
from samsvae.runtime.errors import InputError

BASAL_DRAWS = 50
LARGEST_BLOCK = 2**24  # elements, of draws x perturbations x genes
LARGEST_TENSOR = 2_000_000  # elements, of basal states x draws of conditions x genes
FEWEST = 20  # effects of validation cells to calibrate with


@dataclass(frozen=True)
class CommonCells:
    """Basal states of one stratum and library size, common to all draws and perturbations.

    Attributes
    ----------
    stratum
        Index of the stratum of the model's covariates.
    covariates
        Of the stratum, as the only item; empty for a model without covariates.
    basal
        Draws of the basal states, [B, 1, ...].
    number
        B.
    expression
        As of :func:`samsvae.evaluation.predicted.expected_expression`.
    """

    stratum: int
    covariates: tuple[Tensor, ...]
    basal: BasalCells
    number: int
    expression: Callable[..., Tensor]


class EffectDraws:
    """Draws of the effects of perturbations from the guide of a trained model.

    Each draw of the global variables is averaged over the same basal states, and counts are
    integrated out, so that draws differ by the global variables alone. They do not depend on the
    selection of perturbations.

    Parameters
    ----------
    trained
        The model.
    draws
        Number of draws S of the global variables.
    seed
        Seed of the draws.
    strata_weights
        As for :func:`samsvae.evaluation.predicted.predicted_effects`, perturbations x strata.
    library_sizes
        As for :func:`samsvae.evaluation.predicted.predicted_effects`.
    basal_draws
        Number of basal states over all strata and library sizes; at least two of each.
    """

    def __init__(
        self,
        trained: TrainedModel,
        draws: int,
        seed: int,
        strata_weights: np.ndarray,
        library_sizes: Sequence[float],
        basal_draws: int = BASAL_DRAWS,
    ) -> None:
        self.trained, self.draws, self.seed = trained, draws, seed
        self.global_draws = GlobalDraws.of(trained.model, draws, seed)
        self.weights = strata_weights / len(library_sizes)
        self.strata = strata_of(trained)
        self.cells: list[CommonCells] = []
        likelihood = trained.model.likelihood
        with pyro.validation_enabled(False), seeded(seed, trained.device), torch.no_grad():
            for number, stratum in enumerate(self.strata):
                if not self.weights[:, number].any():
                    continue
                own = max(2, round(basal_draws * float(self.weights[:, number].mean())))
                none = torch.zeros(own, 1, trained.model.n_latent, device=trained.device)
                for size in library_sizes:
                    basal = BasalCells.from_prior(trained.model, none, 1)
                    expression = expected_expression(likelihood, size, stratum.covariates)
                    given = number, stratum.covariates, basal, own, expression
                    self.cells.append(CommonCells(*given))

    @torch.no_grad()
    def of(self, perturbations: Sequence[str], rows: slice) -> np.ndarray:
        """Draw the effects of some perturbations.

        Parameters
        ----------
        perturbations
            Canonical labels of all perturbations.
        rows
            Those to draw.

        Returns
        -------
        ndarray
            [S, rows, G], log2(CP10k + 1).
        """
        names, weights = perturbations[rows], self.weights[rows]
        found = np.zeros((self.draws, len(names), len(self.trained.genes)), dtype=np.float32)
        for number, stratum in enumerate(self.strata):
            if not weights[:, number].any():
                continue
            design = design_of(self.trained, names, stratum.context)
            pairs = self.trained.encoding.pairs(design)
            shifts, on_target = self.global_draws.of_conditions(design, pairs, self.draws)
            weight = torch.as_tensor(weights[:, number, None], dtype=torch.float32)
            with pyro.validation_enabled(False):
                for cells in self.cells:
                    if cells.stratum == number:
                        self._add(found, weight, cells, shifts, on_target)
        return found

    def _add(
        self,
        found: np.ndarray,
        weight: Tensor,
        cells: CommonCells,
        shifts: Tensor,
        on_target: tuple[Tensor, ...],
    ) -> None:
        """Add the weighted effects in some cells, draws x conditions x genes.

        `shifts` and `on_target` have the control condition before the others. Only draws in which
        a condition changes anything are decoded.
        """
        given, number, n_genes = cells.covariates, cells.number, found.shape[-1]
        none = shifts[:1, :1].expand(number, -1, -1)
        control = cells.expression(cells.basal.decoder_input(none), *given)
        moved = (shifts != shifts[:, :1]).any(-1)
        if on_target:
            moved |= on_target[1].any(-1) | on_target[2].any(-1)
        draw, condition = moved.nonzero(as_tuple=True)
        at_once = max(1, LARGEST_TENSOR // (n_genes * number))
        for s, c in zip(draw.split(at_once), condition.split(at_once), strict=True):
            decoded = cells.basal.decoder_input(shifts[s, c].expand(number, -1, -1))
            own: tuple[Tensor, ...] = ()
            if on_target:
                genes, terms, log_factors = on_target
                own = genes[c], terms[s, c].expand(number, -1, -1), log_factors[c]
            effect = cells.expression(decoded, *given, own=own).sub_(control).mean(0).cpu()
            effect *= weight[c.cpu() - 1]
            found[s.cpu().numpy(), c.cpu().numpy() - 1] += effect.numpy()


@dataclass(frozen=True)
class Posterior:
    """Distribution of the effects of perturbations over draws and training seeds.

    Attributes
    ----------
    mean, variance
        Perturbations x genes.
    lower, upper
        Quantiles of the interval of :data:`LEVEL`, which is extended to the mean if this lies
        outside.
    pit
        Probability integral transform of observed effects, sampling noise included; NaN without.
    """

    mean: np.ndarray
    variance: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    pit: np.ndarray


def check_draws(number: int) -> None:
    """Refuse fewer draws than an interval needs.

    Raises
    ------
    InputError
        For fewer than two draws over all training seeds.
    """
    if number < 2:
        raise InputError(
            "An interval needs two draws or more over all training seeds. Set "
            "evaluation.interval_draws to 2 or more, or to 0 for no intervals."
        )


def summarise_draws(
    models: Sequence[EffectDraws],
    names: Sequence[str],
    effect: np.ndarray,
    standard_error: np.ndarray,
) -> Posterior:
    """Summarise the draws of all training seeds, block by block of perturbations.

    Parameters
    ----------
    models
        Draws of each training seed.
    names
        Canonical labels.
    effect, standard_error
        Observed effects, perturbations x genes; NaN where unknown.

    Returns
    -------
    Posterior

    Raises
    ------
    InputError
        If there are fewer than two draws, or seeds have other genes.
    """
    n_draws = sum(each.draws for each in models)
    check_draws(n_draws)
    genes = models[0].trained.genes
    if any(each.trained.genes != genes for each in models):
        raise InputError("The training seeds of a model have different genes: train it again.")
    shape = len(names), len(genes)
    found = Posterior(*(np.full(shape, np.nan, dtype=np.float32) for _ in range(5)))
    block = max(1, LARGEST_BLOCK // (n_draws * len(genes)))
    limits = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    for first in range(0, len(names), block):
        rows = slice(first, first + block)
        draws = np.concatenate([each.of(names, rows) for each in models])
        found.mean[rows] = draws.mean(axis=0, dtype=np.float64)
        found.variance[rows] = draws.var(axis=0, ddof=1, dtype=np.float64)
        lower, upper = np.quantile(draws, limits, axis=0)
        found.lower[rows] = np.minimum(lower, found.mean[rows])
        found.upper[rows] = np.maximum(upper, found.mean[rows])
        found.pit[rows] = probability_transform(draws, effect[rows], standard_error[rows])
    return found


def probability_transform(
    draws: np.ndarray, effect: np.ndarray, standard_error: np.ndarray
) -> np.ndarray:
    """Compute the probability of a smaller observed effect: uniform if draws are right.

    Parameters
    ----------
    draws
        Effects, draws x perturbations x genes.
    effect, standard_error
        Observed effects and the standard deviation of their sampling noise, perturbations x genes.

    Returns
    -------
    ndarray
        Mean over draws of Phi((effect - draw) / standard_error).
    """
    total = np.zeros(effect.shape)
    for draw in draws:
        total += ndtr((effect - draw) / standard_error)
    return total / len(draws)


@dataclass(frozen=True)
class Calibration:
    """Calibrated distribution of effects: normal, with variance c^2 (v + a w).

    v is the posterior variance and w that of the gene among cells: what a model learns of an
    effect from some cells errs in proportion to it.

    Attributes
    ----------
    scale_factor
        c; NaN if too few effects of validation cells are observed.
    residual
        a.
    """

    scale_factor: float
    residual: float

    @classmethod
    def of(
        cls,
        mean: np.ndarray,
        variance: np.ndarray,
        cell_variance: np.ndarray,
        effect: np.ndarray,
        standard_error: np.ndarray,
    ) -> "Calibration":
        """Calibrate by observed effects of validation cells.

        a is the non-negative weighted least-squares solution of E[(observed - mean)^2 - u^2 - v] =
        a w, where u is the standard error. Then c is 1, unless the interval of :data:`LEVEL` covers
        less than that fraction of the observed effects, or more by over two standard errors of
        that fraction: then the factor nearest to 1 with which it does not. Where sampling noise
        dominates, factors below 1 hardly differ in coverage, and none is preferred to 1. It is 1,
        too, where sampling noise alone covers more, which no factor can change. Since effects of a
        gene share control cells, the standard error is that of independent genes.

        Parameters
        ----------
        mean, variance
            Posterior mean and variance, perturbations x genes.
        cell_variance
            w, length G.
        effect, standard_error
            Observed effects, perturbations x genes; NaN where unknown.
        """
        known = np.isfinite(effect)
        if known.sum() < FEWEST:
            return cls(np.nan, np.nan)
        error, v, noise = (
            each[known].astype(np.float64) for each in (effect - mean, variance, standard_error**2)
        )
        w = np.broadcast_to(cell_variance, effect.shape)[known]
        precision = 1 / (noise + v) ** 2
        residual, total = float(precision * w @ (error**2 - noise - v)), float(precision * w @ w)
        residual = max(0.0, residual / total) if total > 0 else 0.0
        # the smallest factor with which an interval covers the effect
        excess = np.clip((error / ndtri((1 + LEVEL) / 2)) ** 2 - noise, 0, None)
        with np.errstate(invalid="ignore", divide="ignore"):
            needed = np.where(excess > 0, np.sqrt(excess / (v + residual * w)), 0.0)
        inside = np.where(known, 0.0, np.nan)
        inside[known] = needed <= 1
        of_genes = np.nansum(inside - np.nanmean(inside), axis=0)
        margin = 2 * np.sqrt(np.sum(of_genes**2)) / known.sum()
        limits = LEVEL, min(LEVEL + margin, 1.0)
        low, high = np.quantile(needed, limits, method="higher")
        if high == 0 or not np.isfinite(low):
            return cls(1.0, residual)
        return cls(float(np.clip(1.0, low, high)), residual)

    def standard_deviation(self, variance: np.ndarray, cell_variance: np.ndarray) -> np.ndarray:
        """Compute the calibrated standard deviation, perturbations x genes."""
        deviation: np.ndarray = np.sqrt(variance + self.residual * cell_variance)
        return self.scale_factor * deviation


def intervals_for_screen(
    trained: Sequence[TrainedModel],
    seeds: Sequence[int],
    screen: anndata.AnnData,
    observed: anndata.AnnData,
    settings: Mapping[str, Any],
    provenance: str,
    cells: np.ndarray,
) -> tuple[anndata.AnnData, pd.DataFrame]:
    """Compute posterior intervals of effects in cells like those of a screen.

    Parameters
    ----------
    trained
        The model of each training seed.
    seeds
        Seed of the draws of each.
    screen
        Canonical screen.
    observed
        As of :func:`samsvae.evaluation.observed_by_use.observed_by_use`, of all perturbations.
    settings
        ``interval_draws``, ``library_size`` (None for those of the cells) and
        ``min_controls_per_batch``.
    provenance
        Provenance record, JSON.
    cells
        Boolean, the cells whose strata and library sizes are taken.

    Returns
    -------
    intervals, coverage
        As of :func:`intervals_of`.
    """
    names, least = list(observed.obs_names), settings["min_controls_per_batch"]
    weights = weights_of_strata(trained[0], screen, names, cells, least)
    sizes = library_sizes_of(screen, cells, settings["library_size"])
    models = [
        EffectDraws(each, settings["interval_draws"], seed, weights, sizes)
        for seed, each in zip(seeds, trained, strict=True)
    ]
    return intervals_of(models, observed, provenance)


def intervals_of(
    models: Sequence[EffectDraws], observed: anndata.AnnData, provenance: str
) -> tuple[anndata.AnnData, pd.DataFrame]:
    """Compute posterior intervals of effects, and their coverage of observed effects.

    Parameters
    ----------
    models
        Draws of each training seed.
    observed
        As of :func:`samsvae.evaluation.observed_by_use.observed_by_use`.
    provenance
        Provenance record, JSON.

    Returns
    -------
    intervals : AnnData
        Perturbations x genes. ``X``: posterior mean. Layers ``standard_deviation``, ``lower_90``
        and ``upper_90``, and the same with the prefix ``calibrated_``; ``uns``: ``level``,
        ``scale_factor`` and ``residual_variance``.
    coverage : DataFrame
        Row per set of genes (all that are tested; those that are significant in cells other than
        test cells) and level: number of effects observed in test cells, fraction inside the
        interval, inside the calibrated interval, and inside one of sampling noise alone.
    """
    layers = ("standard_error", "calibration", "calibration_standard_error")
    effect = np.asarray(observed.X)
    error, *of_validation = (np.asarray(observed.layers[name]) for name in layers)
    names, genes = list(observed.obs_names), list(observed.var_names)
    if models[0].trained.genes != genes:
        raise InputError("The model and the observed effects have different genes.")
    posterior = summarise_draws(models, names, effect, error)
    mean, variance = posterior.mean, posterior.variance
    w = observed.var["cell_variance"].to_numpy(dtype=np.float32)
    calibration = Calibration.of(mean, variance, w, *of_validation)
    deviation = calibration.standard_deviation(variance, w)
    width = ndtri((1 + LEVEL) / 2) * deviation
    written = {
        "standard_deviation": np.sqrt(variance),
        f"lower_{100 * LEVEL:.0f}": posterior.lower,
        f"upper_{100 * LEVEL:.0f}": posterior.upper,
        "calibrated_standard_deviation": deviation,
        f"calibrated_lower_{100 * LEVEL:.0f}": mean - width,
        f"calibrated_upper_{100 * LEVEL:.0f}": mean + width,
    }
    table = effects_table(mean, names, genes, written, provenance)
    table.uns["level"] = LEVEL
    table.uns["scale_factor"] = calibration.scale_factor
    table.uns["residual_variance"] = calibration.residual
    transforms = {
        "coverage": posterior.pit,
        "calibrated_coverage": ndtr((effect - mean) / np.hypot(error, deviation)),
        "noise_coverage": ndtr((effect - mean) / error),
    }
    significant = np.asarray(observed.layers["significant"]) > 0
    return table, coverage_table(transforms, significant, calibration.scale_factor)
