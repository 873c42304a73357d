"""Training steps, of one model or of several replicates as one batched program.

On a CPU the operations of a step are recorded once and repeated; on a CUDA device a step is
captured and replayed as a graph.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from samsvae import kernels
from samsvae.inference.cells import Cells
from samsvae.inference.mask_warmup import (
    MaskWarmup,
    check_rotatable,
    rotate_to_sparsest_axes,
    start_masks_at_evidence,
    update_feature_prior,
)
from samsvae.inference.noise import NoiseSpec, RandomStream, SampleFromNoise
from samsvae.inference.objective import RECONSTRUCTION, BoundTerms, elbo, iwae
from samsvae.inference.posterior import has_masks
from samsvae.kernels import Program, compile_function, record_function
from samsvae.models.base import Batch, PerturbationModel
from samsvae.runtime.errors import DivergenceError

logger = logging.getLogger(__name__)

OBJECTIVES = {"elbo": elbo, "iwae": iwae}

STEPS_WORTH_COMPILING = 50_000
STEPS_WORTH_RECORDING = 500
STEPS_BEFORE_CAPTURE = 3  # so that libraries and memory are set up when the graph is recorded
STEPS_BETWEEN_UPDATES = 25  # of the prior given features
SETTLED = 0.5  # fraction of all steps by which masks have settled after their warm-up


@dataclass(frozen=True)
class Training:
    """Training configuration; the configuration's schema describes each field."""

    max_steps: int = 3_000
    batch_size: int = 256
    particles: int = 5
    learning_rate: float = 3e-3
    learning_rate_schedule: str = "constant"
    warm_up_steps: int = 0
    weight_decay: float = 1e-6
    gradient_clip: float | None = 100.0
    validate_every: int = 250
    patience: int | None = None
    objective: str = "elbo"
    mask_kl: str = "sampled"
    mask_warmup_fraction: float = 0.2
    mask_start: str = "evidence"
    mask_kl_weight: float = 0.0
    matmul_precision: str = "float32"
    cuda_graph: bool = True
    cells: str = "auto"
    stream_buffer: int | None = None

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rate = self.learning_rate
        if self.warm_up_steps:
            rate *= min(1.0, (step + 1) / self.warm_up_steps)
        if self.learning_rate_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / self.max_steps))
        return rate

    def mask_warmup_steps(self, model: PerturbationModel) -> int:
        """Return the number of mask warm-up steps."""
        return round(self.mask_warmup_fraction * self.max_steps) if has_masks(model) else 0

    def first_settled_step(self, model: PerturbationModel) -> float:
        """Return the first step at which masks count as settled after warm-up."""
        return SETTLED * self.max_steps if self.mask_warmup_steps(model) else 0.0

    def mask_kl_factor(self, model: PerturbationModel, n_cells: int) -> float:
        """Return the weight of the masks' KL after warm-up, for N training cells."""
        return max(1.0, self.mask_kl_weight * n_cells / model.n_perturbations)

    def bound(self, model: PerturbationModel, batch: Batch) -> BoundTerms:
        """Estimate the bound that training maximises."""
        return OBJECTIVES[self.objective](model, batch, self.particles, self.mask_kl)


