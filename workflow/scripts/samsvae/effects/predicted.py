"""Effects that a trained model predicts."""

from collections.abc import Callable, Sequence

import numpy as np
import pyro
import torch
from torch import Tensor

from samsvae.effects.expectation import ExpectedLogCounts
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.iwelbo import draw_globals
from samsvae.models.likelihoods import (
    Likelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
)
from samsvae.models.log_mass import SMALLEST_MEAN

LIBRARY_SIZE = 10_000.0
LARGEST_MEAN = LIBRARY_SIZE + 1
POISSON = 1e8  # inverse dispersion at which a negative binomial is as good as Poisson
LARGEST_TENSOR = 8_000_000  # elements, of draws x conditions x genes


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
        inverse_dispersion = likelihood.inverse_dispersion
    elif isinstance(likelihood, PoissonLikelihood):
        inverse_dispersion = torch.full(
            (likelihood.mean_head.out_features,), POISSON, device=device
        )
    else:
        return lambda decoded: likelihood.mean(decoded, library_size)
    table = ExpectedLogCounts(inverse_dispersion, SMALLEST_MEAN, LARGEST_MEAN)
    return lambda decoded: table(likelihood.mean(decoded, library_size))


@torch.no_grad()
def predicted_effects(
    trained: TrainedModel, perturbations: Sequence[str], draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predict average treatment effects by the integrated estimator.

    A draw of the shared variables and of a basal state serves both arms, the perturbed and the
    control one, and the counts are integrated out, so that what differs between the arms is the
    perturbation alone.

    Parameters
    ----------
    trained
        The model.
    perturbations
        Canonical labels; any combination of the model's perturbations.
    draws
        Draws of shared variables and basal state.
    seed
        Seed of the draws.

    Returns
    -------
    effects, standard_error : ndarray
        Perturbations x genes, log2(CP10k + 1); the error is that of the Monte-Carlo mean.
    """
    pyro.enable_validation(False)
    pyro.set_rng_seed(seed)
    model = trained.model
    device = model.standardise.mean.device
    shared = draw_globals(model, draws)
    state = torch.randn(draws, 1, model.n_latent, device=device)
    dosage = torch.from_numpy(trained.encoding.dosage(perturbations)).to(device)
    expression = expected_expression(model.likelihood)
    size = max(1, LARGEST_TENSOR // ((len(perturbations) + 1) * len(trained.genes)))
    total = torch.zeros(len(perturbations), len(trained.genes), dtype=torch.float64)
    squares = torch.zeros_like(total)
    for start in range(0, draws, size):
        some = slice(start, start + size)
        own = {site: value[some] for site, value in shared.items()}
        control = expression(model.decoded(state[some], own, torch.zeros_like(dosage[:1])))
        treated = expression(model.decoded(state[some], own, dosage))
        difference = (treated - control).cpu().double()
        total += difference.sum(0)
        squares += (difference**2).sum(0)
    mean = total / draws
    variance = (squares / draws - mean**2).clamp(min=0) * draws / (draws - 1)
    return mean.numpy(), (variance / draws).sqrt().numpy()
