"""Neural networks of the models, and Normal guides of perturbation embeddings."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from samsvae.kernels.linear import Linear

SMALLEST_SCALE = 1e-4
SLOPE = 0.01  # of LeakyReLU below 0


def covariate_inputs(n_covariates: int) -> list[int]:
    """List the size of the input of covariates, nothing if there are none."""
    return [n_covariates] if n_covariates else []


class HiddenLayers(nn.Module):
    """Hidden layers with LeakyReLU and residual connections from the second layer on.

    Parameters
    ----------
    input_sizes
        Sizes of the inputs. Several inputs are equivalent to their concatenation, initial weights
        included, but each has its own weight matrix, so that an input without a particle dimension
        is multiplied once for all particles.
    n_hidden, n_layers
        Width and number of hidden layers.
    """

    def __init__(self, input_sizes: Sequence[int], n_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(
            Linear(size, n_hidden, bias=index == 0) for index, size in enumerate(input_sizes)
        )
        for size, layer in zip(input_sizes, self.first, strict=True):
            for parameter in layer.parameters():  # bounded by the inverse root of its own fan-in
                parameter.data.mul_(math.sqrt(size / sum(input_sizes)))
        self.others = nn.ModuleList(Linear(n_hidden, n_hidden) for _ in range(n_layers - 1))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs [..., size] to the last hidden layer [..., n_hidden].

        If the last input is left out, the identity matrix takes its place, and the output has one
        row for each of that input's dimensions.
        """
        if not len(self.first) - 1 <= len(inputs) <= len(self.first):
            raise ValueError(f"{len(self.first)} inputs are needed, not {len(inputs)}")
        *before, last = self.first
        added = None
        for layer, x in zip(before, inputs, strict=False):
            added = layer(x, added)
        if len(inputs) == len(self.first):
            hidden: Tensor = last(inputs[-1], added, SLOPE)
        else:
            rows = cast(Tensor, last.weight).T
            hidden = nn.functional.leaky_relu(rows if added is None else rows + added, SLOPE)
        for layer in self.others:
            hidden = hidden + layer(hidden, slope=SLOPE)
        return hidden


class GaussianNetwork(nn.Module):
    """Network for the location and scale of a Normal, whose scale starts at 1.

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
        self.head.bias.data[n_outputs:] += math.log(math.expm1(1 - SMALLEST_SCALE))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Map inputs [..., size] to location and scale, each [..., n_outputs]."""
        location, scale = self.head(self.hidden(*inputs)).chunk(2, dim=-1)
        return location, nn.functional.softplus(scale) + SMALLEST_SCALE


class MeanFieldEmbedding(nn.Module):
    """Guide q(e_t) = N(mu_t, sigma_t), independent of the mask; mu = 0, sigma = 1 at the start."""

    def __init__(self, n_perturbations: int, n_latent: int) -> None:
        super().__init__()
        self.location = nn.Parameter(torch.zeros(n_perturbations, n_latent))
        self.log_scale = nn.Parameter(torch.zeros(n_perturbations, n_latent))

    def forward(self, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return location and scale, T x K."""
        return self.location, self.log_scale.exp()


class CorrelatedEmbedding(nn.Module):
    """Guide q(e_t | m_t) = N(NN([m_t, onehot_t]))."""

    def __init__(self, n_perturbations: int, n_latent: int, n_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.network = GaussianNetwork([n_latent, n_perturbations], n_hidden, n_layers, n_latent)

    def forward(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Map masks [..., T, K] to location and scale [..., T, K]."""
        return self.network(mask)  # the product with onehot_t for all t is that with the identity


class Standardise(nn.Module):
    """Standardisation of log(1 + x) by the training cells' mean and standard deviation.

    Parameters
    ----------
    n_genes
        Number of genes; before :meth:`fit` the mean is 0 and the standard deviation 1.
    logarithm
        Whether to transform counts to log(1 + x); else x stays as it is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, n_genes: int, logarithm: bool = True) -> None:
        super().__init__()
        self.logarithm = logarithm
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("std", torch.ones(n_genes))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and standard deviation of rescaled counts; a constant gene is not scaled."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def rescale(self, counts: Tensor) -> Tensor:
        """Compute log(1 + x), or x, before standardisation."""
        return torch.log1p(counts) if self.logarithm else counts

    def forward(self, counts: Tensor) -> Tensor:
        """Standardise counts [..., G]."""
        scale = 1 / self.std
        return torch.addcmul(-self.mean * scale, self.rescale(counts), scale)
