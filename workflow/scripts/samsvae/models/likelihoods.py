"""Likelihoods of counts given the latent state, and distributions that Pyro lacks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions import Bernoulli, Normal, Poisson, TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints

from samsvae.kernels import SMALLEST_MEAN
from samsvae.kernels.gamma_poisson import add_at, log_prob
from samsvae.kernels.linear import Linear, affine
from samsvae.models.networks import HiddenLayers, covariate_inputs

SMALLEST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class Logits:
    """Factors of the logits h W^T + b, so that a kernel can multiply them block by block.

    Attributes
    ----------
    hidden
        h, [..., H].
    weight, bias
        W, G x H, and b, length G.
    own
        Genes, [..., M], what is added to their logits, [..., M], and to the logarithms of their
        concentrations, [..., M]; may be empty.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    own: tuple[Tensor, ...] = ()

    def value(self) -> Tensor:
        """Compute the logits, [..., G]."""
        return with_own(affine(self.hidden, self.weight, self.bias), self.own)


def with_own(output: Tensor, own: tuple[Tensor, ...]) -> Tensor:
    """Add the terms of target genes to an output of the decoder, [..., G]."""
    return add_at(output, *own[:2]) if own else output


class GammaPoissonCounts(TorchDistribution):
    """Distribution of the counts of a cell.

    x_g ~ GammaPoisson(concentration c_g, rate c_g / mean_g), mean = l softmax(logits) + 1e-4: a
    negative binomial with variance mean_g + mean_g^2 / c_g, independent over genes.

    Parameters
    ----------
    concentration
        c > 0, length G, or of each cell, [..., G].
    logits
        [..., G].
    library_size
        l > 0; broadcasts against the leading dimensions of the logits.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        concentration: Tensor,
        logits: Logits,
        library_size: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration, self.logits, self.library_size = concentration, logits, library_size
        batch_shape = logits.hidden.shape[:-1]
        super().__init__(batch_shape, concentration.shape[-1:], validate_args=validate_args)

    @property
    def concentrations(self) -> Tensor:
        """Concentrations of the genes, or of those of each cell, [..., G]."""
        if not self.logits.own:
            return self.concentration
        genes, _, log_factors = self.logits.own
        return add_at(self.concentration.log(), genes, log_factors).exp()

    @property
    def mean(self) -> Tensor:
        """Expected counts."""
        proportion = torch.softmax(self.logits.value(), dim=-1)
        return self.library_size[..., None] * proportion + SMALLEST_MEAN

    @property
    def variance(self) -> Tensor:
        """Variance of the counts."""
        return self.mean + self.mean**2 / self.concentrations

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GammaPoissonCounts":
        """Expand the batch shape."""
        hidden = self.logits.hidden.expand(*batch_shape, -1)
        logits = Logits(hidden, self.logits.weight, self.logits.bias, self.logits.own)
        return GammaPoissonCounts(
            self.concentration, logits, self.library_size, validate_args=False
        )

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draw counts."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            concentrations = self.concentrations
            gamma = torch._standard_gamma(concentrations.expand(shape).contiguous())
            return torch.poisson(gamma * (self.mean / concentrations))

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log-probability of cells' counts, summed over genes, in nats.

        Parameters
        ----------
        value
            Counts, B x G: without the leading dimensions of the logits, such as particles, so
            that terms of counts and c alone are computed once for all of them.
        """
        library_size = self.library_size.expand(value.shape[:-1])
        hidden, weight, bias = self.logits.hidden, self.logits.weight, self.logits.bias
        given = (value, library_size, self.concentration, hidden, weight, bias)
        return log_prob(*given, *self.logits.own)


def inside_unit_interval(probability: Tensor) -> Tensor:
    """Clamp a probability away from 0 and 1, where log-densities may be infinite."""
    return probability.clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)


