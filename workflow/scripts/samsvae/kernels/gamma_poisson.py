"""The log-mass of negative-binomial counts, from the decoder's last hidden layer in one piece.

With c the inverse dispersion of a gene and m its mean, the log-mass of a count x is

    [lgamma(x + c) - lgamma(c) - x log c - lgamma(x + 1)]  +  [x log m - (x + c) log(1 + m / c)].

The first bracket depends on counts and c alone, the second on the decoder, too. Neither is a
difference of large numbers, however large c.
"""

import logging
import math
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from samsvae.kernels import gamma_poisson_numba
from samsvae.kernels.counts_term import counts_term
from samsvae.kernels.linear import multiply
from samsvae.kernels.numba_threads import is_compiled_for

logger = logging.getLogger(__name__)

SMALLEST_MEAN = 1e-4
ROWS_AT_A_TIME = 512  # on a CPU, so that intermediate results stay in its cache


def log_mass(
    counts: Tensor, library_size: Tensor, c: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Log-mass of cells, summed over genes; means are m = l softmax(W h + b) + 1e-4.

    Parameters
    ----------
    counts
        x, B x G.
    library_size
        l, length B.
    c
        Inverse dispersions, length G.
    hidden
        h, [..., B, H]; leading dimensions such as particles.
    weight, bias
        W, G x H, and b, length G.

    Returns
    -------
    Tensor
        Nats, [..., B].
    """
    particles = hidden.reshape(-1, *hidden.shape[-2:])
    inputs = (counts, library_size, c, particles, weight, bias)
    if torch.is_grad_enabled():
        mass = _LogMass.apply(*inputs, [])
    else:
        own, _ = counts_term(counts, c, torch.ones_like(library_size))
        mass = _value(*inputs).add_(own)
    return mass.reshape(hidden.shape[:-1])


class _LogMass(torch.autograd.Function):
    """The log-mass and its derivatives, computed together block by block of cells.

    In an evidence bound every cell and particle has the same weight. So the derivatives of the
    plain sum are taken while a block is still in the cache, and only multiplied by that weight in
    the backward pass; no tensor of particles x cells x genes is ever stored. Where weights differ,
    as in an importance-weighted bound, the backward pass goes through the blocks again.

    The last argument is an empty list, which takes the derivatives from the forward pass to the
    backward pass.
    """

    @staticmethod
    def forward(
        counts: Tensor,
        library_size: Tensor,
        c: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        derivatives: list[Tensor],
    ) -> Tensor:
        inputs = (counts, library_size, c, hidden, weight, bias)
        mass, *found = _with_derivatives(*inputs, torch.ones_like(hidden[..., 0]))
        derivatives.extend(found)
        return mass

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.derivatives = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        counts, library_size, c, hidden, weight, bias = ctx.saved_tensors
        if any(gradient.stride()) or not ctx.derivatives:
            inputs = (counts, library_size, c, hidden, weight, bias)
            return None, None, *_with_derivatives(*inputs, gradient)[1:], None
        common = gradient[0, 0]  # one number, expanded: known from its strides, without a look
        # given away, so that another backward pass, if ever, goes through the blocks again
        derivatives, ctx.derivatives = ctx.derivatives, []
        return None, None, *(derivative.mul_(common) for derivative in derivatives), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """Models trained together have their likelihoods evaluated one by one."""
        *tensors, _ = zip(inputs, in_dims, strict=True)

        def of(index: int) -> Tensor:
            own = [x if dim is None else x.select(dim, index) for x, dim in tensors]
            return _LogMass.apply(*own, [])

        return torch.stack([of(index) for index in range(info.batch_size)]), 0


def _with_derivatives(
    counts: Tensor,
    library_size: Tensor,
    c: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    cell_weight: Tensor,
) -> tuple[Tensor, ...]:
    """Compute the log-mass, and the derivatives of its weighted sum by c, h, W and b."""
    inputs = (counts, library_size, c, hidden, weight, bias)
    term, by_c, *others = _by_blocks(*inputs, cell_weight)
    own, own_by_c = counts_term(counts, c, cell_weight.sum(0))
    return term + own, by_c + own_by_c, *others


def _value(
    counts: Tensor, library_size: Tensor, c: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Compute the decoder's term alone."""
    term = hidden.new_empty(hidden.shape[:-1])
    kernels = _kernels(hidden)
    value = kernels.value if kernels else _value_of_logits
    for here, group in _blocks(hidden):
        h = hidden[group, here].view(-1, hidden.shape[-1])
        logits = multiply(h, weight.T).view(-1, len(counts[here]), len(bias))
        given = (counts[here], library_size[here], c, bias)
        term[group, here] = value(*given, logits, SMALLEST_MEAN)
    return term


def _value_of_logits(
    x: Tensor, library_size: Tensor, c: Tensor, bias: Tensor, logits: Tensor, smallest_mean: float
) -> Tensor:
    """Compute the term of a block of cells, overwriting its logits, particles x cells x genes."""
    proportion = torch.softmax(logits.add_(bias), -1)
    mean = torch.mul(proportion, library_size[:, None], out=logits).add_(smallest_mean)
    log_ratio = torch.mul(mean, 1 / c, out=proportion).log1p_()
    return mean.log_().sub_(log_ratio).mul_(x).addcmul_(c, log_ratio, value=-1).sum(-1)


def _by_blocks(
    counts: Tensor,
    library_size: Tensor,
    c: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    cell_weight: Tensor,
) -> tuple[Tensor, ...]:
    """Compute the decoder's term, and the derivatives of its weighted sum."""
    term, by_hidden = hidden.new_empty(hidden.shape[:-1]), torch.empty_like(hidden)
    by_c, by_bias = torch.zeros_like(c), torch.zeros_like(bias)
    by_weight = weight.new_zeros(weight.shape[::-1]).T  # as `multiply` gives it
    kernels = _kernels(hidden)
    score = kernels.score if kernels else _score
    for here, group in _blocks(hidden):
        h = hidden[group, here].view(-1, hidden.shape[-1])
        logits = multiply(h, weight.T).view(-1, len(counts[here]), len(bias))
        given = (counts[here], library_size[here], c.detach(), bias, cell_weight[group, here])
        term[group, here] = score(*given, logits, by_c, by_bias, SMALLEST_MEAN)
        by_logits = logits.view(-1, len(bias))
        by_weight += multiply(by_logits.T, h)
        by_hidden[group, here] = multiply(by_logits, weight).view_as(by_hidden[group, here])
    return term, by_c, by_hidden, by_weight, by_bias


def _score(
    x: Tensor,
    library_size: Tensor,
    c: Tensor,
    bias: Tensor,
    cell_weight: Tensor,
    logits: Tensor,
    by_c: Tensor,
    by_bias: Tensor,
    smallest_mean: float,
) -> Tensor:
    """Compute the term of a block of cells from its logits, particles x cells x genes.

    The derivatives of its weighted sum by the logits take the logits' place, and those by c and b
    are added to `by_c` and `by_bias`.
    """
    dispersion, size = 1 / c, library_size[:, None]
    proportion = torch.softmax(logits.add_(bias), -1)
    mean = torch.mul(proportion, size, out=logits).add_(smallest_mean)
    log_ratio = torch.mul(mean, dispersion).log1p_()
    summands = torch.log(mean).sub_(log_ratio).mul_(x).addcmul_(c, log_ratio, value=-1)
    term = summands.sum(-1)
    residual = torch.sub(x, mean, out=summands).div_(torch.add(mean, c))
    by_c += (cell_weight.sum(0) @ x) * dispersion
    by_c -= cell_weight.reshape(-1) @ log_ratio.add_(residual).view(-1, len(c))
    # by the log of the proportion, then through the softmax, up to a factor of each cell
    by_log = residual.mul_(proportion).div_(mean).mul_(c)
    by_log.addcmul_(proportion, by_log.sum(-1, keepdim=True), value=-1)
    torch.mul(by_log, (cell_weight * library_size)[..., None], out=logits)
    by_bias += logits.sum((0, 1))
    return term


def _kernels(tensor: Tensor) -> ModuleType | None:
    """Choose the module whose compiled code takes tensors such as this one, if one does."""
    if is_compiled_for(tensor):
        return gamma_poisson_numba
    if tensor.device.type == "cuda" and tensor.dtype == torch.float32:
        return _triton_kernels(tensor.device)
    return None


@cache
def _triton_kernels(device: torch.device) -> ModuleType | None:
    """Try whether Triton, which comes with PyTorch for CUDA, finds the compiler that it needs."""
    one, two, logits = (torch.ones([1] * dimensions, device=device) for dimensions in (1, 2, 3))
    try:
        from samsvae.kernels import gamma_poisson_triton

        gamma_poisson_triton.score(two, one, one, one, two, logits, one.clone(), one.clone(), 1.0)
    except Exception as error:  # of any kind: it has many, and none is in the way of slower steps
        logger.info("the likelihood is computed in more passes, without Triton (%s)", error)
        return None
    return gamma_poisson_triton


def _blocks(hidden: Tensor) -> Iterator[tuple[slice, slice]]:
    """Go through particles and cells in blocks that are contiguous in memory."""
    particles, cells, _ = hidden.shape
    rows = ROWS_AT_A_TIME if hidden.device.type == "cpu" else particles * cells
    per_block = math.ceil(cells / math.ceil(cells / rows))
    together = max(1, rows // cells)
    for first_cell in range(0, cells, per_block):
        for first in range(0, particles, together):
            yield slice(first_cell, first_cell + per_block), slice(first, first + together)
