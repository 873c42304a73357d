"""What SAMS-VAE and CPA-VAE share: a basal state plus the added effects of perturbations."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from samsvae.models.likelihoods import LIKELIHOODS
from samsvae.models.networks import GaussianNetwork, Standardise


@dataclass(frozen=True)
class Batch:
    """Cells as a model sees them.

    Attributes
    ----------
    counts
        UMI counts, B x G.
    library_size
        Counts per cell, length B.
    dosage
        The distinct rows of the design, C x T: conditions by perturbations.
    condition
        Row of `dosage` of each cell, length B.
    n_cells
        Number of cells N for which the batch stands.
    """

    counts: Tensor
    library_size: Tensor
    dosage: Tensor
    condition: Tensor
    n_cells: int


class AdditiveShiftModel(nn.Module, ABC):
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
        super().__init__()
        self.n_perturbations = n_perturbations
        self.n_latent = n_latent
        self.basal_encoder = basal_encoder
        self.standardise = Standardise(n_genes)
        inputs = [n_genes, n_latent] if basal_encoder == "correlated" else [n_genes]
        self.encoder = GaussianNetwork(inputs, n_hidden, n_layers, n_latent)
        self.likelihood = LIKELIHOODS[likelihood](n_latent, n_genes, n_hidden, n_layers)

    @abstractmethod
    def effects(self) -> Tensor:
        """Sample the effects of all perturbations from their prior, [..., T, K]."""

    @abstractmethod
    def effects_guide(self) -> Tensor:
        """Sample the effects of all perturbations from their guide, [..., T, K]."""

    def effects_from(self, shared: dict[str, Tensor]) -> Tensor:
        """Put drawn variables together to the effects, [..., T, K]."""
        with torch.no_grad(), pyro.poutine.condition(data=shared):
            return self.effects()

    def mask_probability(self) -> Tensor | None:
        """Posterior probability that a perturbation moves a latent dimension, T x K, if any."""
        return None

    def model(self, batch: Batch) -> None:
        """p(effects) prod_i p(z_i^b) p(x_i | z_i^b + shift_i, l_i)."""
        shift = self.shift(self.effects(), batch)
        with self.cells(batch):
            basal = pyro.sample("basal", self.basal_prior(shift))
            counts = self.likelihood(basal + shift, batch.library_size)
            pyro.sample("counts", counts, obs=batch.counts)

    def guide(self, batch: Batch) -> None:
        """q(effects) prod_i q(z_i^b | x_i, shift_i)."""
        shift = self.shift(self.effects_guide(), batch)
        with self.cells(batch):
            pyro.sample("basal", Normal(*self.encode(batch.counts, shift)).to_event(1))

    def basal_prior(self, like: Tensor) -> Normal:
        """N(0, I) over K dimensions, of the device and type of `like`."""
        return Normal(like.new_zeros(self.n_latent), like.new_ones(self.n_latent)).to_event(1)

    def encode(self, counts: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of q(z^b | x, shift), each [..., B, K]."""
        standardised = self.standardise(counts)
        if self.basal_encoder == "correlated":
            return self.encoder(standardised, shift)
        return self.encoder(standardised)

    @staticmethod
    def shift(effects: Tensor, batch: Batch) -> Tensor:
        """sum_t d_it effect_t for each cell, [..., B, K]; added up once per condition."""
        return (batch.dosage @ effects).index_select(-2, batch.condition)

    def perturbations(self) -> pyro.plate:
        """Plate over perturbations."""
        return pyro.plate("perturbations", self.n_perturbations, dim=-1)

    @staticmethod
    def cells(batch: Batch) -> pyro.plate:
        """Plate over cells, whose terms weigh N / B."""
        drawn = torch.arange(len(batch.counts), device=batch.counts.device)
        return pyro.plate("cells", batch.n_cells, subsample=drawn, dim=-1)
