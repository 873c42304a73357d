"""Fitting a model: Adam on minibatches, the best weights by the bound of the validation cells."""

import copy
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pandas as pd
import pyro
import torch

from samsvae.errors import InputError
from samsvae.inference.cells import Cells
from samsvae.inference.objective import BoundTerms, elbo, iwae, signed_sum
from samsvae.models.base import Batch, PerturbationModel

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


OBJECTIVES = {"elbo": elbo, "iwae": iwae}


def fit(
    build: Callable[[], PerturbationModel],
    train: Cells,
    validation: Cells,
    training: Training,
    seed: int,
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

    Returns
    -------
    model : PerturbationModel
        With the weights of the step with the highest validation bound.
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
    generator = torch.Generator().manual_seed(seed)
    model = build().to(train.counts.device)
    model.standardise.fit(*train.log_moments())
    take_step = make_step(model, training)
    batches = train.random_batches(training.batch_size, generator)
    progress = Progress(training.max_steps)
    rows: list[dict[str, Any]] = []
    best, best_weights = -float("inf"), copy.deepcopy(model.state_dict())
    for step, n_steps in evaluation_steps(training):
        terms = Averages()
        for _ in range(n_steps):
            terms.add(take_step(next(batches)))
        fitted = terms.mean()
        validated = validation_bound(model, validation, training, n_train=len(train))
        check_finite({**fitted, "validation elbo": validated["elbo"]}, step)
        rows.append({"step": step, "cells": "train", **fitted})
        rows.append({"step": step, "cells": "val", **validated})
        progress.report(step, fitted["elbo"], validated["elbo"])
        if validated["elbo"] > best:
            best, best_weights = validated["elbo"], copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    return model.eval(), pd.DataFrame(rows)


def make_step(model: PerturbationModel, training: Training) -> Callable[[Batch], BoundTerms]:
    """Prepare a gradient step of Adam.

    Returns
    -------
    callable
        Takes a batch, moves the model's parameters, and returns the bound's terms.
    """
    objective = OBJECTIVES[training.objective]
    parameters = list(model.parameters())
    optimiser = torch.optim.Adam(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay
    )

    def step(batch: Batch) -> BoundTerms:
        bound = objective(model, batch, training.particles, training.mask_kl)
        optimiser.zero_grad(set_to_none=True)
        bound.loss.backward()
        if training.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, training.gradient_clip)
        optimiser.step()
        return bound

    return step


def evaluation_steps(training: Training) -> Iterator[tuple[int, int]]:
    """Yield each step at which to evaluate, and how many steps lead to it."""
    done = 0
    while done < training.max_steps:
        steps = min(training.validate_every, training.max_steps - done)
        done += steps
        yield done, steps


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
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.started = time.monotonic()

    def report(self, step: int, train_elbo: float, validation_elbo: float) -> None:
        """Log one line; the bounds are in nats per cell."""
        speed = step / (time.monotonic() - self.started)
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
