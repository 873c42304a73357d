import dataclasses
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from samsvae.errors import InputError
from samsvae.inference.cells import Cells
from samsvae.inference.encoding import Encoding
from samsvae.inference.objective import elbo
from samsvae.models.additive import Batch
from samsvae.models.distributions import NegativeBinomialCounts, StraightThroughBernoulli
from samsvae.models.networks import HiddenLayers, Standardise
from samsvae.models.registry import build_model

SMALL = {"n_latent": 4, "n_hidden": 8}
MODELS = {
    "sams_correlated": {"kind": "sams_vae", "embedding": "correlated", **SMALL},
    "sams_mean_field": {"kind": "sams_vae", "embedding": "mean_field", **SMALL},
    "sams_basal_mean_field": {"kind": "sams_vae", "basal_encoder": "mean_field", **SMALL},
    "sams_deep": {"kind": "sams_vae", "n_layers": 3, **SMALL},
    "cpa": {"kind": "cpa_vae", **SMALL},
}


@pytest.fixture(autouse=True)
def _seeded():
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)


@pytest.fixture
def cells(tiny_screen):
    encoding = Encoding.of(tiny_screen.obs["perturbation"], "additive")
    return Cells.of(tiny_screen, np.ones(tiny_screen.n_obs, bool), encoding, torch.device("cpu"))


def model_for(name, cells):
    return build_model(MODELS[name], cells.counts.shape[1], cells.dosage.shape[1])


def double(batch):
    """The same batch in float64."""
    floats = {name: getattr(batch, name).double() for name in ("counts", "library_size", "dosage")}
    return dataclasses.replace(batch, **floats)


def test_negative_binomial_mass_is_scipys():
    x = torch.arange(0.0, 60.0)[:, None]
    c, mean = torch.tensor([[0.3, 1, 20], [0.01, 3, 30]], dtype=torch.float64)
    ours = NegativeBinomialCounts(c, mean).log_prob(x.double())
    theirs = stats.nbinom.logpmf(x.numpy(), c.numpy(), (c / (c + mean)).numpy())
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=1e-9)


def test_negative_binomial_samples_have_its_moments():
    law = NegativeBinomialCounts(torch.tensor([2.0, 0.5]), torch.tensor([5.0, 1.0]))
    drawn = law.sample(torch.Size([200_000]))
    torch.testing.assert_close(drawn.mean(0), law.mean, rtol=0.03, atol=0)
    torch.testing.assert_close(drawn.var(0), law.variance, rtol=0.06, atol=0)


def test_straight_through_samples_are_binary_with_the_right_mean_and_a_gradient():
    logits = torch.tensor([-3.0, 0.0, 2.0], requires_grad=True)
    drawn = StraightThroughBernoulli(logits=logits).rsample(torch.Size([100_000]))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), logits.sigmoid(), rtol=0.05, atol=0.005)
    drawn.sum().backward()
    assert (logits.grad > 0).all()


def test_straight_through_mass_carries_a_gradient_to_the_sample():
    value = torch.tensor([1.0, 0.0], requires_grad=True)
    StraightThroughBernoulli(logits=torch.tensor([0.7, -0.2])).log_prob(value).sum().backward()
    torch.testing.assert_close(value.grad, torch.tensor([0.7, -0.2]))


def test_several_inputs_act_as_their_concatenation():
    layers = HiddenLayers([3, 2], 5, 2)
    one, two = torch.randn(7, 3), torch.randn(4, 7, 2)
    together = torch.nn.Linear(5, 5)
    with torch.no_grad():
        together.weight.copy_(torch.cat([layer.weight for layer in layers.first], 1))
        together.bias.copy_(layers.first[0].bias)
    hidden = layers.activation(together(torch.cat([one.expand(4, 7, 3), two], -1)))
    expected = hidden + layers.activation(layers.others[0](hidden))
    torch.testing.assert_close(layers(one, two), expected)


def test_standardise_guards_genes_that_never_vary():
    transform = Standardise(2)
    transform.fit(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))
    assert torch.isfinite(transform(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))).all()


@pytest.mark.parametrize("name", MODELS)
def test_guide_and_model_have_the_same_latent_variables(name, cells):
    model, batch = model_for(name, cells), cells.batch(torch.arange(10))
    with pyro.plate("particles", 3, dim=-2):
        guide = poutine.trace(model.guide).get_trace(batch)
        replayed = poutine.trace(poutine.replay(model.model, guide)).get_trace(batch)
    latents = {"basal", "embedding"} | ({"mask"} if name.startswith("sams") else set())
    assert latents <= set(guide.nodes)
    assert guide.nodes["basal"]["value"].shape == (3, 10, 4)
    assert guide.nodes["embedding"]["value"].shape == (3, 8, 4)
    assert replayed.nodes["counts"]["fn"].batch_shape == (3, 10)


