"""Effects that a trained model predicts."""

from collections.abc import Sequence

import numpy as np
import pyro
import torch

from samsvae.effects.expectation import ExpectedLogCounts
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.iwelbo import draw_globals
from samsvae.models.likelihoods import SMALLEST_MEAN

LIBRARY_SIZE = 10_000.0
LARGEST_TENSOR = 8_000_000  # elements, of draws x conditions x genes


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
    effects = model.effects_from(draw_globals(model, draws))
    basal = torch.randn(draws, 1, model.n_latent, device=effects.device)
    dosage = torch.from_numpy(trained.encoding.dosage(perturbations)).to(effects.device)
    library_size = torch.full((1,), LIBRARY_SIZE, device=effects.device)
    expected_log = ExpectedLogCounts(
        model.likelihood.inverse_dispersion, SMALLEST_MEAN, LIBRARY_SIZE + 1
    )
    size = max(1, LARGEST_TENSOR // ((len(perturbations) + 1) * len(trained.genes)))
    total = torch.zeros(len(perturbations), len(trained.genes), dtype=torch.float64)
    squares = torch.zeros_like(total)
    for effect, state in zip(effects.split(size), basal.split(size), strict=True):
        control = expected_log(model.likelihood.mean(state, library_size))
        treated = expected_log(model.likelihood.mean(state + dosage @ effect, library_size))
        difference = (treated - control).cpu().double()
        total += difference.sum(0)
        squares += (difference**2).sum(0)
    mean = total / draws
    variance = (squares / draws - mean**2).clamp(min=0) * draws / (draws - 1)
    return mean.numpy(), (variance / draws).sqrt().numpy()
