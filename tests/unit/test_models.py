import dataclasses
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import nn

from samsvae.inference.cells import Cells
from samsvae.inference.encoding import Encoding
from samsvae.inference.objective import elbo, iwae, latent_sites, log_weights, traces
from samsvae.inference.posterior import BasalCells, draw_effects
from samsvae.kernels import SMALLEST_MEAN
from samsvae.models import build_model
from samsvae.models.base import Batch, shift_of_cells, shift_of_conditions
from samsvae.models.likelihoods import GammaPoissonCounts, Logits, StraightThroughBernoulli
from samsvae.models.networks import GaussianNetwork, HiddenLayers, Standardise
from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design

SMALL = {"n_latent": 4, "n_hidden": 8}
MODELS = {
    "sams_correlated": {"kind": "sams_vae", "embedding": "correlated", **SMALL},
    "sams_mean_field": {"kind": "sams_vae", "embedding": "mean_field", **SMALL},
    "sams_basal_mean_field": {"kind": "sams_vae", "basal_encoder": "mean_field", **SMALL},
    "sams_deep": {"kind": "sams_vae", "n_layers": 3, **SMALL},
    "beta_point": {"kind": "sams_vae_beta_bernoulli", "embedding": "mean_field", **SMALL},
    "beta_beta": {"kind": "sams_vae_beta_bernoulli", "rate_guide": "beta", **SMALL},
    "cpa": {"kind": "cpa_vae", **SMALL},
    "svae_plus": {"kind": "svae_plus", **SMALL},
    "conditional": {"kind": "conditional_vae", **SMALL},
    "poisson": {"kind": "cpa_vae", "likelihood": "poisson", **SMALL},
    "normal": {"kind": "sams_vae", "likelihood": "normal", **SMALL},
}
SHARED = {
    "sams": {"mask", "embedding"},
    "normal": {"mask", "embedding"},
    "beta": {"rate", "mask", "embedding"},
    "cpa": {"embedding"},
    "poisson": {"embedding"},
    "svae": {"rate", "mask"},
    "conditional": set(),
}
# torch draws no Beta on a device without values; the others differ in their likelihood alone
NOT_ON_META = {"beta_beta", "poisson", "normal"}
OWN = {"conditional": "latent"}


@pytest.fixture(autouse=True)
def _seeded():
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)


@pytest.fixture
def cells(tiny_screen):
    encoding = Encoding.of(Design.of_screen(tiny_screen), "additive")
    return Cells.of(tiny_screen, np.ones(tiny_screen.n_obs, bool), encoding, torch.device("cpu"))


def model_for(name, cells):
    return build_model(MODELS[name], cells.counts.shape[1], cells.design.shape[1])


def double(batch):
    """The same batch in float64."""
    floats = {name: getattr(batch, name).double() for name in ("counts", "library_size", "design")}
    return dataclasses.replace(batch, **floats)


def with_mean(c, mean):
    """The law of counts with these means, which no head has to make out of a hidden layer."""
    above = mean - SMALLEST_MEAN
    size = mean.shape[-1]
    identity, zero = torch.eye(size, dtype=mean.dtype), torch.zeros(size, dtype=mean.dtype)
    return GammaPoissonCounts(c, Logits(above.log(), identity, zero), above.sum(-1))


def test_negative_binomial_mass_is_scipys():
    x = torch.cat([torch.arange(0.0, 100.0), torch.tensor([1e3, 1e4])])[:, None]
    c = torch.tensor([0.01, 0.3, 1, 20, 1e3, 1e6], dtype=torch.float64)
    mean = torch.tensor([3, 0.01, 3, 30, 50, 8], dtype=torch.float64)
    law = with_mean(c, mean.expand(len(x), 6))
    torch.testing.assert_close(law.mean, mean.expand(len(x), 6))
    ours = law.log_prob(x.double().expand(-1, 6))
    theirs = stats.nbinom.logpmf(x.numpy(), c.numpy(), (c / (c + mean)).numpy()).sum(-1)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-7, atol=1e-9)


def test_negative_binomial_mass_keeps_its_accuracy_in_single_precision_near_poisson():
    x = torch.poisson(torch.full((50, 400), 3.0))
    c, mean = torch.full((400,), 1e6), torch.full((50, 400), 3.0)
    mass = [with_mean(c.to(t), mean.to(t)).log_prob(x.to(t)) for t in (torch.float, torch.double)]
    torch.testing.assert_close(mass[0].double(), mass[1], rtol=2e-6, atol=0)


def test_negative_binomial_samples_have_its_moments():
    law = with_mean(torch.tensor([2.0, 0.5]), torch.tensor([5.0, 1.0]))
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
    activation = nn.LeakyReLU()
    hidden = activation(together(torch.cat([one.expand(4, 7, 3), two], -1)))
    expected = hidden + activation(layers.others[0](hidden))
    torch.testing.assert_close(layers(one, two), expected)


