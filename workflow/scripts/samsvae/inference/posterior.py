"""Posterior queries of a trained model, by its own prior and guide.

A query never restates a density. It runs the methods of the family (:class:`PerturbationModel`)
under Pyro's handlers, so that a family with another prior, such as a learnt mixture, needs no code
here.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.noise import CellNoise, SampleFromNoise, seeded
from samsvae.inference.objective import latent_sites, log_weights
from samsvae.models.base import CELLS, Batch, PerturbationModel, shift_of_conditions

MASK = "mask"  # name of the site of the masks
STATE_DRAWS = 20
LARGEST_DRAW = 500_000  # elements, of draws x perturbations x latent dimensions
LARGEST_TENSOR = 4_000_000  # elements, of draws x cells x genes


def draw_effects(
    model: PerturbationModel, draws: int, sample_from: str = "posterior"
) -> Tensor | None:
    """Draw latent effects of all perturbations.

    Parameters
    ----------
    model
        Model and guide.
    draws
        Number of draws S.
    sample_from
        ``posterior``: from the guide; ``prior``.

    Returns
    -------
    Tensor or None
        [S, T, size]; None if the family has no global variables.
    """
    program = model.global_guide if sample_from == "posterior" else model.global_prior
    with pyro.plate("particles", draws, dim=-2):
        return program()


def draw_effects_in_parts(
    model: PerturbationModel, draws: int, largest: int = LARGEST_DRAW
) -> Iterator[tuple[int, Tensor | None]]:
    """Draw effects from the guide in parts of at most `largest` elements.

    Yields
    ------
    tuple
        Number of draws of the part, and the effects as of :func:`draw_effects`.
    """
    part = max(1, largest // (model.n_perturbations * model.n_latent))
    for first in range(0, draws, part):
        number = min(part, draws - first)
        yield number, draw_effects(model, number)


def draw_on_target(
    model: PerturbationModel,
    targets: tuple[Tensor, ...],
    draws: int,
    sample_from: str = "posterior",
) -> tuple[Tensor, ...]:
    """Draw the on-target effects of conditions.

    Parameters
    ----------
    model
        Model and guide.
    targets
        As of :attr:`samsvae.models.base.Batch.targets`.
    draws
        Number of draws S.
    sample_from
        ``posterior``: from the guide; ``prior``.

    Returns
    -------
    tuple of Tensor
        Genes, C x M, the terms of their logits, [S, C, M], and of the logarithms of their
        concentrations, C x M; nothing for a model without on-target effects.
    """
    if model.on_target is None:
        return ()
    program = model.on_target.guide if sample_from == "posterior" else model.on_target.prior
    with pyro.plate("particles", draws, dim=-2):
        return model.on_target.of_conditions(program(), *targets)


def looked_up_shifts(effects: Tensor | None, design: Tensor) -> Tensor:
    """Compute the shifts of conditions, without a product over all perturbations for single ones.

    The result is that of :func:`samsvae.models.base.shift_of_conditions`, [..., C, size].
    """
    if effects is None or (torch.count_nonzero(design, dim=1) > 1).any():
        return shift_of_conditions(effects, design)
    only = design.abs().argmax(dim=1)
    return effects.index_select(-2, only) * design.gather(1, only[:, None])


@dataclass(frozen=True)
class GlobalDraws:
    """Draws of the global variables that all cells share, one for each particle.

    Attributes
    ----------
    model
        Model and guide.
    effects
        [Q, T, size]; None if the family has no global variables.
    on_target
        On-target effects, [Q, J]; None for a model without any.
    """

    model: PerturbationModel
    effects: Tensor | None
    on_target: Tensor | None

    @classmethod
    @torch.no_grad()
    @pyro.validation_enabled(False)
    def of(cls, model: PerturbationModel, particles: int, seed: int) -> "GlobalDraws":
        """Draw from the guide the same variables as :func:`samsvae.inference.iwelbo.iwelbo`."""
        with seeded(seed, model.standardise.mean.device):
            parts = [effects for _, effects in draw_effects_in_parts(model, particles)]
            effects = (
                None
                if parts[0] is None
                else torch.cat([part for part in parts if part is not None])
            )
            if model.on_target is None:
                return cls(model, effects, None)
            with pyro.plate("particles", particles, dim=-2):
                return cls(model, effects, model.on_target.guide())

    def of_conditions(
        self, design: Tensor, targets: tuple[Tensor, ...], particles: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the shifts of conditions, [Q, C, size], and their on-target effects.

        Parameters
        ----------
        design
            Rows of the design matrix, C x T.
        targets
            As of :attr:`samsvae.models.base.Batch.targets`.
        particles
            Q.
        """
        shifts = looked_up_shifts(self.effects, design).expand(particles, -1, -1)
        if self.model.on_target is None or self.on_target is None:
            return shifts, ()
        return shifts, self.model.on_target.of_conditions(self.on_target, *targets)


