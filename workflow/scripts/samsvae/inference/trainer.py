"""Fitting a model: Adam on minibatches, the best weights by the bound of the validation cells."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from samsvae.errors import InputError
from samsvae.inference.cells import Cells
from samsvae.inference.divergence import check_finite, check_validated
from samsvae.inference.objective import elbo, signed_sum
from samsvae.inference.progress import Progress
from samsvae.inference.resume import (
    StateFile,
    named,
    optimiser_tensors,
    random_states,
    set_optimiser_tensors,
    set_random_states,
    unnamed,
)
from samsvae.inference.step import Training, TrainingStep, matmul_precision
from samsvae.models.base import PerturbationModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """What a training gives.

    Attributes
    ----------
    model
        In evaluation mode, with the weights of the step with the highest validation bound.
    last_weights
        The weights of the last step.
    history
        One row per evaluation and set of cells: step, cells (``train`` or ``val``), elbo and its
        terms in nats per cell.
    """

    model: PerturbationModel
    last_weights: Mapping[str, Tensor]
    history: pd.DataFrame


def fit(
    build: Callable[[], PerturbationModel],
    train: Cells,
    validation: Cells,
    training: Training,
    seed: int,
    state_file: StateFile | None = None,
) -> Fitted:
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
    Fitted
        The model, and how it came to be.

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
    model.standardise.fit(*train.log_moments())
    fitting = Fitting(model, train, training, seed)
    if state_file is not None:
        fitting.take_up(state_file)
    progress = Progress(training.max_steps, fitting.step)
    with matmul_precision(training.matmul_precision):
        while not fitting.finished:
            fitted = fitting.advance()
            validated = validation_bound(model, validation, training, n_train=len(train))
            check_validated(validated, fitting.step, training)
            fitting.judge(fitted, validated)
            progress.report(fitting.step, fitted["elbo"], validated["elbo"])
            if state_file is not None:
                fitting.keep(state_file)
    last_weights = copy.deepcopy(model.state_dict())
    model.load_state_dict(fitting.best_weights)
    return Fitted(model.eval(), last_weights, pd.DataFrame(fitting.rows))


class Fitting:
    """A training under way: all that its next step depends on.

    Parameters
    ----------
    model
        With its weights at the start.
    cells
        The training cells.
    training
        How to fit.
    seed
        Seed of the order of the cells.
    """

    def __init__(
        self, model: PerturbationModel, cells: Cells, training: Training, seed: int
    ) -> None:
        self.model, self.training = model, training
        self.batches = cells.random_batches(training.batch_size, seed)
        self.take = TrainingStep(model, cells, training)
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.best, self.best_step = -float("inf"), 0
        self.best_weights = copy.deepcopy(model.state_dict())

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the validation bound has long ceased to rise."""
        patience = self.training.patience
        if patience is not None and self.step - self.best_step >= patience * self.every:
            logger.info("stopped at step %d, the best being step %d", self.step, self.best_step)
            return True
        return self.step >= self.training.max_steps

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.training.validate_every

    def take_step(self) -> dict[str, Tensor]:
        """Move the parameters once, and return the bound's terms."""
        terms = self.take(next(self.batches), self.step)
        self.step += 1
        return terms

    def advance(self) -> dict[str, float]:
        """Go on to the next evaluation; the mean bound and its terms on the way."""
        first_step = self.step + 1
        until = min(self.step + self.every, self.training.max_steps)
        record: list[Tensor] = []
        while self.step < until:
            terms = self.take_step()
            record.append(torch.stack(list(terms.values())))
        values = torch.stack(record).cpu().double().numpy()
        check_finite(values, list(terms), first_step, self.training)
        means = dict(zip(terms, values.mean(axis=0).tolist(), strict=True))
        return {"elbo": signed_sum(means), **means}

    def judge(self, fitted: dict[str, float], validated: dict[str, float]) -> None:
        """Note an evaluation, and keep the weights if they are the best so far."""
        self.rows.append({"step": self.step, "cells": "train", **fitted})
        self.rows.append({"step": self.step, "cells": "val", **validated})
        if validated["elbo"] > self.best:
            self.best, self.best_step = validated["elbo"], self.step
            self.best_weights = copy.deepcopy(self.model.state_dict())

    def keep(self, state_file: StateFile) -> None:
        """Write everything down."""
        device = self.model.standardise.mean.device
        tensors = {
            **named("model", self.model.state_dict()),
            **named("best", self.best_weights),
            **named("batches", self.batches.state()),
            **optimiser_tensors(self.take.optimiser),
            **random_states(device),
        }
        # the order of an epoch may be a view that another tensor shares
        content = {name: tensor.clone() for name, tensor in tensors.items()}
        values = {name: getattr(self, name) for name in ("step", "best", "best_step", "rows")}
        state_file.save(content, values)

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
        set_optimiser_tensors(self.take.optimiser, tensors)
        set_random_states(tensors, device)
        for name, value in values.items():
            setattr(self, name, value)
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
    total: dict[str, Tensor] = {}
    for batch in validation.batches(training.batch_size):
        bound = elbo(model, batch, training.particles)
        share = len(batch.counts) / len(validation)
        for name, value in bound.terms_per_cell.items():
            is_global = name in {f"kl_{site}" for site in bound.kl_global}
            factor = share * len(validation) / n_train if is_global else share
            total[name] = total.get(name, torch.zeros_like(value)) + factor * value
    means = {name: float(value) for name, value in total.items()}
    return {"elbo": signed_sum(means), **means}
