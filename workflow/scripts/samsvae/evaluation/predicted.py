"""Predicted effects of a trained model with Monte-Carlo errors, and latent traversals."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from numba import njit, prange
from torch import Tensor

from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import BasalCells, draw_effects_in_parts
from samsvae.kernels import SMALLEST_MEAN, is_compiled_for, match_numba_threads
from samsvae.models.base import PerturbationModel, shift_of_conditions
from samsvae.models.likelihoods import (
    GammaPoissonLikelihood,
    Likelihood,
    NormalLikelihood,
    PoissonLikelihood,
)

# The integrand over log t is analytic in a strip and decays at both ends (as mean * t below, as
# exp(-t) above), so that the trapezoid rule converges exponentially: at this step to 1e-8.
STEP = 0.5
LOG_T = np.arange(3.5, -45.0, -STEP)
WEIGHT, EXPOSURE = STEP * np.exp(-np.exp(LOG_T)), -np.expm1(-np.exp(LOG_T))
NEGLIGIBLE = 1e-9  # exposure, or exposure times the mean, below which terms are left out
GRID_SIZE = 64


class ExpectedLogCounts:
    """Interpolation table of E[log2(1 + x)] per gene over the mean of x.

    With L(t) = E[exp(-t x)] = (1 + mean (1 - exp(-t)) / c)^-c,

        E[log(1 + x)] = int_0^inf exp(-t) (1 - L(t)) / t dt,

    since log(1 + x) = int_0^inf (exp(-t) - exp(-t (1 + x))) / t dt. The table holds cubic
    Hermite polynomials on a grid over log(1 + mean / min(c, 1)), in which the expectation is
    linear for small means and almost linear for large means. Their relative error is below 2e-5,
    and their absolute error near 0 below 1e-6.

    Parameters
    ----------
    inverse_dispersion
        c per gene, length G.
    largest_mean
        Upper end of the grid of means.
    """

    def __init__(self, inverse_dispersion: Tensor, largest_mean: float) -> None:
        c = inverse_dispersion.detach().cpu().double()
        unit = c.clamp(max=1)
        step = torch.log1p(largest_mean / unit) / (GRID_SIZE - 1)
        coefficients = torch.empty(len(c), GRID_SIZE - 1, 4, dtype=torch.float64)
        match_numba_threads()
        _tabulate(WEIGHT, EXPOSURE, *(each.numpy() for each in (c, unit, step, coefficients)))
        device = inverse_dispersion.device
        self.per_unit, self.per_step, self.coefficients = (
            each.float().to(device) for each in (1 / unit, 1 / step, coefficients / math.log(2))
        )

    def __call__(self, mean: Tensor) -> Tensor:
        """Interpolate E[log2(1 + x)] for means [..., G]."""
        position = (mean * self.per_unit).contiguous().log1p_().mul_(self.per_step)
        if is_compiled_for(position):
            match_numba_threads()
            _interpolate(position.view(-1, mean.shape[-1]).numpy(), self.coefficients.numpy())
            return position
        interval = position.long().clamp(0, GRID_SIZE - 2)
        gene = torch.arange(mean.shape[-1], device=mean.device)
        constant, linear, square, cube = self.coefficients[gene, interval].unbind(-1)
        fraction = position - interval
        return constant + fraction * (linear + fraction * (square + fraction * cube))


@njit(parallel=True, cache=True)
def _tabulate(weight: Any, exposure: Any, c: Any, unit: Any, step: Any, coefficients: Any) -> None:
    """Fill in the coefficients, genes x intervals x powers, in nats."""
    for gene in prange(len(c)):
        left, left_slope = 0.0, _slope_at_zero(unit[gene]) * step[gene]
        for interval in range(coefficients.shape[1]):
            mean = unit[gene] * math.expm1(step[gene] * (interval + 1))
            right, by_log_mean = _quadrature(weight, exposure, c[gene], mean)
            right_slope = by_log_mean * (unit[gene] + mean) / mean * step[gene]
            rise = right - left
            coefficients[gene, interval, 0] = left
            coefficients[gene, interval, 1] = left_slope
            coefficients[gene, interval, 2] = 3 * rise - 2 * left_slope - right_slope
            coefficients[gene, interval, 3] = left_slope + right_slope - 2 * rise
            left, left_slope = right, right_slope


@njit
def _slope_at_zero(unit: float) -> float:
    """Compute the derivative by log(1 + mean / unit) at a mean of 0, where x is at most 1."""
    return unit * math.log(2.0)


@njit
def _quadrature(weight: Any, exposure: Any, c: float, mean: float) -> tuple[float, float]:
    """Compute E[log(1 + x)] and its derivative by the log of the mean, in nats."""
    value, slope = 0.0, 0.0
    for node in range(len(weight)):
        if exposure[node] * max(mean, 1.0) < NEGLIGIBLE:
            break
        ratio = mean * exposure[node] / c
        rise = -math.expm1(-c * math.log1p(ratio))
        value += weight[node] * rise
        slope += weight[node] * c * (1 - rise) * ratio / (1 + ratio)
    return value, slope


@njit(parallel=True, cache=True)
def _interpolate(position: Any, coefficients: Any) -> None:
    """Replace positions on the grid by the polynomials' values in place, rows x genes."""
    last = coefficients.shape[1] - 1
    for row in prange(len(position)):
        for gene in range(position.shape[1]):
            at = position[row, gene]
            interval = max(0, min(np.int32(at), last))  # NaN stays NaN
            fraction = at - np.float32(interval)
            own = coefficients[gene, interval]
            high = own[2] + fraction * own[3]
            position[row, gene] = own[0] + fraction * (own[1] + fraction * high)


