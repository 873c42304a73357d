"""The importance-weighted bound of single cells (Burda et al. 2016)."""

import math
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from samsvae.inference.cells import Cells
from samsvae.inference.objective import LOCAL, OBSERVED, latent_sites
from samsvae.models.additive import AdditiveShiftModel, Batch

LARGEST_TENSOR = 4_000_000  # elements, of particles x cells x genes


@torch.no_grad()
def iwelbo(
    model: AdditiveShiftModel, cells: Cells, particles: int, seed: int
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
        _summarise(local_log_weights(model, batch, shared, particles))
        for batch in cells.batches(size)
    ]
    bound, error = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return bound, error


def draw_globals(model: AdditiveShiftModel, draws: int) -> dict[str, Tensor]:
    """Draw the variables that all cells share from the guide, [draws, ...] by site."""
    with pyro.plate("particles", draws, dim=-2):
        trace = poutine.trace(model.effects_guide).get_trace()
    return {name: site["value"] for name, site in latent_sites(trace).items()}


def local_log_weights(
    model: AdditiveShiftModel, batch: Batch, shared: dict[str, Tensor], particles: int
) -> Tensor:
    """Log importance weights of the cells' own variables, particles x cells, in nats."""
    with pyro.plate("particles", particles, dim=-2):
        guide = poutine.condition(model.guide, data=shared)
        guide_trace = poutine.trace(guide).get_trace(batch)
        replayed = poutine.replay(poutine.condition(model.model, data=shared), guide_trace)
        model_trace = poutine.trace(replayed).get_trace(batch)
    posterior: Any = guide_trace.nodes[LOCAL]
    prior: Any = model_trace.nodes[LOCAL]
    observed: Any = model_trace.nodes[OBSERVED]
    return (
        observed["fn"].log_prob(observed["value"])
        + prior["fn"].log_prob(prior["value"])
        - posterior["fn"].log_prob(posterior["value"])
    )


def _summarise(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    particles = len(log_weights)
    bound = torch.logsumexp(log_weights, 0) - math.log(particles)
    relative = torch.exp(log_weights - bound)
    return bound, relative.std(0) / math.sqrt(particles)
