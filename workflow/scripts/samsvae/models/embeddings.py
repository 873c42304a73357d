"""Guides of the perturbations' embeddings."""

import torch
from torch import Tensor, nn

from samsvae.models.networks import GaussianNetwork


class MeanFieldEmbedding(nn.Module):
    """q(e_t) = N(mu_t, sigma_t), whatever the mask.

    Parameters
    ----------
    n_perturbations, n_latent
        T and K.
    """

    def __init__(self, n_perturbations: int, n_latent: int) -> None:
        super().__init__()
        self.location = nn.Parameter(torch.zeros(n_perturbations, n_latent))
        self.log_scale = nn.Parameter(torch.zeros(n_perturbations, n_latent))

    def forward(self, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Location and scale, T x K."""
        return self.location, self.log_scale.exp()

    @torch.no_grad()
    def turn_axes(self, rotation: Tensor) -> None:
        """Turn e to e R: its location exactly, its scales, being along axes, on average."""
        self.location.copy_(self.location @ rotation)
        self.log_scale.copy_(self.log_scale @ rotation**2)


class CorrelatedEmbedding(nn.Module):
    """q(e_t | m_t) = N(NN([m_t, onehot_t])).

    Parameters
    ----------
    n_perturbations, n_latent
        T and K.
    n_hidden, n_layers
        Sizes of the network.
    """

    one_hot: Tensor

    def __init__(self, n_perturbations: int, n_latent: int, n_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.register_buffer("one_hot", torch.eye(n_perturbations), persistent=False)
        self.network = GaussianNetwork([n_latent, n_perturbations], n_hidden, n_layers, n_latent)

    def forward(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale [..., T, K] for masks [..., T, K]."""
        return self.network(mask, self.one_hot)

    def turn_axes(self, rotation: Tensor) -> None:
        """Turn e to e R, as :meth:`MeanFieldEmbedding.turn_axes`.

        The mask of the new axes has no meaning yet: what the open mask contributed stays, as part
        of the bias, and how e depends on it is to be learnt anew.
        """
        self.network.hidden.take_ones_for_granted(0)
        self.network.turn_output(rotation)