@pytest.mark.parametrize("sizes", [(300,), (300, 20), (5, 300, 20)])
def test_initial_weights_are_those_of_one_layer_over_all_inputs(sizes):
    """Uniform within one over the root of the total fan-in, as PyTorch's of the concatenation."""
    layers = HiddenLayers(sizes, 3000, 2)
    bound = 1 / math.sqrt(sum(sizes))
    for layer in layers.first:
        assert 0.99 * bound < float(layer.weight.abs().max()) <= bound * (1 + 1e-6)
        assert float(layer.weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert 0.99 * bound < float(layers.first[0].bias.abs().max()) <= bound * (1 + 1e-6)
    assert float(layers.others[0].weight.abs().max()) <= 1 / math.sqrt(3000)


def test_normals_start_at_scale_one():
    network = GaussianNetwork([50, 4], 64, 2, 500)
    _, scale = network(torch.randn(40, 50), torch.randn(3, 40, 4))
    assert float(scale.mean()) == pytest.approx(1, abs=0.05)
    assert float(scale.std()) < 0.3


def test_standardise_guards_genes_that_never_vary():
    transform = Standardise(2)
    transform.fit(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))
    assert torch.isfinite(transform(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))).all()


def test_values_that_are_no_counts_are_standardised_as_they_are():
    values = torch.randn(50, 3) - 4
    cells = Cells(values, torch.ones(50), torch.zeros(1, 2), torch.zeros(50, dtype=torch.long))
    model = build_model(MODELS["normal"], 3, 2)
    model.standardise.fit(*cells.moments(model.standardise.rescale))
    standardised = model.standardise(values)
    torch.testing.assert_close(standardised.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(standardised.std(0, correction=0), torch.ones(3))


@pytest.mark.parametrize("name", MODELS)
def test_guide_and_model_have_the_same_latent_variables(name, cells):
    model, batch = model_for(name, cells), cells.batch(torch.arange(10))
    guide, generative = traces(model.model, model.guide, batch, 3)
    own = OWN.get(name, "basal")
    sites = latent_sites(guide)
    assert set(sites) == SHARED[name.split("_")[0]] | {own}
    assert set(latent_sites(generative)) == set(sites)
    assert guide.nodes[own]["value"].shape == (3, 10, 4)
    for site in set(sites) - {own}:
        assert guide.nodes[site]["value"].shape == (3, 8, 4)
    assert generative.nodes["counts"]["fn"].batch_shape == (3, 10)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("sams", "cpa"))])
