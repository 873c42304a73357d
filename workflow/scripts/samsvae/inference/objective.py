"""Evidence bounds from traces of model and guide."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Independent, Normal
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.nn.functional import softplus

from samsvae.models.base import CELLS, COUNTS, Batch, PerturbationModel

RECONSTRUCTION = "reconstruction"
MASK_SITES = ("mask", "rate")

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class BoundTerms:
    """Terms of a bound for the whole data set, in nats.

    Attributes
    ----------
    reconstruction
        E_q log p(x | z), summed over cells. For the importance-weighted bound: the logarithm of
        the mean importance weights of the cells' own variables, which includes their KL.
    kl_local
        KL of the cells' own variables by site, summed over cells.
    kl_global
        KL of the global variables by site.
    n_cells
        Number of cells that the terms represent.
    """

    reconstruction: Tensor
    kl_local: dict[str, Tensor]
    kl_global: dict[str, Tensor]
    n_cells: int

    @property
    def terms_per_cell(self) -> dict[str, Tensor]:
        """``reconstruction``, and a ``kl_`` term for each site, in nats per cell."""
        kl = {**self.kl_local, **self.kl_global}
        return {
            RECONSTRUCTION: self.reconstruction / self.n_cells,
            **{f"kl_{site}": value / self.n_cells for site, value in kl.items()},
        }

    @property
    def loss(self) -> Tensor:
        """Minus the bound, in nats per cell."""
        return -signed_sum(self.terms_per_cell)

    def loss_at(self, mask_weight: Tensor) -> Tensor:
        """Minus the bound with the KL of masks, and of their rates, weighted; nats per cell."""
        kl_mask = sum(self.kl_global[site] for site in MASK_SITES if site in self.kl_global)
        return self.loss + (mask_weight - 1) * kl_mask / self.n_cells


def signed_sum(terms: Mapping[str, Number]) -> Number:
    """Compute the bound: the reconstruction minus every KL."""
    total = terms[RECONSTRUCTION]
    for name, value in terms.items():
        if name != RECONSTRUCTION:
            total = total - value
    return total


def elbo(
    model: PerturbationModel, batch: Batch, particles: int, mask_kl: str = "sampled"
) -> BoundTerms:
    """Estimate the evidence lower bound of the data set that a batch represents.

    The KL of a Normal against a Normal has a closed form; that of any other latent variable, such
    as the mask, is estimated at its sample: log q - log p.

    Parameters
    ----------
    model
        Model and guide.
    batch
        A minibatch; local terms are scaled by N / B.
    particles
        Number of samples of the latent variables.
    mask_kl
        ``sampled``, or ``exact``: Bernoulli against Bernoulli in closed form, too. The expectation
        is the same, but its gradient does not match the straight-through gradient of the
        likelihood.

    Returns
    -------
    BoundTerms
        Bereket & Karaletsos 2023, equation 6, term by term.
    """
    guide, generative = traces(model.model, model.guide, batch, particles)
    kl_local: dict[str, Tensor] = {}
    kl_global: dict[str, Tensor] = {}
    for name, site in latent_sites(guide).items():
        kl = site["scale"] * _kl(site, generative.nodes[name], mask_kl) / particles
        (kl_local if _is_local(site) else kl_global)[name] = kl
    observed: Any = generative.nodes[COUNTS]
    log_likelihood = observed["fn"].log_prob(observed["value"]).sum()
    reconstruction = observed["scale"] * log_likelihood / particles
    return BoundTerms(reconstruction, kl_local, kl_global, batch.n_cells)


def iwae(
    model: PerturbationModel, batch: Batch, particles: int, mask_kl: str = "sampled"
) -> BoundTerms:
    """Estimate the importance-weighted bound, cell by cell (Burda et al. 2016).

    Importance weights of a cell's own variables are averaged over particles within the logarithm;
    global variables are treated as in :func:`elbo`, as are parameters and result.
    """
    guide, generative = traces(model.model, model.guide, batch, particles)
    kl_global = {
        name: _kl(site, generative.nodes[name], mask_kl) / particles
        for name, site in latent_sites(guide).items()
        if not _is_local(site)
    }
    local = {name: site for name, site in latent_sites(guide).items() if _is_local(site)}
    weights = log_weights(local, generative)
    bound = torch.logsumexp(weights, 0) - math.log(particles)
    scale = batch.n_cells / len(batch.counts)
    return BoundTerms(scale * bound.sum(), {}, kl_global, batch.n_cells)


def traces(
    generative: Callable[..., None], guide: Callable[..., None], batch: Batch, particles: int
) -> tuple[Trace, Trace]:
    """Trace the guide, and the generative model at the guide's samples, particles leftmost."""
    with pyro.plate("particles", particles, dim=-2):
        guide_trace = poutine.trace(guide).get_trace(batch)
        replayed = poutine.replay(generative, guide_trace)
        return guide_trace, poutine.trace(replayed).get_trace(batch)