LIBRARY_SIZE = 10_000.0
LARGEST_MEAN = LIBRARY_SIZE + SMALLEST_MEAN
LARGEST_POISSON_MEAN = 1e6  # the rate of a Poisson likelihood does not depend on library size
POISSON = 1e8  # inverse dispersion at which a negative binomial approximates a Poisson
LARGEST_TENSOR = 2_000_000  # elements, of draws x conditions x genes


def predicted_effects(
    trained: TrainedModel,
    perturbations: Sequence[str],
    draws: int,
    seed: int,
    estimator: str = "integrated",
) -> tuple[np.ndarray, np.ndarray]:
    """Predict average treatment effects of perturbations.

    Parameters
    ----------
    trained
        The model.
    perturbations
        Canonical labels; any combination of the model's perturbations.
    draws
        Number of draws of global variables and basal state, at least two.
    seed
        Seed of the draws.
    estimator
        A name in :data:`ESTIMATORS`. ``integrated``: treatment and control arms use common
        random numbers, the same draw of the global variables and of a basal state, and the counts
        are integrated out. ``sampled``, the paper's: each treatment arm and the control arm have
        independent basal states, and counts are sampled from the likelihood.

    Returns
    -------
    effects, standard_error : ndarray
        Perturbations x genes, log2(CP10k + 1); the error is that of the Monte-Carlo mean. For a
        Normal likelihood, differences on the scale of the data.
    """
    with pyro.validation_enabled(False), seeded(seed, trained.device):
        return ESTIMATORS[estimator].estimate(trained, perturbations, draws)


@torch.no_grad()
def _integrated(
    trained: TrainedModel, perturbations: Sequence[str], draws: int
) -> tuple[np.ndarray, np.ndarray]:
    model, design = trained.model, _design(trained, perturbations)
    moments = Moments(len(perturbations), len(trained.genes))
    expression = expected_expression(model.likelihood)
    for number, shifts in _shifts(model, design, draws):
        basal = BasalCells.from_prior(model, shifts[:, :1], 1)
        for own, rows in _blocks(number, len(perturbations), len(trained.genes)):
            treated = expression(basal[own].decoder_input(shifts[own, 1:][:, rows]))
            control = expression(basal[own].decoder_input(shifts[own, :1]))
            moments.add(rows, treated.sub_(control))
    return moments.mean(draws), np.sqrt(moments.variance_of_mean(draws))


