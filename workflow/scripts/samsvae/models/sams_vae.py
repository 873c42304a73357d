"""SAMS-VAE: sparse additive mechanism shifts (Bereket & Karaletsos 2023)."""

import pyro
import torch
from pyro.distributions import Bernoulli, Beta, Delta, Normal
from torch import Tensor, nn

from samsvae.models.additive import AdditiveShiftModel
from samsvae.models.distributions import StraightThroughBernoulli, inside_unit_interval
from samsvae.models.embeddings import CorrelatedEmbedding, MeanFieldEmbedding


class SamsVae(AdditiveShiftModel):
    r"""Sparse Additive Mechanism Shift VAE.

    Generative model, for perturbations t, latent dimensions k and cells i::

        m_tk ~ Bernoulli(p)
        e_t  ~ N(0, s^2 I)
        z_i  = z_i^b + sum_t d_it (m_t * e_t),  z_i^b ~ N(0, I)
        x_i  ~ p(x | z_i, l_i)

    Guide::

        q(m_tk)    = Bernoulli(sigmoid(phi_tk)),  phi = 0 at the start
        q(e | m)   = N(mu, sigma), mu = 0 and sigma = 1 at the start     (mean_field)
                   = N(NN([m_t, onehot_t]))                              (correlated)
        q(z^b | x) = N(NN(norm x)) or N(NN([norm x, sum_t d_t m_t * e_t]))

    Parameters
    ----------
    n_genes, n_perturbations
        G and T.
    n_latent, n_hidden, n_layers
        Latent dimensions K; width and number of hidden layers of encoder and decoder.
    mask_prior
        p, the prior probability that a perturbation moves a latent dimension.
    embedding
        Guide of the embeddings, ``mean_field`` or ``correlated``.
    embedding_n_hidden, embedding_n_layers
        Sizes of the network of the correlated guide.
    embedding_prior_scale
        s, in units of the basal state's standard deviation.
    basal_encoder
        ``mean_field`` or ``correlated``.
    likelihood
        Name of the distribution of counts.

    Examples
    --------
    >>> model = SamsVae(n_genes=50, n_perturbations=3, n_latent=4, n_hidden=8)
    >>> model.mask_probability().shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        n_genes: int,
        n_perturbations: int,
        *,
        n_latent: int = 100,
        n_hidden: int = 400,
        n_layers: int = 1,
        mask_prior: float = 0.01,
        embedding: str = "correlated",
        embedding_n_hidden: int = 200,
        embedding_n_layers: int = 2,
        embedding_prior_scale: float = 1.0,
        basal_encoder: str = "correlated",
        likelihood: str = "negative_binomial",
    ) -> None:
        super().__init__(
            n_genes, n_perturbations, n_latent, n_hidden, n_layers, basal_encoder, likelihood
        )
        self.mask_prior = mask_prior
        self.embedding_prior_scale = embedding_prior_scale
        self.mask_logits = nn.Parameter(torch.zeros(n_perturbations, n_latent))
        self.embedding_guide: MeanFieldEmbedding | CorrelatedEmbedding
        if embedding == "correlated":
            self.embedding_guide = CorrelatedEmbedding(
                n_perturbations, n_latent, embedding_n_hidden, embedding_n_layers
            )
        else:
            self.embedding_guide = MeanFieldEmbedding(n_perturbations, n_latent)

    def effects(self) -> Tensor:
        """M * e from p(m) p(e)."""
        with self.perturbations():
            mask = self.mask()
            zeros = torch.zeros_like(mask)
            embedding = pyro.sample(
                "embedding", Normal(zeros, zeros + self.embedding_prior_scale).to_event(1)
            )
        return mask * embedding

    def effects_guide(self) -> Tensor:
        """M * e from q(m) q(e | m)."""
        with self.perturbations():
            mask = self.mask_guide()
            embedding = pyro.sample("embedding", Normal(*self.embedding_guide(mask)).to_event(1))
        return mask * embedding

    def mask(self) -> Tensor:
        """Sample m from its prior."""
        prior = torch.full_like(self.mask_logits, self.mask_prior)
        return pyro.sample("mask", Bernoulli(prior).to_event(1))

    def mask_guide(self) -> Tensor:
        """Sample m from its guide."""
        logits = self.mask_logits + self.mask_opening
        return pyro.sample("mask", StraightThroughBernoulli(logits=logits).to_event(1))

    def mask_probability(self) -> Tensor:
        """sigmoid(phi), T x K."""
        return torch.sigmoid(self.mask_logits)

    def unmasked_effects(self) -> Tensor:
        """Location of q(e | m = 1), T x K."""
        opened = torch.ones(self.n_perturbations, self.n_latent, device=self.mask_opening.device)
        return self.embedding_guide(opened)[0]

    def turn_axes(self, rotation: Tensor) -> None:
        """Turn z, z^b and e; see :meth:`PerturbationModel.turn_axes`."""
        self.likelihood.hidden.turn_input(0, rotation)
        self.encoder.turn_output(rotation)
        if self.basal_encoder == "correlated":
            self.encoder.hidden.turn_input(1, rotation)
        self.embedding_guide.turn_axes(rotation)


class BetaBernoulliSamsVae(SamsVae):
    r"""SAMS-VAE whose sparsity is itself uncertain.

    As :class:`SamsVae`, but for::

        a_tk ~ Beta(alpha, beta)
        m_tk ~ Bernoulli(a_tk)

    Guide::

        q(a_tk)    = Delta(sigmoid(phi_tk))        (rate_guide: point)
                   = Beta(softplus, softplus)      (rate_guide: beta)
        q(m_tk|a)  = Bernoulli(a_tk)

    Parameters
    ----------
    alpha, beta
        Shapes of the prior of the rate a.
    rate_guide
        ``point`` or ``beta``.
    **others
        As for :class:`SamsVae`, but for `mask_prior`.

    Examples
    --------
    >>> model = BetaBernoulliSamsVae(n_genes=50, n_perturbations=3, n_latent=4, n_hidden=8)
    >>> model.mask_probability()[0, 0].item()
    0.5
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
        n_hidden: int = 400,
        n_layers: int = 1,
        embedding: str = "correlated",
        embedding_n_hidden: int = 200,
        embedding_n_layers: int = 2,
        embedding_prior_scale: float = 1.0,
        basal_encoder: str = "correlated",
        likelihood: str = "negative_binomial",
    ) -> None:
        super().__init__(
            n_genes,
            n_perturbations,
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
            embedding=embedding,
            embedding_n_hidden=embedding_n_hidden,
            embedding_n_layers=embedding_n_layers,
            embedding_prior_scale=embedding_prior_scale,
            basal_encoder=basal_encoder,
            likelihood=likelihood,
        )
        self.alpha, self.beta = alpha, beta
        self.rate_guide = rate_guide
        if rate_guide == "beta":
            # in place of the logits: log-shapes of the Beta, the uniform one at the start
            del self.mask_logits
            self.log_shapes = nn.Parameter(torch.zeros(2, n_perturbations, n_latent))

    def mask(self) -> Tensor:
        """Sample a and m from their prior."""
        ones = torch.ones_like(self.mask_probability())
        rate = pyro.sample("rate", Beta(self.alpha * ones, self.beta * ones).to_event(1))
        return pyro.sample("mask", Bernoulli(rate).to_event(1))

    def mask_guide(self) -> Tensor:
        """Sample a from its guide, and m given a."""
        if self.rate_guide == "beta":
            rate_guide = Beta(*self.log_shapes.exp())
        else:
            rate_guide = Delta(inside_unit_interval(self.mask_probability()))
        rate = inside_unit_interval(pyro.sample("rate", rate_guide.to_event(1)))
        logits = torch.logit(rate) + self.mask_opening
        return pyro.sample("mask", StraightThroughBernoulli(logits=logits).to_event(1))

    def mask_probability(self) -> Tensor:
        """Posterior mean of the rate, T x K."""
        if self.rate_guide == "beta":
            first, second = self.log_shapes.exp()
            return first / (first + second)
        return torch.sigmoid(self.mask_logits)
