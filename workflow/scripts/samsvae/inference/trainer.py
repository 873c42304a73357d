"""Fitting a model: Adam on minibatches, the best weights by the bound of the validation cells."""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pandas as pd
import pyro
import torch

from samsvae.errors import InputError
from samsvae.inference.cells import Cells, RandomBatches
from samsvae.inference.mask_schedule import MaskSchedule
from samsvae.inference.objective import BoundTerms, elbo, iwae, signed_sum
from samsvae.inference.resume import (
    StateFile,
    named,
    optimiser_tensors,
    random_states,
    set_optimiser_tensors,
    set_random_states,
    unnamed,
)
from samsvae.models.base import PerturbationModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """How to fit; see the configuration's schema for each field."""

    max_steps: int = 30_000
    batch_size: int = 512
    particles: int = 5
    learning_rate: float = 3e-4
    weight_decay: float = 1e-6
    gradient_clip: float | None = 100.0
    validate_every: int = 500
    objective: str = "elbo"
    mask_kl: str = "sampled"
    open_masks: float = 0.2
    mask_kl_per_cell: float = 0.02


OBJECTIVES = {"elbo": elbo, "iwae": iwae}


def fit(
    build: Callable[[], PerturbationModel],
    train: Cells,
    validation: Cells,
    training: Training,
    seed: int,
    state_file: StateFile | None = None,
) -> tuple[PerturbationModel, pd.DataFrame]:
    """Fit a model.

    Parameters
    ----------
    build
        Makes the model; called after the seed is set.
    train, validation
        Cells to fit, and cells to choose the best step by. Test cells have no place here.
    training
        How to fit.
    seed
        Seed of initial weights, order of cells and samples.
    state_file
        Where to keep the state at each evaluation. An unfinished training goes on from there and
        ends, on a CPU, with the same weights as an uninterrupted one.

    Returns
    -------
    model : PerturbationModel
        With the weights of the step with the highest validation bound, among the steps at which
        masks are decided.
    history : DataFrame
        One row per evaluation and set of cells: step, cells (``train`` or ``val``), elbo and its
        terms in nats per cell.

    Raises
    ------
    InputError
        If there is no cell to train on or to validate on.
    FloatingPointError
        If the loss is not finite.
    """
    for name, cells in (("training", train), ("validation", validation)):
        if not len(cells):
            raise InputError(f"There is no {name} cell. More cells are needed.")
    pyro.enable_validation(False)
    pyro.set_rng_seed(seed)
    model = build().to(train.counts.device)
    model.standardise.fit(*train.moments(model.standardise.rescale))
    fitting = Fitting(model, train.random_batches(training.batch_size, seed), training)
    if state_file is not None:
        fitting.take_up(state_file)
    progress = Progress(training.max_steps, fitting.step)
    while fitting.step < training.max_steps:
        fitted = fitting.advance()
        validated = validation_bound(model, validation, training, n_train=len(train))
        check_finite({**fitted, "validation elbo": validated["elbo"]}, fitting.step)
        fitting.judge(fitted, validated)
        progress.report(fitting.step, fitted["elbo"], validated["elbo"])
        if state_file is not None:
            fitting.keep(state_file)
    model.load_state_dict(fitting.best_weights)
    return model.eval(), pd.DataFrame(fitting.rows)


