"""Networks shared by all models."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from samsvae.kernels.linear import Linear

SMALLEST_SCALE = 1e-4
SLOPE = 0.01  # of LeakyReLU below 0


class HiddenLayers(nn.Module):
    """Hidden layers with LeakyReLU and a residual connection round each layer after the first.

    Parameters
    ----------
    input_sizes
        Sizes of the inputs. Several inputs act as their concatenation, but each is multiplied
        by weights of its own, so that an input without a particle dimension is multiplied once
        for all particles.
    n_hidden, n_layers
        Width and number of hidden layers.
    """

    def __init__(self, input_sizes: Sequence[int], n_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(
            Linear(size, n_hidden, bias=index == 0) for index, size in enumerate(input_sizes)
        )
        self.others = nn.ModuleList(Linear(n_hidden, n_hidden) for _ in range(n_layers - 1))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs [..., size] to the last hidden layer [..., n_hidden]."""
        *first, last = zip(self.first, inputs, strict=True)
        added = None
        for layer, x in first:
            added = layer(x, added)
        layer, x = last
        hidden: Tensor = layer(x, added, SLOPE)
        for layer in self.others:
            hidden = hidden + layer(hidden, slope=SLOPE)
        return hidden

    @torch.no_grad()
    def turn_input(self, index: int, rotation: Tensor) -> None:
        """Take x R where x was taken as an input, with the same result."""
        weight = cast(nn.Linear, self.first[index]).weight
        weight.copy_(weight @ rotation)

    @torch.no_grad()
    def take_ones_for_granted(self, index: int) -> None:
        """Move what an input of ones contributes to the bias, and forget the input's weights."""
        weight = cast(nn.Linear, self.first[index]).weight
        cast(nn.Linear, self.first[0]).bias.add_(weight.sum(1))
        weight.zero_()


class GaussianNetwork(nn.Module):
    """Hidden layers, then a head for the location and the scale of a Normal.

    Parameters
    ----------
    input_sizes, n_hidden, n_layers
        As for :class:`HiddenLayers`.
    n_outputs
        Dimension of the Normal.
    """

    def __init__(
        self, input_sizes: Sequence[int], n_hidden: int, n_layers: int, n_outputs: int
    ) -> None:
        super().__init__()
        self.hidden = HiddenLayers(input_sizes, n_hidden, n_layers)
        self.head = Linear(n_hidden, 2 * n_outputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Map inputs [..., size] to location and scale, each [..., n_outputs]."""
        location, scale = self.head(self.hidden(*inputs)).chunk(2, dim=-1)
        return location, nn.functional.softplus(scale) + SMALLEST_SCALE

    @torch.no_grad()
    def turn_output(self, rotation: Tensor) -> None:
        """Turn the Normal: its location exactly, its scales, being along axes, on average."""
        turn = torch.block_diag(rotation, rotation**2)
        self.head.weight.copy_(turn.T @ self.head.weight)
        self.head.bias.copy_(self.head.bias @ turn)


class Standardise(nn.Module):
    """log(1 + x), centred and scaled by the training cells' mean and deviation of each gene.

    Parameters
    ----------
    n_genes
        Number of genes; until :meth:`fit` nothing is centred or scaled.
    logarithm
        Whether to take log(1 + x), as counts need; else x itself.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, n_genes: int, logarithm: bool = True) -> None:
        super().__init__()
        self.logarithm = logarithm
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("deviation", torch.ones(n_genes))

    def fit(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the moments of :meth:`rescale`; a gene that never varies keeps the deviation 1."""
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def rescale(self, counts: Tensor) -> Tensor:
        """Compute log(1 + x), or x, before it is centred and scaled."""
        return torch.log1p(counts) if self.logarithm else counts

    def forward(self, counts: Tensor) -> Tensor:
        """Transform counts [..., G]."""
        scale = 1 / self.deviation
        return torch.addcmul(-self.mean * scale, self.rescale(counts), scale)
