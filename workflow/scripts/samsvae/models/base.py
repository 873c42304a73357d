"""Base class of generative models of perturbed cells, and of their guides."""

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
    """Minibatch of cells.

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
        Number of cells N that the batch represents.
    """

    counts: Tensor
    library_size: Tensor
    design: Tensor
    condition: Tensor
    n_cells: int


class PerturbationModel(nn.Module, ABC):
    """Generative model of counts under perturbations, and its guide.

    The joint density of global variables w, cells' own variables z and counts x is::

        p(w) prod_i p(z_i) p(x_i | h(z_i, shift_i), l_i),   shift_i = sum_t d_it effect_t(w)

    A family defines p(w), p(z), h and the guide q(w) prod_i q(z_i | x_i, shift_i) by the four
    methods below; the prior of the cells' own variables does not depend on the perturbation.
    Training and every query of a trained model run these methods, so a family is evaluated with
    the priors that it is trained with.

    Parameters
    ----------
    n_genes, n_perturbations, n_latent
        G, T and K.
    n_hidden, n_layers
        Width and number of hidden layers of encoder and decoder.
    likelihood
        A name in :data:`samsvae.models.likelihoods.LIKELIHOODS`.
    """

    infers_basal_state: ClassVar[bool] = False  # a latent state without perturbation effects
    likelihood: Likelihood

    def __init__(self, n_genes: int, n_perturbations: int, n_latent: int, likelihood: str) -> None:
        super().__init__()
        self.n_perturbations = n_perturbations
        self.n_latent = n_latent
        self.standardise = Standardise(n_genes, logarithm=likelihood != "normal")

    @abstractmethod
    def global_prior(self) -> Tensor | None:
        """Sample the global variables from their prior.

        Returns
        -------
        Tensor or None
            Effect of each perturbation, [..., T, size]. None if the family has no global
            variables; the shift of a cell is then its row of the design matrix.
        """

    @abstractmethod
    def global_guide(self) -> Tensor | None:
        """Sample the global variables from the guide; returns as :meth:`global_prior`."""

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
            Input of the decoder, [..., B, inputs]. Its first K entries are the latent state.
        """

    @abstractmethod
    def cell_guide(self, counts: Tensor, shift: Tensor) -> None:
        """Sample cells' own variables from the guide, given counts B x G and shifts."""

    def model(self, batch: Batch) -> None:
        """Run the generative model p(w) prod_i p(z_i) p(x_i | h(z_i, shift_i), l_i)."""
        shift = shift_of_cells(self.global_prior(), batch)
        with self.cells(batch):
            self.cell_model(batch, shift)

    def cell_model(self, batch: Batch, shift: Tensor) -> None:
        """Run p(z_i) p(x_i | h(z_i, shift_i), l_i) for each cell."""
        counts = self.likelihood(self.cell_prior(shift), batch.library_size)
        pyro.sample(COUNTS, counts, obs=batch.counts)

    def guide(self, batch: Batch) -> None:
        """Run the guide q(w) prod_i q(z_i | x_i, shift_i)."""
        shift = shift_of_cells(self.global_guide(), batch)
        with self.cells(batch):
            self.cell_guide(batch.counts, shift)

    def standard_normal(self, like: Tensor) -> Normal:
        """Return N(0, I) over K dimensions, with the device and type of `like`."""
        return Normal(like.new_zeros(self.n_latent), like.new_ones(self.n_latent)).to_event(1)

    def perturbations(self) -> pyro.plate:
        """Return the plate over perturbations."""
        return pyro.plate("perturbations", self.n_perturbations, dim=-1)

    @staticmethod
    def cells(batch: Batch) -> pyro.plate:
        """Return the plate over cells, which scales their terms by N / B."""
        drawn = torch.arange(len(batch.counts), device=batch.counts.device)
        return pyro.plate(CELLS, batch.n_cells, subsample=drawn, dim=-1)


def shift_of_conditions(effects: Tensor | None, design: Tensor) -> Tensor:
    """Compute sum_t d_t effect_t for rows of the design matrix, [..., C, size]."""
    return design if effects is None else design @ effects


def shift_of_cells(effects: Tensor | None, batch: Batch) -> Tensor:
    """Compute sum_t d_it effect_t for each cell, [..., B, size], once per condition."""
    return shift_of_conditions(effects, batch.design).index_select(-2, batch.condition)
