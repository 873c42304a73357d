"""Fitting a model: Adam on minibatches, the best weights by the bound of the validation cells."""

import copy
import logging
import signal as signals
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import pandas as pd
import pyro
import torch
from torch import Tensor

from samsvae.errors import InputError, Interrupted
from samsvae.inference.cells import Cells
from samsvae.inference.course import Course
from samsvae.inference.divergence import check_finite, describe_batch
from samsvae.inference.interruption import asked_to_end
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
        In evaluation mode, with the weights of the step with the highest validation bound, among
        the steps at which masks are decided.
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
    DivergenceError
        If the loss is not finite. The state of the last evaluation stays.
    Interrupted
        If a signal asked to end, the state being kept.
    """
    check_cells(train, validation)
    pyro.enable_validation(False)
    pyro.set_rng_seed(seed)
    model = build().to(train.counts.device)
    model.standardise.fit(*train.moments(model.standardise.rescale))
    fitting = Fitting(model, train, training, seed)
    if state_file is not None:
        fitting.take_up(state_file)
    progress = Progress(training.max_steps, fitting.step)
    with matmul_precision(training.matmul_precision), asked_to_end() as asked:
        while not fitting.finished:
            while not fitting.evaluation_due:
                if asked:
                    fitting.leave(asked[0], state_file)
                fitting.take_step()
            fitted = fitting.mean_of_steps()
            validated = validation_bound(model, validation, training, n_train=len(train))
            fitting.course.judge(fitting.step, fitted, validated, model.state_dict())
            progress.report(fitting.step, fitted["elbo"], validated["elbo"])
            if state_file is not None:
                fitting.keep(state_file)
    last_weights = copy.deepcopy(model.state_dict())
    model.load_state_dict(fitting.course.best_weights)
    return Fitted(model.eval(), last_weights, fitting.course.history())


def check_cells(train: Cells, validation: Cells) -> None:
    """Refuse to train on nothing.

    Raises
    ------
    InputError
        If there is no cell to train on or to validate on.
    """
    for name, cells in (("training", train), ("validation", validation)):
        if not len(cells):
            raise InputError(f"There is no {name} cell. More cells are needed.")


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
        self.batch_of = partial(describe_batch, cells, training.batch_size, seed)
        self.take = TrainingStep(model, cells, training)
        self.step = 0
        self.course = Course(model, training)
        self.since_evaluation: list[Tensor] = []

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the validation bound has long ceased to rise."""
        return self.step >= self.training.max_steps or self.course.exhausted(self.step)

    @property
    def evaluation_due(self) -> bool:
        """Whether as many steps as there should be lie behind the last evaluation."""
        return evaluation_due(self.step, self.since_evaluation, self.training)

    def take_step(self) -> dict[str, Tensor]:
        """Move the parameters once, and return the bound's terms."""
        terms = self.take(next(self.batches), self.step)
        self.step += 1
        self.since_evaluation.append(torch.stack(list(terms.values())))
        return terms

    def mean_of_steps(self) -> dict[str, float]:
        """Mean bound and its terms over the steps since the last evaluation."""
        steps, self.since_evaluation = torch.stack(self.since_evaluation), []
        first = self.step - len(steps) + 1
        return mean_bound(steps, list(self.take.terms), first, self.training, self.batch_of)

    def leave(self, signal: signals.Signals, state_file: StateFile | None) -> NoReturn:
        """Write everything down, and end because a signal asks to.

        Raises
        ------
        Interrupted
            In any case.
        """
        if state_file is not None:
            self.keep(state_file)
        raise interrupted(signal, self.step, is_kept=state_file is not None)

    def keep(self, state_file: StateFile) -> None:
        """Write everything down."""
        device = self.model.standardise.mean.device
        course = self.course
        tensors = {
            **named("model", self.model.state_dict()),
            **named("best", course.best_weights),
            **named("batches", self.batches.state()),
            **optimiser_tensors(self.take.optimiser),
            **random_states(device),
        }
        if self.since_evaluation:
            tensors["since_evaluation"] = torch.stack(self.since_evaluation)
        # the order of an epoch may be a view that another tensor shares
        content = {name: tensor.clone() for name, tensor in tensors.items()}
        state_file.save(content, {"step": self.step, **course.values()})

    def take_up(self, state_file: StateFile) -> None:
        """Go on from what was written down, if anything was."""
        kept = state_file.load()
        if kept is None:
            return
        tensors, values = kept
        device = self.model.standardise.mean.device
        self.model.load_state_dict(unnamed("model", tensors))
        self.course.best_weights = unnamed("best", tensors)
        self.batches.set_state(unnamed("batches", tensors))
        set_optimiser_tensors(self.take.optimiser, tensors)
        set_random_states(tensors, device)
        if "since_evaluation" in tensors:
            self.since_evaluation = list(tensors["since_evaluation"].to(device))
        self.course.set_values(values)
        self.step = values["step"]
        logger.info("going on from step %d", self.step)


def evaluation_due(step: int, since_evaluation: Sequence[Tensor], training: Training) -> bool:
    """Whether so many steps have been taken that the validation cells are to be asked."""
    return bool(since_evaluation) and (
        step >= training.max_steps or step % training.validate_every == 0
    )


def interrupted(signal: signals.Signals, step: int, is_kept: bool) -> Interrupted:
    """Say that a signal has ended a training, and whether it can go on."""
    goes_on = "; the same command goes on from there" if is_kept else ""
    return Interrupted(f"asked to end by {signal.name} after step {step}{goes_on}", signal)


def mean_bound(
    terms: Tensor,
    names: Sequence[str],
    first_step: int,
    training: Training,
    batch_of: Callable[[int], str],
) -> dict[str, float]:
    """Average the bound and its terms over steps, all of which must be finite.

    Parameters
    ----------
    terms
        Steps x terms, nats per cell.
    names
        Names of the terms.
    first_step
        Number of the first of these steps, from 1.
    training
        How the model is fitted.
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
