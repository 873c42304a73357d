"""Base class of generative models of counts under perturbations, and of their guides."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from samsvae.models.likelihoods import Likelihood
from samsvae.models.networks import Standardise

CELLS = "cells"  # name of the plate over cells
COUNTS = "counts"  # name of the observed site


@dataclass(frozen=True)
class Batch:
    """A minibatch of cells.

    Attributes
    ----------
    counts
        UMI counts, B x G.
    library_size
        Counts per cell, length B.
    design
        Distinct rows of the design matrix, C x T: conditions by perturbations.
    condition
        Row of `design` of each cell, length B.
    n_cells
        Number of cells N for which the batch stands.
    """

    counts: Tensor
    library_size: Tensor
    design: Tensor
    condition: Tensor
    n_cells: int


class PerturbationModel(nn.Module, ABC):
    """A generative model of counts under perturbations, and its guide.

    The joint density of global variables w, cells' own variables z and counts x is::

        p(w) prod_i p(z_i) p(x_i | h(z_i, shift_i), l_i),   shift_i = sum_t d_it effect_t(w)

    A family says what p(w), p(z), h and the guide q(w) prod_i q(z_i | x_i, shift_i) are, in the
    four methods below; its cells' own variables do not depend on the perturbation before the
    counts are seen. Training and every query of a trained model run these methods, so a family
    is evaluated with the priors that it is trained with.

    Parameters
    ----------
    n_genes, n_perturbations, n_latent
        G, T and K.
    n_hidden, n_layers
        Width and number of hidden layers of encoder and decoder.
    likelihood
        A name in :data:`samsvae.models.likelihoods.LIKELIHOODS`.
    """

    infers_basal_state: ClassVar[bool] = False  # by a network of its own, free of perturbations
    likelihood: Likelihood

    def __init__(self, n_genes: int, n_perturbations: int, n_latent: int, likelihood: str) -> None:
        super().__init__()
        self.n_perturbations = n_perturbations
        self.n_latent = n_latent
        self.standardise = Standardise(n_genes, logarithm=likelihood != "normal")

    @abstractmethod
    def global_prior(self) -> Tensor | None:
        """Sample the variables that all cells share from their prior.

        Returns
        -------
        Tensor or None
            Effect of each perturbation, [..., T, size]. None if the family has no such
            variables, and a cell's row of the design matrix is its shift.
        """

    @abstractmethod
    def global_guide(self) -> Tensor | None:
        """Sample the same variables from the guide; returns as :meth:`global_prior`."""

    @abstractmethod
    def cell_prior(self, shift: Tensor) -> Tensor:
        """Sample cells' own variables from their prior.

        Parameters
        ----------
        shift
            Sum of the effects of each cell's perturbations, [..., B, size].

        Returns
        -------
        Tensor
            What the decoder takes, [..., B, inputs]. The first K of them are the latent state.
        """

    @abstractmethod
    def cell_guide(self, counts: Tensor, shift: Tensor) -> None:
        """Sample cells' own variables from the guide, given counts B x G and shifts."""

    def model(self, batch: Batch) -> None:
        """p(w) prod_i p(z_i) p(x_i | h(z_i, shift_i), l_i)."""
        shift = shift_of_cells(self.global_prior(), batch)
        with self.cells(batch):
            self.cell_model(batch, shift)

    def cell_model(self, batch: Batch, shift: Tensor) -> None:
        """p(z_i) p(x_i | h(z_i, shift_i), l_i) of each cell."""
        counts = self.likelihood(self.cell_prior(shift), batch.library_size)
        pyro.sample(COUNTS, counts, obs=batch.counts)

    def guide(self, batch: Batch) -> None:
        """q(w) prod_i q(z_i | x_i, shift_i)."""
        shift = shift_of_cells(self.global_guide(), batch)
        with self.cells(batch):
            self.cell_guide(batch.counts, shift)

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


def shift_of_conditions(effects: Tensor | None, design: Tensor) -> Tensor:
    """sum_t d_t effect_t for rows of the design matrix, [..., C, size]."""
    return design if effects is None else design @ effects


def shift_of_cells(effects: Tensor | None, batch: Batch) -> Tensor:
    """sum_t d_it effect_t for each cell, [..., B, size]; added up once per condition."""
    return shift_of_conditions(effects, batch.design).index_select(-2, batch.condition)
