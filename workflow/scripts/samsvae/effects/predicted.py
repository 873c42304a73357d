"""Effects that a trained model predicts, and their Monte-Carlo errors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyro
import torch
from torch import Tensor

from samsvae.effects.expectation import ExpectedLogCounts
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.shared_draws import globals_in_parts
from samsvae.kernels.gamma_poisson import SMALLEST_MEAN
from samsvae.models.base import PerturbationModel
from samsvae.models.likelihoods import (
    Likelihood,
    NegativeBinomialLikelihood,
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
        Draws of shared variables and basal state, two at least.
    seed
        Seed of the draws.
    estimator
        A name in :data:`ESTIMATORS`. ``integrated``: a draw of the shared variables and of a
        basal state serves all arms, perturbed and control, and the counts are integrated out, so
        that what differs between arms is the perturbation alone. ``sampled``, the paper's: each
        arm has basal states of its own, and counts drawn from the likelihood.

    Returns
    -------
    effects, standard_error : ndarray
        Perturbations x genes, log2(CP10k + 1); the error is that of the Monte-Carlo mean. For a
        Normal likelihood, whose data are no counts, differences of the data themselves.
    """
    pyro.enable_validation(False)
    pyro.set_rng_seed(seed)
    return ESTIMATORS[estimator].estimate(trained, perturbations, draws)


@torch.no_grad()
def _integrated(
    trained: TrainedModel, perturbations: Sequence[str], draws: int
) -> tuple[np.ndarray, np.ndarray]:
    model, dosage = trained.model, _arms(trained, perturbations)
    moments = Moments(len(perturbations), len(trained.genes))
    expression = expected_expression(model.likelihood)
    for number, influence in _influences(model, dosage, draws):
        state = torch.randn(number, 1, model.n_latent, device=dosage.device)
        for own, arms in _blocks(number, len(perturbations), len(trained.genes)):
            given = influence[own, 1:][:, arms]
            treated = expression(model.perturbed(state[own], given))
            control = expression(model.perturbed(state[own], influence[own, :1]))
            moments.add(arms, treated.sub_(control))
    return moments.mean(draws), np.sqrt(moments.variance_of_mean(draws))


@torch.no_grad()
def _sampled(
    trained: TrainedModel, perturbations: Sequence[str], draws: int
) -> tuple[np.ndarray, np.ndarray]:
    model, dosage = trained.model, _arms(trained, perturbations)
    moments = Moments(len(dosage), len(trained.genes))
    for number, influence in _influences(model, dosage, draws):
        # that arms share masks and embeddings correlates no arm with control, which has none
        for own, arms in _blocks(number, len(dosage), len(trained.genes)):
            given = influence[own, arms]
            state = torch.randn(*given.shape[:2], model.n_latent, device=dosage.device)
            size = torch.full((1,), LIBRARY_SIZE, device=dosage.device)
            counts = model.likelihood(model.perturbed(state, given), size).sample()
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
    """Encode control and then the perturbations as dosages."""
    dosage = torch.from_numpy(trained.encoding.dosage(perturbations))
    return torch.cat([torch.zeros_like(dosage[:1]), dosage]).to(
        trained.model.standardise.mean.device
    )


def _influences(
    model: PerturbationModel, dosage: Tensor, draws: int
) -> Iterator[tuple[int, Tensor]]:
    """Draw what the shared variables bring to each arm: a number of draws, x arms x size."""
    for number, shared in globals_in_parts(model, draws):
        influence = model.influence(shared, dosage)
        yield number, influence.expand(number, *influence.shape[-2:])


def _blocks(draws: int, arms: int, genes: int) -> Iterator[tuple[slice, slice]]:
    """Go through draws and arms in blocks of bounded size."""
    rows = max(1, LARGEST_TENSOR // genes)
    together = max(1, rows // arms)
    for first in range(0, draws, together):
        for arm in range(0, arms, rows):
            yield slice(first, first + together), slice(arm, arm + rows)


class Moments:
    """Sums over draws of what arms have of genes, and of its squares.

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
    if isinstance(likelihood, NegativeBinomialLikelihood):
        table = ExpectedLogCounts(likelihood.inverse_dispersion, LARGEST_MEAN)
    elif isinstance(likelihood, PoissonLikelihood):
        c = torch.full((likelihood.mean_head.out_features,), POISSON, device=device)
        table = ExpectedLogCounts(c, LARGEST_POISSON_MEAN)
    else:
        return lambda decoded: likelihood.mean(decoded, library_size)
    return lambda decoded: table(likelihood.mean(decoded, library_size))