def draw_covariates(
    trained: TrainedModel, number: int
) -> tuple[tuple[Tensor, ...], list[str] | None]:
    """Draw the covariates of cells at their frequencies among training cells.

    Returns
    -------
    covariates : tuple of Tensor
        Number x C as the only item; nothing for a model without covariates.
    contexts : list of str or None
        Context of each cell, if it is a covariate.
    """
    covariates = trained.covariates
    if not len(covariates):
        return (), None
    frequency = torch.tensor(covariates.frequency, device=trained.device)
    stratum = torch.multinomial(frequency, number, replacement=True)
    given = torch.from_numpy(covariates.of_strata()).to(trained.device)[stratum]
    names = covariates.contexts
    contexts = [name for at in stratum.tolist() if (name := names[at]) is not None]
    return (given,), contexts or None


def draw_shifts(model: PerturbationModel, design: Tensor, draws: int) -> Tensor:
    """Draw the latent shift of each condition from the guide.

    Parameters
    ----------
    model
        Model and guide.
    design
        Distinct rows of the design matrix, C x T.
    draws
        Number of draws S.

    Returns
    -------
    Tensor
        [S, C, size], or [C, size] if the family has no global variables.
    """
    done, shifts = 0, design
    for number, effects in draw_effects_in_parts(model, draws):
        part = looked_up_shifts(effects, design)
        if effects is None:
            return part
        if done == 0:
            shifts = part.new_empty(draws, *part.shape[1:])
        shifts[done : done + number] = part
        done += number
    return shifts


