"""Latent traversals: the effect of each latent factor, by itself, on expression."""

from dataclasses import dataclass

import numpy as np
import pyro
import torch

from samsvae.effects.predicted import LARGEST_TENSOR, Moments, expected_expression
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import BasalCells, draw_effects_in_parts


@dataclass(frozen=True)
class FactorEffects:
    """Effects of latent factors on expression.

    Attributes
    ----------
    dimensions
        The latent dimensions that are factors, F of them.
    size
        How far each is moved, signed, in basal standard deviations, length F.
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
    """Intervene on one latent dimension at a time, and decode.

    A dimension is moved as far as the perturbations that shift it do on average, in the direction
    of the larger sum of their shifts:

        a_k = sign(sum_t m_tk) 1/n_k sum_t sign(m_tk) s_tk,  t over the n_k users of k,

    where s_t is the latent effect of perturbation t, drawn from the guide, and m_t its mean. Both
    arms have common random numbers, the same draw of the effects and of the basal state, and the
    counts are integrated out, as in :func:`samsvae.effects.predicted.predicted_effects`.

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
    model, device = trained.model, trained.device
    mean = torch.as_tensor(shifts, dtype=torch.float32, device=device)
    dimensions = torch.nonzero((mean != 0).any(0)).ravel()
    factor = torch.arange(len(dimensions), device=device)
    # how much a perturbation's effect counts for a dimension, with its sign
    weight = mean.sign() * mean.sum(0).sign() / (mean != 0).sum(0).clamp(min=1)
    moments = Moments(len(dimensions), len(trained.genes))
    expression = expected_expression(model.likelihood)
    size = torch.zeros(len(dimensions), device=device)
    at_once = max(1, LARGEST_TENSOR // max(1, len(dimensions) * len(trained.genes)))
    with pyro.validation_enabled(False), seeded(seed, device):
        for number, effects in draw_effects_in_parts(model, draws):
            if effects is None:
                raise TypeError(f"{type(model).__name__} has no latent effects")
            steps = (effects * weight).sum(-2)[:, dimensions]
            size += steps.sum(0)
            moved = steps.new_zeros(number, len(dimensions), model.n_latent)
            moved[:, factor, dimensions] = steps
            none = moved.new_zeros(number, 1, model.n_latent)
            basal = BasalCells.from_prior(model, none, 1)
            for first in range(0, number, at_once):
                own = slice(first, first + at_once)
                treated = expression(basal[own].decoder_input(moved[own]))
                control = expression(basal[own].decoder_input(none[own]))
                moments.add(slice(None), treated.sub_(control))
    return FactorEffects(
        dimensions.cpu().numpy(),
        (size / draws).cpu().numpy(),
        moments.mean(draws),
        np.sqrt(moments.variance_of_mean(draws)),
    )
