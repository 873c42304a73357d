"""Random numbers: seeds within a context, streams of their own, and samples made of given noise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta, Independent, Normal
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor

from samsvae.kernels.random import cell_keys, cell_normals
from samsvae.models.distributions import StraightThroughBernoulli
from samsvae.runtime.errors import InputError


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from PyTorch's generators at a seed, and leave them as they were."""
    others = random_states(device)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(others, device)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Read the states of PyTorch's random number generators."""
    states = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Set what :func:`random_states` read."""
    torch.set_rng_state(states["random.cpu"])
    if device.type == "cuda" and "random.cuda" in states:
        torch.cuda.set_rng_state(states["random.cuda"], device)


class RandomStream:
    """A random number stream of its own, that PyTorch's generators follow within a context.

    It starts where the generators are. The context may be entered again within itself.

    Parameters
    ----------
    device
        Where random numbers are drawn.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._states = random_states(device)
        self._depth = 0

    @property
    def states(self) -> dict[str, Tensor]:
        """States of the generators, as :func:`random_states` reads them."""
        return random_states(self.device) if self._depth else self._states

    @states.setter
    def states(self, states: dict[str, Tensor]) -> None:
        if self._depth:
            set_random_states(states, self.device)
        else:
            self._states = states

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Draw from this stream, and leave PyTorch's generators as they were."""
        if self._depth == 0:
            others = random_states(self.device)
            set_random_states(self._states, self.device)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._states = random_states(self.device)
                set_random_states(others, self.device)


@dataclass(frozen=True)
class NoiseSpec:
    """Noise that a latent site is a deterministic function of.

    Attributes
    ----------
    uniform
        Whether it is uniform between 0 and 1, else standard normal.
    shape
        Of the noise, batch and event dimensions of the site.
    event_dim
        Number of event dimensions.
    """

    uniform: bool
    shape: Size
    event_dim: int

    def draw(self, device: torch.device) -> Tensor:
        """Draw noise from PyTorch's generators."""
        return (torch.rand if self.uniform else torch.randn)(self.shape, device=device)


class SampleFromNoise(Messenger):
    """Sample latent sites as functions of given noise.

    A Normal is its location plus its scale times standard normal noise, a straight-through
    Bernoulli a function of uniform noise, and any other distribution the inverse of its
    distribution function at uniform noise, if it has one.

    Parameters
    ----------
    source
        Gives the noise of a site, by its name and what it needs.
    strict
        Whether to refuse a distribution without such an inverse; else PyTorch's generators
        draw it.

    Attributes
    ----------
    specs
        What each site that was met needs, in the order in which the program draws them.
    """

    def __init__(self, source: Callable[[str, NoiseSpec], Tensor], strict: bool = True) -> None:
        super().__init__()
        self.source, self.strict = source, strict
        self.specs: dict[str, NoiseSpec] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        base = msg["fn"].base_dist if isinstance(msg["fn"], Independent) else msg["fn"]
        if isinstance(base, Delta):
            return
        shape, event_dim = base.batch_shape + base.event_shape, msg["fn"].event_dim
        spec = NoiseSpec(not isinstance(base, Normal), shape, event_dim)
        noise = self.source(msg["name"], spec)
        if isinstance(base, StraightThroughBernoulli):
            msg["value"] = base.of_uniform(noise)
        elif isinstance(base, Normal):
            msg["value"] = torch.addcmul(base.loc, base.scale, noise)
        else:
            try:
                msg["value"] = base.icdf(noise)
            except NotImplementedError:
                if not self.strict:
                    return
                raise InputError(
                    f"The guide draws {msg['name']!r} from a {type(base).__name__} distribution, "
                    "which is no function of given noise. So seeds of this model cannot be "
                    "trained together: set training.seeds_together to false."
                ) from None
        self.specs[msg["name"]] = spec


class CellNoise:
    """Noise for :class:`SampleFromNoise` that follows from a seed and from cells' counts.

    A cell's noise depends neither on the other cells nor on the device, but for rounding.

    Parameters
    ----------
    counts
        B x G.
    particles
        Q.
    seed
        Seed of the noise.
    """

    def __init__(self, counts: Tensor, particles: int, seed: int) -> None:
        self.counts, self.particles, self.seed = counts, particles, seed
        self.sites = 0

    def __call__(self, name: str, spec: NoiseSpec) -> Tensor:
        """Draw the noise of the next site, [Q, B, ...]."""
        event_shape = spec.shape[len(spec.shape) - spec.event_dim :]
        keys = cell_keys(self.counts, self.seed, self.sites)
        self.sites += 1
        noise = cell_normals(keys, self.particles, event_shape.numel())
        noise = noise.view(self.particles, len(keys), *event_shape)
        return torch.special.ndtr(noise) if spec.uniform else noise
