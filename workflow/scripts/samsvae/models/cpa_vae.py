"""CPA-VAE: additive effects without a mask (Bereket & Karaletsos 2023, after Lotfollahi et al.)."""

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor

from samsvae.models.additive import AdditiveShiftModel
from samsvae.models.embeddings import MeanFieldEmbedding


class CpaVae(AdditiveShiftModel):
    """Compositional perturbation VAE.

    Generative model::

        e_t ~ N(0, s^2 I)
        z_i = z_i^b + sum_t d_it e_t,  z_i^b ~ N(0, I)
        x_i ~ p(x | z_i, l_i)

    Guide: q(e_t) = N(mu_t, sigma_t), and the basal encoder as in SAMS-VAE.

    Parameters
    ----------
    n_genes, n_perturbations
        G and T.
    n_latent, n_hidden, n_layers
        Latent dimensions K; width and number of hidden layers of encoder and decoder.
    embedding_prior_scale
        s, in units of the basal state's standard deviation.
    basal_encoder
        ``mean_field`` or ``correlated``.
    likelihood
        Name of the distribution of counts.

    Examples
    --------
    >>> model = CpaVae(n_genes=50, n_perturbations=3, n_latent=4, n_hidden=8)
    >>> model.embedding_guide.location.shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        n_genes: int,
        n_perturbations: int,
        *,
        n_latent: int = 100,
        n_hidden: int = 400,
        n_layers: int = 1,
        embedding_prior_scale: float = 1.0,
        basal_encoder: str = "correlated",
        likelihood: str = "negative_binomial",
    ) -> None:
        super().__init__(
            n_genes, n_perturbations, n_latent, n_hidden, n_layers, basal_encoder, likelihood
        )
        self.embedding_prior_scale = embedding_prior_scale
        self.embedding_guide = MeanFieldEmbedding(n_perturbations, n_latent)

    def effects(self) -> Tensor:
        """Sample e from p(e)."""
        zeros = torch.zeros_like(self.embedding_guide.location)
        with self.perturbations():
            return pyro.sample(
                "embedding", Normal(zeros, zeros + self.embedding_prior_scale).to_event(1)
            )

    def effects_guide(self) -> Tensor:
        """Sample e from q(e)."""
        with self.perturbations():
            return pyro.sample("embedding", Normal(*self.embedding_guide()).to_event(1))
