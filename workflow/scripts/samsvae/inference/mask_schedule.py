"""Masks in the course of training: held open, then decided along the axes of sparsest effects.

Until a mask chooses among them, all orthogonal axes of latent space serve a model alike, and those
that training falls into are not the ones along which perturbations act sparsely; from dense masks
along wrong axes no gradient leads to sparse ones. So masks are first held open, while encoder,
decoder and embeddings are learnt; then the axes are turned to where effects are sparsest; then
masks are learnt, from one half.
"""

import torch

from samsvae.models.base import PerturbationModel
from samsvae.models.sparse_axes import sparsest_rotation

OPENING = 20.0  # logit of a mask that is held open
DECIDED = 0.5  # fraction of all steps by which masks have settled


class MaskSchedule:
    """What becomes of masks at each step.

    Parameters
    ----------
    model
        A model, which may have no masks.
    open_steps
        Steps with open masks, whose KL then weighs nothing; 0 to learn masks from the start.
    max_steps
        All steps.
    weight
        What the masks' KL is multiplied by once they are learnt.

    Attributes
    ----------
    weight
        The masks' weight in the loss at the step last prepared, 0-d. Its value is changed in
        place, so that a recorded step reads the value of the moment.
    """

    def __init__(
        self, model: PerturbationModel, open_steps: int, max_steps: int, weight: float
    ) -> None:
        self.model = model
        self.has_masks = model.unmasked_effects() is not None
        self.open_steps = open_steps if self.has_masks else 0
        self.first_decided = DECIDED * max_steps if self.open_steps else 0.0
        self.weight_when_learnt = weight
        self.weight = torch.ones_like(model.mask_opening)

    def prepare(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        """Make model and optimiser ready for a step."""
        is_open = step < self.open_steps
        if step == self.open_steps > 0:
            self._turn_axes(optimiser)
        self.model.mask_opening.fill_(OPENING if is_open else 0.0)
        self.weight.fill_(0.0 if is_open else self.weight_when_learnt)

    def are_decided(self, step: int) -> bool:
        """Tell whether masks have had the time to settle, so that the step may be chosen."""
        return step >= self.first_decided

    @torch.no_grad()
    def _turn_axes(self, optimiser: torch.optim.Optimizer) -> None:
        effects = self.model.unmasked_effects()
        assert effects is not None
        self.model.turn_axes(sparsest_rotation(effects))
        # moments of the gradient along the former axes; in place, for a recorded step
        for state in optimiser.state.values():
            for value in state.values():
                value.zero_()
