"""Distributions of a cell's counts given its latent state."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from pyro.distributions import Normal, Poisson, TorchDistribution
from torch import Tensor, nn

from samsvae.kernels import SMALLEST_MEAN
from samsvae.kernels.linear import Linear
from samsvae.models.distributions import GammaPoissonCounts, Logits
from samsvae.models.networks import HiddenLayers

SMALLEST_VARIANCE = 1e-4


class Likelihood(nn.Module, ABC):
    """Likelihood p(x | z, l): a decoder f and the distribution that it parameterises.

    Parameters
    ----------
    n_inputs, n_genes, n_hidden, n_layers
        Sizes of the decoder.
    """

    def __init__(self, n_inputs: int, n_genes: int, n_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.hidden = HiddenLayers([n_inputs], n_hidden, n_layers)
        self.head = Linear(n_hidden, n_genes)

    @abstractmethod
    def forward(self, decoder_input: Tensor, library_size: Tensor) -> TorchDistribution:
        """Return the distribution of counts, event shape [G], of inputs [..., n_inputs]."""

    def mean(self, decoder_input: Tensor, library_size: Tensor) -> Tensor:
        """Compute expected counts [..., G]; arguments as of :meth:`forward`."""
        return self(decoder_input, library_size).mean


class GammaPoissonLikelihood(Likelihood):
    """Likelihood x_ig ~ GammaPoisson(c_g, c_g / (l_i rho_ig + 1e-4)), rho_i = softmax(f(z_i)).

    Bereket & Karaletsos 2023, section 3.1. The concentration c_g, or inverse dispersion, is
    learnt per gene and starts at 1.
    """

    def __init__(self, n_inputs: int, n_genes: int, n_hidden: int, n_layers: int) -> None:
        super().__init__(n_inputs, n_genes, n_hidden, n_layers)
        self.log_concentration = nn.Parameter(torch.zeros(n_genes))

    @property
    def concentration(self) -> Tensor:
        """Concentration c_g, length G."""
        return self.log_concentration.exp()

    def forward(self, decoder_input: Tensor, library_size: Tensor) -> GammaPoissonCounts:
        """Return GammaPoisson(c, c / (l softmax(f(z)) + 1e-4))."""
        logits = Logits(self.hidden(decoder_input), self.head.weight, self.head.bias)
        return GammaPoissonCounts(self.concentration, logits, library_size)


class PoissonLikelihood(Likelihood):
    """Likelihood x_ig ~ Poisson(softplus(f(z_i)) + 1e-4), without the library size."""

    def forward(self, decoder_input: Tensor, library_size: Tensor) -> TorchDistribution:
        """Return Poisson(softplus(f(z)) + 1e-4)."""
        rate = nn.functional.softplus(self.head(self.hidden(decoder_input)))
        return Poisson(rate + SMALLEST_MEAN).to_event(1)


class NormalLikelihood(Likelihood):
    """Likelihood x_ig ~ N(f(z_i), exp(h(z_i)) + 1e-4), for continuous data.

    The heads of f and h have common hidden layers.
    """

    def __init__(self, n_inputs: int, n_genes: int, n_hidden: int, n_layers: int) -> None:
        super().__init__(n_inputs, n_genes, n_hidden, n_layers)
        self.log_variance_head = Linear(n_hidden, n_genes)

    def forward(self, decoder_input: Tensor, library_size: Tensor) -> TorchDistribution:
        """Return N(f(z), exp(h(z)) + 1e-4)."""
        hidden = self.hidden(decoder_input)
        variance = self.log_variance_head(hidden).exp() + SMALLEST_VARIANCE
        return Normal(self.head(hidden), variance.sqrt()).to_event(1)


LIKELIHOODS: dict[str, Callable[[int, int, int, int], Likelihood]] = {
    "negative_binomial": GammaPoissonLikelihood,
    "poisson": PoissonLikelihood,
    "normal": NormalLikelihood,
}
