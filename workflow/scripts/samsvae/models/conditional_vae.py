"""A conditional VAE: the perturbation as one more input of encoder and decoder."""

from collections.abc import Mapping

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor

from samsvae.models.base import COUNTS, Batch, PerturbationModel
from samsvae.models.networks import GaussianNetwork


class ConditionalVae(PerturbationModel):
    """Conditional VAE.

    Generative model::

        z_i ~ N(0, I)
        x_i ~ p(x | [z_i, d_i], l_i)

    Guide: q(z | x, d) = N(NN([norm x, d])).

    Parameters
    ----------
    n_genes, n_perturbations
        G and T.
    n_latent, n_hidden, n_layers
        Latent dimensions K; width and number of hidden layers of encoder and decoder.
    likelihood
        Name of the distribution of counts.

    Examples
    --------
    >>> model = ConditionalVae(n_genes=50, n_perturbations=3, n_latent=4, n_hidden=8)
    >>> model.decoded(torch.zeros(2, 1, 4), {}, torch.eye(3)).shape
    torch.Size([2, 3, 7])
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
    ) -> None:
        n_decoded = n_latent + n_perturbations
        super().__init__(
            n_genes, n_perturbations, n_latent, n_decoded, n_hidden, n_layers, likelihood
        )
        self.encoder = GaussianNetwork([n_genes, n_perturbations], n_hidden, n_layers, n_latent)

    def model(self, batch: Batch) -> None:
        """prod_i p(z_i) p(x_i | z_i, d_i, l_i)."""
        dosage = batch.dosage[batch.condition]
        with self.cells(batch):
            latent = pyro.sample("latent", self.standard_normal(dosage))
            counts = self.likelihood(self.perturbed(latent, dosage), batch.library_size)
            pyro.sample(COUNTS, counts, obs=batch.counts)

    def guide(self, batch: Batch) -> None:
        """prod_i q(z_i | x_i, d_i)."""
        dosage = batch.dosage[batch.condition]
        with self.cells(batch):
            encoded = self.encode(batch.counts, dosage)
            pyro.sample("latent", Normal(*encoded).to_event(1))

    def encode(self, counts: Tensor, influence: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of q(z | x, d), each B x K."""
        return self.encoder(self.standardise(counts), influence)

    def shared_guide(self) -> None:
        """No variable is shared by all cells."""

    def shared_prior(self) -> None:
        """No variable is shared by all cells."""

    def influence(self, shared: Mapping[str, Tensor], dosage: Tensor) -> Tensor:
        """d, C x T."""
        return dosage

    def perturbed(self, state: Tensor, influence: Tensor) -> Tensor:
        """[state, d]."""
        return _concatenated(state, influence)


def _concatenated(latent: Tensor, dosage: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(latent.shape[:-1], dosage.shape[:-1])
    return torch.cat([latent.expand(*shape, -1), dosage.expand(*shape, -1)], dim=-1)
