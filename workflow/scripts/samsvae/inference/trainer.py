"""Training by Adam on minibatches, with the best checkpoint by the validation bound.

A trainer fits one model, or several replicates that differ by their seed.
"""

import copy
import logging
import signal as signals
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from samsvae.inference.cells import Cells, refuse_no_cells
from samsvae.inference.checkpoint import (
    StateFile,
    add_prefix,
    optimiser_tensors,
    remove_prefix,
    set_optimiser_tensors,
)
from samsvae.inference.machine import matmul_precision, note_ending_signals
from samsvae.inference.noise import RandomStream, seeded
from samsvae.inference.objective import elbo, signed_sum
from samsvae.inference.step import (
    Training,
    TrainingStep,
    check_finite,
    check_validated,
    describe_batch,
)
from samsvae.models.base import PerturbationModel
from samsvae.runtime.errors import Interrupted
from samsvae.runtime.script import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """Fitted model with its training history.

    Attributes
    ----------
    model
        In evaluation mode, at the best checkpoint: the step with the highest validation bound
        among those at which masks have settled.
    last_weights
        Weights of the last step.
    history
        One row per evaluation and set of cells: step, cells (``train`` or ``val``), elbo and its
        terms in nats per cell.
    """

    model: PerturbationModel
    last_weights: Mapping[str, Tensor]
    history: pd.DataFrame


@pyro.validation_enabled(False)
def fit(
    build: Callable[[], PerturbationModel],
    train: Cells,
    validation: Cells,
    training: Training,
    seeds: Sequence[int],
    state_file: StateFile | None = None,
) -> list[Fitted]:
    """Fit a model with one or several seeds.

    The random number generators of the caller stay as they are.

    Parameters
    ----------
    build
        Builds the model; called once per seed.
    train, validation
        Cells to fit, and cells to select the best checkpoint by. Test cells are not used.
    training
        Training configuration. With `patience`, each replicate stops early by its own validation
        bound.
    seeds
        Seed of initial weights, order of cells and samples, of each replicate.
    state_file
        File of the state, saved at each evaluation. An unfinished training resumes from it and, on
        a CPU, ends with the same weights as an uninterrupted one.

    Returns
    -------
    list of Fitted
        By seed, the model and its history.

    Raises
    ------
    InputError
        If there are no training or validation cells, or if several replicates are to be trained
        and a distribution of the guide is no function of given noise.
    DivergenceError
        If the loss is not finite. The state of the last evaluation stays.
    Interrupted
        If a signal asked to end; the state is saved first.
    """
    for name, cells in (("training", train), ("validation", validation)):
        refuse_no_cells(name, len(cells))
    trainer = Trainer(build, train, training, seeds)
    if state_file is not None:
        trainer.resume(state_file)
    with ExitStack() as context:
        context.enter_context(matmul_precision(training.matmul_precision))
        received = context.enter_context(note_ending_signals())
        if len(seeds) == 1:  # a single stream: enter it once
            context.enter_context(trainer.replicates[0].stream())
        while not trainer.finished:
            while not trainer.evaluation_due:
                if received:
                    trainer.interrupt(received[0], state_file)
                trainer.take_step()
            trainer.evaluate(validation)
            if state_file is not None:
                trainer.save(state_file)
    return [replicate.fitted() for replicate in trainer.replicates]


