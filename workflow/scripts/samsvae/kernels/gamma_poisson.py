"""Log-probability of Gamma-Poisson counts, given the last hidden layer of a decoder.

:func:`log_prob` is the function to call, :func:`reference_log_prob` its definition. For float32
tensors on a CPU (Numba) or on CUDA (Triton) there is a fused implementation, which is tested
against the definition. ``python -m benchmarks.kernels`` compares their speed.
"""

from typing import Any, Protocol

import torch
from pyro.distributions import GammaPoisson
from torch import Tensor
from torch.autograd.function import once_differentiable

from samsvae import kernels
from samsvae.kernels import SMALLEST_MEAN, gamma_poisson_numba
from samsvae.kernels.gamma_poisson_numba import log_rising

N_INPUTS = 6  # without genes that have terms of their own


def log_prob(
    counts: Tensor,
    library_size: Tensor,
    concentration: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    genes: Tensor | None = None,
    offsets: Tensor | None = None,
    log_factors: Tensor | None = None,
) -> Tensor:
    """Compute the log-probability of the counts of each cell, summed over genes.

    Bereket & Karaletsos 2023, section 3.1::

        x_g ~ GammaPoisson(concentration c_g, rate c_g / mean_g)
        mean = l softmax(W h + b) + 1e-4

    where offsets may be added to the logits W h + b and to the logarithm of c of some genes.

    Parameters
    ----------
    counts
        x, B x G.
    library_size
        l > 0, counts per cell, length B.
    concentration
        c > 0, the inverse dispersion of each gene, length G, or of each cell, [..., B, G]. The
        fused implementations have one of each gene.
    hidden
        h, [..., B, H]; leading dimensions such as particles.
    weight, bias
        W, G x H, and b, length G.
    genes, offsets
        M genes of each cell, B x M, and what is added to their logits, [..., B, M].
    log_factors
        What is added to the logarithm of their concentrations, B x M; 0 where a gene repeats. The
        fused implementation for CUDA has none.

    Returns
    -------
    Tensor
        Nats, [..., B].
    """
    kernels = _kernels(hidden)
    given = (counts, library_size, concentration)
    is_fused = log_factors is None or hidden.device.type == "cpu"
    is_empty = not (counts.numel() and hidden.numel())
    if kernels is None or not is_fused or concentration.dim() > 1 or is_empty:
        return reference_log_prob(*given, hidden, weight, bias, genes, offsets, log_factors)
    particles = hidden.reshape(-1, *hidden.shape[-2:])
    one_replicate: tuple[Tensor, ...] = (*given, particles, weight, bias)
    if genes is not None and offsets is not None:
        own = offsets.expand(*hidden.shape[:-1], -1).reshape(*particles.shape[:-1], -1)
        one_replicate += (genes, own) if log_factors is None else (genes, own, log_factors)
    inputs = [each.unsqueeze(0) for each in one_replicate]
    if torch.is_grad_enabled():
        value: Tensor = _LogProb.apply(*inputs)[0]
    else:
        value = kernels.log_prob(*inputs)
    value = value.reshape(hidden.shape[:-1])
    if genes is None or log_factors is None:
        return value
    # the kernels' term of the counts alone is that of the concentrations of genes
    x = counts.gather(-1, genes)
    of_genes = concentration.expand(len(genes), -1).gather(-1, genes)
    with_factors = log_rising(x, of_genes * log_factors.exp())
    return value + (with_factors - log_rising(x, of_genes)).sum(-1)


