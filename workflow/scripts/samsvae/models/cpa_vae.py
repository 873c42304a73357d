"""CPA-VAE: additive effects without a mask (Bereket & Karaletsos 2023, after Lotfollahi et al.)."""

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor

from samsvae.models.base import Batch, PerturbationModel
from samsvae.models.likelihoods import LIKELIHOODS
from samsvae.models.networks import GaussianNetwork, MeanFieldEmbedding, covariate_inputs


class CpaVae(PerturbationModel):
    """Compositional perturbation autoencoder, as a VAE.

    Generative model::

        e_t   ~ N(0, s^2 I)
        z_i^b ~ N(0, I),  z_i = z_i^b + sum_t d_it e_t
        x_i   ~ p(x | z_i, l_i, c_i)

    Guide::

        q(e_t)     = N(mu_t, sigma_t), mu = 0 and sigma = 1 at the start
        q(z^b | x) = N(NN([norm x, c])) or N(NN([norm x, sum_t d_t e_t, c]))

    Parameters
    ----------
    n_genes, n_perturbations, n_latent, n_hidden, n_layers, likelihood, n_covariates
        As for :class:`samsvae.models.base.PerturbationModel`.
    embedding_prior_scale
        s, in units of the basal state's standard deviation.
    basal_encoder
        ``mean_field`` or ``correlated``.
    """

    infers_basal_state = True

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
        n_covariates: int = 0,
    ) -> None:
        super().__init__(n_genes, n_perturbations, n_latent, likelihood)
        self.embedding_prior_scale = embedding_prior_scale
        self.basal_encoder = basal_encoder
        # p(x | z, l, c)
        self.likelihood = LIKELIHOODS[likelihood](
            n_latent, n_genes, n_hidden, n_layers, n_covariates
        )
        # q(z^b | x, c) or q(z^b | x, shift, c)
        given = [n_latent] if basal_encoder == "correlated" else []
        inputs = [n_genes, *given, *covariate_inputs(n_covariates)]
        self.encoder = GaussianNetwork(inputs, n_hidden, n_layers, n_latent)
        # q(e)
        self.embedding = MeanFieldEmbedding(n_perturbations, n_latent)

    def global_prior(self) -> Tensor:
        """Sample e ~ p(e)."""
        zero = torch.zeros_like(self.embedding.location)
        scale = torch.full_like(zero, self.embedding_prior_scale)
        with self.perturbations():
            return pyro.sample("embedding", Normal(zero, scale).to_event(1))

    def global_guide(self) -> Tensor:
        """Sample e ~ q(e)."""
        with self.perturbations():
            return pyro.sample("embedding", Normal(*self.embedding()).to_event(1))

    def cell_prior(self, shift: Tensor) -> Tensor:
        """Sample z^b ~ N(0, I); return z^b + shift."""
        return pyro.sample("basal", self.standard_normal(shift)) + shift

    def cell_guide(self, batch: Batch, shift: Tensor) -> None:
        """Sample z^b ~ q(z^b | x, c), or q(z^b | x, shift, c) if the encoder is correlated."""
        given = [shift] if self.basal_encoder == "correlated" else []
        encoded = self.encoder(self.encoder_counts(batch), *given, *batch.covariates)
        pyro.sample("basal", Normal(*encoded).to_event(1))
