"""SAMS-VAE: sparse additive mechanism shifts (Bereket & Karaletsos 2023), and with features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Bernoulli, Beta, Delta, Normal
from torch import Tensor, nn

from samsvae.models.base import Batch, PerturbationModel
from samsvae.models.likelihoods import LIKELIHOODS, StraightThroughBernoulli, inside_unit_interval
from samsvae.models.networks import (
    CorrelatedEmbedding,
    GaussianNetwork,
    MeanFieldEmbedding,
    covariate_inputs,
)
from samsvae.screen.features import PerturbationFeatures, logistic_weights, ridge_weights


class SamsVae(PerturbationModel):
    r"""Sparse Additive Mechanism Shift VAE.

    Generative model, for perturbations t, latent dimensions k and cells i::

        m_tk  ~ Bernoulli(p)
        e_t   ~ N(0, s^2 I)
        z_i^b ~ N(0, I),  z_i = z_i^b + sum_t d_it (m_t * e_t)
        x_i   ~ p(x | z_i, l_i, c_i)

    With effects in contexts, a perturbation t has effects m_tc * e_tc beside those that all
    contexts c share, in the cells of c alone, with Bernoulli(p_c) masks: they are further rows t of
    the same equations.

    Guide::

        q(m_tk)    = Bernoulli(sigmoid(phi_tk)),  phi = 0 at the start
        q(e | m)   = N(mu, sigma), mu = 0 and sigma = 1 at the start     (mean_field)
                   = N(NN([m_t, onehot_t]))                              (correlated)
        q(z^b | x) = N(NN([norm x, c])) or N(NN([norm x, sum_t d_t m_t * e_t, c]))

    Parameters
    ----------
    n_genes, n_perturbations, n_latent, n_hidden, n_layers, likelihood, n_covariates
        As for :class:`samsvae.models.base.PerturbationModel`.
    mask_prior
        p, the prior probability that a perturbation shifts a latent dimension.
    context_mask_prior
        p_c, the prior probability that an effect in one context shifts a latent dimension.
    embedding
        Guide of the embeddings, ``mean_field`` or ``correlated``.
    embedding_n_hidden, embedding_n_layers
        Sizes of the network of the correlated guide.
    embedding_prior_scale
        s, in units of the basal state's standard deviation.
    basal_encoder
        ``mean_field`` or ``correlated``.
    shared_effects
        Perturbation t of each effect in one context alone.

    Examples
    --------
    >>> model = SamsVae(n_genes=50, n_perturbations=3, n_latent=4, n_hidden=8)
    >>> model.global_guide().shape
    torch.Size([3, 4])
    """

    infers_basal_state = True
    mask: "BernoulliMask | BetaBernoulliMask"
    embedding: MeanFieldEmbedding | CorrelatedEmbedding

    def __init__(
        self,
        n_genes: int,
        n_perturbations: int,
        *,
        n_latent: int = 100,
        n_hidden: int = 400,
        n_layers: int = 1,
        mask_prior: float = 0.01,
        context_mask_prior: float = 0.001,
        embedding: str = "correlated",
        embedding_n_hidden: int = 200,
        embedding_n_layers: int = 2,
        embedding_prior_scale: float = 1.0,
        basal_encoder: str = "correlated",
        likelihood: str = "negative_binomial",
        n_covariates: int = 0,
        shared_effects: Sequence[int] = (),
    ) -> None:
        n_all = n_perturbations + len(shared_effects)
        super().__init__(n_genes, n_all, n_latent, likelihood)
        self.shared_effects = shared_effects
        self.embedding_prior_scale = embedding_prior_scale
        self.basal_encoder = basal_encoder
        # p(m) and q(m)
        priors = [mask_prior] * n_perturbations + [context_mask_prior] * len(shared_effects)
        self.mask = BernoulliMask(n_latent, priors)
        # p(x | z, l, c)
        self.likelihood = LIKELIHOODS[likelihood](
            n_latent, n_genes, n_hidden, n_layers, n_covariates
        )
        # q(z^b | x, c) or q(z^b | x, shift, c)
        given = [n_latent] if basal_encoder == "correlated" else []
        inputs = [n_genes, *given, *covariate_inputs(n_covariates)]
        self.encoder = GaussianNetwork(inputs, n_hidden, n_layers, n_latent)
        # q(e | m)
        if embedding == "correlated":
            self.embedding = CorrelatedEmbedding(
                n_all, n_latent, embedding_n_hidden, embedding_n_layers
            )
        else:
            self.embedding = MeanFieldEmbedding(n_all, n_latent)

    def global_prior(self) -> Tensor:
        """Sample m ~ p(m) and e ~ p(e); return m * e."""
        with self.perturbations():
            mask = self.mask.prior()
            zero, scale = torch.zeros_like(mask), torch.full_like(mask, self.embedding_prior_scale)
            embedding = pyro.sample("embedding", Normal(zero, scale).to_event(1))
        return mask * embedding

    def global_guide(self) -> Tensor:
        """Sample m ~ q(m) and e ~ q(e | m); return m * e."""
        with self.perturbations():
            mask = self.mask.guide()
            embedding = pyro.sample("embedding", Normal(*self.embedding(mask)).to_event(1))
        return mask * embedding

    def mask_start(self) -> tuple[nn.Parameter, Sequence[float], float] | None:
        """Return the masks' logits, if the guide has any, p and s."""
        logits = getattr(self.mask, "logits", None)
        if logits is None:
            return None
        return logits, self.mask.probabilities, self.embedding_prior_scale

    def cell_prior(self, shift: Tensor) -> Tensor:
        """Sample z^b ~ N(0, I); return z^b + shift."""
        return pyro.sample("basal", self.standard_normal(shift)) + shift

    def cell_guide(self, batch: Batch, shift: Tensor) -> None:
        """Sample z^b ~ q(z^b | x, c), or q(z^b | x, shift, c) if the encoder is correlated."""
        given = [shift] if self.basal_encoder == "correlated" else []
        encoded = self.encoder(self.encoder_counts(batch), *given, *batch.covariates)
        pyro.sample("basal", Normal(*encoded).to_event(1))