def reference_log_prob(
    counts: Tensor,
    library_size: Tensor,
    concentration: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    genes: Tensor | None = None,
    offsets: Tensor | None = None,
    log_factors: Tensor | None = None,
) -> Tensor:
    """Compute :func:`log_prob` by operations of PyTorch and Pyro."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if genes is not None and offsets is not None:
        logits = add_at(logits, genes, offsets)
    if genes is not None and log_factors is not None:
        concentration = add_at(concentration.log(), genes, log_factors).exp()
    proportion = torch.softmax(logits, -1)
    mean = library_size[..., None] * proportion + SMALLEST_MEAN
    distribution = GammaPoisson(concentration, concentration / mean, validate_args=False)
    return distribution.log_prob(counts).sum(-1)


def add_at(values: Tensor, genes: Tensor, offsets: Tensor) -> Tensor:
    """Add offsets [..., M] to the values [..., G] of some genes [..., M]; all broadcast."""
    shape = torch.broadcast_shapes(values.shape[:-1], offsets.shape[:-1])
    own = offsets.expand(*shape, -1)
    return values.expand(*shape, -1).scatter_add(-1, genes.expand_as(own), own)


class Kernels(Protocol):
    """Fused implementation for R replicates of a model, each with its own cells.

    Shapes are those of :func:`log_prob` after a leading dimension of replicates: counts R x B x G,
    library sizes R x B, concentrations R x G, hidden layers R x P x B x H, weights R x G x H,
    biases R x G, and optionally genes R x B x M, offsets R x P x B x M, for P particles, and on a
    CPU logarithms of factors of concentrations R x B x M. The term of the counts alone does not
    have these factors.
    """

    def log_prob(
        self,
        counts: Tensor,
        library_size: Tensor,
        concentration: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        genes: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> Tensor:
        """Compute the log-probability, R x P x B."""

    def log_prob_and_gradients(
        self,
        cell_weight: Tensor,
        counts: Tensor,
        library_size: Tensor,
        concentration: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        genes: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute the log-probability, and gradients of its sum weighted by `cell_weight`.

        Gradients are with respect to the concentration, the hidden layer, the weight, the bias and
        the offsets and factors (empty without them); `cell_weight` is R x P x B.
        """


class _LogProb(torch.autograd.Function):
    """Autograd function of the log-probability and its gradients.

    In the ELBO every cell and particle has the same weight. So the forward pass, which has the
    logits, computes the gradients of the unweighted sum, and the backward pass multiplies them by
    that weight. If weights differ, as in an importance-weighted bound, the backward pass computes
    the gradients again.
    """

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        hidden = inputs[3]
        kernels = _kernels(hidden)
        assert kernels is not None
        ones = torch.ones_like(hidden[..., 0])
        return kernels.log_prob_and_gradients(ones, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *output_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        cell_weight = output_gradients[0]
        n_inputs = len(ctx.needs_input_grad)
        if cell_weight is None:
            return (None,) * n_inputs
        inputs, gradients = ctx.saved_tensors[:n_inputs], ctx.saved_tensors[n_inputs:]
        if any(cell_weight.stride()[1:]):
            kernels = _kernels(inputs[3])
            assert kernels is not None
            _, *gradients = kernels.log_prob_and_gradients(cell_weight, *inputs)
        else:  # a constant gradient per replicate: zero strides tell without synchronisation
            common = cell_weight[:, 0, 0]
            gradients = [g * common.view(-1, *[1] * (g.dim() - 1)) for g in gradients]
        n_own = n_inputs - N_INPUTS
        by_own = (None, *gradients[4 : 3 + n_own]) if n_own else ()
        return None, None, *gradients[:4], *by_own

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Treat the vmapped dimension as replicates."""
        size = info.batch_size
        merged = [
            (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
            for x, dim in zip(inputs, in_dims, strict=True)
        ]
        outputs = _LogProb.apply(*merged)
        return tuple(each.unflatten(0, (size, -1)) for each in outputs), (0,) * len(outputs)


def _kernels(tensor: Tensor) -> Kernels | None:
    """Choose the fused implementation for a tensor; None if there is none."""
    if kernels.is_compiled_for(tensor):
        return gamma_poisson_numba
    if tensor.dtype == torch.float32 and kernels.has_triton(tensor.device):
        from samsvae.kernels import gamma_poisson_triton

        return gamma_poisson_triton
    return None
