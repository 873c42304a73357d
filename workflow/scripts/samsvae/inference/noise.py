"""The random numbers of a step, drawn apart from the step itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta, Independent, Normal
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor

from samsvae.errors import InputError
from samsvae.inference.resume import random_states, set_random_states
from samsvae.models.distributions import StraightThroughBernoulli


class RandomStream:
    """A random number generator of its own, as a training alone would have it.

    Parameters
    ----------
    device
        Where random numbers are drawn.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.states = random_states(device)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Draw from this stream for a while, and leave the others as they were."""
        others = random_states(self.device)
        set_random_states(self.states, self.device)
        try:
            yield
        finally:
            self.states = random_states(self.device)
            set_random_states(others, self.device)


@dataclass(frozen=True)
class Draw:
    """Random numbers that a site asks for."""

    uniform: bool
    shape: Size

    def __call__(self, device: torch.device) -> Tensor:
        """Draw them: between 0 and 1, or standard normal."""
        return (torch.rand if self.uniform else torch.randn)(self.shape, device=device)


class GivenNoise(Messenger):
    """Makes the samples of a guide out of random numbers that were drawn before.

    Parameters
    ----------
    noise
        Random numbers by site, of the sites' shapes; None to only see which are asked for.

    Attributes
    ----------
    asked
        What each site asks for, in the order in which a guide that runs alone would draw it.
    """

    def __init__(self, noise: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.noise = noise
        self.asked: dict[str, Draw] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        law = msg["fn"].base_dist if isinstance(msg["fn"], Independent) else msg["fn"]
        if isinstance(law, Delta):
            return
        draw = Draw(isinstance(law, StraightThroughBernoulli), law.batch_shape)
        self.asked[msg["name"]] = draw
        noise = draw(law.mean.device) if self.noise is None else self.noise[msg["name"]]
        if isinstance(law, StraightThroughBernoulli):
            msg["value"] = law.of_uniform(noise)
        elif isinstance(law, Normal):
            msg["value"] = law.loc + law.scale * noise
        else:
            raise InputError(
                f"Seeds of this model cannot be trained together, since its guide draws from a "
                f"{type(law).__name__} distribution. Train them one by one."
            )
