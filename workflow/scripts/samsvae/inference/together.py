"""Several seeds of a model, trained as one batched program.

A small model leaves most of a GPU idle, and its step is mostly the launch of kernels. Here the
weights of all seeds are stacked and every operation of a step handles all of them. Each seed keeps
its own initial weights, order of cells and random numbers, so that it ends as it would alone, but
for rounding.
"""

import copy
import logging
import signal as signals
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn

import pyro
import torch
from torch import Tensor

from samsvae.inference.cells import Cells
from samsvae.inference.course import Course
from samsvae.inference.divergence import describe_batch
from samsvae.inference.interruption import asked_to_end
from samsvae.inference.joint_step import JointStep
from samsvae.inference.noise import RandomStream
from samsvae.inference.progress import Progress
from samsvae.inference.resume import (
    StateFile,
    named,
    optimiser_tensors,
    set_optimiser_tensors,
    unnamed,
)
from samsvae.inference.step import Training, matmul_precision
from samsvae.inference.trainer import (
    Fitted,
    check_cells,
    evaluation_due,
    interrupted,
    mean_bound,
    validation_bound,
)
from samsvae.models.base import PerturbationModel

logger = logging.getLogger(__name__)


def fit_together(
    build: Callable[[], PerturbationModel],
    train: Cells,
    validation: Cells,
    training: Training,
    seeds: Sequence[int],
    state_file: StateFile | None = None,
) -> list[Fitted]:
    """Fit a model with several seeds at once.

    Parameters
    ----------
    build
        Makes the model; called once per seed, after the seed is set.
    train, validation
        Cells to fit, and cells to choose the best step by.
    training
        How to fit. With `patience`, a seed keeps what it had when its own was at an end.
    seeds
        One training each.
    state_file
        Where to keep the state at each evaluation. An unfinished training goes on from there and
        ends, on a CPU, with the same weights as an uninterrupted one.

    Returns
    -------
    list of Fitted
        By seed, what :func:`samsvae.inference.trainer.fit` would give.

    Raises
    ------
    InputError
        If there is no cell to train on or to validate on, or if the guide draws from a
        distribution other than Normal and Bernoulli.
    DivergenceError
        If a loss is not finite. The state of the last evaluation stays.
    Interrupted
        If a signal asked to end, the state being kept.
    """
    check_cells(train, validation)
    pyro.enable_validation(False)
    fitting = JointFitting(build, train, training, seeds)
    if state_file is not None:
        fitting.take_up(state_file)
    progress = Progress(training.max_steps, fitting.step)
    with matmul_precision(training.matmul_precision), asked_to_end() as asked:
        while not fitting.finished:
            while not fitting.evaluation_due:
                if asked:
                    fitting.leave(asked[0], state_file)
                fitting.take_step()
            fitted, validated = fitting.evaluate(validation, len(train))
            progress.report(fitting.step, fitted, validated)
            if state_file is not None:
                fitting.keep(state_file)
    return [member.fitted() for member in fitting.members]


