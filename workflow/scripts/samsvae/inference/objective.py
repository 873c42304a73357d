"""The evidence lower bound, from traces of model and guide."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Independent, Normal
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from samsvae.models.additive import AdditiveShiftModel, Batch

OBSERVED = "counts"
LOCAL = "basal"
RECONSTRUCTION = "reconstruction"
LOCAL_TERMS = (RECONSTRUCTION, f"kl_{LOCAL}")

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class ElboTerms:
    """Terms of the bound for the whole data set, in nats.

    Attributes
    ----------
    reconstruction
        E_q log p(x | z), summed over cells.
    kl_local
        KL of the cells' latent states, summed over cells.
    kl_global
        KL of the variables shared by all cells, by site.
    n_cells
        Cells that the terms stand for.
    """

    reconstruction: Tensor
    kl_local: Tensor
    kl_global: dict[str, Tensor]
    n_cells: int

    @property
    def terms_per_cell(self) -> dict[str, Tensor]:
        """``reconstruction``, and a ``kl_`` for every site, in nats per cell."""
        return {
            RECONSTRUCTION: self.reconstruction / self.n_cells,
            f"kl_{LOCAL}": self.kl_local / self.n_cells,
            **{f"kl_{site}": kl / self.n_cells for site, kl in self.kl_global.items()},
        }

    @property
    def loss(self) -> Tensor:
        """Minus the bound, in nats per cell."""
        return -signed_sum(self.terms_per_cell)


def signed_sum(terms: Mapping[str, Number]) -> Number:
    """Put terms together to the bound: the reconstruction minus every KL."""
    kl = [value for name, value in terms.items() if name != RECONSTRUCTION]
    return terms[RECONSTRUCTION] - sum(kl[1:], start=kl[0])


def elbo(model: AdditiveShiftModel, batch: Batch, particles: int) -> ElboTerms:
    """Estimate the evidence lower bound of the data set that a batch stands for.

    The KL of a Normal against a Normal is taken in closed form; any other latent variable, such
    as the mask, is scored at its sample: log q - log p.

    Parameters
    ----------
    model
        Model and guide.
    batch
        A minibatch; local terms weigh N / B.
    particles
        Samples of the latent variables.

    Returns
    -------
    ElboTerms
        Bereket & Karaletsos 2023, equation 6, term by term.
    """
    with pyro.plate("particles", particles, dim=-2):
        guide_trace = poutine.trace(model.guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(model.model, guide_trace)).get_trace(batch)
    kl = {
        name: site["scale"] * _kl(site, model_trace.nodes[name]) / particles
        for name, site in latent_sites(guide_trace).items()
    }
    observed: Any = model_trace.nodes[OBSERVED]
    log_likelihood = observed["fn"].log_prob(observed["value"]).sum()
    return ElboTerms(
        reconstruction=observed["scale"] * log_likelihood / particles,
        kl_local=kl.pop(LOCAL),
        kl_global=kl,
        n_cells=batch.n_cells,
    )


def latent_sites(trace: Trace) -> dict[str, Any]:
    """Sites of the latent variables of a trace, by name."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def _kl(guide_site: Any, model_site: Any) -> Tensor:
    q, p = guide_site["fn"], model_site["fn"]
    if _is_normal(q) and _is_normal(p):
        return kl_divergence(q, p).sum()
    value = guide_site["value"]
    return (q.log_prob(value) - p.log_prob(value)).sum()


def _is_normal(distribution: torch.distributions.Distribution) -> bool:
    return isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal)
