"""Effects that a trained model predicts, and their Monte-Carlo errors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from torch import Tensor

from samsvae.effects.expectation import ExpectedLogCounts
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import BasalCells, draw_effects_in_parts
from samsvae.kernels import SMALLEST_MEAN
from samsvae.models.base import PerturbationModel, shift_of_conditions
from samsvae.models.likelihoods import (
    GammaPoissonLikelihood,
    Likelihood,
    NormalLikelihood,
    PoissonLikelihood,
)

LIBRARY_SIZE = 10_000.0
LARGEST_MEAN = LIBRARY_SIZE + SMALLEST_MEAN
LARGEST_POISSON_MEAN = 1e6  # the rate of a Poisson likelihood knows no library size
POISSON = 1e8  # inverse dispersion at which a negative binomial is as good as Poisson
LARGEST_TENSOR = 2_000_000  # elements, of draws x conditions x genes


def predicted_effects(
    trained: TrainedModel,
    perturbations: Sequence[str],
    draws: int,
    seed: int,
    estimator: str = "integrated",
) -> tuple[np.ndarray, np.ndarray]:
    """Predict average treatment effects, all perturbations at once.

    Parameters
    ----------
    trained
        The model.
    perturbations
        Canonical labels; any combination of the model's perturbations.
    draws
        Draws of global variables and basal state, two at least.
    seed
        Seed of the draws.
    estimator
        A name in :data:`ESTIMATORS`. ``integrated``: treatment and control arms have common
        random numbers, the same draw of the global variables and of a basal state, and the counts
        are integrated out, so that what differs between arms is the perturbation alone.
        ``sampled``, the paper's: each arm has basal states of its own, and counts drawn from the
        likelihood.

    Returns
    -------
    effects, standard_error : ndarray
        Perturbations x genes, log2(CP10k + 1); the error is that of the Monte-Carlo mean. For a
        Normal likelihood, whose data are no counts, differences of the data themselves.
    """
    with pyro.validation_enabled(False), seeded(seed, trained.device):
        return ESTIMATORS[estimator].estimate(trained, perturbations, draws)


@torch.no_grad()
def _integrated(
    trained: TrainedModel, perturbations: Sequence[str], draws: int
) -> tuple[np.ndarray, np.ndarray]:
    model, design = trained.model, _arms(trained, perturbations)
    moments = Moments(len(perturbations), len(trained.genes))
    expression = expected_expression(model.likelihood)
    for number, shifts in _shifts(model, design, draws):
        basal = BasalCells.from_prior(model, shifts[:, :1], 1)
        for own, arms in _blocks(number, len(perturbations), len(trained.genes)):
            treated = expression(basal[own].decoder_input(shifts[own, 1:][:, arms]))
            control = expression(basal[own].decoder_input(shifts[own, :1]))
            moments.add(arms, treated.sub_(control))
    return moments.mean(draws), np.sqrt(moments.variance_of_mean(draws))


@torch.no_grad()
def _sampled(
    trained: TrainedModel, perturbations: Sequence[str], draws: int
) -> tuple[np.ndarray, np.ndarray]:
    model, design = trained.model, _arms(trained, perturbations)
    moments = Moments(len(design), len(trained.genes))
    size = torch.full((1,), LIBRARY_SIZE, device=trained.device)
    for number, shifts in _shifts(model, design, draws):
        # that arms share masks and embeddings correlates no arm with control, which has none
        for own, arms in _blocks(number, len(design), len(trained.genes)):
            shift = shifts[own, arms]
            basal = BasalCells.from_prior(model, shift, shift.shape[1])
            counts = model.likelihood(basal.decoder_input(shift), size).sample()
            if not isinstance(model.likelihood, NormalLikelihood):
                counts.add_(1).log2_()
            moments.add(arms, counts)
    mean, variance = moments.mean(draws), moments.variance_of_mean(draws)
    return mean[1:] - mean[0], np.sqrt(variance[1:] + variance[0])


@dataclass(frozen=True)
class Estimator:
    """A way to predict effects.

    Attributes
    ----------
    estimate
        Takes the model, perturbations and draws.
    draws
        How many it needs to be useful.
    """

    estimate: Callable[[TrainedModel, Sequence[str], int], tuple[np.ndarray, np.ndarray]]
    draws: int


ESTIMATORS = {
    "integrated": Estimator(_integrated, draws=100),
    "sampled": Estimator(_sampled, draws=2500),
}


def _arms(trained: TrainedModel, perturbations: Sequence[str]) -> Tensor:
    """Encode control and then the perturbations as rows of the design matrix."""
    design = torch.from_numpy(trained.encoding.design(perturbations))
    return torch.cat([torch.zeros_like(design[:1]), design]).to(trained.device)


def _shifts(model: PerturbationModel, design: Tensor, draws: int) -> Iterator[tuple[int, Tensor]]:
    """Draw the shift of each arm: a number of draws, and draws x arms x size."""
    for number, effects in draw_effects_in_parts(model, draws):
        shifts = shift_of_conditions(effects, design)
        yield number, shifts.expand(number, *shifts.shape[-2:])


def _blocks(draws: int, arms: int, genes: int) -> Iterator[tuple[slice, slice]]:
    """Go through draws and arms in blocks of bounded size."""
    rows = max(1, LARGEST_TENSOR // genes)
    together = max(1, rows // arms)
    for first in range(0, draws, together):
        for arm in range(0, arms, rows):
            yield slice(first, first + together), slice(arm, arm + rows)


class Moments:
    """Sums over draws of the values of arms and genes, and of their squares.

    Parameters
    ----------
    arms, genes
        How many.
    """

    def __init__(self, arms: int, genes: int) -> None:
        self.total = torch.zeros(arms, genes, dtype=torch.float64)
        self.squares = torch.zeros_like(self.total)

    def add(self, arms: slice, values: Tensor) -> None:
        """Take in more draws, S x arms x G; overwrites them."""
        self.total[arms] += values.sum(0).cpu()
        self.squares[arms] += values.square_().sum(0).cpu()

    def mean(self, draws: int) -> np.ndarray:
        """Average over draws."""
        return (self.total / draws).numpy()

    def variance_of_mean(self, draws: int) -> np.ndarray:
        """Estimate the variance of the average."""
        variance = (self.squares / draws - (self.total / draws) ** 2).clamp(min=0)
        return (variance / (draws - 1)).numpy()


def expected_expression(likelihood: Likelihood) -> Callable[[Tensor], Tensor]:
    """Integrate the counts out.

    Parameters
    ----------
    likelihood
        One of :data:`samsvae.models.likelihoods.LIKELIHOODS`.

    Returns
    -------
    callable
        Maps decoder inputs [..., size] to E[log2(1 + x)] [..., G] at a library size of 10,000;
        for a Normal likelihood, whose data are no counts, to E[x].
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