class JointFitting:
    """A joint training under way: all that its next step depends on.

    Parameters
    ----------
    build
        Makes the model.
    cells
        The training cells.
    training
        How to fit.
    seeds
        One training each.
    """

    def __init__(
        self,
        build: Callable[[], PerturbationModel],
        cells: Cells,
        training: Training,
        seeds: Sequence[int],
    ) -> None:
        self.training = training
        self.members = [Member(build, cells, training, seed) for seed in seeds]
        self.take = JointStep([member.model for member in self.members], cells, training)
        self.step = 0
        self.since_evaluation: list[Tensor] = []

    @property
    def finished(self) -> bool:
        """Whether every seed is at its end."""
        return all(member.last_weights is not None for member in self.members)

    @property
    def evaluation_due(self) -> bool:
        """Whether as many steps as there should be lie behind the last evaluation."""
        return evaluation_due(self.step, self.since_evaluation, self.training)

    def take_step(self) -> None:
        """Move the parameters of every seed once."""
        positions = torch.stack([next(member.batches) for member in self.members])
        self.take.draw(member.stream for member in self.members)
        terms = self.take(positions, self.step)
        self.step += 1
        self.since_evaluation.append(torch.stack(list(terms.values())))

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

    def evaluate(self, validation: Cells, n_train: int) -> tuple[float, float]:
        """Judge what the seeds that are not at their end have reached.

        Returns
        -------
        fitted, validated : float
            Mean bounds of training cells, since the last evaluation, and of validation cells.
        """
        first = self.step - len(self.since_evaluation) + 1
        values = torch.stack(self.since_evaluation).unbind(-1)
        self.since_evaluation = []
        bounds = []
        for index, member in enumerate(self.members):
            if member.last_weights is None:
                names = list(self.take.terms)
                fitted = mean_bound(values[index], names, first, self.training, member.batch_of)
                weights = self.take.weights_of(index)
                validated = member.evaluate(weights, fitted, self.step, validation, n_train)
                bounds.append((fitted["elbo"], validated["elbo"]))
        of_training, of_validation = zip(*bounds, strict=True)
        return sum(of_training) / len(bounds), sum(of_validation) / len(bounds)

    def keep(self, state_file: StateFile) -> None:
        """Write everything down."""
        tensors = {
            **named("parameters", self.take.parameters_by_name),
            **optimiser_tensors(self.take.optimiser),
        }
        for index, member in enumerate(self.members):
            tensors |= named(f"member.{index}", member.tensors())
        if self.since_evaluation:
            tensors["since_evaluation"] = torch.stack(self.since_evaluation)
        # the order of an epoch may be a view that another tensor shares
        content = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        courses = [member.course.values() for member in self.members]
        state_file.save(content, {"step": self.step, "courses": courses})

    def take_up(self, state_file: StateFile) -> None:
        """Go on from what was written down, if anything was."""
        kept = state_file.load()
        if kept is None:
            return
        tensors, values = kept
        with torch.no_grad():
            for name, weights in unnamed("parameters", tensors).items():
                self.take.parameters_by_name[name].copy_(weights)
        set_optimiser_tensors(self.take.optimiser, tensors)
        for index, member in enumerate(self.members):
            member.set_tensors(unnamed(f"member.{index}", tensors))
            member.course.set_values(values["courses"][index])
        if "since_evaluation" in tensors:
            self.since_evaluation = list(tensors["since_evaluation"].to(self.take.positions.device))
        self.step = values["step"]
        logger.info("going on from step %d", self.step)


class Member:
    """One seed's part in a joint training.

    Parameters
    ----------
    build
        Makes the model.
    cells
        The training cells.
    training
        How to fit.
    seed
        Seed of initial weights, order of cells and samples.
    """

    def __init__(
        self,
        build: Callable[[], PerturbationModel],
        cells: Cells,
        training: Training,
        seed: int,
    ) -> None:
        pyro.set_rng_seed(seed)
        self.model = build().to(cells.counts.device)
        self.model.standardise.fit(*cells.moments(self.model.standardise.rescale))
        self.stream = RandomStream(cells.counts.device)
        self.batches = cells.random_batches(training.batch_size, seed)
        self.batch_of = partial(describe_batch, cells, training.batch_size, seed)
        self.training = training
        self.course = Course(self.model, training)
        self.last_weights: Mapping[str, Tensor] | None = None  # once it is at its end

    def evaluate(
        self,
        weights: Mapping[str, Tensor],
        terms: dict[str, float],
        step: int,
        validation: Cells,
        n_train: int,
    ) -> dict[str, float]:
        """Judge the weights that this seed has reached, and keep them if it is at its end."""
        self.model.load_state_dict(weights)
        with self.stream():
            validated = validation_bound(self.model, validation, self.training, n_train)
        self.course.judge(step, terms, validated, weights)
        if step >= self.training.max_steps or self.course.exhausted(step):
            self.last_weights = copy.deepcopy(self.model.state_dict())
        return validated

    def fitted(self) -> Fitted:
        """Give what the training of this seed led to, once it is at its end."""
        assert self.last_weights is not None
        self.model.load_state_dict(self.course.best_weights)
        return Fitted(self.model.eval(), self.last_weights, self.course.history())

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the weights and what the evaluations have shown."""
        return {
            **named("best", self.course.best_weights),
            **named("batches", self.batches.state()),
            **named("stream", self.stream.states),
            **named("last", dict(self.last_weights or {})),
        }

    def set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Set what :meth:`tensors` gave."""
        self.course.best_weights = unnamed("best", tensors)
        self.batches.set_state(unnamed("batches", tensors))
        self.stream.states = unnamed("stream", tensors)
        self.last_weights = unnamed("last", tensors) or None
