"""Gamma-Poisson counts given by their mean, with the mass of a whole cell computed at once."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.autograd.function import FunctionCtx
from torch.distributions import constraints


class NegativeBinomialCounts(TorchDistribution):
    """Counts of the genes of a cell.

    x_g ~ GammaPoisson(concentration c_g, rate c_g / mean_g), that is a negative binomial with
    variance mean_g + mean_g^2 / c_g, independent over genes.

    Parameters
    ----------
    inverse_dispersion
        c > 0, length G.
    mean
        Expected counts > 0, [..., G].
    """

    arg_constraints = {  # noqa: RUF012
        "inverse_dispersion": constraints.independent(constraints.positive, 1),
        "mean": constraints.independent(constraints.positive, 1),
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, inverse_dispersion: Tensor, mean: Tensor, validate_args: bool | None = None
    ) -> None:
        self.inverse_dispersion = inverse_dispersion
        self.expected = mean
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Expected counts."""
        return self.expected

    @property
    def variance(self) -> Tensor:
        """Variance of the counts."""
        return self.mean + self.mean**2 / self.inverse_dispersion

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NegativeBinomialCounts":
        """Repeat over leading dimensions."""
        mean = self.expected.expand(*batch_shape, -1)
        return NegativeBinomialCounts(self.inverse_dispersion, mean, validate_args=False)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw counts."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            gamma = torch._standard_gamma(self.inverse_dispersion.expand(shape).contiguous())
            return torch.poisson(gamma * (self.expected / self.inverse_dispersion))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-mass of cells, summed over genes, in nats.

        Parameters
        ----------
        value
            Counts; without the leading dimensions of the mean, such as particles, what depends on
            the counts and c alone is computed once for all of them.
        """
        return _LogMass.apply(value, self.inverse_dispersion, self.expected)


class _LogMass(torch.autograd.Function):
    """The log-mass and its derivatives, written out to pass over the large tensors once.

    log p = lgamma(x + c) - lgamma(c) - lgamma(x + 1) + c log c + x log mean - (x + c) log(c + mean)

    The terms of a gene nearly cancel, so they are added before the sum over genes.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, c: Tensor, mean: Tensor) -> Tensor:
        shifted = value + c
        total = mean + c
        log_total = torch.log(total)
        terms = torch.log(mean).mul_(value).addcmul_(shifted, log_total, value=-1)
        constant = torch.lgamma(shifted) - torch.lgamma(c) - torch.lgamma(value + 1)
        ctx.save_for_backward(value, c, mean, total, log_total)
        return terms.add_(constant + c * torch.log(c)).sum(-1)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        value, c, mean, total, log_total = ctx.saved_tensors  # type: ignore[attr-defined]
        weight = gradients[0].unsqueeze(-1)
        shifted = value + c
        quotient = shifted / total
        by_mean = torch.div(value, mean).sub_(quotient).mul_(weight)
        weights = weight.expand(*mean.shape[:-1], 1)
        rows = weights.reshape(1, -1)
        varying = rows @ quotient.add_(log_total).reshape(-1, mean.shape[-1])
        per_cell = weights.sum_to_size(*value.shape[:-1], 1)
        constant = torch.digamma(shifted) - torch.digamma(c) + torch.log(c) + 1
        by_c = (per_cell * constant).sum_to_size(c.shape) - varying.view_as(c)
        return None, by_c, by_mean
