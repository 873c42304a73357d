"""Conditional VAE, with the perturbation as an input of encoder and decoder."""

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor

from samsvae.models.base import Batch, PerturbationModel
from samsvae.models.likelihoods import LIKELIHOODS
from samsvae.models.networks import GaussianNetwork, covariate_inputs


class ConditionalVae(PerturbationModel):
    """Conditional VAE.

    Generative model, with d_i the cell's row of the design matrix::

        z_i ~ N(0, I)
        x_i ~ p(x | [z_i, d_i], l_i, c_i)

    Guide: q(z | x, d) = N(NN([norm x, d, c])).

    Parameters
    ----------
    n_genes, n_perturbations, n_latent, n_hidden, n_layers, likelihood, n_covariates
        As for :class:`samsvae.models.base.PerturbationModel`.
    """

    def __init__(
        self,
        n_genes: int,
        n_perturbations: int,
        *,
        n_latent: int = 100,
        n_hidden: int = 400,
        n_layers: int = 1,
        likelihood: str = "negative_binomial",
        n_covariates: int = 0,
    ) -> None:
        super().__init__(n_genes, n_perturbations, n_latent, likelihood)
        # p(x | [z, d], l, c)
        self.likelihood = LIKELIHOODS[likelihood](
            n_latent + n_perturbations, n_genes, n_hidden, n_layers, n_covariates
        )
        # q(z | x, d, c)
        inputs = [n_genes, n_perturbations, *covariate_inputs(n_covariates)]
        self.encoder = GaussianNetwork(inputs, n_hidden, n_layers, n_latent)

    def global_prior(self) -> None:
        """Return None: there are no global variables."""

    def global_guide(self) -> None:
        """Return None: there are no global variables."""

    def cell_prior(self, shift: Tensor) -> Tensor:
        """Sample z ~ N(0, I); return [z, d]."""
        latent = pyro.sample("latent", self.standard_normal(shift))
        shape = torch.broadcast_shapes(latent.shape[:-1], shift.shape[:-1])
        return torch.cat([latent.expand(*shape, -1), shift.expand(*shape, -1)], dim=-1)

    def cell_guide(self, batch: Batch, shift: Tensor) -> None:
        """Sample z ~ q(z | x, d, c)."""
        encoded = self.encoder(self.encoder_counts(batch), shift, *batch.covariates)
        pyro.sample("latent", Normal(*encoded).to_event(1))