@torch.no_grad()
def _sampled(
    trained: TrainedModel, perturbations: Sequence[str], draws: int
) -> tuple[np.ndarray, np.ndarray]:
    model, design = trained.model, _design(trained, perturbations)
    moments = Moments(len(design), len(trained.genes))
    size = torch.full((1,), LIBRARY_SIZE, device=trained.device)
    for number, shifts in _shifts(model, design, draws):
        # treatment arms use the same masks and embeddings; the control arm, without any, stays
        # independent of them
        for own, rows in _blocks(number, len(design), len(trained.genes)):
            shift = shifts[own, rows]
            basal = BasalCells.from_prior(model, shift, shift.shape[1])
            counts = model.likelihood(basal.decoder_input(shift), size).sample()
            if not isinstance(model.likelihood, NormalLikelihood):
                counts.add_(1).log2_()
            moments.add(rows, counts)
    mean, variance = moments.mean(draws), moments.variance_of_mean(draws)
    return mean[1:] - mean[0], np.sqrt(variance[1:] + variance[0])


@dataclass(frozen=True)
class Estimator:
    """Estimator of average treatment effects.

    Attributes
    ----------
    estimate
        Function of the model, the perturbations and the number of draws.
    draws
        Default number of draws.
    """

    estimate: Callable[[TrainedModel, Sequence[str], int], tuple[np.ndarray, np.ndarray]]
    draws: int


ESTIMATORS = {
    "integrated": Estimator(_integrated, draws=100),
    "sampled": Estimator(_sampled, draws=2500),
}


def _design(trained: TrainedModel, perturbations: Sequence[str]) -> Tensor:
    """Encode control, then the perturbations, as rows of the design matrix."""
    design = torch.from_numpy(trained.encoding.design(perturbations))
    return torch.cat([torch.zeros_like(design[:1]), design]).to(trained.device)


def _shifts(model: PerturbationModel, design: Tensor, draws: int) -> Iterator[tuple[int, Tensor]]:
    """Draw the shifts of conditions: the number of draws, and draws x conditions x size."""
    for number, effects in draw_effects_in_parts(model, draws):
        shifts = shift_of_conditions(effects, design)
        yield number, shifts.expand(number, *shifts.shape[-2:])


