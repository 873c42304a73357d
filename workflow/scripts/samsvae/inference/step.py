"""One step of training; on a CUDA device recorded once and replayed as a graph."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from samsvae.inference.cells import Cells
from samsvae.inference.mask_schedule import (
    DECIDED,
    MaskSchedule,
    has_masks,
    turn_to_sparsest_axes,
)
from samsvae.inference.objective import BoundTerms, elbo, iwae
from samsvae.models.base import Batch, PerturbationModel

logger = logging.getLogger(__name__)

OBJECTIVES = {"elbo": elbo, "iwae": iwae}

# what PyTorch calls the ways to multiply float32 matrices
MATMUL_PRECISIONS = {"float32": "highest", "tf32": "high", "bfloat16": "medium"}

STEPS_BEFORE_CAPTURE = 3  # so that libraries and memory are set up when the graph is recorded


@dataclass(frozen=True)
class Training:
    """How to fit; see the configuration's schema for each field."""

    max_steps: int = 30_000
    batch_size: int = 512
    particles: int = 5
    learning_rate: float = 3e-4
    learning_rate_schedule: str = "constant"
    warm_up_steps: int = 0
    weight_decay: float = 1e-6
    gradient_clip: float | None = 100.0
    validate_every: int = 500
    patience: int | None = None
    objective: str = "elbo"
    mask_kl: str = "sampled"
    open_masks: float = 0.2
    mask_kl_per_cell: float = 0.02
    matmul_precision: str = "float32"
    cuda_graph: bool = True

    def learning_rate_at(self, step: int) -> float:
        """Step size of Adam at a step, counted from 0."""
        rate = self.learning_rate
        if self.warm_up_steps:
            rate *= min(1.0, (step + 1) / self.warm_up_steps)
        if self.learning_rate_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / self.max_steps))
        return rate

    @property
    def open_steps(self) -> int:
        """Steps at the start during which masks are held open."""
        return round(self.open_masks * self.max_steps)


class RepeatedStep(ABC):
    """A step that is taken again and again: a loss, its gradient, a move of the parameters.

    Nothing in a step waits for the device. So on a CUDA device the whole step, random numbers
    included, is recorded as a graph after a few steps and replayed from then on, which spares the
    launch of some hundred kernels one by one. Where that fails, steps go on as before.

    Parameters
    ----------
    parameters
        What to move.
    positions
        Cells of a batch, as the step will be given them.
    training
        How to fit.

    Attributes
    ----------
    masks
        What becomes of masks at each step; for a subclass to set.
    """

    masks: MaskSchedule

    def __init__(
        self, parameters: Iterable[nn.Parameter], positions: Tensor, training: Training
    ) -> None:
        self.training = training
        self.parameters = list(parameters)
        on_cuda = positions.device.type == "cuda"
        # a graph reads and writes the same memory each time
        self.positions = positions.clone()
        self.learning_rate = torch.tensor(training.learning_rate, device=positions.device)
        self.terms: dict[str, Tensor] = {}
        self.optimiser = torch.optim.Adam(
            self.parameters,
            lr=self.learning_rate,
            weight_decay=training.weight_decay,
            fused=True,
            capturable=on_cuda,
        )
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps_to_capture = STEPS_BEFORE_CAPTURE if on_cuda and training.cuda_graph else -1

    @abstractmethod
    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute what to minimise, and the terms of the bound in nats per cell."""

    @abstractmethod
    def clip(self, largest_norm: float) -> None:
        """Scale gradients down to a norm."""

    def __call__(self, positions: Tensor, step: int) -> dict[str, Tensor]:
        """Take one step.

        Parameters
        ----------
        positions
            Cells of the batch.
        step
            Number of the step, from 0.

        Returns
        -------
        dict of Tensor
            Terms of the bound, nats per cell; overwritten by the next step.
        """
        self.positions.copy_(positions)
        self.learning_rate.fill_(self.training.learning_rate_at(step))
        self.masks.prepare(step, self.optimiser)
        if self.steps_to_capture == 0:
            self._capture()
        self.steps_to_capture -= 1
        if self.graph is not None:
            self.graph.replay()
        elif self.steps_to_capture >= 0:
            self._move_beside()
        else:
            self._move()
        return self.terms

    def _move(self) -> None:
        loss, terms = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.training.gradient_clip is not None:
            self.clip(self.training.gradient_clip)
        self.optimiser.step()
        self.terms = {name: term.detach() for name, term in terms.items()}

    def _move_beside(self) -> None:
        """Take a step on another stream than the default one, which cannot be recorded."""
        beside, default = torch.cuda.Stream(), torch.cuda.current_stream()
        beside.wait_stream(default)
        with torch.cuda.stream(beside):
            self._move()
        default.wait_stream(beside)

    def _capture(self) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._move()
        except RuntimeError as error:
            logger.info("the step is not replayed as a CUDA graph (%s)", error)
            return
        self.graph = graph
        logger.info("from here on, the step is replayed as a CUDA graph")


class TrainingStep(RepeatedStep):
    """The bound of a model at a batch of cells.

    Parameters
    ----------
    model
        Model and guide.
    cells
        The training cells.
    training
        How to fit.
    """

    def __init__(self, model: PerturbationModel, cells: Cells, training: Training) -> None:
        size = min(training.batch_size, len(cells))
        positions = torch.zeros(size, dtype=torch.long, device=cells.counts.device)
        super().__init__(model.parameters(), positions, training)
        self.model, self.cells = model, cells
        self.masks = mask_schedule(
            model, len(cells), training, model.mask_opening, partial(turn_to_sparsest_axes, model)
        )

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the bound with weighted masks, and the terms of the bound."""
        bound = training_bound(self.model, self.cells.batch(self.positions), self.training)
        return bound.loss_at(self.masks.weight), bound.terms_per_cell

    def clip(self, largest_norm: float) -> None:
        """Scale the gradient down to a norm."""
        torch.nn.utils.clip_grad_norm_(self.parameters, largest_norm)


def training_bound(model: PerturbationModel, batch: Batch, training: Training) -> BoundTerms:
    """Estimate the bound that is being raised."""
    objective = OBJECTIVES[training.objective]
    return objective(model, batch, training.particles, training.mask_kl)


def first_decided(model: PerturbationModel, training: Training) -> float:
    """Step from which on masks, once held open, have had the time to settle."""
    return DECIDED * training.max_steps if training.open_steps and has_masks(model) else 0.0


def mask_schedule(
    model: PerturbationModel,
    n_cells: int,
    training: Training,
    opening: Tensor,
    turn: Callable[[], None],
) -> MaskSchedule:
    """Plan what becomes of a model's masks in the course of training."""
    return MaskSchedule(
        opening,
        turn,
        open_steps=training.open_steps if has_masks(model) else 0,
        weight=max(1.0, training.mask_kl_per_cell * n_cells / model.n_perturbations),
    )


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Multiply float32 matrices with another precision for a while.

    Parameters
    ----------
    name
        A key of :data:`MATMUL_PRECISIONS`. What it means is the device's affair: one that cannot
        multiply faster at less precision does as in ``float32``.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(MATMUL_PRECISIONS[name])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
