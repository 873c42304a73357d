"""Gamma-Poisson counts of a cell."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints

from samsvae.kernels.gamma_poisson import SMALLEST_MEAN, log_mass


def mean_counts(logits: Tensor, library_size: Tensor) -> Tensor:
    """Compute l softmax(logits) + 1e-4, [..., G]."""
    return library_size[..., None] * torch.softmax(logits, dim=-1) + SMALLEST_MEAN


class NegativeBinomialCounts(TorchDistribution):
    """Counts of the genes of a cell.

    x_g ~ GammaPoisson(concentration c_g, rate c_g / mean_g), mean = l softmax(head(h)) + 1e-4: a
    negative binomial with variance mean_g + mean_g^2 / c_g, independent over genes.

    Parameters
    ----------
    inverse_dispersion
        c > 0, length G.
    hidden
        h, the decoder's last hidden layer, [..., H].
    head
        The layer that makes logits of it, H to G.
    library_size
        l > 0; broadcasts against the leading dimensions of `hidden`.
    """

    arg_constraints = {  # noqa: RUF012
        "inverse_dispersion": constraints.independent(constraints.positive, 1),
        "hidden": constraints.real_vector,
        "library_size": constraints.positive,
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        inverse_dispersion: Tensor,
        hidden: Tensor,
        head: nn.Linear,
        library_size: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.inverse_dispersion = inverse_dispersion
        self.hidden = hidden
        self.head = head
        self.library_size = library_size
        genes = inverse_dispersion.shape
        super().__init__(hidden.shape[:-1], genes, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Expected counts."""
        return mean_counts(self.head(self.hidden), self.library_size)

    @property
    def variance(self) -> Tensor:
        """Variance of the counts."""
        return self.mean + self.mean**2 / self.inverse_dispersion

    def expand(self, batch_shape: Any, _instance: Any = None) -> "NegativeBinomialCounts":
        """Repeat over leading dimensions."""
        hidden = self.hidden.expand(*batch_shape, -1)
        return NegativeBinomialCounts(
            self.inverse_dispersion, hidden, self.head, self.library_size, validate_args=False
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
            Counts, B x G: without the leading dimensions of `hidden`, such as particles, so that
            what depends on counts and c alone is computed once for all of them.
        """
        c, head = self.inverse_dispersion, self.head
        library_size = self.library_size.expand(value.shape[:-1])
        return log_mass(value, library_size, c, self.hidden, head.weight, head.bias)
