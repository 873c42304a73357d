"""Matrix products in float32 by the fastest available library.

On x86 processors PyTorch multiplies float32 matrices by MKL, which can use as little as half of an
AMD processor. oneDNN, which also comes with PyTorch, uses all of it, at the same precision.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from samsvae.kernels import is_compiled_for


def is_multiplied_by_onednn(*tensors: Tensor) -> bool:
    """Whether oneDNN multiplies these tensors."""
    return torch.backends.mkldnn.is_available() and all(map(is_compiled_for, tensors))


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two matrices; no derivative is recorded.

    Parameters
    ----------
    left, right
        I x J and J x K. A matrix that is stored column by column may be copied.

    Returns
    -------
    Tensor
        I x K, stored row by row or column by column.
    """
    if not is_multiplied_by_onednn(left, right):
        return torch.mm(left, right)
    if left.is_contiguous() or left.numel() <= right.numel():
        return _onednn_linear(left, right.T)
    return _onednn_linear(right.T, left).T  # the smaller one is copied


class Linear(nn.Linear):
    """Linear layer, with an optional sum and LeakyReLU fused into it."""

    def forward(self, x: Tensor, added: Tensor | None = None, slope: float = 1.0) -> Tensor:
        """Compute LeakyReLU(x W^T + b + added).

        Parameters
        ----------
        x
            Inputs, [..., inputs].
        added
            Broadcasts against [..., outputs].
        slope
            Of the LeakyReLU below 0; 1 for none.

        Returns
        -------
        Tensor
            [..., outputs].
        """
        return affine(x, self.weight, self.bias, added, slope)


def affine(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    """Compute LeakyReLU(x W^T + b + added); see :meth:`Linear.forward`."""
    if is_multiplied_by_onednn(x, weight):
        if not torch.is_grad_enabled():  # spares the tens of microseconds of an autograd function
            return _Linear.forward(x, weight, bias, added, slope)
        output: Tensor = _Linear.apply(x, weight, bias, added, slope)
        return output
    return _linear(x, weight, bias, added, slope)


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None, slope: float
) -> Tensor:
    output = functional.linear(x, weight, bias)
    if added is not None:
        output = output + added
    return output if slope == 1 else functional.leaky_relu(output, slope)


class _Linear(torch.autograd.Function):
    """Autograd function of :func:`_linear` by oneDNN, with few passes over memory."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:  # PyTorch reads a signature of one parameter faster
        x, weight, bias, added, slope = inputs
        if added is None:
            return _onednn_linear(x, weight, bias, slope)
        product = _onednn_linear(x, weight, bias)
        fits = product.shape == torch.broadcast_shapes(product.shape, added.shape)
        output = product.add_(added) if fits else product + added
        return output if slope == 1 else functional.leaky_relu_(output, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, added, ctx.slope = inputs
        ctx.added_shape = None if added is None else added.shape
        ctx.save_for_backward(x, weight, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, output = ctx.saved_tensors
        by_x, by_weight, by_bias, by_added, _ = ctx.needs_input_grad
        if ctx.slope != 1:
            gradient = torch.ops.aten.leaky_relu_backward(gradient, output, ctx.slope, True)
        rows = gradient.sum_to_size(*x.shape[:-1], len(weight)).reshape(-1, len(weight))
        return (
            multiply(rows, weight).view(x.shape) if by_x else None,
            multiply(rows.T, x.reshape(-1, x.shape[-1])) if by_weight else None,
            rows.sum(0) if by_bias else None,
            gradient.sum_to_size(ctx.added_shape) if by_added else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """Multiply the layers of models that are trained together as one batch."""
        return torch.vmap(_linear, in_dims)(*inputs), 0


def _onednn_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, slope: float = 1.0
) -> Tensor:
    """Compute LeakyReLU(x W^T + b)."""
    then = ("none", []) if slope == 1 else ("leaky_relu", [slope])
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *then, "")
    return output