def test_objective_equals_an_independent_computation(name, cells):
    """From the same samples, by plain torch: no plates, no traces, no scales."""
    model, index = model_for(name, cells).double(), torch.arange(40)
    if name.startswith("sams"):
        model.mask.logits.data.normal_()
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
    q_location, q_scale = model.embedding(mask) if name.startswith("sams") else model.embedding()
    kl_embedding = (-torch.log(q_scale) + (q_scale**2 + q_location**2) / 2 - 0.5) * torch.ones_like(
        mask
    )
    kl_global = kl_embedding.sum() / particles
    if name.startswith("sams"):
        phi, p = model.mask.logits, model.mask.probabilities[0]
        log_q = mask * torch.nn.functional.logsigmoid(phi) + (
            1 - mask
        ) * torch.nn.functional.logsigmoid(-phi)
        log_p = mask * math.log(p) + (1 - mask) * math.log(1 - p)
        kl_global = kl_global + (log_q - log_p).sum() / particles

    design = batch.design[batch.condition]
    shift = torch.einsum("bt,ptk->pbk", design, mask * value["embedding"])
    given = [shift] if model.basal_encoder == "correlated" else []
    location, scale = model.encoder(model.standardise(batch.counts), *given)
    kl_basal = -torch.log(scale) + (scale**2 + location**2) / 2 - 0.5
    kl_basal = kl_basal * torch.ones_like(value["basal"])
    mean = model.likelihood.mean(value["basal"] + shift, batch.library_size)
    c = model.likelihood.concentration()
    x = batch.counts
    log_mass = (
        torch.lgamma(x + c) - torch.lgamma(c) - torch.lgamma(x + 1)
        + c * torch.log(c / (c + mean)) + x * torch.log(mean / (c + mean))
    )  # fmt: skip
    weight = len(cells) / len(index)
    expected = weight * (log_mass.sum() - kl_basal.sum()) / particles - kl_global
    torch.testing.assert_close(-ours.loss * len(cells), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("knows_screen", [False, True])
@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson", "normal"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in NOT_ON_META])
def test_a_step_waits_for_no_device_and_stays_on_it(name, likelihood, knows_screen):
    """On a device that holds no values, reading one or mixing devices would be an error."""
    settings = {**MODELS[name], "likelihood": likelihood, "on_target_prior_scale": 2.0}
    settings["dispersion"] = "gene-batch" if likelihood == "negative_binomial" else "gene"
    shared = [0, 0, 4] if knows_screen and settings["kind"] == "sams_vae" else []
    with torch.device("meta"):
        model = build_model(settings, 20, 5, *((3, [7, 0], shared) if knows_screen else ()))
        own = {
            "covariates": (torch.zeros(100, 3),),
            "targets": (torch.zeros(6, 2, dtype=torch.long), torch.zeros(6, 2)),
        }
        cells = Cells(
            torch.zeros(100, 20, dtype=torch.uint8),
            torch.zeros(100),
            torch.zeros(6, 5 + len(shared)),
            torch.zeros(100, dtype=torch.long),
            **(own if knows_screen else {}),
        )
        drawn = torch.zeros(10, dtype=torch.long)
    for objective in (elbo, iwae):
        bound = objective(model, cells.batch(drawn), 3)
        bound.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        assert {term.device.type for term in bound.terms_per_cell.values()} == {"meta"}
        assert norm.device.type == "meta"


def test_minibatch_estimates_average_to_the_full_batch(cells):
    """Over the batches of one epoch, with the samples of the shared variables held fixed."""
    model = model_for("cpa", cells).double()
    model.embedding.log_scale.data.fill_(-20)
    model.encoder.head.weight.data[model.n_latent :].zero_()
    model.encoder.head.bias.data[model.n_latent :].fill_(-40)
    everything = torch.arange(len(cells) // 4 * 4)
    part = Cells(
        cells.counts[everything],
        cells.library_size[everything],
        cells.design,
        cells.condition[everything],
    )

    def bound(index):
        return elbo(model, double(part.batch(index)), 1).loss

    whole = bound(everything)
    parts = torch.stack([bound(index) for index in everything.view(4, -1)])
    # the smallest scale of the encoder is 1e-4, so samples differ by that much
    torch.testing.assert_close(parts.mean(), whole, rtol=1e-4, atol=0)


def test_a_pair_is_the_sum_of_its_genes_and_control_is_unmoved(cells):
    effects = torch.randn(2, cells.design.shape[1], 4)
    design = torch.zeros(3, cells.design.shape[1])
    design[1, 2] = 1
    design[2, [2, 5]] = 1
    batch = Batch(cells.counts[:3].float(), cells.library_size[:3], design, torch.arange(3), 3)
    shift = shift_of_cells(effects, batch)
    assert (shift[:, 0] == 0).all()
    torch.testing.assert_close(shift[:, 2], effects[:, 2] + effects[:, 5])


@pytest.mark.parametrize("n_cells", [1, 4, 5, 9])
def test_shifts_of_cells_do_not_depend_on_how_many_conditions_there_are(n_cells):
    effects = torch.randn(2, 7, 3)
    design = torch.randn(5, 7) * (torch.rand(5, 7) < 0.5)
    condition = torch.randint(5, (n_cells,))
    batch = Batch(torch.zeros(n_cells, 1), torch.ones(n_cells), design, condition, n_cells)
    expected = torch.einsum("bt,qtk->qbk", design[condition], effects)
    torch.testing.assert_close(shift_of_cells(effects, batch), expected)
    assert torch.equal(shift_of_cells(None, batch), design[condition])


def test_fixed_effects_stay_fixed_through_the_guide(cells):
    model = model_for("sams_mean_field", cells)
    shared = {"mask": torch.ones(5, 8, 4), "embedding": torch.randn(5, 8, 4)}
    for program in (model.global_guide, model.global_prior):
        effects = poutine.condition(program, data=shared)()
        torch.testing.assert_close(effects, shared["embedding"])


def test_encodings():
    labels = ["control", "A", "B", "A+B"]
    additive = Encoding.of(Design.of_labels(labels), "additive")
    assert additive.names == ("A", "B")
    assert additive.design(labels).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    unique = Encoding.of(Design.of_labels(labels), "unique")
    assert unique.names == ("A", "A+B", "B")
    assert unique.design(["A+B", "control"]).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="'svae' is not a trained model"):
        build_model({"kind": "svae"}, 3, 2)


@pytest.mark.parametrize("name", MODELS)
def test_objective_is_the_log_density_of_model_over_guide(name, cells):
    """One particle: the bound with its closed-form KL replaced is log p - log q, scaled."""
    model, index = model_for(name, cells).double(), torch.arange(30)
    batch = dataclasses.replace(double(cells.batch(index)), n_cells=len(cells))
    guide, generative = traces(model.model, model.guide, batch, 1)
    guide.compute_log_prob()
    generative.compute_log_prob()
    own, weight = OWN.get(name, "basal"), len(cells) / 30
    p, q = generative.nodes, guide.nodes
    cell_terms = (
        p["counts"]["unscaled_log_prob"] + p[own]["unscaled_log_prob"] - q[own]["unscaled_log_prob"]
    )
    weights = log_weights({own: guide.nodes[own]}, generative)
    torch.testing.assert_close(weights, cell_terms)
    shared = set(latent_sites(guide)) - {own}
    expected = weight * cell_terms.sum() + sum(
        p[site]["log_prob_sum"] - q[site]["log_prob_sum"] for site in shared
    )
    torch.testing.assert_close(
        generative.log_prob_sum() - guide.log_prob_sum(), torch.as_tensor(expected)
    )


@pytest.mark.parametrize("name", ["sams_mean_field", "beta_point", "svae_plus", "conditional"])
def test_importance_weighting_raises_the_bound(name, cells):
    model, batch = model_for(name, cells), cells.batch(torch.arange(200))
    with torch.no_grad():
        lower = np.mean([float(elbo(model, batch, 20).loss) for _ in range(20)])
        tighter = np.mean([float(iwae(model, batch, 20).loss) for _ in range(20)])
    assert tighter < lower
    one = iwae(model, batch, 1)
    assert one.kl_local == {}


def test_the_closed_form_mask_kl_is_the_mean_of_the_sampled_one(cells):
    model, batch = model_for("sams_mean_field", cells), cells.batch(torch.arange(5))
    model.mask.logits.data.normal_()
    with torch.no_grad():
        exact = elbo(model, batch, 1, mask_kl="exact").kl_global["mask"]
        sampled = torch.stack([elbo(model, batch, 500).kl_global["mask"] for _ in range(20)])
    error = sampled.std() / math.sqrt(len(sampled))
    assert abs(sampled.mean() - exact) < 4 * error
    logits, p = model.mask.logits, model.mask.probabilities[0]
    q = logits.sigmoid()
    closed = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    torch.testing.assert_close(exact, closed.sum())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_finite_differences(name, cells):
    """In float64, along a random direction; masks are held fixed, being discrete."""
    model, batch = model_for(name, cells).double(), double(cells.batch(torch.arange(20)))
    free = {n: p for n, p in model.named_parameters() if not n.startswith(("mask.", "rate_logits"))}

    def loss():
        pyro.set_rng_seed(3)
        return elbo(model, batch, 2).loss

    generator = torch.Generator().manual_seed(1)
    direction = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in free.items()
    }
    gradient = torch.autograd.grad(loss(), list(free.values()), allow_unused=True)
    slope = sum(
        (g * direction[n]).sum() for n, g in zip(free, gradient, strict=True) if g is not None
    )

    def moved(step):
        with torch.no_grad():
            for n, p in free.items():
                p.add_(step * direction[n])
            value = loss()
            for n, p in free.items():
                p.sub_(step * direction[n])
        return value

    step = 1e-6
    torch.testing.assert_close(
        slope, (moved(step) - moved(-step)) / (2 * step), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_perturbation_that_no_cell_received_keeps_its_prior_cost(name, cells):
    """Its terms do not depend on the cells, and its KL is still paid."""
    model = model_for(name, cells)
    shared = SHARED[name.split("_")[0]]
    terms = elbo(model, cells.batch(torch.arange(5)), 2)
    assert set(terms.kl_global) == shared
    assert all(torch.isfinite(value) for value in terms.terms_per_cell.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_perturbation_adds_its_effect_to_the_cells(name, cells):
    """Control cells are decoded as they are; a pair moves them by the sum of its effects."""
    model = model_for(name, cells)
    effects = draw_effects(model, 3)
    both = torch.zeros(2, 8)
    both[1, [1, 6]] = 1
    shifts = shift_of_conditions(effects, both).expand(3, -1, -1)
    basal = BasalCells.from_prior(model, shifts[:, :1], 1)
    [own] = basal.variables.values()
    assert own.shape == (3, 1, 4)
    decoder_input = basal.decoder_input(shifts)
    assert decoder_input.shape[:2] == (3, 2)
    torch.testing.assert_close(decoder_input[:, :1, :4], own)
    if effects is None:
        assert (decoder_input[..., 4:] == both).all()
        torch.testing.assert_close(decoder_input[:, 1:, :4], own)
    else:
        moved = decoder_input[:, 1:] - own
        torch.testing.assert_close(moved, effects[:, [1, 6]].sum(1, keepdim=True))