class BernoulliMask(nn.Module):
    """Mask m_tk ~ Bernoulli(p_t), with q(m_tk) = Bernoulli(sigmoid(phi_tk)), phi = 0 at first."""

    prior_probability: Tensor

    def __init__(self, n_latent: int, probabilities: Sequence[float]) -> None:
        super().__init__()
        self.probabilities = probabilities
        column = torch.tensor(probabilities)[:, None]
        self.register_buffer("prior_probability", column, persistent=False)
        self.logits = nn.Parameter(torch.zeros(len(probabilities), n_latent))

    def prior(self) -> Tensor:
        """Sample m ~ p(m)."""
        p = self.prior_probability.expand_as(self.logits)
        return pyro.sample("mask", Bernoulli(p).to_event(1))

    def prior_logits(self) -> Tensor:
        """Return logit p_t, T x 1."""
        return torch.logit(self.prior_probability)

    def guide(self) -> Tensor:
        """Sample m ~ q(m)."""
        return pyro.sample("mask", StraightThroughBernoulli(logits=self.logits).to_event(1))


class BetaBernoulliMask(nn.Module):
    """Mask m_tk ~ Bernoulli(a_tk), a_tk ~ Beta(alpha, beta), with q(m_tk | a) = Bernoulli(a_tk).

    Parameters
    ----------
    alpha, beta
        Shapes of the prior of the rate a.
    rate_guide
        ``point``: q(a_tk) = Delta(sigmoid(phi_tk)), phi = 0 at the start. ``beta``: a Beta,
        uniform at the start.
    """

    def __init__(
        self, n_perturbations: int, n_latent: int, alpha: float, beta: float, rate_guide: str
    ) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.probabilities = [alpha / (alpha + beta)] * n_perturbations
        self.rate_guide = rate_guide
        shape = (n_perturbations, n_latent)
        if rate_guide == "beta":
            self.log_shapes = nn.Parameter(torch.zeros(2, *shape))
        else:
            self.logits = nn.Parameter(torch.zeros(shape))

    def prior(self) -> Tensor:
        """Sample a ~ p(a) and m ~ p(m | a); return m."""
        one = torch.ones_like(self.log_shapes[0] if self.rate_guide == "beta" else self.logits)
        rate = pyro.sample("rate", Beta(self.alpha * one, self.beta * one).to_event(1))
        return pyro.sample("mask", Bernoulli(rate).to_event(1))

    def guide(self) -> Tensor:
        """Sample a ~ q(a) and m ~ q(m | a); return m."""
        if self.rate_guide == "beta":
            rate_guide = Beta(*self.log_shapes.exp())
        else:
            rate_guide = Delta(inside_unit_interval(torch.sigmoid(self.logits)))
        rate = inside_unit_interval(pyro.sample("rate", rate_guide.to_event(1)))
        logits = torch.logit(rate)
        return pyro.sample("mask", StraightThroughBernoulli(logits=logits).to_event(1))


class BetaBernoulliSamsVae(SamsVae):
    """SAMS-VAE with a Beta prior of the mask's rates.

    Parameters
    ----------
    alpha, beta, rate_guide
        As for :class:`BetaBernoulliMask`.
    n_genes, n_perturbations, n_latent, **others
        As for :class:`SamsVae`, but for `mask_prior`.
    """

    def __init__(
        self,
        n_genes: int,
        n_perturbations: int,
        *,
        alpha: float = 1.0,
        beta: float = 10.0,
        rate_guide: str = "point",
        n_latent: int = 100,
        **others: Any,
    ) -> None:
        super().__init__(n_genes, n_perturbations, n_latent=n_latent, **others)
        self.mask = BetaBernoulliMask(n_perturbations, n_latent, alpha, beta, rate_guide)