class TrainingStep:
    """Training step: loss, gradient and update by Adam.

    The weights of several replicates are stacked, and every operation handles all of them: a
    small model leaves most of a GPU idle, and its step is mostly the launch of kernels. Each
    replicate keeps its own cells and random numbers, so that its result equals that of a training
    on its own up to rounding.

    Nothing in a step synchronises with the device. So on a CUDA device the whole step is captured
    as a graph after a few steps and replayed afterwards, which saves the launch of some hundred
    kernels. If this fails, steps run as before. On a CPU the operations of a step are recorded and
    repeated, which spares the time that Python takes.

    Parameters
    ----------
    models
        Replicates, which differ by their weights alone. A single one is trained in place.
    cells
        The training cells.
    training
        Training configuration.

    Attributes
    ----------
    weights
        Trained parameters by name; stacked along a first dimension if there are several
        replicates.
    terms
        Terms of the last step's bounds, nats per cell, each of length R.
    """

    def __init__(
        self, models: Sequence[PerturbationModel], cells: Cells, training: Training
    ) -> None:
        self.n_replicates = len(models)
        self.cells, self.training = cells, training
        self.weights: dict[str, Tensor]
        self.buffers: dict[str, Tensor] = {}
        if self.n_replicates == 1:
            self.model = models[0]
            self.weights = dict(self.model.named_parameters())
        else:
            self.model = copy.deepcopy(models[0])  # takes the weights of each in turn
            self.weights, self.buffers = stack_module_state(list(models))
        device = cells.counts.device
        # a graph reads and writes the same memory each time
        shape = (self.n_replicates, min(training.batch_size, len(cells)))
        self.positions = torch.zeros(shape, dtype=torch.long, device=device)
        self.learning_rate = torch.tensor(training.learning_rate, device=device)
        self.optimiser = torch.optim.Adam(
            self.weights.values(),
            lr=self.learning_rate,
            weight_decay=training.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.masks = MaskWarmup(
            self._rotate,
            self._renew,
            training.mask_warmup_steps(self.model),
            round(training.first_settled_step(self.model)),
            training.mask_kl_factor(self.model, len(cells)),
            device,
        )
        if self.masks.warmup_steps:
            check_rotatable(self.model)
        self.specs: dict[str, NoiseSpec] = {}
        self.noise: dict[str, Tensor] = {}
        if self.n_replicates > 1:
            self.specs = self._noise_needed()
            self.noise = {
                name: torch.zeros(self.n_replicates, *spec.shape, device=device)
                for name, spec in self.specs.items()
            }
        self.terms: dict[str, Tensor] = {}
        self.is_first = True
        self.graph: torch.cuda.CUDAGraph | None = None
        can_capture = device.type == "cuda" and training.cuda_graph
        self.steps_to_capture = STEPS_BEFORE_CAPTURE if can_capture else -1
        self.program: Program | None = None
        self.term_names: list[str] = []

    def __call__(
        self, positions: Tensor, step: int, streams: Iterable[RandomStream]
    ) -> dict[str, Tensor]:
        """Take one step.

        Parameters
        ----------
        positions
            Cells of each replicate's batch, R x B.
        step
            Number of the step, from 0.
        streams
            Random numbers of each replicate.

        Returns
        -------
        dict of Tensor
            :attr:`terms`; overwritten by the next step.
        """
        self.positions.copy_(positions)
        self.learning_rate.fill_(self.training.learning_rate_at(step))
        self.masks.prepare(step, self.optimiser)
        if self._updates_prior(step):
            self._change_each(update_feature_prior)
        if self.n_replicates > 1:
            self._draw_noise(streams)
            self._run()
        else:
            [stream] = streams
            with stream():
                self._run()
        return self.terms

    def _run(self) -> None:
        if self.is_first:
            self.is_first = False
            self._compile()
        if self.steps_to_capture == 0:
            self._capture()
        self.steps_to_capture -= 1
        if self.graph is not None:
            self.graph.replay()
        elif self.steps_to_capture >= 0:
            self._update_on_side_stream()
        else:
            self._update()

    def _update(self) -> None:
        if self.program is not None:
            found, learnt = self.program(), self._learnt()
            for weight, gradient in zip(learnt, found[: len(learnt)], strict=True):
                weight.grad = gradient.contiguous()  # fused Adam assumes the layout of weights
            self.terms = dict(zip(self.term_names, found[len(learnt) :], strict=True))
        else:
            loss, terms = self.loss()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.terms = {name: term.detach() for name, term in terms.items()}
        if self.training.gradient_clip is not None:
            self.clip_gradients(self.training.gradient_clip)
        self.optimiser.step()

    def _gradients_and_terms(self) -> list[Tensor]:
        """Compute the gradient by each weight, then the terms of the bounds."""
        with torch.enable_grad():
            loss, terms = self.loss()
        self.term_names = list(terms)
        gradients = torch.autograd.grad(loss, self._learnt())
        return [*gradients, *(term.detach() for term in terms.values())]

    def _learnt(self) -> list[Tensor]:
        """List the weights that are learnt by gradients."""
        return [weight for weight in self.weights.values() if weight.requires_grad]

    def _compile(self) -> None:
        """Compile or record the step, if that takes less time than it saves.

        Compiling takes some 20 s and saves some 0.4 ms a step, recording 1 s and 4 ms.
        """
        device, steps = self.positions.device, self.training.max_steps
        is_captured = self.steps_to_capture > 0 and kernels.has_triton(device)
        is_recorded = device.type == "cpu"
        try:
            with RandomStream(device)():
                if is_captured and steps >= STEPS_WORTH_COMPILING:
                    self.program = compile_function(self._gradients_and_terms)
                elif is_recorded and steps >= STEPS_WORTH_RECORDING:
                    self.program = record_function(self._gradients_and_terms)
        except Exception as error:  # of any kind: uncompiled steps are slower, but right
            logger.info("the step is neither compiled nor recorded (%s)", error)

    def _update_on_side_stream(self) -> None:
        """Update on a side stream, since the default stream cannot be recorded."""
        side, default = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(default)
        with torch.cuda.stream(side):
            self._update()
        default.wait_stream(side)

    def _capture(self) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._update()
        except RuntimeError as error:
            logger.info("the step is not replayed as a CUDA graph (%s)", error)
            return
        self.graph = graph
        logger.info("from here on, the step is replayed as a CUDA graph")

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the sum of the replicates' losses, and the terms of their bounds, length R."""
        bound = _Loss(self.model, self.cells, self.training, self.masks)
        if self.n_replicates == 1:
            loss, terms = bound(self.positions[0])
            return loss, {name: term[None] for name, term in terms.items()}

        def of_one(
            weights: Mapping[str, Tensor],
            buffers: Mapping[str, Tensor],
            positions: Tensor,
            noise: Mapping[str, Tensor],
        ) -> tuple[Tensor, dict[str, Tensor]]:
            state = {f"model.{name}": value for name, value in {**weights, **buffers}.items()}
            return functional_call(bound, state, (positions, noise))

        losses, terms = vmap(of_one)(self.weights, self.buffers, self.positions, self.noise)
        return losses.sum(), terms

    def clip_gradients(self, max_norm: float) -> None:
        """Clip the gradient norm of each replicate."""
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        for index in range(self.n_replicates):
            own = gradients if self.n_replicates == 1 else [g[index] for g in gradients]
            norm = torch.nn.utils.get_total_norm(own)
            torch._foreach_mul_(own, (max_norm / (norm + 1e-6)).clamp(max=1.0))

    def replicate(self, index: int) -> PerturbationModel:
        """Return a model with the weights of a replicate; the next call overwrites them."""
        if self.n_replicates > 1:
            stacked = {**self.weights, **self.buffers}
            own = {name: stacked[name].detach()[index] for name in self.model.state_dict()}
            self.model.load_state_dict(own)
        return self.model

    def _rotate(self) -> None:
        if self.training.mask_start == "half":
            self._change_each(rotate_to_sparsest_axes)
        else:
            self._change_each(lambda model: rotate_to_sparsest_axes(model, self.cells))
            self._renew()

    def _updates_prior(self, step: int) -> bool:
        """Whether the prior given features is updated: masks are at their evidence, or settled."""
        at_evidence = self.masks.warmup_steps > 0 and self.training.mask_start == "evidence"
        settled = round(SETTLED * self.training.max_steps)
        first = self.masks.warmup_steps if at_evidence else settled
        due = step > first and step % STEPS_BETWEEN_UPDATES == 0
        return due and self.model.n_features is not None

    def _renew(self) -> None:
        if self.training.mask_start == "evidence":
            self._change_each(lambda model: start_masks_at_evidence(model, self.cells))

    @torch.no_grad()
    def _change_each(self, change: Callable[[PerturbationModel], None]) -> None:
        """Change the weights of each replicate in place."""
        for index in range(self.n_replicates):
            change(self.replicate(index))
            if self.n_replicates > 1:
                for name, stacked in self.weights.items():
                    stacked[index].copy_(self.model.get_parameter(name))

    def _noise_needed(self) -> dict[str, NoiseSpec]:
        """Determine the noise that a replicate needs; PyTorch's generators stay as they were."""
        device = self.positions.device
        seen = SampleFromNoise(lambda _, spec: spec.draw(device))
        bound = _Loss(self.model, self.cells, self.training, self.masks)
        with RandomStream(device)(), torch.no_grad(), seen:
            bound(self.positions[0])
        return seen.specs

    def _draw_noise(self, streams: Iterable[RandomStream]) -> None:
        for index, stream in enumerate(streams):
            with stream():
                for name, spec in self.specs.items():
                    self.noise[name][index] = spec.draw(self.positions.device)


class _Loss(nn.Module):
    """Loss of a model as a function of its weights, a batch and optionally its noise."""

    def __init__(
        self, model: PerturbationModel, cells: Cells, training: Training, masks: MaskWarmup
    ) -> None:
        super().__init__()
        self.model, self.cells, self.training_settings = model, cells, training
        self.masks = masks

    def forward(
        self, positions: Tensor, noise: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if noise is not None:
            with SampleFromNoise(lambda name, _: noise[name]):
                return self(positions)
        with self.masks:
            bound = self.training_settings.bound(self.model, self.cells.batch(positions))
        return bound.loss_at(self.masks.weight), bound.terms_per_cell


STEPS_SHOWN = 20


def check_finite(
    terms: np.ndarray,
    names: Sequence[str],
    first_step: int,
    training: Training,
    batch_of: Callable[[int], str],
) -> None:
    """Raise an error at the first step with a non-finite bound.

    Parameters
    ----------
    terms
        Terms of the bound, steps x terms, nats per cell.
    names
        Names of the terms.
    first_step
        Number of the first of these steps, from 1.
    training
        Training configuration.
    batch_of
        Describes the batch of a step.

    Raises
    ------
    DivergenceError
        Naming the step, its batch, the terms, the likely cause and the settings to change.
    """
    finite = np.isfinite(terms)
    if finite.all():
        return
    row = int(np.argmin(finite.all(axis=1)))
    broken = [name for name, good in zip(names, finite[row], strict=True) if not good]
    step = first_step + row
    raise DivergenceError(
        f"Training diverged at step {step}: {', '.join(broken)} is no longer a finite number. "
        f"Batch: {batch_of(step)}. " + _likely_cause(terms[:row], names, broken, step, training)
    )


def check_validated(terms: Mapping[str, float], step: int, training: Training) -> None:
    """Raise an error if the bound of the validation cells is not finite.

    Parameters
    ----------
    terms
        The bound and its terms, nats per cell.
    step
        Number of steps so far.
    training
        Training configuration.

    Raises
    ------
    DivergenceError
        Naming the step, the terms, the likely cause and the settings to change.
    """
    broken = [name for name, value in terms.items() if not math.isfinite(value)]
    if broken:
        raise DivergenceError(
            f"Training diverged after step {step}: {', '.join(broken)} of the validation cells is "
            "not finite, but that of the training cells is. Either the last update was too large, "
            "or a validation cell has extreme counts. " + _remedy(training)
        )


def describe_batch(cells: Cells, size: int, seed: int, step: int) -> str:
    """Describe the batch of a step and its largest count.

    Parameters
    ----------
    cells
        The training cells.
    size
        Cells per batch.
    seed
        Seed of the order of the cells.
    step
        Number of the step, from 1.

    Returns
    -------
    str
        Cells and genes are counted from 0, in the order of the training cells and of the screen.
    """
    batches = cells.random_batches(size, seed)
    batches.skip(step - 1)
    positions = next(batches)
    counts = cells.counts[positions]
    cell, gene = divmod(int(counts.argmax()), counts.shape[1])
    each_epoch = len(cells) // batches.size
    epoch, batch = divmod(step - 1, each_epoch)
    return (
        f"number {batch + 1} of {each_epoch} in epoch {epoch + 1}, {len(positions)} cells, "
        f"largest count {counts[cell, gene].item():g} (training cell "
        f"{int(cells.among_all(positions)[cell])}, gene {gene})"
    )


def _likely_cause(
    before: np.ndarray, names: Sequence[str], broken: Sequence[str], step: int, training: Training
) -> str:
    if step == 1:
        return (
            "This is the first step, so the cause is in the data or the model's settings: look "
            "for genes or cells with extreme counts."
        )
    recent = before[-STEPS_SHOWN:]
    signs = np.where(np.array(names) == RECONSTRUCTION, 1, -1)
    if len(recent) and recent[-1] @ signs < recent[0] @ signs:
        cause = (
            f"In the {len(recent)} steps before, the ELBO per cell fell from "
            f"{recent[0] @ signs:.4g} to {recent[-1] @ signs:.4g}: the updates are too large."
        )
    elif broken == [RECONSTRUCTION]:
        cause = "The decoder's output overflowed while the latent terms were finite."
    else:
        cause = "An update overflowed the parameters."
    return f"{cause} {_remedy(training)}"


def _remedy(training: Training) -> str:
    clip = training.gradient_clip
    return (
        f"Lower training.learning_rate (now {training.learning_rate:g}) or training.gradient_clip "
        f"(now {'null' if clip is None else f'{clip:g}'}), or raise training.warm_up_steps."
    )
