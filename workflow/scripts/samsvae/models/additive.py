"""What SAMS-VAE and CPA-VAE share: a basal state plus the added effects of perturbations."""

from abc import abstractmethod
from collections.abc import Mapping

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor

from samsvae.models.base import COUNTS, Batch, PerturbationModel, shift_of_cells
from samsvae.models.networks import GaussianNetwork


class AdditiveShiftModel(PerturbationModel):
    """z_i = z_i^b + sum_t d_it effect_t, with z_i^b ~ N(0, I) and x_i ~ p(x | z_i, l_i).

    A subclass says what the prior and the guide of the effects are. The guide of the basal state
    is q(z_i^b | x_i) = NN(norm x_i), or with ``basal_encoder="correlated"``
    NN([norm x_i, sum_t d_it effect_t]).

    Parameters
    ----------
    n_genes, n_perturbations
        G and T.
    n_latent, n_hidden, n_layers
        Sizes of latent space, encoder and decoder.
    basal_encoder
        ``mean_field`` or ``correlated``.
    likelihood
        A name in :data:`samsvae.models.likelihoods.LIKELIHOODS`.
    """

    def __init__(
        self,
        n_genes: int,
        n_perturbations: int,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        basal_encoder: str,
        likelihood: str,
    ) -> None:
        super().__init__(
            n_genes, n_perturbations, n_latent, n_latent, n_hidden, n_layers, likelihood
        )
        self.basal_encoder = basal_encoder
        inputs = [n_genes, n_latent] if basal_encoder == "correlated" else [n_genes]
        self.encoder = GaussianNetwork(inputs, n_hidden, n_layers, n_latent)

    @abstractmethod
    def effects(self) -> Tensor:
        """Sample the effects of all perturbations from their prior, [..., T, K]."""

    @abstractmethod
    def effects_guide(self) -> Tensor:
        """Sample the effects of all perturbations from their guide, [..., T, K]."""

    def model(self, batch: Batch) -> None:
        """p(effects) prod_i p(z_i^b) p(x_i | z_i^b + shift_i, l_i)."""
        shift = shift_of_cells(self.effects(), batch)
        with self.cells(batch):
            basal = pyro.sample("basal", self.standard_normal(shift))
            counts = self.likelihood(basal + shift, batch.library_size)
            pyro.sample(COUNTS, counts, obs=batch.counts)

    def guide(self, batch: Batch) -> None:
        """q(effects) prod_i q(z_i^b | x_i, shift_i)."""
        shift = shift_of_cells(self.effects_guide(), batch)
        with self.cells(batch):
            pyro.sample("basal", Normal(*self.encode(batch.counts, shift)).to_event(1))

    def encode(self, counts: Tensor, influence: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of q(z^b | x, shift), each [..., B, K]."""
        standardised = self.standardise(counts)
        if self.basal_encoder == "correlated":
            return self.encoder(standardised, influence)
        return self.encoder(standardised)

    def shared_guide(self) -> None:
        """Sample the variables behind the effects from the guide."""
        self.effects_guide()

    def shared_prior(self) -> None:
        """Sample the variables behind the effects from their prior."""
        self.effects()

    def effects_from(self, shared: Mapping[str, Tensor]) -> Tensor:
        """Put drawn variables together to the effects, [S, T, K]."""
        with torch.no_grad(), pyro.poutine.condition(data=dict(shared)):
            return self.effects()

    def influence(self, shared: Mapping[str, Tensor], dosage: Tensor) -> Tensor:
        """sum_t d_t effect_t, [S, C, K]."""
        return dosage @ self.effects_from(shared)
