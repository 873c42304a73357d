"""E[log2(1 + x)] of negative-binomial counts, without sampling them."""

import math

import torch
from torch import Tensor

# The integrand over log t is analytic in a strip and decays at both ends (as mean * t below, as
# exp(-t) above), so that the trapezoid rule converges exponentially: at this step to rounding.
LOG_T = torch.arange(-34.0, 4.0, 0.125, dtype=torch.float64)
GRID_SIZE = 256
GENES_AT_A_TIME = 256


class ExpectedLogCounts:
    """A table of E[log2(1 + x)] per gene over the mean of x.

    With L(t) = E[exp(-t x)] = (1 + mean (1 - exp(-t)) / c)^-c,

        E[log(1 + x)] = int_0^inf exp(-t) (1 - L(t)) / t dt,

    since log(1 + x) = int_0^inf (exp(-t) - exp(-t (1 + x))) / t dt. The table holds the value and
    its derivative on a grid over the log of the mean; between its points, cubic Hermite
    interpolation.

    Parameters
    ----------
    inverse_dispersion
        c per gene, length G.
    smallest_mean, largest_mean
        Range of the table; the function is defined inside it alone.
    """

    def __init__(
        self, inverse_dispersion: Tensor, smallest_mean: float, largest_mean: float
    ) -> None:
        self.start = math.log(smallest_mean)
        self.step = (math.log(largest_mean) - self.start) / (GRID_SIZE - 1)
        log_mean = self.start + self.step * torch.arange(GRID_SIZE, dtype=torch.float64)
        columns = [
            _quadrature(c.cpu().double(), log_mean)
            for c in inverse_dispersion.split(GENES_AT_A_TIME)
        ]
        value, slope = (torch.cat(parts) for parts in zip(*columns, strict=True))
        device = inverse_dispersion.device
        self.value = (value / math.log(2)).float().to(device)
        self.scaled_slope = (slope * self.step / math.log(2)).float().to(device)

    def __call__(self, mean: Tensor) -> Tensor:
        """Look up E[log2(1 + x)] for means [..., G]."""
        position = ((mean.log() - self.start) / self.step).clamp(0, GRID_SIZE - 1)
        lower = position.floor().clamp(max=GRID_SIZE - 2)
        fraction = position - lower
        gene = torch.arange(mean.shape[-1], device=mean.device).expand(mean.shape)
        at = gene * GRID_SIZE + lower.long()
        left, right = self.value.take(at), self.value.take(at + 1)
        left_slope, right_slope = self.scaled_slope.take(at), self.scaled_slope.take(at + 1)
        rise = right - left
        curve = (1 - fraction) * (left_slope - rise) - fraction * (right_slope - rise)
        return left + fraction * (rise + (1 - fraction) * curve)


def _quadrature(c: Tensor, log_mean: Tensor) -> tuple[Tensor, Tensor]:
    """Compute E[log(1 + x)] and its derivative by the log of the mean, genes x grid, in nats."""
    t = LOG_T.exp()
    weight = torch.exp(-t) * (LOG_T[1] - LOG_T[0])
    value = torch.empty(len(c), len(log_mean), dtype=torch.float64)
    slope = torch.empty_like(value)
    for column, mean in enumerate(log_mean.exp()):
        exposure = -mean * torch.expm1(-t)
        log_laplace = -c[:, None] * torch.log1p(exposure / c[:, None])
        value[:, column] = -torch.expm1(log_laplace) @ weight
        derivative = exposure * torch.exp(log_laplace) / (1 + exposure / c[:, None])
        slope[:, column] = derivative @ weight
    return value, slope
