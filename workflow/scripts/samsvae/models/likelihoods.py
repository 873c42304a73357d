"""Distributions of a cell's counts given its latent state."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from samsvae.models.distributions import NegativeBinomialCounts
from samsvae.models.networks import HiddenLayers

SMALLEST_MEAN = 1e-4


class NegativeBinomialLikelihood(nn.Module):
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
        self.logits = nn.Linear(n_hidden, n_genes)
        self.log_inverse_dispersion = nn.Parameter(torch.zeros(n_genes))

    def mean(self, latent: Tensor, library_size: Tensor) -> Tensor:
        """Compute expected counts [..., G] of latent states [..., K] at library sizes [...]."""
        proportion = torch.softmax(self.logits(self.hidden(latent)), dim=-1)
        return library_size[..., None] * proportion + SMALLEST_MEAN

    @property
    def inverse_dispersion(self) -> Tensor:
        """c_g, length G."""
        return self.log_inverse_dispersion.exp()

    def forward(self, latent: Tensor, library_size: Tensor) -> TorchDistribution:
        """Distribution of counts, event shape [G]."""
        mean = self.mean(latent, library_size)
        return NegativeBinomialCounts(self.inverse_dispersion, mean).to_event(1)


LIKELIHOODS = {"negative_binomial": NegativeBinomialLikelihood}