class StraightThroughBernoulli(Bernoulli):
    """Bernoulli with a straight-through gradient of its samples.

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
        logits = self.logits
        return self.of_uniform(torch.rand(shape, dtype=logits.dtype, device=logits.device))

    def of_uniform(self, uniform: Tensor) -> Tensor:
        """Transform uniform noise between 0 and 1 to samples."""
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


SMALLEST_VARIANCE = 1e-4


class Likelihood(nn.Module, ABC):
    """Likelihood p(x | z, l, c): a decoder f and the distribution that it parameterises.

    Parameters
    ----------
    n_inputs, n_genes, n_hidden, n_layers
        Sizes of the decoder.
    n_covariates
        Number of covariates c, further inputs of the decoder.
    """

    def __init__(
        self, n_inputs: int, n_genes: int, n_hidden: int, n_layers: int, n_covariates: int = 0
    ) -> None:
        super().__init__()
        # covariates, the same for all particles, first
        inputs = [*covariate_inputs(n_covariates), n_inputs]
        self.hidden = HiddenLayers(inputs, n_hidden, n_layers)
        self.head = Linear(n_hidden, n_genes)

    def forward(
        self,
        decoder_input: Tensor,
        library_size: Tensor,
        *covariates: Tensor,
        own: tuple[Tensor, ...] = (),
    ) -> TorchDistribution:
        """Return the distribution of counts, event shape [G], of inputs [..., n_inputs].

        Covariates, [..., n_covariates], are given if the decoder takes them; `own` has genes
        [..., M], what is added to the decoder's output for these, and to the logarithm of their
        concentrations.
        """
        hidden = self.hidden(*covariates, decoder_input)
        return self.of_hidden(hidden, library_size, own, covariates)

    @abstractmethod
    def of_hidden(
        self,
        hidden: Tensor,
        library_size: Tensor,
        own: tuple[Tensor, ...],
        covariates: tuple[Tensor, ...],
    ) -> TorchDistribution:
        """Return the distribution given the last hidden layer [..., n_hidden] of the decoder."""

    def disperse_by(self, n_covariates: int) -> None:
        """Let the dispersion depend on covariates.

        Raises
        ------
        TypeError
            If the likelihood has no dispersion of genes.
        """
        raise TypeError(f"{type(self).__name__} has no dispersion of genes")

    def mean(
        self,
        decoder_input: Tensor,
        library_size: Tensor,
        *covariates: Tensor,
        own: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Compute expected counts [..., G]; arguments as of :meth:`forward`."""
        return self(decoder_input, library_size, *covariates, own=own).mean


class GammaPoissonLikelihood(Likelihood):
    """Likelihood x_ig ~ GammaPoisson(c_g, c_g / (l_i rho_ig + 1e-4)), rho_i = softmax(f(z_i)).

    Bereket & Karaletsos 2023, section 3.1. The concentration c_g, or inverse dispersion, is
    learnt per gene and starts at 1. By choice (:meth:`disperse_by`) it also depends on the
    covariates b_i of a cell, such as its batch: log c_ig = log c_g + sum_j b_ij d_jg, d = 0 at the
    start.
    """

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.log_concentration = nn.Parameter(torch.zeros(self.head.out_features))
        self.by_covariate: nn.Parameter | None = None

    def disperse_by(self, n_covariates: int) -> None:
        """Let the concentration depend on covariates, at first not at all."""
        self.by_covariate = nn.Parameter(torch.zeros(n_covariates, self.head.out_features))

    def concentration(self, *covariates: Tensor) -> Tensor:
        """Compute the concentration of cells, [..., G]; length G if it is that of genes."""
        logarithm: Tensor = self.log_concentration
        if self.by_covariate is not None:
            [given] = covariates
            logarithm = logarithm + given @ self.by_covariate
        return logarithm.exp()

    def of_hidden(
        self,
        hidden: Tensor,
        library_size: Tensor,
        own: tuple[Tensor, ...],
        covariates: tuple[Tensor, ...],
    ) -> GammaPoissonCounts:
        """Return GammaPoisson(c, c / (l softmax(f(z)) + 1e-4))."""
        logits = Logits(hidden, self.head.weight, self.head.bias, own)
        return GammaPoissonCounts(self.concentration(*covariates), logits, library_size)


class PoissonLikelihood(Likelihood):
    """Likelihood x_ig ~ Poisson(softplus(f(z_i)) + 1e-4), without the library size."""

    def of_hidden(
        self,
        hidden: Tensor,
        library_size: Tensor,
        own: tuple[Tensor, ...],
        covariates: tuple[Tensor, ...],
    ) -> TorchDistribution:
        """Return Poisson(softplus(f(z)) + 1e-4)."""
        rate = nn.functional.softplus(with_own(self.head(hidden), own))
        return Poisson(rate + SMALLEST_MEAN).to_event(1)


class NormalLikelihood(Likelihood):
    """Likelihood x_ig ~ N(f(z_i), exp(h(z_i)) + 1e-4), for continuous data.

    The heads of f and h have common hidden layers.
    """

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.log_variance_head = Linear(self.head.in_features, self.head.out_features)

    def of_hidden(
        self,
        hidden: Tensor,
        library_size: Tensor,
        own: tuple[Tensor, ...],
        covariates: tuple[Tensor, ...],
    ) -> TorchDistribution:
        """Return N(f(z), exp(h(z)) + 1e-4)."""
        variance = self.log_variance_head(hidden).exp() + SMALLEST_VARIANCE
        return Normal(with_own(self.head(hidden), own), variance.sqrt()).to_event(1)


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "negative_binomial": GammaPoissonLikelihood,
    "poisson": PoissonLikelihood,
    "normal": NormalLikelihood,
}
