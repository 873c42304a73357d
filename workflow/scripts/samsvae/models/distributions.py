"""Distributions that Pyro lacks."""

import torch
from pyro.distributions import Bernoulli
from torch import Size, Tensor

SMALLEST_PROBABILITY = 1e-6


def inside_unit_interval(probability: Tensor) -> Tensor:
    """Keep a probability away from 0 and 1, where log-densities may be infinite."""
    return probability.clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)


class StraightThroughBernoulli(Bernoulli):
    """Bernoulli whose samples are 0 or 1 and yet carry a gradient.

    A sample is the rounded Gumbel-sigmoid (binary concrete) variable at temperature 1; the
    gradient is that of the unrounded one (Jang et al. 2017; Maddison et al. 2017). The density
    is the Bernoulli's own mass.
    """

    has_rsample = True
    has_enumerate_support = False
    temperature = 1.0

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draw 0 or 1 with the gradient of the relaxed sample."""
        shape = self._extended_shape(sample_shape)
        return self.of_uniform(
            torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        )

    def of_uniform(self, uniform: Tensor) -> Tensor:
        """Turn numbers that are uniform between 0 and 1 into samples."""
        tiny = torch.finfo(uniform.dtype).tiny
        uniform = uniform.clamp(tiny, 1 - torch.finfo(uniform.dtype).eps)
        noise = torch.log(uniform) - torch.log1p(-uniform)
        relaxed = torch.sigmoid((self.logits + noise) / self.temperature)
        rounded = (relaxed > 0.5).to(relaxed.dtype)
        return rounded + (relaxed - relaxed.detach())

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draw 0 or 1 without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)
