"""Masks in the course of training: held open, then decided along the axes of sparsest effects.

Until a mask chooses among them, all orthogonal axes of latent space serve a model alike, and those
that training falls into are not the ones along which perturbations act sparsely; from dense masks
along wrong axes no gradient leads to sparse ones. So masks are first held open, while encoder,
decoder and embeddings are learnt; then the axes are turned to where effects are sparsest; then
masks are learnt, from one half.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from samsvae.models.base import PerturbationModel
from samsvae.models.sparse_axes import sparsest_rotation

OPENING = 20.0  # logit of a mask that is held open
DECIDED = 0.5  # fraction of all steps by which masks have settled


class MaskSchedule:
    """What becomes of masks at each step.

    Parameters
    ----------
    opening
        What the model adds to the logits of its masks; set in place.
    turn
        Turns the axes to where effects are sparsest.
    open_steps
        Steps with open masks, whose KL then weighs nothing; 0 to learn masks from the start.
    weight
        What the masks' KL is multiplied by once they are learnt.

    Attributes
    ----------
    weight
        The masks' weight in the loss at the step last prepared, 0-d. Its value is changed in
        place, so that a recorded step reads the value of the moment.
    """

    def __init__(
        self, opening: Tensor, turn: Callable[[], None], open_steps: int, weight: float
    ) -> None:
        self.opening, self.turn = opening, turn
        self.open_steps = open_steps
        self.weight_when_learnt = weight
        self.weight = torch.ones((), device=opening.device)

    def prepare(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        """Make model and optimiser ready for a step."""
        is_open = step < self.open_steps
        if step == self.open_steps > 0:
            self.turn()
            # moments of the gradient along the former axes; in place, for a recorded step
            for state in optimiser.state.values():
                for value in state.values():
                    value.zero_()
        self.opening.fill_(OPENING if is_open else 0.0)
        self.weight.fill_(0.0 if is_open else self.weight_when_learnt)


def has_masks(model: PerturbationModel) -> bool:
    """Whether a model decides by masks which perturbation moves which latent dimension."""
    return model.unmasked_effects() is not None


@torch.no_grad()
def turn_to_sparsest_axes(model: PerturbationModel) -> None:
    """Turn the latent axes of a model, whose masks are open, to where effects are sparsest."""
    effects = model.unmasked_effects()
    if effects is not None:
        model.turn_axes(sparsest_rotation(effects))
