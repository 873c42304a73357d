"""Predicted effects of a trained model with Monte-Carlo errors, and latent traversals."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyro
import torch
from numba import njit, prange
from numpy.typing import ArrayLike
from torch import Tensor

from samsvae.evaluation.effects import effects_table, in_context
from samsvae.evaluation.strata import Strata
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import (
    BasalCells,
    draw_covariates,
    draw_effects_in_parts,
    draw_on_target,
    looked_up_shifts,
)
from samsvae.kernels import SMALLEST_MEAN, is_compiled_for, match_numba_threads
from samsvae.models.likelihoods import (
    GammaPoissonLikelihood,
    Likelihood,
    NormalLikelihood,
    PoissonLikelihood,
)
from samsvae.screen.canonical import has_marginal_effects
from samsvae.screen.design import Design

# The integrand over log t is analytic in a strip and decays at both ends (as mean * t below, as
# exp(-t) above), so that the trapezoid rule converges exponentially: at this step to 1e-8.
STEP = 0.5
LOG_T = np.arange(3.5, -45.0, -STEP)
WEIGHT = STEP * np.exp(-np.exp(LOG_T))
NEGLIGIBLE = 1e-9  # exposure, or exposure times the mean, below which terms are left out
GRID_SIZE = 64
LIBRARY_SIZE = 10_000.0
SIZE_QUANTILES = 10


class ExpectedLogCounts:
    """Interpolation table of E[log2(1 + a x)] per gene over the mean of x.

    With L(t) = E[exp(-t x)] = (1 + mean (1 - exp(-t)) / c)^-c,

        E[log(1 + a x)] = int_0^inf exp(-t) (1 - L(a t)) / t dt,

    since log(1 + a x) = int_0^inf (exp(-t) - exp(-t (1 + a x))) / t dt. The table holds cubic
    Hermite polynomials on a grid over log(1 + mean / min(c, 1)), in which the expectation is
    linear for small means and almost linear for large means. Their relative error is below 2e-5,
    and their absolute error near 0 below 1e-6.

    Parameters
    ----------
    inverse_dispersion
        c per gene, length G.
    largest_mean
        Upper end of the grid of means.
    scale
        a, by which counts are multiplied.
    """

    def __init__(self, inverse_dispersion: Tensor, largest_mean: float, scale: float = 1.0) -> None:
        c = inverse_dispersion.detach().cpu().double()
        unit = c.clamp(max=1)
        step = torch.log1p(largest_mean / unit) / (GRID_SIZE - 1)
        coefficients = torch.empty(len(c), GRID_SIZE - 1, 4, dtype=torch.float64)
        match_numba_threads()
        exposure = -np.expm1(-scale * np.exp(LOG_T))
        arrays = (each.numpy() for each in (c, unit, step, coefficients))
        _tabulate(WEIGHT, exposure, math.log1p(scale), *arrays)
        device = inverse_dispersion.device
        self.per_unit, self.per_step, self.coefficients = (
            each.float().to(device) for each in (1 / unit, 1 / step, coefficients / math.log(2))
        )

    def __call__(self, mean: Tensor) -> Tensor:
        """Interpolate E[log2(1 + a x)] for means [..., G]."""
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
def _tabulate(
    weight: Any, exposure: Any, of_one: float, c: Any, unit: Any, step: Any, coefficients: Any
) -> None:
    """Fill in the coefficients, genes x intervals x powers, in nats; `of_one` is log(1 + a)."""
    for gene in prange(len(c)):
        # the derivative by log(1 + mean / unit) at a mean of 0, where x is at most 1
        left, left_slope = 0.0, unit[gene] * of_one * step[gene]
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
def _quadrature(weight: Any, exposure: Any, c: float, mean: float) -> tuple[float, float]:
    """Compute E[log(1 + a x)] and its derivative by the log of the mean, in nats."""
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


LARGEST_POISSON_MEAN = 1e6  # the rate of a Poisson likelihood does not depend on library size
POISSON = 1e8  # inverse dispersion at which a negative binomial approximates a Poisson
LARGEST_TENSOR = 2_000_000  # elements, of draws x conditions x genes


def predicted_effects(
    trained: TrainedModel,
    perturbations: Sequence[str],
    draws: int,
    seed: int,
    estimator: str = "integrated",
    strata_weights: np.ndarray | None = None,
    library_sizes: Sequence[float] = (LIBRARY_SIZE,),
) -> tuple[np.ndarray, np.ndarray]:
    """Predict average treatment effects of perturbations.

    Where the model has covariates, effects are averaged over their strata, such as batches, as the
    observed ones are: both treatment arms have the same covariates.

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
    strata_weights
        Weight of each stratum of the model's covariates for each perturbation, perturbations x
        strata, with rows that sum to 1; None for the frequencies among training cells.
    library_sizes
        Library sizes of the cells, equally frequent, whose counts are drawn or integrated out, and
        scaled to CP10k as those of measured cells are. Effects on log2(CP10k + 1) depend on them:
        a shallow cell has no count of most genes.

    Returns
    -------
    effects, standard_error : ndarray
        Perturbations x genes, log2(CP10k + 1); the error is that of the Monte-Carlo mean. For a
        Normal likelihood, differences on the scale of the data.
    """
    estimate = ESTIMATORS[estimator].estimate
    if strata_weights is None:
        strata_weights = np.tile(trained.covariates.frequency, (len(perturbations), 1))
    shape = len(perturbations), len(trained.genes)
    effects, variance = np.zeros(shape), np.zeros(shape)
    with pyro.validation_enabled(False), seeded(seed, trained.device):
        for (stratum, cell), size in product(enumerate(strata_of(trained)), library_sizes):
            weight = strata_weights[:, stratum, None] / len(library_sizes)
            if not weight.any():
                continue
            # two draws or more have a standard error
            own_draws = max(2, round(draws * float(weight.sum()) / max(1, len(weight))))
            design = design_of(trained, perturbations, cell.context)
            own, own_variance = estimate(trained, design, own_draws, size, cell.covariates)
            effects += weight * own
            variance += weight**2 * own_variance
    return effects, np.sqrt(variance)


@dataclass(frozen=True)
class Stratum:
    """Cells of one level of each categorical covariate of a model.

    Attributes
    ----------
    covariates
        Encoded covariates as the only item; empty for a model without covariates.
    context
        Context of the cells, if it is a covariate.
    """

    covariates: tuple[Tensor, ...]
    context: str | None


def strata_of(trained: TrainedModel) -> list[Stratum]:
    """List the strata of a model, a single one for a model without covariates."""
    covariates = trained.covariates
    if not len(covariates):
        return [Stratum((), None)]
    encoded = torch.from_numpy(covariates.of_strata()).to(trained.device)
    return [Stratum((row,), of) for row, of in zip(encoded, covariates.contexts, strict=True)]


def mean_covariates(trained: TrainedModel) -> tuple[Tensor, ...]:
    """Average the covariates over strata, as the only item; nothing without any."""
    covariates = trained.covariates
    if not len(covariates):
        return ()
    mean = np.asarray(covariates.frequency) @ covariates.of_strata()
    return (torch.as_tensor(mean, dtype=torch.float32, device=trained.device),)


def in_contexts(trained: TrainedModel, strata_weights: np.ndarray) -> dict[str, np.ndarray]:
    """Restrict the weights of strata to those of each context.

    Parameters
    ----------
    trained
        The model.
    strata_weights
        Perturbations x strata.

    Returns
    -------
    dict of ndarray
        By context, weights with rows that sum to 1; those of the training cells of the context for
        a perturbation without weight there. Empty for a model without contexts.
    """
    of_strata = np.array(trained.covariates.contexts, dtype=object)
    found = {}
    for context in sorted({name for name in of_strata if name is not None}):
        inside = of_strata == context
        own = strata_weights * inside
        own = np.where(own.sum(1, keepdims=True) > 0, own, trained.covariates.frequency * inside)
        found[context] = own / own.sum(1, keepdims=True)
    return found


def library_size_quantiles(library_sizes: ArrayLike) -> list[float]:
    """Summarise library sizes of cells by :data:`SIZE_QUANTILES` equally frequent values."""
    levels = (np.arange(SIZE_QUANTILES) + 0.5) / SIZE_QUANTILES
    return np.quantile(np.asarray(library_sizes, dtype=np.float64), levels).tolist()


def weights_of_strata(
    trained: TrainedModel,
    screen: anndata.AnnData,
    perturbations: Sequence[str],
    cells: np.ndarray,
    min_controls: int,
) -> np.ndarray:
    """Compute the fraction of each perturbation's cells in the strata of a model's covariates.

    Parameters
    ----------
    trained
        The model.
    screen
        Canonical screen.
    perturbations
        Canonical labels.
    cells
        Boolean, one per cell of the screen: those of observed effects, control cells included.
    min_controls
        Smallest number of control cells of a stratum whose cells count, as for observed effects;
        without effect where the screen has marginal effects.

    Returns
    -------
    ndarray
        Perturbations x strata, with rows that sum to 1; the frequencies among training cells for
        a perturbation without cells in such a stratum.
    """
    frequency = np.asarray(trained.covariates.frequency)
    stratum = trained.covariates.stratum(screen.obs)
    known = cells & (stratum >= 0)
    number = np.zeros((len(frequency), len(perturbations)))
    if has_marginal_effects(screen):
        design = Design.of_screen(screen)[known]
        column = pd.Index(design.names).get_indexer(perturbations)
        for own in np.unique(stratum[known]):
            has = design.matrix[stratum[known] == own] != 0
            number[own] = np.asarray(has.sum(axis=0)).ravel()[column]
    else:
        labels = screen.obs["perturbation"].astype(str)[known]
        compared = Strata.of(labels, perturbations, stratum[known], min_controls).compared
        number[: len(compared)] = compared
    total = number.sum(axis=0)
    weights = np.divide(number, total, where=total > 0, out=np.tile(frequency, (len(total), 1)).T)
    return weights.T


def library_sizes_of(
    screen: anndata.AnnData, cells: np.ndarray, library_size: float | None
) -> list[float]:
    """Return a given library size, or else quantiles of those of some cells of a screen."""
    if library_size is not None:
        return [float(library_size)]
    return library_size_quantiles(screen.obs["library_size"][cells])


def effects_for_screen(
    trained: TrainedModel,
    screen: anndata.AnnData,
    perturbations: Sequence[str],
    settings: Mapping[str, Any],
    provenance: str,
    cells: np.ndarray | None = None,
) -> anndata.AnnData:
    """Predict the effects of perturbations in cells like those of a screen.

    Parameters
    ----------
    trained
        The model.
    screen
        Canonical screen.
    perturbations
        Canonical labels.
    settings
        ``draws`` (None for the estimator's default), ``estimator``, ``seed``, ``library_size``
        (None for those of the cells) and ``min_controls_per_batch``.
    provenance
        Provenance record, JSON.
    cells
        Boolean, the cells whose strata and library sizes are taken; None for all.

    Returns
    -------
    AnnData
        As of :func:`samsvae.evaluation.effects.effects_table`, with the layer ``standard_error``
        and, for a model that knows contexts, the effects in each.
    """
    cells = np.ones(screen.n_obs, dtype=bool) if cells is None else cells
    least = settings["min_controls_per_batch"]
    weights = weights_of_strata(trained, screen, perturbations, cells, least)
    sizes = library_sizes_of(screen, cells, settings["library_size"])
    estimator = settings["estimator"]
    draws = settings["draws"] or ESTIMATORS[estimator].draws
    how = trained, perturbations, draws, settings["seed"], estimator
    effects, error = predicted_effects(*how, weights, sizes)
    layers = {"standard_error": error}
    for context, own in in_contexts(trained, weights).items():
        layers[in_context("effect", context)] = predicted_effects(*how, own, sizes)[0]
    return effects_table(effects, perturbations, trained.genes, layers, provenance)


@torch.no_grad()
def _integrated(
    trained: TrainedModel,
    design: Tensor,
    draws: int,
    library_size: float,
    given: tuple[Tensor, ...],
) -> tuple[np.ndarray, np.ndarray]:
    model, number_of = trained.model, len(design) - 1
    moments = Moments(number_of, len(trained.genes))
    expression = expected_expression(model.likelihood, library_size, given)
    for number, shifts, on_target in shifts_in_parts(trained, design, draws):
        basal = BasalCells.from_prior(model, shifts[:, :1], 1)
        for own, rows in blocks_of_draws(number, number_of, len(trained.genes)):
            terms = on_target_of_block(on_target, own, slice(rows.start + 1, rows.stop + 1))
            treated = basal[own].decoder_input(shifts[own, 1:][:, rows])
            treated = expression(treated, *given, own=terms)
            control = expression(basal[own].decoder_input(shifts[own, :1]), *given)
            moments.add(rows, treated.sub_(control))
    return moments.mean(draws), moments.variance_of_mean(draws)


@torch.no_grad()
def _sampled(
    trained: TrainedModel,
    design: Tensor,
    draws: int,
    library_size: float,
    given: tuple[Tensor, ...],
) -> tuple[np.ndarray, np.ndarray]:
    model = trained.model
    moments = Moments(len(design), len(trained.genes))
    size = torch.full((1,), library_size, device=trained.device)
    for number, shifts, on_target in shifts_in_parts(trained, design, draws):
        # treatment arms use the same masks and embeddings; the control arm, without any, stays
        # independent of them
        for own, rows in blocks_of_draws(number, len(design), len(trained.genes)):
            shift = shifts[own, rows]
            basal = BasalCells.from_prior(model, shift, shift.shape[1])
            terms = on_target_of_block(on_target, own, rows)
            decoded = basal.decoder_input(shift)
            counts = model.likelihood(decoded, size, *given, own=terms).sample()
            if not isinstance(model.likelihood, NormalLikelihood):
                counts.mul_(LIBRARY_SIZE / library_size).add_(1).log2_()
            moments.add(rows, counts)
    mean, variance = moments.mean(draws), moments.variance_of_mean(draws)
    return mean[1:] - mean[0], variance[1:] + variance[0]


@dataclass(frozen=True)
class Estimator:
    """Estimator of average treatment effects.

    Attributes
    ----------
    estimate
        Function of the model, the design matrix (control first), the number of draws, the library
        size and the covariates, to effects and the variances of their Monte-Carlo means.
    draws
        Default number of draws.
    """

    estimate: Callable[
        [TrainedModel, Tensor, int, float, tuple[Tensor, ...]],
        tuple[np.ndarray, np.ndarray],
    ]
    draws: int


ESTIMATORS = {
    "integrated": Estimator(_integrated, draws=100),
    "sampled": Estimator(_sampled, draws=2500),
}


def design_of(trained: TrainedModel, perturbations: Sequence[str], context: str | None) -> Tensor:
    """Encode control, then perturbations in a context, as rows of the model's design matrix."""
    contexts = None if context is None else [context] * len(perturbations)
    design = torch.from_numpy(trained.encoding.design(perturbations, contexts))
    return torch.cat([torch.zeros_like(design[:1]), design]).to(trained.device)


def shifts_in_parts(
    trained: TrainedModel, design: Tensor, draws: int
) -> Iterator[tuple[int, Tensor, tuple[Tensor, ...]]]:
    """Draw the effects of conditions in parts.

    Yields
    ------
    tuple
        The number of draws, the latent shifts, draws x conditions x size, and on-target effects as
        of :func:`samsvae.inference.posterior.draw_on_target`.
    """
    model, targets = trained.model, trained.encoding.pairs(design)
    for number, effects in draw_effects_in_parts(model, draws):
        shifts = looked_up_shifts(effects, design).expand(number, -1, -1)
        yield number, shifts, draw_on_target(model, targets, number)


def on_target_of_block(
    on_target: tuple[Tensor, ...], draws: slice, conditions: slice
) -> tuple[Tensor, ...]:
    """Select the on-target effects of some draws and conditions."""
    if not on_target:
        return ()
    genes, terms, log_factors = on_target
    return genes[conditions], terms[draws, conditions], log_factors[conditions]


def blocks_of_draws(draws: int, conditions: int, genes: int) -> Iterator[tuple[slice, slice]]:
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


def expected_expression(
    likelihood: Likelihood, size: float = LIBRARY_SIZE, covariates: tuple[Tensor, ...] = ()
) -> Callable[..., Tensor]:
    """Build the function from decoder inputs to expected expression.

    Parameters
    ----------
    likelihood
        One of :data:`samsvae.models.likelihoods.LIKELIHOODS`.
    size
        Library size l.
    covariates
        Covariates of all cells, a vector as the only item, on which the dispersion may depend.

    Returns
    -------
    callable
        Maps decoder inputs [..., size], and covariates if there are any, to E[log2(1 + 1e4 x / l)]
        [..., G]; for a Normal likelihood to E[x].
    """
    device = next(likelihood.parameters()).device
    library_size = torch.full((1,), size, device=device)
    scale = LIBRARY_SIZE / size
    if isinstance(likelihood, GammaPoissonLikelihood):
        concentration = likelihood.concentration(*covariates)
        table = ExpectedLogCounts(concentration, size + SMALLEST_MEAN, scale)
        return partial(_expected, likelihood, table, concentration, library_size, scale)
    if isinstance(likelihood, PoissonLikelihood):
        c = torch.full((likelihood.head.out_features,), POISSON, device=device)
        table = ExpectedLogCounts(c, LARGEST_POISSON_MEAN, scale)
    else:
        return lambda decoded, *given, own=(): likelihood.mean(
            decoded, library_size, *given, own=own
        )
    return lambda decoded, *given, own=(): table(
        likelihood.mean(decoded, library_size, *given, own=own)
    )


def _expected(
    likelihood: Likelihood,
    table: ExpectedLogCounts,
    concentration: Tensor,
    library_size: Tensor,
    scale: float,
    decoded: Tensor,
    *given: Tensor,
    own: tuple[Tensor, ...] = (),
) -> Tensor:
    """Interpolate expected expression, [S, C, G]; target genes have concentrations of their own."""
    mean = likelihood.mean(decoded, library_size, *given, own=own)
    expected = table(mean)
    if not own:
        return expected
    genes, _, log_factors = own
    of_targets = (concentration[genes] * log_factors.exp()).ravel()
    own_table = ExpectedLogCounts(of_targets, float(library_size) + SMALLEST_MEAN, scale)
    genes = genes.expand(len(mean), -1, -1)
    of_own = own_table(mean.gather(-1, genes).flatten(1)).view(genes.shape)
    return expected.scatter_add_(-1, genes, of_own - expected.gather(-1, genes))


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
    # a dispersion that depends on covariates is taken at their means
    expression = expected_expression(model.likelihood, covariates=mean_covariates(trained))
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
            given, _ = draw_covariates(trained, number)
            for first in range(0, number, block):
                own = slice(first, first + block)
                of_draws = [each[own, None] for each in given]
                treated = expression(basal[own].decoder_input(intervention[own]), *of_draws)
                control = expression(basal[own].decoder_input(none[own]), *of_draws)
                moments.add(slice(None), treated.sub_(control))
    return FactorEffects(
        dimensions.cpu().numpy(),
        (size / draws).cpu().numpy(),
        moments.mean(draws),
        np.sqrt(moments.variance_of_mean(draws)),
    )
