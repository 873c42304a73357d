"""SVAE+: sparse mechanism shifts of the whole latent state (Lopez et al. 2023)."""

from collections.abc import Sequence

import pyro
import torch
from pyro.distributions import Bernoulli, Beta, Delta, Normal
from torch import Tensor, nn

from samsvae.models.base import Batch, PerturbationModel
from samsvae.models.likelihoods import LIKELIHOODS, StraightThroughBernoulli, inside_unit_interval
from samsvae.models.networks import GaussianNetwork, covariate_inputs


class SvaePlus(PerturbationModel):
    """Sparse mechanism shift VAE (SVAE+).

    Every cell has one perturbation t(i); a combination is a perturbation of its own.
    Generative model, where mu_t is learnt::

        a_tk  ~ Beta(1, b)
        m_tk  ~ Bernoulli(a_tk)
        z_i^b ~ N(0, I),  z_i = z_i^b + m_t(i) * mu_t(i),  z_i = z_i^b for control cells
        x_i   ~ p(x | z_i, l_i, c_i)

    which is the paper's z_i ~ N(m_t(i) * mu_t(i), I), written for the basal state. Guide::

        q(a_tk)     = Delta(sigmoid(phi_tk)),  phi = 0 at the start
        q(m_tk | a) = Bernoulli(a_tk)
        q(z | x)    = N(NN([norm x, c])),  so that z^b = z - m_t * mu_t

    Parameters
    ----------
    n_genes, n_perturbations, n_latent, n_hidden, n_layers, likelihood, n_covariates
        As for :class:`samsvae.models.base.PerturbationModel`.
    beta
        b, the larger the sparser.
    """

    def __init__(
        self,
        n_genes: int,
        n_perturbations: int,
        *,
        n_latent: int = 100,
        n_hidden: int = 400,
        n_layers: int = 1,
        beta: float = 2.0,
        likelihood: str = "negative_binomial",
        n_covariates: int = 0,
    ) -> None:
        super().__init__(n_genes, n_perturbations, n_latent, likelihood)
        # p(x | z, l, c)
        self.likelihood = LIKELIHOODS[likelihood](
            n_latent, n_genes, n_hidden, n_layers, n_covariates
        )
        self.beta = beta
        # q(a), and mu
        self.rate_logits = nn.Parameter(torch.zeros(n_perturbations, n_latent))
        self.embedding = nn.Parameter(0.1 * torch.randn(n_perturbations, n_latent))
        # q(z | x, c)
        inputs = [n_genes, *covariate_inputs(n_covariates)]
        self.encoder = GaussianNetwork(inputs, n_hidden, n_layers, n_latent)

    def global_prior(self) -> Tensor:
        """Sample a ~ p(a) and m ~ p(m | a); return m * mu."""
        one = torch.ones_like(self.rate_logits)
        with self.perturbations():
            rate = pyro.sample("rate", Beta(one, self.beta * one).to_event(1))
            mask = pyro.sample("mask", Bernoulli(rate).to_event(1))
        return mask * self.embedding

    def global_guide(self) -> Tensor:
        """Sample a ~ q(a) and m ~ q(m | a); return m * mu."""
        probability = inside_unit_interval(torch.sigmoid(self.rate_logits))
        with self.perturbations():
            rate = pyro.sample("rate", Delta(probability).to_event(1))
            logits = torch.logit(rate)
            mask = pyro.sample("mask", StraightThroughBernoulli(logits=logits).to_event(1))
        return mask * self.embedding

    def mask_start(self) -> tuple[nn.Parameter, Sequence[float], float]:
        """Return the logits of a, the prior means of a and 1, since mu has no prior."""
        return self.rate_logits, [1 / (1 + self.beta)] * self.n_perturbations, 1.0

    def cell_prior(self, shift: Tensor) -> Tensor:
        """Sample z^b ~ N(0, I); return z^b + shift."""
        return pyro.sample("basal", self.standard_normal(shift)) + shift

    def cell_guide(self, batch: Batch, shift: Tensor) -> None:
        """Sample z^b = z - shift for z ~ q(z | x, c)."""
        location, scale = self.encoder(self.encoder_counts(batch), *batch.covariates)
        pyro.sample("basal", Normal(location - shift, scale).to_event(1))