def log_weights(guide_sites: Mapping[str, Any], generative: Trace) -> Tensor:
    """Compute log importance weights of cells' own variables.

    Parameters
    ----------
    guide_sites
        Sites of the variables in a trace of the guide, by name.
    generative
        Trace of the generative model at their samples, the counts being observed.

    Returns
    -------
    Tensor
        log p(x | z) + log p(z) - log q(z | x), particles x cells, in nats.
    """
    observed: Any = generative.nodes[COUNTS]
    total = observed["fn"].log_prob(observed["value"])
    for name, site in guide_sites.items():
        prior: Any = generative.nodes[name]
        total = total + _log_prob(prior["fn"], site["value"]) - _log_prob(site["fn"], site["value"])
    return total


def _log_prob(distribution: Any, value: Tensor) -> Tensor:
    """Compute log-densities, those of a Normal in few passes over its dimensions."""
    if not (_is_of(distribution, Normal) and distribution.event_dim == 1):
        return distribution.log_prob(value)
    normal = distribution.base_dist
    norm = torch.linalg.vector_norm((value - normal.loc) / normal.scale, dim=-1)
    log_scales = normal.scale.log().sum(-1)
    return -0.5 * norm.square() - log_scales - 0.5 * math.log(2 * math.pi) * value.shape[-1]


def latent_sites(trace: Trace) -> dict[str, Any]:
    """Select the sites of the latent variables of a trace, by name."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def _is_local(site: Any) -> bool:
    return any(frame.name == CELLS for frame in site["cond_indep_stack"])


def _kl(guide_site: Any, model_site: Any, mask_kl: str) -> Tensor:
    q, p = guide_site["fn"], model_site["fn"]
    if _is_of(q, Normal) and _is_of(p, Normal):
        return _normal_kl(q.base_dist, p.base_dist)
    if mask_kl == "exact" and _is_of(q, Bernoulli) and _is_of(p, Bernoulli):
        kl = _bernoulli_kl(q.base_dist, p.base_dist).sum(-1)
        return kl.expand(guide_site["value"].shape[:-1]).sum()
    value = guide_site["value"]
    return (q.log_prob(value) - p.log_prob(value)).sum()


def _normal_kl(q: Normal, p: Normal) -> Tensor:
    """Compute KL(q || p), summed over all dimensions, in few passes over them."""
    ratio, shift = q.scale / p.scale, (q.loc - p.loc) / p.scale
    squares = ratio.square().sum() + shift.square().sum() - ratio.numel()
    return squares / 2 - ratio.log().sum()


def _bernoulli_kl(q: Bernoulli, p: Bernoulli) -> Tensor:
    log_odds = q.probs * (q.logits - p.logits)
    return log_odds + softplus(p.logits) - softplus(q.logits)


def _is_of(distribution: Any, family: type) -> bool:
    return isinstance(distribution, Independent) and isinstance(distribution.base_dist, family)
