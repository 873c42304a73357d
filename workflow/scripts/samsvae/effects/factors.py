"""What each latent factor does to expression, by itself."""

from dataclasses import dataclass

import numpy as np
import pyro
import torch

from samsvae.effects.predicted import LARGEST_TENSOR, Moments, expected_expression
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.shared_draws import globals_in_parts


@dataclass(frozen=True)
class FactorEffects:
    """Effects of latent factors on expression.

    Attributes
    ----------
    dimensions
        The latent dimensions that are factors, F of them.
    size
        How far each is pushed, signed, in basal standard deviations, length F.
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
    """Push one latent dimension at a time and read what the decoder makes of it.

    A dimension is pushed as far as the perturbations that use it do on average, in the direction
    in which together they push more:

        a_k = sign(sum_t m_tk) 1/n_k sum_t sign(m_tk) s_tk,  t over the n_k users of k,

    where s_t is the latent effect of perturbation t, drawn from the guide, and m_t its mean. A
    draw of the effects and of the basal state, from N(0, I), serves both arms, and the counts are
    integrated out, as in :func:`samsvae.effects.predicted.predicted_effects`.

    Parameters
    ----------
    trained
        A model whose latent state is a basal state plus the effects of perturbations.
    shifts
        m, the mean latent effects along dimensions in use, and 0 elsewhere, T x K.
    draws
        Draws of effects and basal state, at least two.
    seed
        Seed of the draws.

    Returns
    -------
    FactorEffects
        Of the dimensions that any perturbation uses.
    """
    pyro.enable_validation(False)
    pyro.set_rng_seed(seed)
    model = trained.model
    device = model.standardise.mean.device
    mean = torch.as_tensor(shifts, dtype=torch.float32, device=device)
    dimensions = torch.nonzero((mean != 0).any(0)).ravel()
    factor = torch.arange(len(dimensions), device=device)
    # how much a perturbation's effect counts for a dimension, with its sign
    share = mean.sign() * mean.sum(0).sign() / (mean != 0).sum(0).clamp(min=1)
    moments = Moments(len(dimensions), len(trained.genes))
    expression = expected_expression(model.likelihood)
    size = torch.zeros(len(dimensions), device=device)
    at_once = max(1, LARGEST_TENSOR // max(1, len(dimensions) * len(trained.genes)))
    for number, shared in globals_in_parts(model, draws):
        effects = model.effects_from(shared)
        if effects is None:
            raise TypeError(f"{type(model).__name__} has no latent effects")
        steps = (effects * share).sum(-2)[:, dimensions]
        size += steps.sum(0)
        pushed = steps.new_zeros(number, len(dimensions), model.n_latent)
        pushed[:, factor, dimensions] = steps
        state = torch.randn(number, 1, model.n_latent, device=device)
        for first in range(0, number, at_once):
            own = slice(first, first + at_once)
            treated = expression(model.perturbed(state[own], pushed[own]))
            control = expression(model.perturbed(state[own], torch.zeros_like(pushed[own, :1])))
            moments.add(slice(None), treated.sub_(control))
    return FactorEffects(
        dimensions.cpu().numpy(),
        (size / draws).cpu().numpy(),
        moments.mean(draws),
        np.sqrt(moments.variance_of_mean(draws)),
    )