class Fitting:
    """A training under way: all that its next step depends on.

    Parameters
    ----------
    model
        With its weights at the start.
    batches
        The training cells.
    training
        How to fit.
    """

    def __init__(
        self, model: PerturbationModel, batches: RandomBatches, training: Training
    ) -> None:
        self.model, self.batches, self.training = model, batches, training
        self.optimiser = torch.optim.Adam(
            model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        cells_per_perturbation = len(batches.cells) / model.n_perturbations
        self.masks = MaskSchedule(
            model,
            open_steps=round(training.open_masks * training.max_steps),
            max_steps=training.max_steps,
            weight=max(1.0, training.mask_kl_per_cell * cells_per_perturbation),
        )
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.best = -float("inf")
        self.best_weights = copy.deepcopy(model.state_dict())

    def take_step(self) -> BoundTerms:
        """Move the parameters once, and return the bound's terms."""
        objective = OBJECTIVES[self.training.objective]
        self.masks.prepare(self.step, self.optimiser)
        batch, particles = next(self.batches), self.training.particles
        bound = objective(self.model, batch, particles, self.training.mask_kl)
        self.optimiser.zero_grad(set_to_none=True)
        bound.loss_at(self.masks.weight).backward()
        if self.training.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.gradient_clip)
        self.optimiser.step()
        return bound

    def advance(self) -> dict[str, float]:
        """Go on to the next evaluation; the mean bound and its terms on the way."""
        terms = Averages()
        until = min(self.step + self.training.validate_every, self.training.max_steps)
        while self.step < until:
            terms.add(self.take_step())
            self.step += 1
        return terms.mean()

    def judge(self, fitted: dict[str, float], validated: dict[str, float]) -> None:
        """Note an evaluation, and keep the weights if masks are decided and they are the best."""
        self.rows.append({"step": self.step, "cells": "train", **fitted})
        self.rows.append({"step": self.step, "cells": "val", **validated})
        if self.masks.are_decided(self.step) and validated["elbo"] > self.best:
            self.best = validated["elbo"]
            self.best_weights = copy.deepcopy(self.model.state_dict())

    def keep(self, state_file: StateFile) -> None:
        """Write everything down."""
        device = self.model.standardise.mean.device
        tensors = {
            **named("model", self.model.state_dict()),
            **named("best", self.best_weights),
            **named("batches", self.batches.state()),
            **optimiser_tensors(self.optimiser),
            **random_states(device),
        }
        # the order of an epoch may be a view that another tensor shares
        content = {name: tensor.clone() for name, tensor in tensors.items()}
        state_file.save(content, {"step": self.step, "best": self.best, "rows": self.rows})

    def take_up(self, state_file: StateFile) -> None:
        """Go on from what was written down, if anything was."""
        kept = state_file.load()
        if kept is None:
            return
        tensors, values = kept
        device = self.model.standardise.mean.device
        self.model.load_state_dict(unnamed("model", tensors))
        self.best_weights = unnamed("best", tensors)
        self.batches.set_state(unnamed("batches", tensors))
        set_optimiser_tensors(self.optimiser, tensors)
        set_random_states(tensors, device)
        self.step, self.best, self.rows = values["step"], values["best"], values["rows"]
        logger.info("going on from step %d", self.step)


@torch.no_grad()
def validation_bound(
    model: PerturbationModel, validation: Cells, training: Training, n_train: int
) -> dict[str, float]:
    """Evaluate the bound on validation cells, the global terms shared out over training cells.

    Returns
    -------
    dict of float
        elbo and its terms, nats per cell.
    """
    terms = Averages()
    for batch in validation.batches(training.batch_size):
        terms.add(elbo(model, batch, training.particles), weight=len(batch.counts))
    terms.scale_global_terms(len(validation) / n_train)
    return terms.mean()


class Averages:
    """Weighted running means of the bound's terms, kept on the device until asked for."""

    def __init__(self) -> None:
        self.means: dict[str, torch.Tensor] = {}
        self.global_terms: set[str] = set()
        self.weight = 0.0

    def add(self, bound: BoundTerms, weight: float = 1.0) -> None:
        """Take one more bound into account."""
        self.weight += weight
        self.global_terms = {f"kl_{site}" for site in bound.kl_global}
        for name, value in bound.terms_per_cell.items():
            mean = self.means.get(name, torch.zeros_like(value))
            self.means[name] = mean + (value.detach() - mean) * (weight / self.weight)

    def scale_global_terms(self, factor: float) -> None:
        """Share the global terms out over another number of cells."""
        for name in self.global_terms:
            self.means[name] = factor * self.means[name]

    def mean(self) -> dict[str, float]:
        """Mean bound and means by term, nats per cell."""
        means = {name: float(value) for name, value in self.means.items()}
        return {"elbo": signed_sum(means), **means}


def check_finite(terms: dict[str, float], step: int) -> None:
    """Stop at a loss that is not a number.

    Raises
    ------
    FloatingPointError
        Naming the step and the terms.
    """
    broken = [name for name, value in terms.items() if not abs(value) < float("inf")]
    if broken:
        raise FloatingPointError(
            f"By step {step} of training, {', '.join(broken)} is no longer a finite number. "
            "Lower training.learning_rate or training.gradient_clip."
        )


class Progress:
    """Says how far training is, how fast, and how long it will take.

    Parameters
    ----------
    max_steps
        Steps of the whole training.
    first_step
        Steps that were done before.
    """

    def __init__(self, max_steps: int, first_step: int = 0) -> None:
        self.max_steps = max_steps
        self.first_step = first_step
        self.started = time.monotonic()

    def report(self, step: int, train_elbo: float, validation_elbo: float) -> None:
        """Log one line; the bounds are in nats per cell."""
        speed = (step - self.first_step) / (time.monotonic() - self.started)
        left = timedelta(seconds=round((self.max_steps - step) / speed))
        logger.info(
            "step %d/%d (%d %%)  %.1f steps/s  %s left  ELBO per cell: train %.2f, validation %.2f",
            step,
            self.max_steps,
            round(100 * step / self.max_steps),
            speed,
            left,
            train_elbo,
            validation_elbo,
        )
