"""Gamma-Poisson counts of a cell, from the decoder's logits to the log-mass in one piece."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

SMALLEST_MEAN = 1e-4
ROWS_AT_A_TIME = 256  # on a CPU, so that intermediate results stay in its cache


def mean_counts(logits: Tensor, library_size: Tensor) -> Tensor:
    """Compute l softmax(logits) + 1e-4, [..., G]."""
    return library_size[..., None] * torch.softmax(logits, dim=-1) + SMALLEST_MEAN


class NegativeBinomialCounts(TorchDistribution):
    """Counts of the genes of a cell.

    x_g ~ GammaPoisson(concentration c_g, rate c_g / mean_g), mean = l softmax(logits) + 1e-4: a
    negative binomial with variance mean_g + mean_g^2 / c_g, independent over genes.

    Parameters
    ----------
    inverse_dispersion
        c > 0, length G.
    logits
        [..., G].
    library_size
        l > 0; broadcasts against the leading dimensions of `logits`.
    """

    arg_constraints = {  # noqa: RUF012
        "inverse_dispersion": constraints.independent(constraints.positive, 1),
        "logits": constraints.real_vector,
        "library_size": constraints.positive,
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        inverse_dispersion: Tensor,
        logits: Tensor,
        library_size: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.inverse_dispersion = inverse_dispersion
        self.logits = logits
        self.library_size = library_size
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Expected counts."""
        return mean_counts(self.logits, self.library_size)

    @property
    def variance(self) -> Tensor:
        """Variance of the counts."""
        return self.mean + self.mean**2 / self.inverse_dispersion

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NegativeBinomialCounts":
        """Repeat over leading dimensions."""
        logits = self.logits.expand(*batch_shape, -1)
        return NegativeBinomialCounts(
            self.inverse_dispersion, logits, self.library_size, validate_args=False
        )

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw counts."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            gamma = torch._standard_gamma(self.inverse_dispersion.expand(shape).contiguous())
            return torch.poisson(gamma * (self.mean / self.inverse_dispersion))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-mass of cells, summed over genes, in nats.

        Parameters
        ----------
        value
            Counts; without the leading dimensions of the logits, such as particles, what depends
            on the counts and c alone is computed once for all of them.
        """
        return _LogMass.apply(value, self.inverse_dispersion, self.logits, self.library_size)


class _LogMass(torch.autograd.Function):
    """The log-mass with its derivatives, computed together block by block.

    log p = lgamma(x + c) - lgamma(c) - lgamma(x + 1) + c log c + x log mean - (x + c) log(c + mean)

    The terms of a gene nearly cancel, so they are added before the sum over genes. What comes back
    in the backward pass is one number per cell, so the derivatives by the logits are ready but for
    that factor while a block is still in the cache.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, c: Tensor, logits: Tensor, library_size: Tensor) -> Tensor:
        shifted = value + c
        constant = torch.lgamma(shifted) - torch.lgamma(c) - torch.lgamma(value + 1)
        constant += c * torch.log(c)
        lead = logits.shape[:-1]
        cells = value.shape[:-1].numel()
        rows = logits.reshape(-1, cells, logits.shape[-1])
        sizes = library_size.expand(lead).reshape(-1, cells, 1)
        flat = (part.reshape(cells, -1) for part in (value, shifted, constant))
        by_cell = list(zip(*(part.split(_rows_at_a_time(logits)) for part in flat), strict=True))
        needs_gradient = any(ctx.needs_input_grad)
        by_logits = torch.empty_like(rows) if needs_gradient else rows
        by_c = torch.empty_like(rows) if needs_gradient else rows
        mass = rows.new_empty(rows.shape[:2])
        for particle in range(len(rows)):
            start = 0
            for x, x_plus_c, fixed in by_cell:
                here = slice(start, start := start + len(x))
                size = sizes[particle, here]
                proportion = torch.softmax(rows[particle, here], dim=-1)
                mean = (proportion * size).add_(SMALLEST_MEAN)
                total = mean + c
                log_total = torch.log(total)
                terms = torch.log(mean).mul_(x).addcmul_(x_plus_c, log_total, value=-1).add_(fixed)
                torch.sum(terms, -1, out=mass[particle, here])
                if needs_gradient:
                    quotient = torch.div(x_plus_c, total, out=total)
                    torch.add(quotient, log_total, out=by_c[particle, here])
                    by_mean = torch.div(x, mean, out=mean).sub_(quotient).mul_(size)
                    by_mean.mul_(proportion)  # now by the log of the proportion
                    inner = by_mean.sum(-1, keepdim=True)
                    torch.sub(by_mean, proportion.mul_(inner), out=by_logits[particle, here])
        if needs_gradient:
            ctx.save_for_backward(shifted, c, by_logits, by_c)
            ctx.value_shape = value.shape
        return mass.reshape(lead)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None]:
        shifted, c, by_logits, by_c = ctx.saved_tensors
        weight = gradients[0].reshape(*by_logits.shape[:2], 1)
        varying = (weight.reshape(1, -1) @ by_c.reshape(-1, by_c.shape[-1])).view_as(c)
        per_cell = weight.sum(0).reshape(*ctx.value_shape[:-1], 1)
        fixed = torch.digamma(shifted) - torch.digamma(c) + torch.log(c) + 1
        gradient = (by_logits * weight).reshape(*gradients[0].shape, -1)
        return None, (per_cell * fixed).sum_to_size(c.shape) - varying, gradient, None


def _rows_at_a_time(logits: Tensor) -> int:
    return ROWS_AT_A_TIME if logits.device.type == "cpu" else logits.numel()
