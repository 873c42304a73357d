"""Mask warm-up: training with masks of 1, then a rotation of the latent space, then learnt masks.

Without masks, the likelihood is invariant to rotations of the latent space, and training rarely
ends at axes along which perturbations act sparsely; from dense masks along other axes no gradient
leads to sparse ones. So masks stay at 1 first, while encoder, decoder and embeddings are learnt;
then the latent space is rotated to the axes along which effects are sparsest; then masks are
learnt, starting from a probability of 1/2. The guide in a model's file is the guide at every step:
a handler changes the masks while it runs.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Independent
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from samsvae.inference.posterior import MASK, unmasked_effects
from samsvae.models.base import PerturbationModel
from samsvae.models.likelihoods import StraightThroughBernoulli
from samsvae.models.networks import (
    CorrelatedEmbedding,
    GaussianNetwork,
    HiddenLayers,
    MeanFieldEmbedding,
)
from samsvae.runtime.errors import InputError

WARMUP_LOGIT = 20.0  # added to the logits of masks during warm-up
SMOOTHNESS = 0.5  # of the rounding of |e| at 0, in root mean squares of the effects
MAX_ITERATIONS = 1000
TOLERANCE = 1e-8


class MaskWarmup(Messenger):
    """Pyro handler of mask warm-up: offset of the logits of the guide's masks, weight of their KL.

    Parameters
    ----------
    rotate
        Rotates the latent space to the axes of sparsest effects.
    warmup_steps
        Number of steps with masks of 1, whose KL has weight 0; 0 to learn masks from the start.
    kl_weight
        Weight of the masks' KL after warm-up.
    device
        Device of the model.

    Attributes
    ----------
    offset
        Offset of the logits at the step last prepared, 0-d.
    weight
        Weight of the masks' KL at that step, 0-d. Both are changed in place, so that a recorded
        step reads their current values.
    """

    def __init__(
        self,
        rotate: Callable[[], None],
        warmup_steps: int,
        kl_weight: float,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.rotate = rotate
        self.warmup_steps, self.kl_weight = warmup_steps, kl_weight
        self.offset = torch.zeros((), device=device)
        self.weight = torch.ones((), device=device)

    def prepare(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        """Set offset and weight of a step, and rotate before the first step after warm-up."""
        warming_up = step < self.warmup_steps
        if step == self.warmup_steps > 0:
            self.rotate()
            # reset the moments of gradients along the former axes; in place, for a recorded step
            for state in optimiser.state.values():
                for value in state.values():
                    value.zero_()
        self.offset.fill_(WARMUP_LOGIT if warming_up else 0.0)
        self.weight.fill_(0.0 if warming_up else self.kl_weight)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != MASK or not isinstance(msg["fn"], Independent):
            return
        mask = msg["fn"].base_dist
        if isinstance(mask, StraightThroughBernoulli):  # the guide's, not the prior's
            shifted = StraightThroughBernoulli(logits=mask.logits + self.offset)
            msg["fn"] = shifted.to_event(msg["fn"].reinterpreted_batch_ndims)


@torch.no_grad()
def rotate_to_sparsest_axes(model: PerturbationModel) -> None:
    """Rotate the latent space of a model to the axes along which unmasked effects are sparsest."""
    effects = unmasked_effects(model)
    if effects is not None:
        rotate_latent_space(model, sparsest_rotation(effects))


def sparsest_rotation(effects: Tensor) -> Tensor:
    """Find the rotation that makes effects sparsest.

    Minimises sum_tk sqrt((E R)_tk^2 + s^2), a smoothed L1 norm, over orthogonal R, by
    majorise-minimise: each iteration minimises a quadratic upper bound, an orthogonal Procrustes
    problem, so that the sum never rises.

    Parameters
    ----------
    effects
        E, perturbations x latent dimensions.

    Returns
    -------
    Tensor
        R, K x K; the identity if all effects are 0.

    Examples
    --------
    >>> effects = torch.tensor([[4.0, 3.0], [-0.6, 0.8]])
    >>> (effects @ sparsest_rotation(effects)).abs().round().tolist()
    [[5.0, 0.0], [0.0, 1.0]]
    """
    E = effects.detach().cpu().double()
    rounding = SMOOTHNESS * E.square().mean().sqrt()
    rotation = torch.eye(E.shape[1], dtype=E.dtype)
    if not rounding > 0:
        return rotation.to(effects)
    previous = float("inf")
    for _ in range(MAX_ITERATIONS):
        rotated = E @ rotation
        size = torch.sqrt(rotated.square() + rounding**2)
        total = float(size.sum())
        if previous - total <= TOLERANCE * total:
            break
        previous = total
        left, _, right = torch.linalg.svd(E.T @ (rotated - rotated * (rounding / size)))
        rotation = left @ right
    return rotation.to(effects)


def check_rotatable(model: PerturbationModel) -> None:
    """Refuse a model with masks whose latent space cannot be rotated, before it is trained.

    Raises
    ------
    InputError
        Naming the model, and the setting that turns mask warm-up off.
    """
    try:
        device = model.standardise.mean.device
        rotate_latent_space(copy.deepcopy(model), torch.eye(model.n_latent, device=device))
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"The latent space of {type(model).__name__} cannot be rotated after mask warm-up "
            f"({error}). Set training.mask_warmup_fraction to 0."
        ) from error


@torch.no_grad()
def rotate_latent_space(model: nn.Module, rotation: Tensor) -> None:
    """Rotate the latent space of a model during mask warm-up, z to z R.

    Decoder, encoder and embeddings are rotated alike, so that decoded means do not change. The
    log-scales of Normals, which belong to axes, are rotated on average. Masks are not rotated:
    they are all 1.

    Parameters
    ----------
    model
        Has a decoder ``likelihood.hidden`` whose last input is the latent state, an ``encoder`` of
        counts and, if its ``basal_encoder`` is correlated, the latent shift, and an ``embedding``:
        a parameter T x K, a :class:`MeanFieldEmbedding` or a :class:`CorrelatedEmbedding`.
    rotation
        R, orthogonal, K x K.
    """
    decoder: Any = model.likelihood
    encoder: Any = model.encoder
    embedding: Any = model.embedding
    _rotate_input(decoder.hidden, -1, rotation)
    _rotate_output(encoder, rotation)
    if getattr(model, "basal_encoder", "mean_field") == "correlated":
        _rotate_input(encoder.hidden, 1, rotation)
    if isinstance(embedding, nn.Parameter):
        embedding.copy_(embedding @ rotation)
    elif isinstance(embedding, MeanFieldEmbedding):
        embedding.location.copy_(embedding.location @ rotation)
        embedding.log_scale.copy_(embedding.log_scale @ rotation**2)
    elif isinstance(embedding, CorrelatedEmbedding):
        # Masks of the new axes are not learnt yet. The contribution of masks of 1 becomes part of
        # the bias, and the dependence of the embedding on masks is learnt anew.
        masks: Any = embedding.network.hidden.first[0]
        masks.bias.add_(masks.weight.sum(1))
        masks.weight.zero_()
        _rotate_output(embedding.network, rotation)
    else:
        raise TypeError(f"an embedding of type {type(embedding).__name__} cannot be rotated")


def _rotate_input(layers: HiddenLayers, index: int, rotation: Tensor) -> None:
    """Rotate the weights of an input, so that x R gives what x gave before."""
    weight: Any = layers.first[index].weight
    weight.copy_(weight @ rotation)


def _rotate_output(network: GaussianNetwork, rotation: Tensor) -> None:
    """Rotate the Normal: its location exactly, its scales on average."""
    both = torch.block_diag(rotation, rotation**2)
    network.head.weight.copy_(both.T @ network.head.weight)
    network.head.bias.copy_(network.head.bias @ both)