class FeatureSamsVae(SamsVae):
    r"""SAMS-VAE whose prior depends on features of perturbations.

    With f_t the features of perturbation t, the prior of the masks and embeddings of
    :class:`SamsVae` becomes::

        m_tk  ~ Bernoulli(sigmoid(logit p + a_k + v_k . f_t))
        e_tk  ~ N(b_k + W_k . f_t, s^2)

    The guide of a perturbation with training cells is that of :class:`SamsVae`. Of one without, the
    posterior is the prior, and so is the guide::

        q(m_tk) = p(m_tk),  q(e_tk) = p(e_tk)

    a, v, b and W are 0 at the start. Empirical Bayes updates them from the guide of the trained
    perturbations (:meth:`FeaturePrior.update`), instead of gradients. Effects in one context alone
    have no features.

    Parameters
    ----------
    n_genes, n_perturbations, n_latent, **others
        As for :class:`SamsVae`.
    features
        Features of the perturbations, and which of these have training cells.
    """

    mask: "BernoulliMask"

    def __init__(
        self, n_genes: int, n_perturbations: int, *, features: PerturbationFeatures, **others: Any
    ) -> None:
        super().__init__(n_genes, n_perturbations, **others)
        self.features = FeaturePrior(features, self.n_perturbations, self.n_latent)
        self.n_features = features.values.shape[1]

    def global_prior(self) -> Tensor:
        """Sample m ~ p(m | f) and e ~ p(e | f); return m * e."""
        logits, location, scale = self.given_features()
        with self.perturbations():
            mask = pyro.sample("mask", Bernoulli(logits=logits).to_event(1))
            zero = torch.zeros_like(mask)
            prior = Normal(zero + location, zero + scale)
            embedding = pyro.sample("embedding", prior.to_event(1))
        return mask * embedding

    def global_guide(self) -> Tensor:
        """Sample m ~ q(m) and e ~ q(e | m), or from the prior if t is untrained; return m * e."""
        logits, *prior = self.given_features()
        seen = self.features.is_trained
        with self.perturbations():
            own = torch.where(seen, self.mask.logits, logits)
            mask = pyro.sample("mask", StraightThroughBernoulli(logits=own).to_event(1))
            location, scale = (
                torch.where(seen, q, p) for q, p in zip(self.embedding(mask), prior, strict=True)
            )
            embedding = pyro.sample("embedding", Normal(location, scale).to_event(1))
        return mask * embedding

    def given_features(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of the prior of m, and location and scale of that of e, each T x K."""
        logits = self.mask.prior_logits() + self.features.logits()
        location = self.features.location()
        return logits, location, torch.full_like(location, self.embedding_prior_scale)

    @torch.no_grad()
    def update_prior(self, probability: Tensor, location: Tensor) -> None:
        """Update a, v, b and W from the guide's masks and embeddings, as :class:`FeaturePrior`."""
        offset = self.mask.prior_logits()[:, 0]
        self.features.update(probability, location, offset, self.embedding_prior_scale)


class FeaturePrior(nn.Module):
    """Weights of the features of perturbations in the prior of masks and embeddings.

    Parameters
    ----------
    features
        Features of the perturbations, and which of these have training cells.
    n_effects
        Number of perturbations and effects in contexts, which have no features.
    n_latent
        K.
    """

    values: Tensor
    is_trained: Tensor

    def __init__(self, features: PerturbationFeatures, n_effects: int, n_latent: int) -> None:
        super().__init__()
        n_perturbations, n_features = features.values.shape
        values = torch.zeros(n_effects, 1 + n_features)
        values[:n_perturbations, 0] = 1
        values[:n_perturbations, 1:] = torch.from_numpy(features.values)
        is_trained = torch.ones(n_effects, 1, dtype=torch.bool)
        is_trained[:n_perturbations, 0] = torch.from_numpy(features.is_trained)
        self.register_buffer("values", values)
        self.register_buffer("is_trained", is_trained)
        # (a, v) and (b, W); updated without gradients, but part of the state of a training
        shape = n_latent, 1 + n_features
        self.logit_weights = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.weights = nn.Parameter(torch.zeros(shape), requires_grad=False)

    def logits(self) -> Tensor:
        """Compute a_k + v_k . f_t, T x K."""
        return self.values @ self.logit_weights.T

    def location(self) -> Tensor:
        """Compute b_k + W_k . f_t, T x K."""
        return self.values @ self.weights.T

    @torch.no_grad()
    def update(self, probability: Tensor, location: Tensor, offset: Tensor, scale: float) -> None:
        """Set the weights to their empirical Bayes estimates.

        Parameters
        ----------
        probability
            q(m_tk = 1), T x K.
        location
            Mean of q(e_tk | m_tk = 1), T x K. It counts as far as the mask is open.
        offset
            logit p, length T.
        scale
            s.
        """
        values = self.values.double().cpu().numpy()
        of_trained = (self.is_trained[:, 0].cpu().numpy()) & (values[:, 0] == 1)
        features = values[of_trained, 1:]
        p, e, o = (
            np.asarray(each.detach().double().cpu())[of_trained]
            for each in (probability, location, offset)
        )
        self.logit_weights.copy_(torch.from_numpy(logistic_weights(features, p, o)))
        self.weights.copy_(torch.from_numpy(ridge_weights(features, e, p, scale)))
