"""Base class of generative models of perturbed cells, and of their guides."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
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
        Distinct rows of the design matrix, C x T: conditions by perturbations; and after these
        by effects in one context alone, if the model has any.
    condition
        Row of `design` of each cell, length B.
    n_cells
        Number of cells N that the batch represents.
    covariates
        Covariates of the cells, B x covariates, as the only item; empty without covariates.
    targets
        For each condition, which of the model's pairs of a perturbation and its target gene it
        has, conditions x pairs, and their doses, 0 where it has fewer; empty for a model without
        on-target effects.
    """

    counts: Tensor
    library_size: Tensor
    design: Tensor
    condition: Tensor
    n_cells: int
    covariates: tuple[Tensor, ...] = ()
    targets: tuple[Tensor, ...] = ()


class PerturbationModel(nn.Module, ABC):
    """Generative model of counts under perturbations, and its guide.

    The joint density of global variables w, cells' own variables z and counts x, given library
    sizes l and covariates c, such as the batch, is::

        p(w) prod_i p(z_i) p(x_i | h(z_i, shift_i), l_i, c_i),   shift_i = sum_t d_it effect_t(w)

    The logits of genes that a perturbation targets have a term of their own, if the model has
    on-target effects (:class:`OnTarget`).

    A family defines p(w), p(z), h and the guide q(w) prod_i q(z_i | x_i, shift_i, c_i) by the four
    methods below; the prior of the cells' own variables depends neither on the perturbation nor
    on covariates.
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
    n_covariates
        C, number of covariates that encoder and decoder take.
    """

    infers_basal_state: ClassVar[bool] = False  # a latent state without perturbation effects
    shared_effects: Sequence[int] = ()  # perturbation of each effect in one context alone
    n_features: int | None = None  # of each perturbation, if the prior depends on any
    likelihood: Likelihood

    def __init__(self, n_genes: int, n_perturbations: int, n_latent: int, likelihood: str) -> None:
        super().__init__()
        self.n_perturbations = n_perturbations
        self.n_latent = n_latent
        self.standardise = Standardise(n_genes, logarithm=likelihood != "normal")
        self.on_target: OnTarget | None = None

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
    def cell_guide(self, batch: Batch, shift: Tensor) -> None:
        """Sample cells' own variables from the guide, given counts, covariates and shifts."""

    def model(self, batch: Batch) -> None:
        """Run the generative model p(w) prod_i p(z_i) p(x_i | h(z_i, shift_i), l_i, c_i)."""
        shift = shift_of_cells(self.global_prior(), batch)
        own: tuple[Tensor, ...] = ()
        if self.on_target is not None:
            own = self.on_target.of_conditions(self.on_target.prior(), *batch.targets)
        with self.cells(batch):
            self.cell_model(batch, shift, own)

    def cell_model(self, batch: Batch, shift: Tensor, own: tuple[Tensor, ...] = ()) -> None:
        """Run p(z_i) p(x_i | h(z_i, shift_i), l_i, c_i) for each cell.

        `own` has the target genes of the conditions and their effects, as of
        :meth:`OnTarget.of_conditions`.
        """
        given = (batch.library_size, *batch.covariates)
        counts = self.likelihood(
            self.cell_prior(shift), *given, own=own_of_cells(own, batch.condition)
        )
        pyro.sample(COUNTS, counts, obs=batch.counts)

    def guide(self, batch: Batch) -> None:
        """Run the guide q(w) prod_i q(z_i | x_i, shift_i, c_i)."""
        shift = shift_of_cells(self.global_guide(), batch)
        if self.on_target is not None:
            self.on_target.guide()
        with self.cells(batch):
            self.cell_guide(batch, shift)

    def mask_start(self) -> tuple[nn.Parameter, Sequence[float], float] | None:
        """Return what a start of the masks at their evidence needs.

        Returns
        -------
        tuple or None
            Logits of the guide's masks, T x K, the prior probability of an open mask of each
            perturbation and the prior standard deviation of an effect, in basal standard
            deviations. None for a family without masks, or with a guide that has no such logits.
        """
        return None

    def given_features(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return what features of perturbations tell of their masks and embeddings.

        Returns
        -------
        tuple or None
            Logits of the prior of masks, location and scale of that of embeddings, each T x K. None
            for a family whose prior does not depend on features.
        """
        return None

    def update_prior(self, probability: Tensor, location: Tensor) -> None:
        """Update the weights of features from posterior masks and embeddings, if there are any.

        Parameters
        ----------
        probability
            q(m_tk = 1), T x K.
        location
            Mean of q(e_tk | m_tk = 1), T x K.
        """

    def encoder_counts(self, batch: Batch) -> Tensor:
        """Standardise counts for the encoder, B x G, without those of a cell's target genes.

        They are set to the mean of the training cells. The on-target effect explains them; an
        encoder that reads them takes a part of this effect for the cell's own state.
        """
        x: Tensor = self.standardise(batch.counts)
        if self.on_target is None:
            return x
        pairs, doses = batch.targets
        # a place without a target repeats the first one, so that no gene is written differently
        genes = self.on_target.gene[torch.where(doses != 0, pairs, pairs[:, :1])]
        genes, none = own_of_cells((genes, doses[:, :1] == 0), batch.condition)
        return x.scatter(-1, genes, x.gather(-1, genes) * none)

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


class OnTarget(nn.Module):
    """Effects of perturbations on the expression of the genes that they target.

    For each pair j of a perturbation t and a measured gene g that it targets, the decoder's logit
    of g, before the softmax, rises by d_it o_j in a cell at dose d_it::

        o_j ~ N(0, s^2),  q(o_j) = N(mu_j, sigma_j), mu = 0 and sigma = 0.1 at the start

    A latent factor that is shared by many genes cannot hold the change of a single one. Cells
    differ in how they respond (some escape), so that the counts of a target are more dispersed in
    perturbed cells: the logarithm of the concentration of g changes by d_it f_j, f = 0 at the start
    (learnt as the concentrations of genes are, for the Gamma-Poisson likelihood alone).

    Parameters
    ----------
    genes
        Index of the gene of each pair, length J.
    prior_scale
        s, natural logarithm.
    """

    gene: Tensor

    def __init__(self, genes: Sequence[int], prior_scale: float) -> None:
        super().__init__()
        self.prior_scale = prior_scale
        self.register_buffer("gene", torch.tensor(list(genes), dtype=torch.long))
        self.location = nn.Parameter(torch.zeros(len(genes), 1))
        self.log_scale = nn.Parameter(torch.full((len(genes), 1), math.log(0.1)))
        self.log_factor = nn.Parameter(torch.zeros(len(genes)))

    def prior(self) -> Tensor:
        """Sample o ~ p(o), [..., J]."""
        zero = torch.zeros_like(self.location)
        return self._sample(Normal(zero, torch.full_like(zero, self.prior_scale)))

    def guide(self) -> Tensor:
        """Sample o ~ q(o), [..., J]."""
        return self._sample(Normal(self.location, self.log_scale.exp()))

    def _sample(self, normal: Normal) -> Tensor:
        with pyro.plate("targets", len(self.gene), dim=-1):
            effect: Tensor = pyro.sample("on_target", normal.to_event(1))
        return effect[..., 0]

    def of_conditions(self, effects: Tensor, pairs: Tensor, doses: Tensor) -> tuple[Tensor, ...]:
        """Compute the terms d_t o_j and d_t f_j of conditions.

        Parameters
        ----------
        effects
            o, [..., J].
        pairs, doses
            As of :attr:`Batch.targets`, C x M.

        Returns
        -------
        genes : Tensor
            C x M.
        terms : Tensor
            Of logits, [..., C, M].
        log_factors : Tensor
            Of logarithms of concentrations, C x M.
        """
        return self.gene[pairs], effects[..., pairs] * doses, self.log_factor[pairs] * doses


def own_of_cells(own: tuple[Tensor, ...], condition: Tensor) -> tuple[Tensor, ...]:
    """Select the target genes and their terms for the condition of each cell."""
    return tuple(each.index_select(-2, condition) for each in own)


def shift_of_conditions(effects: Tensor | None, design: Tensor) -> Tensor:
    """Compute sum_t d_t effect_t for rows of the design matrix, [..., C, size]."""
    return design if effects is None else design @ effects


def shift_of_cells(effects: Tensor | None, batch: Batch) -> Tensor:
    """Compute sum_t d_it effect_t for each cell, [..., B, size].

    It is computed once per condition, or once per cell if there are fewer cells than conditions.
    """
    if len(batch.condition) < len(batch.design):
        return shift_of_conditions(effects, batch.design.index_select(0, batch.condition))
    return shift_of_conditions(effects, batch.design).index_select(-2, batch.condition)