def _blocks(draws: int, conditions: int, genes: int) -> Iterator[tuple[slice, slice]]:
    """Iterate over draws and conditions in blocks of bounded size."""
    rows = max(1, LARGEST_TENSOR // genes)
    draws_per_block = max(1, rows // conditions)
    for draw in range(0, draws, draws_per_block):
        for row in range(0, conditions, rows):
            yield slice(draw, draw + draws_per_block), slice(row, row + rows)


class Moments:
    """Accumulator of means over draws and their Monte-Carlo variances, conditions x genes.

    Parameters
    ----------
    conditions, genes
        Numbers of conditions and genes.
    """

    def __init__(self, conditions: int, genes: int) -> None:
        self.total = torch.zeros(conditions, genes, dtype=torch.float64)
        self.squares = torch.zeros_like(self.total)

    def add(self, rows: slice, values: Tensor) -> None:
        """Add draws, S x conditions x G, of some conditions; overwrites the values."""
        self.total[rows] += values.sum(0).cpu()
        self.squares[rows] += values.square_().sum(0).cpu()

    def mean(self, draws: int) -> np.ndarray:
        """Compute the mean over draws."""
        return (self.total / draws).numpy()

    def variance_of_mean(self, draws: int) -> np.ndarray:
        """Estimate the variance of the mean."""
        variance = (self.squares / draws - (self.total / draws) ** 2).clamp(min=0)
        return (variance / (draws - 1)).numpy()


def expected_expression(likelihood: Likelihood) -> Callable[[Tensor], Tensor]:
    """Build the function from decoder inputs to expected expression.

    Parameters
    ----------
    likelihood
        One of :data:`samsvae.models.likelihoods.LIKELIHOODS`.

    Returns
    -------
    callable
        Maps decoder inputs [..., size] to E[log2(1 + x)] [..., G] at a library size of 10,000; for
        a Normal likelihood to E[x].
    """
    device = next(likelihood.parameters()).device
    library_size = torch.full((1,), LIBRARY_SIZE, device=device)
    if isinstance(likelihood, GammaPoissonLikelihood):
        table = ExpectedLogCounts(likelihood.concentration, LARGEST_MEAN)
    elif isinstance(likelihood, PoissonLikelihood):
        c = torch.full((likelihood.head.out_features,), POISSON, device=device)
        table = ExpectedLogCounts(c, LARGEST_POISSON_MEAN)
    else:
        return lambda decoded: likelihood.mean(decoded, library_size)
    return lambda decoded: table(likelihood.mean(decoded, library_size))


@dataclass(frozen=True)
class FactorEffects:
    """Effects of latent traversals on expression.

    Attributes
    ----------
    dimensions
        The F active latent dimensions.
    size
        Signed size of the intervention on each, in basal standard deviations, length F.
    effects, standard_error
        F x G, log2(CP10k + 1); the error is that of the Monte-Carlo mean.
    """

    dimensions: np.ndarray
    size: np.ndarray
    effects: np.ndarray
    standard_error: np.ndarray


@torch.no_grad()
def factor_effects(
    trained: TrainedModel, shifts: np.ndarray, draws: int, seed: int
) -> FactorEffects:
    """Compute the effect on expression of an intervention on each active latent dimension.

    The size of the intervention on z_k is the mean shift by the perturbations with this dimension
    in their mask, in the direction of the larger sum of their shifts:

        a_k = sign(sum_t m_tk) 1/n_k sum_t sign(m_tk) s_tk,  t over the n_k perturbations of k,

    where s_t is the latent effect of perturbation t, drawn from the guide, and m_t its mean.
    Treatment and control arms use common random numbers, and the counts are integrated out, as in
    :func:`predicted_effects`.

    Parameters
    ----------
    trained
        A model whose latent state is a basal state plus the effects of perturbations.
    shifts
        m, the mean latent effects along active dimensions, and 0 elsewhere, T x K.
    draws
        Number of draws of effects and basal state, at least two.
    seed
        Seed of the draws.

    Returns
    -------
    FactorEffects
        Effects of the active latent dimensions.
    """
    model, device = trained.model, trained.device
    mean = torch.as_tensor(shifts, dtype=torch.float32, device=device)
    dimensions = torch.nonzero((mean != 0).any(0)).ravel()
    factor = torch.arange(len(dimensions), device=device)
    # signed weight of a perturbation's effect in the size of the intervention
    weight = mean.sign() * mean.sum(0).sign() / (mean != 0).sum(0).clamp(min=1)
    moments = Moments(len(dimensions), len(trained.genes))
    expression = expected_expression(model.likelihood)
    size = torch.zeros(len(dimensions), device=device)
    block = max(1, LARGEST_TENSOR // max(1, len(dimensions) * len(trained.genes)))
    with pyro.validation_enabled(False), seeded(seed, device):
        for number, effects in draw_effects_in_parts(model, draws):
            if effects is None:
                raise TypeError(f"{type(model).__name__} has no latent effects")
            sizes = (effects * weight).sum(-2)[:, dimensions]
            size += sizes.sum(0)
            intervention = sizes.new_zeros(number, len(dimensions), model.n_latent)
            intervention[:, factor, dimensions] = sizes
            none = intervention.new_zeros(number, 1, model.n_latent)
            basal = BasalCells.from_prior(model, none, 1)
            for first in range(0, number, block):
                own = slice(first, first + block)
                treated = expression(basal[own].decoder_input(intervention[own]))
                control = expression(basal[own].decoder_input(none[own]))
                moments.add(slice(None), treated.sub_(control))
    return FactorEffects(
        dimensions.cpu().numpy(),
        (size / draws).cpu().numpy(),
        moments.mean(draws),
        np.sqrt(moments.variance_of_mean(draws)),
    )