@pytest.mark.parametrize("name", MODELS)
def test_objective_equals_an_independent_computation(name, cells):
    """From the same samples, by plain torch: no plates, no traces, no scales."""
    model, index = model_for(name, cells).double(), torch.arange(40)
    if name.startswith("sams"):
        model.mask_logits.data.normal_()
    batch, particles = cells.batch(index), 3
    batch = double(batch)
    pyro.set_rng_seed(5)
    ours = elbo(model, batch, particles)
    pyro.set_rng_seed(5)
    with pyro.plate("particles", particles, dim=-2):
        trace = poutine.trace(model.guide).get_trace(batch)
    value = {
        site: trace.nodes[site]["value"]
        for site in ("mask", "embedding", "basal")
        if site in trace.nodes
    }

    mask = value.get("mask", torch.ones_like(value["embedding"]))
    q_location, q_scale = (
        model.embedding_guide(mask) if name.startswith("sams") else model.embedding_guide()
    )
    kl_embedding = (-torch.log(q_scale) + (q_scale**2 + q_location**2) / 2 - 0.5) * torch.ones_like(
        mask
    )
    kl_global = kl_embedding.sum() / particles
    if name.startswith("sams"):
        phi, p = model.mask_logits, model.mask_prior
        log_q = mask * torch.nn.functional.logsigmoid(phi) + (
            1 - mask
        ) * torch.nn.functional.logsigmoid(-phi)
        log_p = mask * math.log(p) + (1 - mask) * math.log(1 - p)
        kl_global = kl_global + (log_q - log_p).sum() / particles

    dosage = batch.dosage[batch.condition]
    shift = torch.einsum("bt,ptk->pbk", dosage, mask * value["embedding"])
    location, scale = model.encode(batch.counts, shift)
    kl_basal = -torch.log(scale) + (scale**2 + location**2) / 2 - 0.5
    kl_basal = kl_basal * torch.ones_like(value["basal"])
    mean = model.likelihood.mean(value["basal"] + shift, batch.library_size)
    c = model.likelihood.inverse_dispersion
    x = batch.counts
    log_mass = (
        torch.lgamma(x + c) - torch.lgamma(c) - torch.lgamma(x + 1)
        + c * torch.log(c / (c + mean)) + x * torch.log(mean / (c + mean))
    )  # fmt: skip
    weight = len(cells) / len(index)
    expected = weight * (log_mass.sum() - kl_basal.sum()) / particles - kl_global
    torch.testing.assert_close(-ours.loss * len(cells), expected, rtol=1e-6, atol=1e-6)


def test_minibatch_estimates_average_to_the_full_batch(cells):
    """Over the batches of one epoch, with the samples of the shared variables held fixed."""
    model = model_for("cpa", cells).double()
    model.embedding_guide.log_scale.data.fill_(-20)
    model.encoder.scale.weight.data.zero_()
    model.encoder.scale.bias.data.fill_(-40)
    everything = torch.arange(len(cells) // 4 * 4)
    part = Cells(
        cells.counts[everything],
        cells.library_size[everything],
        cells.dosage,
        cells.condition[everything],
    )

    def bound(index):
        return elbo(model, double(part.batch(index)), 1).loss

    whole = bound(everything)
    parts = torch.stack([bound(index) for index in everything.view(4, -1)])
    # the smallest scale of the encoder is 1e-4, so samples differ by that much
    torch.testing.assert_close(parts.mean(), whole, rtol=1e-4, atol=0)


def test_a_pair_is_the_sum_of_its_genes_and_control_is_unmoved(cells):
    effects = torch.randn(2, cells.dosage.shape[1], 4)
    model = model_for("cpa", cells)
    dosage = torch.zeros(3, cells.dosage.shape[1])
    dosage[1, 2] = 1
    dosage[2, [2, 5]] = 1
    batch = Batch(cells.counts[:3].float(), cells.library_size[:3], dosage, torch.arange(3), 3)
    shift = model.shift(effects, batch)
    assert (shift[:, 0] == 0).all()
    torch.testing.assert_close(shift[:, 2], effects[:, 2] + effects[:, 5])


def test_fixed_effects_stay_fixed_through_the_guide(cells):
    model = model_for("sams_mean_field", cells)
    shared = {"mask": torch.ones(5, 8, 4), "embedding": torch.randn(5, 8, 4)}
    torch.testing.assert_close(model.effects_from(shared), shared["embedding"])


def test_encodings():
    labels = ["control", "A", "B", "A+B"]
    additive = Encoding.of(labels, "additive")
    assert additive.names == ("A", "B")
    assert additive.dosage(labels).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    unique = Encoding.of(labels, "unique")
    assert unique.names == ("A", "A+B", "B")
    assert unique.dosage(["A+B", "control"]).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="'svae' is not a trained model"):
        build_model({"kind": "svae"}, 3, 2)
