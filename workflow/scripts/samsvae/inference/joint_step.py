"""One step of several models at once, as one batched program."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from samsvae.inference.cells import Cells
from samsvae.inference.mask_schedule import turn_to_sparsest_axes
from samsvae.inference.noise import Draw, GivenNoise, RandomStream
from samsvae.inference.step import RepeatedStep, Training, mask_schedule, training_bound
from samsvae.models.base import PerturbationModel


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