class Trainer:
    """State of a training: everything that its next step depends on.

    Parameters
    ----------
    build
        Builds the model.
    cells
        The training cells.
    training
        Training configuration.
    seeds
        Seeds of the replicates.
    """

    def __init__(
        self,
        build: Callable[[], PerturbationModel],
        cells: Cells,
        training: Training,
        seeds: Sequence[int],
    ) -> None:
        self.cells, self.training = cells, training
        self.replicates: list[Replicate] = []
        for seed in seeds:
            moments = self.replicates[0].moments if self.replicates else None
            self.replicates.append(Replicate(build, cells, training, seed, moments))
        self.training_step = TrainingStep([r.model for r in self.replicates], cells, training)
        self.step = 0
        self.since_evaluation: list[Tensor] = []  # terms of the steps, terms x replicates
        self.progress = Progress("step", training.max_steps, " steps", every=0)

    @property
    def finished(self) -> bool:
        """Whether every replicate is finished."""
        return all(replicate.last_weights is not None for replicate in self.replicates)

    @property
    def evaluation_due(self) -> bool:
        """Whether the validation cells are to be evaluated at this step."""
        training = self.training
        return bool(self.since_evaluation) and (
            self.step >= training.max_steps or self.step % training.validate_every == 0
        )

    def take_step(self) -> dict[str, Tensor]:
        """Update the weights of every replicate; return terms of the bounds, each of length R."""
        positions = torch.stack([next(replicate.batches) for replicate in self.replicates])
        streams = [replicate.stream for replicate in self.replicates]
        terms = self.training_step(positions, self.step, streams)
        self.step += 1
        self.since_evaluation.append(torch.stack(list(terms.values())))
        return terms

    def evaluate(self, validation: Cells) -> None:
        """Evaluate the replicates that are not finished."""
        names = list(self.training_step.terms)
        steps, self.since_evaluation = torch.stack(self.since_evaluation), []
        first = self.step - len(steps) + 1
        bounds = []
        for index, replicate in enumerate(self.replicates):
            if replicate.last_weights is None:
                fitted = mean_bound(
                    steps[..., index], names, first, self.training, replicate.describe_batch
                )
                model = self.training_step.replicate(index)
                with replicate.stream(), self.training_step.masks:
                    validated = validation_bound(
                        model, validation, self.training, n_train=len(self.cells)
                    )
                replicate.record(model, self.step, fitted, validated)
                bounds.append((fitted["elbo"], validated["elbo"]))
        self._log_progress(*(sum(of) / len(bounds) for of in zip(*bounds, strict=True)))

    def _log_progress(self, train_elbo: float, validation_elbo: float) -> None:
        self.progress.set_postfix_str(
            f"ELBO per cell: train {train_elbo:.2f}, validation {validation_elbo:.2f}",
            refresh=False,
        )
        self.progress.update(self.step - self.progress.n)

    def interrupt(self, signal: signals.Signals, state_file: StateFile | None) -> None:
        """Save the state and end the training.

        Raises
        ------
        Interrupted
            Always.
        """
        resumes = ""
        if state_file is not None:
            self.save(state_file)
            resumes = "; the same command resumes from there"
        raise Interrupted(f"interrupted by {signal.name} after step {self.step}{resumes}", signal)

    def save(self, state_file: StateFile) -> None:
        """Save everything that the next step depends on."""
        tensors = {
            **add_prefix("weights", self.training_step.weights),
            **optimiser_tensors(self.training_step.optimiser),
        }
        for index, replicate in enumerate(self.replicates):
            tensors |= add_prefix(f"replicate.{index}", replicate.tensors())
        if self.since_evaluation:
            tensors["since_evaluation"] = torch.stack(self.since_evaluation)
        # the order of an epoch may be a view that another tensor shares
        content = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        histories = [replicate.history.values() for replicate in self.replicates]
        state_file.save(content, {"step": self.step, "histories": histories})

    def resume(self, state_file: StateFile) -> None:
        """Resume from a saved state, if there is one."""
        saved = state_file.load()
        if saved is None:
            return
        tensors, values = saved
        with torch.no_grad():
            for name, weight in remove_prefix("weights", tensors).items():
                self.training_step.weights[name].copy_(weight)
        set_optimiser_tensors(self.training_step.optimiser, tensors)
        for index, replicate in enumerate(self.replicates):
            replicate.set_tensors(remove_prefix(f"replicate.{index}", tensors))
            replicate.history.set_values(values["histories"][index])
        if "since_evaluation" in tensors:
            self.since_evaluation = list(tensors["since_evaluation"].to(self.cells.counts.device))
        self.step = values["step"]
        self.progress = Progress("step", self.training.max_steps, " steps", done=self.step, every=0)
        logger.info("resuming from step %d", self.step)


