"""The importance-weighted bound of single cells (Burda et al. 2016)."""

import math
from collections.abc import Callable

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from samsvae.inference.cells import Cells
from samsvae.inference.objective import latent_sites, local_log_weights, traces
from samsvae.models.base import Batch, PerturbationModel

LARGEST_TENSOR = 4_000_000  # elements, of particles x cells x genes


@torch.no_grad()
def iwelbo(
    model: PerturbationModel, cells: Cells, particles: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the predictive bound of each cell.

    The global variables are drawn once from the guide, shared by all cells, and not scored:
    log 1/Q sum_q exp[log p(x | z_q, l) + log p(z_q) - log q(z_q | x)].

    Parameters
    ----------
    model
        Model and guide.
    cells
        Held-out cells.
    particles
        Q.
    seed
        Seed of the samples.

    Returns
    -------
    bound, standard_error : ndarray
        Nats, one per cell; the error is that of the Monte-Carlo estimate (delta method).
    """
    pyro.enable_validation(False)
    pyro.set_rng_seed(seed)
    shared = draw_globals(model, particles)
    size = max(1, LARGEST_TENSOR // (particles * cells.counts.shape[1]))
    parts = [
        _summarise(_log_weights(model, batch, shared, particles)) for batch in cells.batches(size)
    ]
    bound, error = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return bound, error


def draw_globals(model: PerturbationModel, draws: int) -> dict[str, Tensor]:
    """Draw the variables that all cells share from the guide, [draws, ...] by site."""
    return draw_shared(model.shared_guide, draws)


def draw_shared(program: Callable[[], None], draws: int) -> dict[str, Tensor]:
    """Draw from a model's `shared_guide` or `shared_prior`, [draws, ...] by site."""
    with pyro.plate("particles", draws, dim=-2):
        trace = poutine.trace(program).get_trace()
    return {name: site["value"] for name, site in latent_sites(trace).items()}


def _log_weights(
    model: PerturbationModel, batch: Batch, shared: dict[str, Tensor], particles: int
) -> Tensor:
    """Log importance weights of the cells' own variables, particles x cells, in nats."""
    guide = poutine.condition(model.guide, data=shared)
    generative = poutine.condition(model.model, data=shared)
    return local_log_weights(*traces(generative, guide, batch, particles))


def _summarise(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    particles = len(log_weights)
    bound = torch.logsumexp(log_weights, 0) - math.log(particles)
    relative = torch.exp(log_weights - bound)
    return bound, relative.std(0, correction=0) / math.sqrt(particles)
