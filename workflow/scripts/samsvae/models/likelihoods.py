"""Distributions of a cell's counts given its latent state."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from pyro.distributions import Normal, Poisson, TorchDistribution
from torch import Tensor, nn

from samsvae.kernels.gamma_poisson import SMALLEST_MEAN
from samsvae.kernels.linear import Linear
from samsvae.models.negative_binomial import NegativeBinomialCounts, mean_counts
from samsvae.models.networks import HiddenLayers

SMALLEST_VARIANCE = 1e-4


class Likelihood(nn.Module, ABC):
    """p(x | z, l): a decoder and the distribution that it parameterises."""

    hidden: HiddenLayers

    @abstractmethod
    def mean(self, latent: Tensor, library_size: Tensor) -> Tensor:
        """Compute expected counts [..., G] of latent states [..., K] at library sizes [...]."""

    @abstractmethod
    def forward(self, latent: Tensor, library_size: Tensor) -> TorchDistribution:
        """Distribution of counts, event shape [G]."""


class NegativeBinomialLikelihood(Likelihood):
    """x_ig ~ GammaPoisson(c_g, c_g / (l_i rho_ig + 1e-4)), rho_i = softmax(f(z_i)).

    Bereket & Karaletsos 2023, section 3.1. The inverse dispersion c_g is learnt per gene and
    starts at 1.

    Parameters
    ----------
    n_latent, n_genes, n_hidden, n_layers
        Sizes of the decoder f.
    """

    def __init__(self, n_latent: int, n_genes: int, n_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.hidden = HiddenLayers([n_latent], n_hidden, n_layers)
        self.logits = Linear(n_hidden, n_genes)
        self.log_inverse_dispersion = nn.Parameter(torch.zeros(n_genes))

    def mean(self, latent: Tensor, library_size: Tensor) -> Tensor:
        """Compute expected counts [..., G] of latent states [..., K] at library sizes [...]."""
        return mean_counts(self.logits(self.hidden(latent)), library_size)

    @property
    def inverse_dispersion(self) -> Tensor:
        """c_g, length G."""
        return self.log_inverse_dispersion.exp()

    def forward(self, latent: Tensor, library_size: Tensor) -> TorchDistribution:
        """Distribution of counts, event shape [G]."""
        hidden = self.hidden(latent)
        return NegativeBinomialCounts(self.inverse_dispersion, hidden, self.logits, library_size)


class PoissonLikelihood(Likelihood):
    """x_ig ~ Poisson(softplus(f(z_i))); the library size plays no part.

    Parameters
    ----------
    n_latent, n_genes, n_hidden, n_layers
        Sizes of the decoder f.
    """

    def __init__(self, n_latent: int, n_genes: int, n_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.hidden = HiddenLayers([n_latent], n_hidden, n_layers)
        self.mean_head = Linear(n_hidden, n_genes)

    def mean(self, latent: Tensor, library_size: Tensor) -> Tensor:
        """Compute expected counts [..., G] of latent states [..., K]."""
        rate = nn.functional.softplus(self.mean_head(self.hidden(latent)))
        return rate + SMALLEST_MEAN

    def forward(self, latent: Tensor, library_size: Tensor) -> TorchDistribution:
        """Distribution of counts, event shape [G]."""
        return Poisson(self.mean(latent, library_size)).to_event(1)


class NormalLikelihood(Likelihood):
    """x_ig ~ N(f(z_i), exp(h(z_i)) + 1e-4), for data that are no counts.

    Parameters
    ----------
    n_latent, n_genes, n_hidden, n_layers
        Sizes of the decoder, whose two heads f and h share their hidden layers.
    """

    def __init__(self, n_latent: int, n_genes: int, n_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.hidden = HiddenLayers([n_latent], n_hidden, n_layers)
        self.mean_head = Linear(n_hidden, n_genes)
        self.log_variance_head = Linear(n_hidden, n_genes)

    def mean(self, latent: Tensor, library_size: Tensor) -> Tensor:
        """Compute expected values [..., G] of latent states [..., K]."""
        return self.mean_head(self.hidden(latent))

    def forward(self, latent: Tensor, library_size: Tensor) -> TorchDistribution:
        """Distribution of values, event shape [G]."""
        hidden = self.hidden(latent)
        variance = self.log_variance_head(hidden).exp() + SMALLEST_VARIANCE
        return Normal(self.mean_head(hidden), variance.sqrt()).to_event(1)


LIKELIHOODS: dict[str, Callable[[int, int, int, int], Likelihood]] = {
    "negative_binomial": NegativeBinomialLikelihood,
    "poisson": PoissonLikelihood,
    "normal": NormalLikelihood,
}
