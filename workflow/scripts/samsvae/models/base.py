"""What every model is to the rest of the library."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from samsvae.models.likelihoods import LIKELIHOODS
from samsvae.models.networks import Standardise

CELLS = "cells"  # name of the plate over cells
COUNTS = "counts"  # name of the observed site


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


class PerturbationModel(nn.Module, ABC):
    """A generative model of counts under perturbations, and its guide.

    Variables are of two kinds: shared by all cells (such as masks and embeddings), in the plate
    "perturbations", and a latent state of each cell, in the plate "cells".

    Parameters
    ----------
    n_genes, n_perturbations, n_latent
        G, T and K.
    n_decoded
        Size of what the decoder takes, K unless a model adds to it.
    n_hidden, n_layers
        Width and number of hidden layers of the decoder.
    likelihood
        A name in :data:`samsvae.models.likelihoods.LIKELIHOODS`.
    """

    mask_opening: Tensor

    def __init__(
        self,
        n_genes: int,
        n_perturbations: int,
        n_latent: int,
        n_decoded: int,
        n_hidden: int,
        n_layers: int,
        likelihood: str,
    ) -> None:
        super().__init__()
        self.n_perturbations = n_perturbations
        self.n_latent = n_latent
        self.standardise = Standardise(n_genes, logarithm=likelihood != "normal")
        # added to the logits of the guide's masks while training holds them open
        self.register_buffer("mask_opening", torch.zeros(()), persistent=False)
        self.likelihood = LIKELIHOODS[likelihood](n_decoded, n_genes, n_hidden, n_layers)

    @abstractmethod
    def model(self, batch: Batch) -> None:
        """Sample everything from the generative model, the batch's counts being observed."""

    @abstractmethod
    def guide(self, batch: Batch) -> None:
        """Sample every latent variable from the guide."""

    @abstractmethod
    def shared_guide(self) -> None:
        """Sample the variables that all cells share from the guide."""

    @abstractmethod
    def shared_prior(self) -> None:
        """Sample the variables that all cells share from the generative model."""

    @abstractmethod
    def influence(self, shared: Mapping[str, Tensor], dosage: Tensor) -> Tensor:
        """Compute what a dosage brings to a cell: added to its state, or given beside it.

        Parameters
        ----------
        shared
            Draws of the shared variables, [S, ...] by site.
        dosage
            C x T.

        Returns
        -------
        Tensor
            [S, C, size], or [C, size] where no variable is shared.
        """

    @abstractmethod
    def encode(self, counts: Tensor, influence: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the guide's Normal of cells' latent variables.

        Parameters
        ----------
        counts
            B x G.
        influence
            Of each cell, [..., B, size].

        Returns
        -------
        location, scale : Tensor
            Each [..., B, K]; without leading dimensions where the influence plays no part.
        """

    def perturbed(self, state: Tensor, influence: Tensor) -> Tensor:
        """Give an unperturbed state [..., K] an influence: what the decoder takes."""
        return state + influence

    def unperturbed(self, latent: Tensor, influence: Tensor) -> Tensor:
        """Take an influence from cells' latent variables [..., K].

        It leaves what `perturbed` starts from, which is N(0, I) before the counts are seen:
        `latent` itself unless a model says otherwise.
        """
        return latent

    def decoded(self, state: Tensor, shared: Mapping[str, Tensor], dosage: Tensor) -> Tensor:
        """Give a cell's unperturbed state a dosage.

        Parameters
        ----------
        state
            Draws from N(0, I), [S, 1, K], or [S, C, K] for one of its own in each condition.
        shared
            Draws of the shared variables, [S, ...] by site.
        dosage
            C x T.

        Returns
        -------
        Tensor
            What the decoder takes, [S, C, size].
        """
        return self.perturbed(state, self.influence(shared, dosage))

    def undosed(self, latent: Tensor, shared: Mapping[str, Tensor], dosage: Tensor) -> Tensor:
        """Take its dosage from a cell's latent variable, which leaves what `decoded` starts from.

        Parameters
        ----------
        latent
            Draws of the variable in the plate "cells", [S, B, K].
        shared
            Draws of the shared variables, [S, ...] by site.
        dosage
            B x T.

        Returns
        -------
        Tensor
            Unperturbed states, [S, B, K].
        """
        return self.unperturbed(latent, self.influence(shared, dosage))

    def effects_from(self, shared: Mapping[str, Tensor]) -> Tensor | None:
        """Put drawn variables together to latent effects, [S, T, K], if the model has any."""
        return None

    def mask_probability(self) -> Tensor | None:
        """Posterior probability that a perturbation moves a latent dimension, T x K, if any."""
        return None

    def unmasked_effects(self) -> Tensor | None:
        """Mean effects that the guide would have if every mask were 1, T x K, if it has masks."""
        return None

    def turn_axes(self, rotation: Tensor) -> None:
        """Turn the axes of latent space, z to z R, where a model has masks that refer to them.

        The priors are the same along all axes, and encoder and decoder are turned along, so that
        what is decoded stays as it was. Masks are not turned: they are meant to be open.

        Parameters
        ----------
        rotation
            R, orthogonal, K x K.
        """

    def standard_normal(self, like: Tensor) -> Normal:
        """N(0, I) over K dimensions, of the device and type of `like`."""
        return Normal(like.new_zeros(self.n_latent), like.new_ones(self.n_latent)).to_event(1)

    def perturbations(self) -> pyro.plate:
        """Plate over perturbations."""
        return pyro.plate("perturbations", self.n_perturbations, dim=-1)

    @staticmethod
    def cells(batch: Batch) -> pyro.plate:
        """Plate over cells, whose terms weigh N / B."""
        drawn = torch.arange(len(batch.counts), device=batch.counts.device)
        return pyro.plate(CELLS, batch.n_cells, subsample=drawn, dim=-1)


def shift_of_cells(effects: Tensor, batch: Batch) -> Tensor:
    """sum_t d_it effect_t for each cell, [..., B, K]; added up once per condition."""
    return (batch.dosage @ effects).index_select(-2, batch.condition)
