"""Minibatches are unbiased: over the batches of an epoch, bounds and gradients average exactly."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from pyro.poutine.messenger import Messenger

from samsvae.inference.cells import Cells
from samsvae.inference.encoding import Encoding
from samsvae.inference.objective import elbo, iwae
from samsvae.models import MODELS, build_model
from samsvae.models.base import CELLS
from samsvae.screen.design import Design

PARTICLES, BATCHES, SMALL = 3, 5, {"n_latent": 4, "n_hidden": 8}
SETTINGS = {kind: {"kind": kind, **SMALL} for kind in MODELS}
SETTINGS |= {
    f"{kind}-{embedding}": {"kind": kind, "embedding": embedding, **SMALL}
    for kind in ("sams_vae", "sams_vae_beta_bernoulli")
    for embedding in ("mean_field", "correlated")
}
SETTINGS |= {
    "sams_vae-basal_mean_field": {"kind": "sams_vae", "basal_encoder": "mean_field", **SMALL},
    "sams_vae_beta_bernoulli-beta": {
        "kind": "sams_vae_beta_bernoulli", "rate_guide": "beta", **SMALL
    },
}  # fmt: skip


class HeldNoise(Messenger):
    """Draws a cell's latent state as location + scale * noise, with noise that belongs to the cell."""

    def __init__(self, noise, index):
        super().__init__()
        self.noise, self.index = noise, index

    def _pyro_sample(self, site):
        if any(frame.name == CELLS for frame in site["cond_indep_stack"]):
            law = site["fn"].base_dist
            site["value"] = law.loc + law.scale * self.noise[:, self.index]
            site["done"] = True


@pytest.fixture(scope="module")
def cells(tiny_screen):
    """In an order that mixes perturbations, a whole number of batches of them."""
    order = np.random.default_rng(0).permutation(tiny_screen.n_obs)
    keep = order[: tiny_screen.n_obs // BATCHES * BATCHES]
    encoding = Encoding.of(Design.of_screen(tiny_screen), "additive")
    every = np.ones(len(keep), bool)
    return Cells.of(tiny_screen[keep].copy(), every, encoding, torch.device("cpu"))


def in_float64(batch):
    floats = {name: getattr(batch, name).double() for name in ("counts", "library_size", "design")}
    return dataclasses.replace(batch, **floats)


@pytest.mark.parametrize("objective", [elbo, iwae])
@pytest.mark.parametrize("name", SETTINGS)
def test_an_epoch_of_minibatches_averages_to_the_full_batch(name, objective, cells):
    """Every term of the bound, and the gradient; draws are those of the cell, whatever its batch."""
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)
    model = build_model(SETTINGS[name], cells.counts.shape[1], cells.design.shape[1]).double()
    with torch.no_grad():
        for parameter in model.parameters():  # away from zeros, where gradients may vanish
            parameter += 0.1 * torch.randn_like(parameter)
    noise = torch.randn(PARTICLES, len(cells), SMALL["n_latent"], dtype=torch.float64)

    def terms_and_gradient(index):
        pyro.set_rng_seed(1)  # shared variables are drawn before the cells' own
        held = SimpleNamespace(model=model.model, guide=HeldNoise(noise, index)(model.guide))
        bound = objective(held, in_float64(cells.batch(index)), PARTICLES)
        gradient = torch.autograd.grad(bound.loss, list(model.parameters()))
        terms = {key: value.detach() for key, value in bound.terms_per_cell.items()}
        return terms, gradient

    whole_terms, whole_gradient = terms_and_gradient(torch.arange(len(cells)))
    shuffled = torch.randperm(len(cells), generator=torch.Generator().manual_seed(2))
    parts = [terms_and_gradient(index) for index in shuffled.chunk(BATCHES)]
    assert len({float(terms["reconstruction"]) for terms, _ in parts}) == BATCHES
    for term, whole in whole_terms.items():
        mean = torch.stack([terms[term] for terms, _ in parts]).mean()
        torch.testing.assert_close(mean, whole, rtol=1e-9, atol=0)
    names = [parameter for parameter, _ in model.named_parameters()]
    for parameter, whole, *gradients in zip(
        names, whole_gradient, *(gradient for _, gradient in parts), strict=True
    ):
        assert whole.any(), parameter
        scale = float(whole.abs().max())
        torch.testing.assert_close(
            torch.stack(gradients).mean(0), whole, rtol=1e-6, atol=1e-9 * scale, msg=parameter
        )
