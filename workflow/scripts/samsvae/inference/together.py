"""Several seeds of a model, trained as one batched program.

A small model leaves most of a GPU idle, and its step is mostly the launch of kernels. Here the
weights of all seeds are stacked and every operation of a step handles all of them. Each seed keeps
its own initial weights, order of cells and random numbers, so that it ends as it would alone, but
for rounding.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from samsvae.inference.cells import Cells
from samsvae.inference.course import Course
from samsvae.inference.divergence import describe_batch
from samsvae.inference.mask_schedule import turn_to_sparsest_axes
from samsvae.inference.noise import Draw, GivenNoise, RandomStream
from samsvae.inference.progress import Progress
from samsvae.inference.step import (
    RepeatedStep,
    Training,
    mask_schedule,
    matmul_precision,
    training_bound,
)
from samsvae.inference.trainer import Fitted, check_cells, mean_bound, validation_bound
from samsvae.models.base import PerturbationModel

logger = logging.getLogger(__name__)


def fit_together(
    build: Callable[[], PerturbationModel],
    train: Cells,
    validation: Cells,
    training: Training,
    seeds: Sequence[int],
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
        If a loss is not finite.
    """
    check_cells(train, validation)
    pyro.enable_validation(False)
    members = [Member(build, train, training, seed) for seed in seeds]
    take = JointStep([member.model for member in members], train, training)
    progress, step = Progress(training.max_steps), 0
    with matmul_precision(training.matmul_precision):
        while any(member.fitted is None for member in members):
            until = min(step + training.validate_every, training.max_steps)
            record: list[Tensor] = []
            for at in range(step, until):
                positions = torch.stack([next(member.batches) for member in members])
                take.draw(member.stream for member in members)
                terms = take(positions, at)
                record.append(torch.stack(list(terms.values())))
            values = torch.stack(record).unbind(-1)
            for index, member in enumerate(members):
                if member.fitted is None:
                    fitted = mean_bound(
                        values[index], list(terms), step + 1, training, member.batch_of
                    )
                    member.evaluate(take.weights_of(index), fitted, until, validation, len(train))
            step = until
            rows = [row for member in members for row in member.course.rows[-2:]]
            progress.report(step, _mean_elbo(rows, "train"), _mean_elbo(rows, "val"))
    return [member.fitted for member in members if member.fitted is not None]


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
        self.fitted: Fitted | None = None

    def evaluate(
        self,
        weights: Mapping[str, Tensor],
        terms: dict[str, float],
        step: int,
        validation: Cells,
        n_train: int,
    ) -> None:
        """Judge the weights that this seed has reached, and finish if it is at its end."""
        self.model.load_state_dict(weights)
        with self.stream():
            validated = validation_bound(self.model, validation, self.training, n_train)
        self.course.judge(step, terms, validated, weights)
        if step >= self.training.max_steps or self.course.exhausted(step):
            last_weights = copy.deepcopy(self.model.state_dict())
            self.model.load_state_dict(self.course.best_weights)
            self.fitted = Fitted(self.model.eval(), last_weights, self.course.history())


class JointStep(RepeatedStep):
    """The bounds of several models at a batch of cells for each.

    Parameters
    ----------
    models
        Alike but for their weights.
    cells
        The training cells.
    training
        How to fit.
    """

    def __init__(
        self, models: Sequence[PerturbationModel], cells: Cells, training: Training
    ) -> None:
        self.parameters_by_name, self.buffers = stack_module_state(list(models))
        size = min(training.batch_size, len(cells))
        device = cells.counts.device
        positions = torch.zeros(len(models), size, dtype=torch.long, device=device)
        super().__init__(self.parameters_by_name.values(), positions, training)
        self.cells = cells
        self.one = copy.deepcopy(models[0])  # takes the weights of each in turn
        self.masks = mask_schedule(
            self.one, len(cells), training, self.buffers["mask_opening"], self._turn_axes
        )
        self.bound = _Bound(self.one, cells, training, self.masks.weight)
        self.asked = self._noise_asked_for()
        self.noise = {
            name: torch.zeros(len(models), *draw.shape, device=device)
            for name, draw in self.asked.items()
        }

    def _noise_asked_for(self) -> dict[str, Draw]:
        seen = GivenNoise()
        with RandomStream(self.positions.device)(), torch.no_grad(), seen:
            self.bound.terms(self.positions[0])
        return seen.asked

    @torch.no_grad()
    def _turn_axes(self) -> None:
        for index in range(len(self.positions)):
            self.one.load_state_dict(self.weights_of(index))
            turn_to_sparsest_axes(self.one)
            for name, stacked in self.parameters_by_name.items():
                stacked[index].copy_(self.one.get_parameter(name))

    def draw(self, streams: Iterable[RandomStream]) -> None:
        """Draw the random numbers of the next step, each model's from its own stream."""
        for index, stream in enumerate(streams):
            with stream():
                for name, draw in self.asked.items():
                    self.noise[name][index] = draw(self.positions.device)

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the sum of the bounds with weighted masks, and the terms of each bound."""

        def of_one(
            parameters: Mapping[str, Tensor],
            buffers: Mapping[str, Tensor],
            positions: Tensor,
            noise: Mapping[str, Tensor],
        ) -> tuple[Tensor, dict[str, Tensor]]:
            state = {f"model.{name}": value for name, value in {**parameters, **buffers}.items()}
            return functional_call(self.bound, state, (positions, noise))

        losses, terms = vmap(of_one)(
            self.parameters_by_name, self.buffers, self.positions, self.noise
        )
        return losses.sum(), terms

    def clip(self, largest_norm: float) -> None:
        """Scale each model's gradient down to a norm."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        factor = (largest_norm / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))

    def weights_of(self, index: int) -> dict[str, Tensor]:
        """One model's weights."""
        stacked = {**self.parameters_by_name, **self.buffers}
        kept = self.one.state_dict()
        return {name: stacked[name].detach()[index].clone() for name in kept}


class _Bound(nn.Module):
    """A model's loss as a function of its weights, a batch and noise."""

    def __init__(
        self, model: PerturbationModel, cells: Cells, training: Training, mask_weight: Tensor
    ) -> None:
        super().__init__()
        self.model, self.cells, self.how = model, cells, training
        self.mask_weight = mask_weight

    def forward(
        self, positions: Tensor, noise: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with GivenNoise(noise):
            return self.terms(positions)

    def terms(self, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        bound = training_bound(self.model, self.cells.batch(positions), self.how)
        return bound.loss_at(self.mask_weight), bound.terms_per_cell


def _mean_elbo(rows: Sequence[Mapping[str, Any]], cells: str) -> float:
    bounds = [row["elbo"] for row in rows if row["cells"] == cells]
    return sum(bounds) / len(bounds)
