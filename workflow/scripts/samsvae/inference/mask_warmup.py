"""Mask warm-up: training with masks of 1, then a rotation of the latent space, then learnt masks.

Without masks, the likelihood is invariant to rotations of the latent space, and training rarely
ends at axes along which perturbations act sparsely; from dense masks along other axes no gradient
leads to sparse ones. So masks stay at 1 first, while encoder, decoder and embeddings are learnt;
then the latent space is rotated to the axes along which effects are sparsest; then masks are
learnt, starting from their evidence. The guide in a model's file is the guide at every step: a
handler changes the masks while it runs.

The evidence of a mask is a Bayes factor. The encoder infers the latent state of each training cell
as if it were a control cell, and least squares of these states on the design matrix, covariates
included, estimate the effect of each perturbation along each axis with its standard error. An
estimate that no difference between cells supports leaves the mask closed, however flexible the
networks are: under permuted labels the states of perturbed cells are those of control cells. Axes
are rotated to the sparsest estimates, and not known exactly, so that a strong effect along one axis
appears along others, too; standard errors include this. The evidence is computed once more when
masks have settled, in the latent space that masks have shaped.

Where a model has effects in one context beside shared ones, the shared effect is estimated by the
weighted median over contexts, and the effects in contexts by the differences from it, which are
sparse.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Independent
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from samsvae.inference.cells import CELLS_AT_A_TIME, Cells
from samsvae.inference.posterior import MASK, BasalCells, mask_probability, unmasked_effects
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
AXIS_ERROR = 0.05  # fraction of an effect along one axis that may appear along another
CONTEXT_ERROR = 0.1  # fraction of a shared effect by which contexts may differ through encoding
LARGEST_LOGIT = 5.0  # of the start of a mask, which can still be learnt
# rotations from which sparse axes are sought, fewer of a large latent space
MAX_STARTS, AXES_OF_STARTS = 10, 500
RIDGE = 1e-6  # cells, for perturbations without training cells of their own
FEATURE_ITERATIONS = 10  # of expectation maximisation


class MaskWarmup(Messenger):
    """Pyro handler of mask warm-up: offset of the logits of the guide's masks, weight of their KL.

    Parameters
    ----------
    rotate
        Rotates the latent space to the axes of sparsest effects, and starts the masks.
    renew
        Starts the masks again.
    warmup_steps
        Number of steps with masks of 1, whose KL has weight 0; 0 to learn masks from the start.
    settled_step
        Step at which masks are started again.
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
        renew: Callable[[], None],
        warmup_steps: int,
        settled_step: int,
        kl_weight: float,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.rotate, self.renew = rotate, renew
        self.warmup_steps, self.settled_step = warmup_steps, settled_step
        self.kl_weight = kl_weight
        self.offset = torch.zeros((), device=device)
        self.weight = torch.ones((), device=device)

    def prepare(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        """Set offset and weight of a step, and change the model before it, if it is time to."""
        warming_up = step < self.warmup_steps
        if step == self.warmup_steps > 0:
            self.rotate()
            _reset_moments(optimiser)
        elif step == self.settled_step > self.warmup_steps > 0:
            self.renew()
        self.offset.fill_(WARMUP_LOGIT if warming_up else 0.0)
        self.weight.fill_(0.0 if warming_up else self.kl_weight)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != MASK or not isinstance(msg["fn"], Independent):
            return
        mask = msg["fn"].base_dist
        if isinstance(mask, StraightThroughBernoulli):  # the guide's, not the prior's
            shifted = StraightThroughBernoulli(logits=mask.logits + self.offset)
            msg["fn"] = shifted.to_event(msg["fn"].reinterpreted_batch_ndims)


def _reset_moments(optimiser: torch.optim.Optimizer) -> None:
    """Reset the moments of gradients along former axes; in place, for a recorded step."""
    for state in optimiser.state.values():
        for value in state.values():
            value.zero_()


@torch.no_grad()
def rotate_to_sparsest_axes(model: PerturbationModel, cells: Cells | None = None) -> None:
    """Rotate the latent space of a model to the axes along which effects are sparsest.

    Parameters
    ----------
    model
        Model and guide, whose masks are 1.
    cells
        Training cells, whose estimated effects are made sparse; None for the embeddings.
    """
    effects = unmasked_effects(model) if cells is None else estimate_effects(model, cells).effects
    if effects is not None:
        starts = 1 if cells is None else min(MAX_STARTS, 1 + AXES_OF_STARTS // model.n_latent)
        rotation = sparsest_rotation(effects.to(model.standardise.mean), starts)
        rotate_latent_space(model, rotation)


@dataclass(frozen=True)
class EstimatedEffects:
    """Effects of perturbations on latent states that the encoder infers, float64.

    Attributes
    ----------
    effects, standard_error
        T x K.
    deviation
        Standard deviation of the states of cells of one perturbation, length K. An inferred state
        moves by its square where a latent state moves by 1, if the model is linear.
    """

    effects: Tensor
    standard_error: Tensor
    deviation: Tensor


@torch.no_grad()
def estimate_effects(model: PerturbationModel, cells: Cells) -> EstimatedEffects:
    """Estimate effects on latent states by least squares on the design matrix.

    Parameters
    ----------
    model
        Model and guide of a basal state.
    cells
        Training cells.

    Returns
    -------
    EstimatedEffects
        Of the states that the encoder infers as if every cell were a control cell, given the
        covariates of the cells. A perturbation without cells of its own has a large error.
    """
    design = cells.design.cpu()
    shared = torch.tensor(model.shared_effects, dtype=torch.long)
    if len(shared):  # shared effects are the sums of those in contexts, and no columns of their own
        n_shared = design.shape[1] - len(shared)
        columns = torch.ones(design.shape[1], dtype=torch.bool)
        columns[shared] = False
        found = _least_squares(model, cells, design[:, columns])
        effects = _scattered(found.effects, columns)
        error = _scattered(found.standard_error, columns)
        estimated = EstimatedEffects(effects, error, found.deviation)
        return _shared_and_specific(estimated, shared, n_shared)
    return _least_squares(model, cells, design)


def _scattered(rows: Tensor, columns: Tensor) -> Tensor:
    whole = rows.new_zeros(len(columns), rows.shape[1])
    whole[columns] = rows
    return whole


def _shared_and_specific(
    estimated: EstimatedEffects, shared: Tensor, n_shared: int
) -> EstimatedEffects:
    """Divide effects within contexts into a shared effect and differences from it.

    Parameters
    ----------
    estimated
        Effects of perturbations, then within contexts; those of perturbations with effects in
        contexts are not known yet.
    shared
        Perturbation of each effect in a context.
    n_shared
        Number of perturbations.
    """
    effects, error = estimated.effects.clone(), estimated.standard_error.clone()
    for perturbation in shared.unique():
        own = n_shared + torch.nonzero(shared == perturbation).ravel()
        within, variance = estimated.effects[own], estimated.standard_error[own].square()
        value, order = within.sort(dim=0)
        weight = (1 / variance).gather(0, order)
        share = weight.cumsum(0) / weight.sum(0)
        middle = (share < 0.5).sum(0, keepdim=True)
        median = value.gather(0, middle)[0]
        # the median of many has pi / 2 times the variance of the mean; of two it is one of them
        of_median = math.pi / 2 / weight.sum(0) if len(own) > 2 else variance.min(0).values
        effects[perturbation], error[perturbation] = median, of_median.sqrt()
        effects[own] = within - median
        error[own] = (variance + of_median + (CONTEXT_ERROR * median).square()).sqrt()
    return EstimatedEffects(effects, error, estimated.deviation)


def _least_squares(model: PerturbationModel, cells: Cells, design: Tensor) -> EstimatedEffects:
    """Estimate the effects of the columns of a design matrix of conditions."""
    n_others = 1 + sum(values.shape[1] for values in cells.covariates)
    # sums over cells of (1, covariates, states) by condition, and of their products
    size = n_others + model.n_latent
    by_condition = torch.zeros(len(design), size, dtype=torch.float64)
    products = torch.zeros(size, size, dtype=torch.float64)
    for batch in cells.batches(CELLS_AT_A_TIME):
        none = batch.design.new_zeros(1, len(batch.design), model.n_latent)
        inferred = BasalCells.from_guide(model, batch, none, at_means=True)
        states = inferred.latent_state(none.new_zeros(1, 1, model.n_latent))[0]
        one = states.new_ones(len(states), 1)
        columns = torch.cat([one, *batch.covariates, states], 1).double().cpu()
        by_condition.index_add_(0, batch.condition.cpu(), columns)
        products += columns.T @ columns
    # least squares by blocks: perturbations first
    crossed, solved, own_variance = _solved_by_condition(design, by_condition)
    remaining = products - crossed.T @ solved  # without what perturbations explain
    covariance = torch.linalg.pinv(remaining[:n_others, :n_others])
    coefficients = covariance @ remaining[:n_others, n_others:]
    of_others, of_states = solved[:, :n_others], solved[:, n_others:]
    variance = own_variance + ((of_others @ covariance) * of_others).sum(1)
    explained = (remaining[:n_others, n_others:] * coefficients).sum(0)
    degrees = max(1, len(cells) - design.shape[1] - n_others)
    squares = (remaining.diagonal()[n_others:] - explained).clamp(min=0)
    deviation = (squares / degrees).sqrt()
    effects = of_states - of_others @ coefficients
    return EstimatedEffects(effects, variance.sqrt()[:, None] * deviation, deviation)


def _solved_by_condition(design: Tensor, by_condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve the normal equations of perturbations, which are diagonal without combinations.

    Parameters
    ----------
    design
        C x T.
    by_condition
        Sums of variables over the cells of each condition, the first one that of 1.

    Returns
    -------
    crossed, solved : Tensor
        Products of perturbations and variables, and these times the inverse of the products of
        perturbations, each T x variables, float64.
    variance : Tensor
        Diagonal of the inverse, length T.
    """
    if ((design != 0).sum(1) > 1).any():
        design = design.double()
        inner = design.T @ (by_condition[:, :1] * design)
        inner.diagonal().add_(RIDGE)
        inverse = torch.linalg.inv(inner)
        crossed = design.T @ by_condition
        return crossed, inverse @ crossed, inverse.diagonal()
    condition, perturbation = torch.nonzero(design, as_tuple=True)
    dose = design[condition, perturbation].double()[:, None]
    sums = by_condition.new_zeros(design.shape[1], by_condition.shape[1])
    crossed = sums.index_add(0, perturbation, dose * by_condition[condition])
    inner = sums[:, 0].index_add(0, perturbation, (dose**2 * by_condition[condition, :1])[:, 0])
    variance = 1 / (inner + RIDGE)
    return crossed, variance[:, None] * crossed, variance


@torch.no_grad()
def start_masks_at_evidence(model: PerturbationModel, cells: Cells) -> None:
    """Set the masks' logits in the guide to their posterior log-odds, given estimated effects.

    With an estimate e of standard error u, a prior e ~ N(0, s^2) if the mask is open, e = 0 if it
    is closed, and p the prior probability of an open mask of this perturbation::

        logit q(m) = log p / (1 - p) + log N(e; 0, s^2 + u^2) / N(e; 0, u^2)

    A model whose guide has no logits of masks stays as it is.
    """
    start = model.mask_start()
    if start is None:
        return
    logits, probabilities, scale = start
    estimated = estimate_effects(model, cells)
    if model.n_features is not None:
        _start_given_features(model, estimated, logits)
        return
    squares = estimated.effects.square()
    along_others = squares.sum(1, keepdim=True) - squares
    u2 = estimated.standard_error.square() + AXIS_ERROR**2 * along_others
    s2 = (scale * estimated.deviation.square()).square()
    factor = 0.5 * (torch.log(u2 / (s2 + u2)) + squares * (1 / u2 - 1 / (s2 + u2)))
    odds = factor + torch.logit(factor.new_tensor(probabilities))[:, None]
    logits.copy_(odds.clamp(-LARGEST_LOGIT, LARGEST_LOGIT))


def _start_given_features(
    model: PerturbationModel, estimated: EstimatedEffects, logits: Tensor
) -> None:
    """Set masks to their evidence given features, and weights of features to their estimates.

    As :func:`start_masks_at_evidence`, but for p_tk and the mean of e_tk, which depend on features;
    by expectation maximisation, since their weights depend on masks.
    """
    size = estimated.deviation.square()  # of an inferred state, for a latent state of 1
    effects, error = (estimated.effects / size), (estimated.standard_error / size)
    squares = effects.square()
    u2 = error.square() + AXIS_ERROR**2 * (squares.sum(1, keepdim=True) - squares)
    for _ in range(FEATURE_ITERATIONS):
        given = model.given_features()
        assert given is not None
        prior_logits, location, scale = (each.double().cpu() for each in given)
        total = scale.square() + u2
        factor = torch.log(u2 / total) + squares / u2 - (effects - location).square() / total
        odds = 0.5 * factor + prior_logits
        logits.copy_(odds.clamp(-LARGEST_LOGIT, LARGEST_LOGIT))
        mean = location + (effects - location) * scale.square() / total
        model.update_prior(odds.sigmoid(), mean)


@torch.no_grad()
def update_feature_prior(model: PerturbationModel) -> None:
    """Update the weights of features from the guide, in a model that has features."""
    probability, unmasked = mask_probability(model), unmasked_effects(model)
    if probability is not None and unmasked is not None:
        model.update_prior(probability, unmasked)


def sparsest_rotation(effects: Tensor, starts: int = 1) -> Tensor:
    """Find the rotation that makes effects sparsest.

    Minimises sum_tk sqrt((E R)_tk^2 + s^2), a smoothed L1 norm, over orthogonal R, by
    majorise-minimise: each iteration minimises a quadratic upper bound, an orthogonal Procrustes
    problem, so that the sum never rises.

    Parameters
    ----------
    effects
        E, perturbations x latent dimensions.
    starts
        Number of rotations to start from, the identity and then random ones, since there are local
        minima; the best one is kept.

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
    first = torch.eye(E.shape[1], dtype=E.dtype)
    if not rounding > 0:
        return first.to(effects)
    generator = torch.Generator().manual_seed(0)
    others = [torch.randn(*first.shape, generator=generator) for _ in range(starts - 1)]
    rotations = [first, *(torch.linalg.qr(other)[0].to(E.dtype) for other in others)]
    _, best = min(
        (_sparsest_from(E, rotation, rounding) for rotation in rotations),
        key=lambda found: found[0],
    )
    return best.to(effects)


def _sparsest_from(E: Tensor, rotation: Tensor, rounding: Tensor) -> tuple[float, Tensor]:
    """Minimise the smoothed L1 norm from a rotation; its minimum, and where it is."""
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
    return total, rotation


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