class AtMeans(Messenger):
    """Pyro handler that replaces the sample of each latent site by its mean."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and not msg["is_observed"] and not site_is_subsample(msg):
            msg["value"] = msg["fn"].mean


@torch.no_grad()
def mask_probability(model: PerturbationModel) -> Tensor | None:
    """Compute the posterior probability that a perturbation shifts a latent dimension.

    Returns
    -------
    Tensor or None
        T x K: the mean of the site "mask" in the guide, given the means of its parents. None if
        the family has no masks.
    """
    with AtMeans():
        sites: Any = poutine.trace(model.global_guide).get_trace().nodes
    return sites[MASK]["fn"].mean.detach() if MASK in sites else None


def has_masks(model: PerturbationModel) -> bool:
    """Whether the family has masks of latent dimensions."""
    return mask_probability(model) is not None


@torch.no_grad()
def unmasked_effects(model: PerturbationModel) -> Tensor | None:
    """Compute mean latent effects under the guide, given that every mask is 1.

    Returns
    -------
    Tensor or None
        T x K; None if the family has no masks.
    """
    probability = mask_probability(model)
    if probability is None:
        return None
    unmasked = {MASK: torch.ones_like(probability)}
    with AtMeans(), poutine.condition(data=unmasked):
        return model.global_guide()


@torch.no_grad()
def log_importance_weights(
    model: PerturbationModel,
    batch: Batch,
    shifts: Tensor,
    seed: int,
    on_target: tuple[Tensor, ...] = (),
    chosen: tuple[Tensor, int] | None = None,
) -> Tensor:
    """Compute log importance weights of cells' own variables.

    Parameters
    ----------
    model
        Model and guide.
    batch
        Cells.
    shifts
        Shifts of the conditions of `batch`, one draw for each of the Q particles, [Q, C, size].
    seed
        Seed of the cells' noise. Up to rounding, the weights of a cell depend neither on the order
        of cells nor on their batches.
    on_target
        Their on-target effects, as of :func:`draw_on_target`.
    chosen
        Where the Q particles are some of more: their indices, and the number of all. Each has the
        noise that it has among all.

    Returns
    -------
    Tensor
        log p(x | z_q, l) + log p(z_q) - log q(z_q | x), in nats, Q x B.
    """
    own = _without_repeats(shifts, batch.condition)
    which, particles = chosen or (None, len(shifts))
    with SampleFromNoise(CellNoise(batch.counts, particles, seed, which), strict=False):
        guide = poutine.trace(model.cell_guide).get_trace(batch, own)
    program = poutine.trace(poutine.replay(model.cell_model, guide))
    generative = program.get_trace(batch, own, on_target)
    return log_weights(latent_sites(guide), generative).expand(len(shifts), -1)


def _without_repeats(shifts: Tensor, condition: Tensor) -> Tensor:
    """Select the shifts of cells, without the dimensions over which they are equal.

    Parameters
    ----------
    shifts
        Of conditions, [Q, C, size].
    condition
        Condition of each of the B cells.

    Returns
    -------
    Tensor
        [Q or 1, B or 1, size]: 1 cell if all have one condition, and 1 particle if no draw differs
        from another, as for control cells.
    """
    if (condition == condition[:1]).all():
        condition = condition[:1]
    own = shifts.index_select(-2, condition)
    return own[:1] if (own == own[:1]).all() else own


class BasalCells:
    """Draws of cells' own variables, to be combined with any perturbation.

    The same draws under several perturbations are common random numbers: treatment arms differ by
    the perturbation alone.

    Parameters
    ----------
    model
        Model and guide.
    variables
        The cells' own variables by site, [S, n, ...].
    """

    def __init__(self, model: PerturbationModel, variables: dict[str, Tensor]) -> None:
        self.model, self.variables = model, variables

    @classmethod
    def from_prior(cls, model: PerturbationModel, control: Tensor, number: int) -> "BasalCells":
        """Draw cells from their prior.

        Parameters
        ----------
        model
            Model and guide.
        control
            Shift of control cells, [S, 1, size].
        number
            Number of cells n of each of the S draws.
        """
        with pyro.plate("particles", len(control), dim=-2), pyro.plate(CELLS, number, dim=-1):
            trace = poutine.trace(model.cell_prior).get_trace(control)
        return cls(model, _values(trace))

    @classmethod
    def from_guide(
        cls, model: PerturbationModel, batch: Batch, shifts: Tensor, at_means: bool = False
    ) -> "BasalCells":
        """Infer cells' own variables from their counts and the shift of their condition.

        Parameters
        ----------
        model
            Model and guide.
        batch
            Cells.
        shifts
            Shifts of the conditions of `batch`, [S, C, size].
        at_means
            Whether to use the means of the guide instead of samples.
        """
        own = shifts.index_select(-2, batch.condition)
        with ExitStack() as context:
            if at_means:  # outside the plates, which expand the output of a guide's network
                context.enter_context(AtMeans())
            context.enter_context(pyro.plate("particles", len(shifts), dim=-2))
            context.enter_context(model.cells(batch))
            trace = poutine.trace(model.cell_guide).get_trace(batch, own)
        return cls(model, _values(trace))

    def __getitem__(self, draws: slice) -> "BasalCells":
        """Select some of the S draws."""
        return BasalCells(self.model, {name: v[draws] for name, v in self.variables.items()})

    def decoder_input(self, shift: Tensor) -> Tensor:
        """Compute the decoder's input of perturbed cells, [S, n or C, inputs].

        Parameters
        ----------
        shift
            [S, n, size] for one of each cell, or [S, C, size] for all of one cell, n = 1.
        """
        return poutine.condition(self.model.cell_prior, data=self.variables)(shift)

    def latent_state(self, shift: Tensor) -> Tensor:
        """Compute the latent states of perturbed cells, [S, n or C, K]."""
        return self.decoder_input(shift)[..., : self.model.n_latent]


def _values(trace: Trace) -> dict[str, Tensor]:
    return {name: site["value"] for name, site in latent_sites(trace).items()}


@dataclass(frozen=True)
class CellStates:
    """Latent states of cells, cells x K, in basal standard deviations.

    Attributes
    ----------
    basal
        Without the effect of the cell's perturbation.
    total
        With this effect, before the decoder.
    """

    basal: np.ndarray
    total: np.ndarray


@torch.no_grad()
@pyro.validation_enabled(False)
def cell_states(
    trained: TrainedModel, screen: anndata.AnnData, keep: np.ndarray, seed: int
) -> CellStates:
    """Infer the posterior mean latent states of some cells.

    They are means of the guide: the location of a cell's own variable given its counts, averaged
    over draws of the global variables. Where the guide is correlated, the encoder takes the
    effect of the cell's perturbation as an input beside the counts, so that it can remove this
    effect from the counts. If a model were true and its guide exact, the posterior means of the
    basal states under one perturbation would have mean zero, as those under any other, by the law
    of total expectation; their spread may differ, since counts tell more of some states.

    Parameters
    ----------
    trained
        The model.
    screen
        Canonical cells, with the model's genes.
    keep
        Boolean, one per cell of the screen.
    seed
        Seed of the draws.

    Returns
    -------
    CellStates
        For the conditional VAE, whose decoder takes the perturbation beside the state, both are
        this state.
    """
    cells = Cells.of(screen, keep, trained.encoding, trained.device, trained.covariates)
    return states_of(trained.model, cells, effects_for_states(trained.model, seed))


@torch.no_grad()
@pyro.validation_enabled(False)
def effects_for_states(model: PerturbationModel, seed: int) -> Tensor | None:
    """Draw the effects over which posterior mean states are averaged, as :func:`draw_effects`."""
    with seeded(seed, model.standardise.mean.device):
        return draw_effects(model, STATE_DRAWS)


@torch.no_grad()
@pyro.validation_enabled(False)
def states_of(model: PerturbationModel, cells: Cells, effects: Tensor | None) -> CellStates:
    """Infer the posterior mean latent states of cells, averaged over draws of effects.

    Parameters
    ----------
    model
        Model and guide.
    cells
        The cells.
    effects
        As of :func:`effects_for_states`.
    """
    basal, total = [], []
    shifts = looked_up_shifts(effects, cells.design).expand(STATE_DRAWS, -1, -1)
    for batch in cells.batches(max(1, LARGEST_TENSOR // (STATE_DRAWS * cells.counts.shape[1]))):
        inferred = BasalCells.from_guide(model, batch, shifts, at_means=True)
        own = shifts.index_select(-2, batch.condition)
        basal.append(inferred.latent_state(torch.zeros_like(own)).mean(0).cpu().numpy())
        total.append(inferred.latent_state(own).mean(0).cpu().numpy())
    return CellStates(np.concatenate(basal), np.concatenate(total))