class Replicate:
    """Model, random numbers and history of one seed.

    Parameters
    ----------
    build
        Builds the model.
    cells
        The training cells.
    training
        Training configuration.
    seed
        Seed of initial weights, order of cells and samples.
    moments
        As of :meth:`Cells.moments`, which no seed changes; if None they are computed, in a pass
        over all cells.
    """

    def __init__(
        self,
        build: Callable[[], PerturbationModel],
        cells: Cells,
        training: Training,
        seed: int,
        moments: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        device = cells.counts.device
        with seeded(seed, device):
            self.model = build().to(device)
            self.stream = RandomStream(device)
        self.moments = moments or cells.moments(self.model.standardise.rescale)
        self.model.standardise.fit(*self.moments)
        self.batches = cells.random_batches(training.batch_size, seed)
        self.describe_batch = partial(describe_batch, cells, training.batch_size, seed)
        self.training = training
        self.history = History(self.model, training)
        self.last_weights: Mapping[str, Tensor] | None = None  # None until finished

    def record(
        self,
        model: PerturbationModel,
        step: int,
        fitted: Mapping[str, float],
        validated: Mapping[str, float],
    ) -> None:
        """Record an evaluation, and the last weights if the replicate is finished."""
        self.history.record(step, fitted, validated, model.state_dict())
        if step >= self.training.max_steps or self.history.is_exhausted(step):
            self.last_weights = copy.deepcopy(model.state_dict())

    def fitted(self) -> Fitted:
        """Return the fitted model of a finished replicate."""
        assert self.last_weights is not None
        self.model.load_state_dict(self.history.best_weights)
        return Fitted(self.model.eval(), self.last_weights, self.history.table())

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of the replicate but for its weights and history."""
        return {
            **add_prefix("best", self.history.best_weights),
            **add_prefix("batches", self.batches.state()),
            **add_prefix("stream", self.stream.states),
            **add_prefix("last", dict(self.last_weights or {})),
        }

    def set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what :meth:`tensors` returned."""
        self.history.best_weights = remove_prefix("best", tensors)
        self.batches.set_state(remove_prefix("batches", tensors))
        self.stream.states = remove_prefix("stream", tensors)
        self.last_weights = remove_prefix("last", tensors) or None


class History:
    """Training history, best checkpoint and early stopping.

    Parameters
    ----------
    model
        With its initial weights.
    training
        Training configuration.
    """

    def __init__(self, model: PerturbationModel, training: Training) -> None:
        self.training = training
        self.first_settled_step = training.first_settled_step(model)
        self.rows: list[dict[str, Any]] = []
        self.best, self.best_step = -float("inf"), 0
        self.best_weights = copy.deepcopy(model.state_dict())

    def record(
        self,
        step: int,
        fitted: Mapping[str, float],
        validated: Mapping[str, float],
        weights: Mapping[str, Tensor],
    ) -> None:
        """Record an evaluation; copy the weights if masks have settled and they are the best."""
        check_validated(validated, step, self.training)
        self.rows.append({"step": step, "cells": "train", **fitted})
        self.rows.append({"step": step, "cells": "val", **validated})
        if step >= self.first_settled_step and validated["elbo"] > self.best:
            self.best, self.best_step = validated["elbo"], step
            self.best_weights = copy.deepcopy(dict(weights))

    def is_exhausted(self, step: int) -> bool:
        """Whether the validation bound has not improved for `patience` evaluations."""
        patience = self.training.patience
        if patience is None or not self.best_step:
            return False
        if step - self.best_step < patience * self.training.validate_every:
            return False
        logger.info("stopped early at step %d; best checkpoint: step %d", step, self.best_step)
        return True

    def values(self) -> dict[str, Any]:
        """Return the history but for the best weights, as JSON-like values."""
        return {"best": self.best, "best_step": self.best_step, "rows": self.rows}

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Restore what :meth:`values` returned."""
        self.best, self.best_step = values["best"], values["best_step"]
        self.rows = values["rows"]

    def table(self) -> pd.DataFrame:
        """Tabulate the history, one row per evaluation and set of cells."""
        return pd.DataFrame(self.rows)


def mean_bound(
    terms: Tensor,
    names: Sequence[str],
    first_step: int,
    training: Training,
    batch_of: Callable[[int], str],
) -> dict[str, float]:
    """Average the bound and its terms over steps; all must be finite.

    Parameters
    ----------
    terms
        Steps x terms, nats per cell.
    names
        Names of the terms.
    first_step
        Number of the first of these steps, from 1.
    training
        Training configuration.
    batch_of
        Describes the batch of a step.

    Returns
    -------
    dict of float
        elbo and its terms, nats per cell.
    """
    values = terms.cpu().double().numpy()
    check_finite(values, names, first_step, training, batch_of)
    means = dict(zip(names, values.mean(axis=0).tolist(), strict=True))
    return {"elbo": signed_sum(means), **means}


@torch.no_grad()
def validation_bound(
    model: PerturbationModel, validation: Cells, training: Training, n_train: int
) -> dict[str, float]:
    """Evaluate the bound on validation cells; each has 1 / `n_train` of the global terms.

    Returns
    -------
    dict of float
        elbo and its terms, nats per cell.
    """
    total: dict[str, Tensor] = {}
    for batch in validation.batches(training.batch_size):
        bound = elbo(model, batch, training.particles)
        fraction = len(batch.counts) / len(validation)
        for name, value in bound.terms_per_cell.items():
            is_global = name in {f"kl_{site}" for site in bound.kl_global}
            weight = fraction * len(validation) / n_train if is_global else fraction
            total[name] = total.get(name, torch.zeros_like(value)) + weight * value
    means = {name: float(value) for name, value in total.items()}
    return {"elbo": signed_sum(means), **means}
