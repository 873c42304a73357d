"""Distributions that Pyro lacks."""

from typing import Any

import torch
from pyro.distributions import Bernoulli, TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

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
        tiny = torch.finfo(self.logits.dtype).tiny
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        uniform = uniform.clamp(tiny, 1 - torch.finfo(uniform.dtype).eps)
        noise = torch.log(uniform) - torch.log1p(-uniform)
        relaxed = torch.sigmoid((self.logits + noise) / self.temperature)
        rounded = (relaxed > 0.5).to(relaxed.dtype)
        return rounded + (relaxed - relaxed.detach())

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Draw 0 or 1 without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class NegativeBinomialCounts(TorchDistribution):
    """Gamma-Poisson counts given by their mean.

    x ~ GammaPoisson(concentration c, rate c / mean), that is a negative binomial with variance
    mean + mean^2 / c.

    Parameters
    ----------
    inverse_dispersion
        c > 0; it may lack the leading dimensions of `mean`, and what depends on it and the
        counts alone is then computed without them.
    mean
        Expected counts, > 0.
    """

    arg_constraints = {  # noqa: RUF012
        "inverse_dispersion": constraints.positive,
        "mean": constraints.positive,
    }
    support = constraints.nonnegative_integer

    def __init__(
        self, inverse_dispersion: Tensor, mean: Tensor, validate_args: bool | None = None
    ) -> None:
        self.inverse_dispersion = inverse_dispersion
        self.expected = mean
        shape = torch.broadcast_shapes(inverse_dispersion.shape, mean.shape)
        super().__init__(shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Expected counts."""
        return self.expected.expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of the counts."""
        return self.mean + self.mean**2 / self.inverse_dispersion

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NegativeBinomialCounts":
        """Repeat over leading dimensions."""
        mean = self.expected.expand(batch_shape)
        return NegativeBinomialCounts(self.inverse_dispersion, mean, validate_args=False)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw counts."""
        shape = self._extended_shape(sample_shape)
        c, mean = broadcast_all(self.inverse_dispersion, self.expected)
        with torch.no_grad():
            rate = torch._standard_gamma(c.expand(shape).contiguous()) * (mean / c)
            return torch.poisson(rate)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-mass of counts, in nats."""
        c, mean = self.inverse_dispersion, self.expected
        coefficient = torch.lgamma(value + c) - torch.lgamma(c) - torch.lgamma(value + 1)
        without_mean = coefficient + c * torch.log(c)
        return without_mean + value * torch.log(mean) - (value + c) * torch.log(c + mean)
