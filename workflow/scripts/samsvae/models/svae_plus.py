"""SVAE+: sparse mechanism shifts of the whole latent state (Lopez et al. 2023)."""

from collections.abc import Mapping

import pyro
import torch
from pyro.distributions import Bernoulli, Beta, Delta, Normal
from torch import Tensor, nn

from samsvae.models.base import COUNTS, Batch, PerturbationModel, shift_of_cells
from samsvae.models.distributions import StraightThroughBernoulli, inside_unit_interval
from samsvae.models.networks import GaussianNetwork


class SvaePlus(PerturbationModel):
    """SVAE+.

    Every cell has one perturbation t(i), combinations being perturbations of their own.
    Generative model::

        a_tk ~ Beta(1, b)
        m_tk ~ Bernoulli(a_tk)
        z_i  ~ N(m_t(i) * mu_t(i), I),  N(0, I) for control cells
        x_i  ~ p(x | z_i, l_i)

    where mu_t is learnt. Guide::

        q(a_tk)     = Delta(sigmoid(phi_tk)),  phi = 0 at the start
        q(m_tk | a) = Bernoulli(a_tk)
        q(z | x)    = N(NN(norm x))

    Parameters
    ----------
    n_genes, n_perturbations
        G and T.
    n_latent, n_hidden, n_layers
        Latent dimensions K; width and number of hidden layers of encoder and decoder.
    beta
        b, the larger the sparser.
    likelihood
        Name of the distribution of counts.

    Examples
    --------
    >>> model = SvaePlus(n_genes=50, n_perturbations=3, n_latent=4, n_hidden=8)
    >>> model.mask_probability()[0, 0].item()
    0.5
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
    ) -> None:
        super().__init__(
            n_genes, n_perturbations, n_latent, n_latent, n_hidden, n_layers, likelihood
        )
        self.beta = beta
        self.rate_logits = nn.Parameter(torch.zeros(n_perturbations, n_latent))
        self.embedding = nn.Parameter(0.1 * torch.randn(n_perturbations, n_latent))
        self.encoder = GaussianNetwork([n_genes], n_hidden, n_layers, n_latent)

    def model(self, batch: Batch) -> None:
        """p(a) p(m | a) prod_i p(z_i | m) p(x_i | z_i, l_i)."""
        shift = shift_of_cells(self.effects(), batch)
        with self.cells(batch):
            latent = pyro.sample("latent", Normal(shift, torch.ones_like(shift)).to_event(1))
            counts = self.likelihood(latent, batch.library_size)
            pyro.sample(COUNTS, counts, obs=batch.counts)

    def guide(self, batch: Batch) -> None:
        """q(a) q(m | a) prod_i q(z_i | x_i)."""
        self.shared_guide()
        with self.cells(batch):
            encoded = self.encode(batch.counts, batch.dosage)
            pyro.sample("latent", Normal(*encoded).to_event(1))

    def encode(self, counts: Tensor, influence: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of q(z | x), each B x K, whatever the influence."""
        return self.encoder(self.standardise(counts))

    def effects(self) -> Tensor:
        """M * mu from p(a) p(m | a)."""
        ones = torch.ones_like(self.rate_logits)
        with self.perturbations():
            rate = pyro.sample("rate", Beta(ones, self.beta * ones).to_event(1))
            mask = pyro.sample("mask", Bernoulli(rate).to_event(1))
        return mask * self.embedding

    def shared_guide(self) -> None:
        """q(a) q(m | a)."""
        with self.perturbations():
            rate = pyro.sample("rate", Delta(self.mask_probability()).to_event(1))
            logits = torch.logit(rate) + self.mask_opening
            pyro.sample("mask", StraightThroughBernoulli(logits=logits).to_event(1))

    def shared_prior(self) -> None:
        """p(a) p(m | a)."""
        self.effects()

    def effects_from(self, shared: Mapping[str, Tensor]) -> Tensor:
        """M * mu, [S, T, K]."""
        return shared["mask"] * self.embedding

    def influence(self, shared: Mapping[str, Tensor], dosage: Tensor) -> Tensor:
        """sum_t d_t m_t * mu_t, [S, C, K]."""
        return dosage @ self.effects_from(shared)

    def unperturbed(self, latent: Tensor, influence: Tensor) -> Tensor:
        """Latent - sum_t d_t m_t * mu_t."""
        return latent - influence

    def unmasked_effects(self) -> Tensor:
        """mu, T x K."""
        return self.embedding

    @torch.no_grad()
    def turn_axes(self, rotation: Tensor) -> None:
        """Turn z and mu; see :meth:`PerturbationModel.turn_axes`."""
        self.likelihood.hidden.turn_input(0, rotation)
        self.encoder.turn_output(rotation)
        self.embedding.copy_(self.embedding @ rotation)

    def mask_probability(self) -> Tensor:
        """sigmoid(phi), T x K, kept away from 0 and 1."""
        return inside_unit_interval(torch.sigmoid(self.rate_logits))
