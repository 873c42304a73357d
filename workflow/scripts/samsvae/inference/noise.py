"""Random numbers: seeded contexts, separate streams, and samples as functions of given noise."""

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
from samsvae.models.likelihoods import StraightThroughBernoulli
from samsvae.runtime.errors import InputError


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's generators within a context, and restore them afterwards."""
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
    """Restore states that :func:`random_states` read."""
    torch.set_rng_state(states["random.cpu"])
    if device.type == "cuda" and "random.cuda" in states:
        torch.cuda.set_rng_state(states["random.cuda"], device)


class RandomStream:
    """Separate random number stream, which PyTorch's generators follow within a context.

    It starts at the current state of the generators. The context is reentrant.

    Parameters
    ----------
    device
        Device of the random numbers.
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
        """Draw from this stream within a context, and restore PyTorch's generators afterwards."""
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
    """Specification of the noise of a latent site, which is a deterministic function of it.

    Attributes
    ----------
    uniform
        Whether the noise is uniform between 0 and 1, else standard normal.
    shape
        Shape of the noise: batch and event dimensions of the site.
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
    """Pyro handler that samples latent sites as functions of given noise.

    A Normal is its location plus its scale times standard normal noise, a straight-through
    Bernoulli a function of uniform noise, and any other distribution its inverse distribution
    function at uniform noise, if it has one.

    Parameters
    ----------
    source
        Returns the noise of a site, given its name and specification.
    strict
        Whether to refuse a distribution without an inverse distribution function; else PyTorch's
        generators sample it.

    Attributes
    ----------
    specs
        Specifications of the sites so far, in the order in which the program samples them.
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
                    f"The guide's site {msg['name']!r} has a {type(base).__name__} distribution, "
                    "which cannot be sampled as a function of noise. Seeds of this model cannot "
                    "be trained together: set training.seeds_together to false."
                ) from None
        self.specs[msg["name"]] = spec


class CellNoise:
    """Noise for :class:`SampleFromNoise` that is determined by a seed and the cells' counts.

    Up to rounding, a cell's noise depends neither on the other cells nor on the device.

    Parameters
    ----------
    counts
        B x G.
    particles
        Q.
    seed
        Seed of the noise.
    chosen
        Which of the particles have noise, as indices; None for all.
    """

    def __init__(
        self, counts: Tensor, particles: int, seed: int, chosen: Tensor | None = None
    ) -> None:
        self.counts, self.particles, self.seed = counts, particles, seed
        self.chosen = chosen
        self.sites = 0

    def __call__(self, name: str, spec: NoiseSpec) -> Tensor:
        """Draw the noise of the next site, of the chosen particles, [Q, B, ...]."""
        event_shape = spec.shape[len(spec.shape) - spec.event_dim :]
        keys = cell_keys(self.counts, self.seed, self.sites)
        self.sites += 1
        noise = cell_normals(keys, self.particles, event_shape.numel())
        if self.chosen is not None:
            noise = noise.index_select(0, self.chosen)
        noise = noise.view(len(noise), len(keys), *event_shape)
        return torch.special.ndtr(noise) if spec.uniform else noise
