"""Mask warm-up, rotation of latent space, learnt masks; and the truth that is recovered."""

import copy
import dataclasses

import numpy as np
import pyro
import pytest
import statsmodels.api as sm
import torch
from scipy import stats

from samsvae.evaluation.agreement import mask_scores, match_factors
from samsvae.inference.cells import Cells
from samsvae.inference.encoding import Encoding
from samsvae.inference.mask_warmup import (
    MaskWarmup,
    estimate_effects,
    rotate_latent_space,
    sparsest_rotation,
    start_masks_at_evidence,
)
from samsvae.inference.objective import elbo
from samsvae.inference.posterior import mask_probability, unmasked_effects
from samsvae.inference.step import Training, TrainingStep
from samsvae.inference.trainer import History, fit
from samsvae.models import build_model
from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design
from samsvae.sources.simulated import TRAIN, VAL, AdditiveSimulation, simulate_additive

SMALL = {"n_latent": 4, "n_hidden": 8}
MASKED = {
    "correlated": {"kind": "sams_vae", "embedding": "correlated", **SMALL},
    "mean_field": {"kind": "sams_vae", "embedding": "mean_field", **SMALL},
    "basal_mean_field": {"kind": "sams_vae", "basal_encoder": "mean_field", **SMALL},
    "normal": {"kind": "sams_vae", "likelihood": "normal", "n_layers": 2, **SMALL},
    "beta_point": {"kind": "sams_vae_beta_bernoulli", **SMALL},
    "beta_beta": {"kind": "sams_vae_beta_bernoulli", "rate_guide": "beta", **SMALL},
    "svae_plus": {"kind": "svae_plus", **SMALL},
}
UNMASKED = {
    "cpa": {"kind": "cpa_vae", **SMALL},
    "conditional": {"kind": "conditional_vae", **SMALL},
}
NOTHING = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


@pytest.fixture(autouse=True)
def _seeded():
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)


@pytest.fixture
def cells(tiny_screen):
    encoding = Encoding.of(Design.of_screen(tiny_screen), "additive")
    return Cells.of(tiny_screen, np.ones(tiny_screen.n_obs, bool), encoding, torch.device("cpu"))


def random_rotation(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator))[0]


@pytest.mark.parametrize("seed", range(4))
def test_sparse_effects_are_found_from_any_axes(seed):
    generator = torch.Generator().manual_seed(seed)
    sparse = torch.randn(60, 5, generator=generator) * (
        torch.rand(60, 5, generator=generator) < 0.25
    )
    turned = sparse @ random_rotation(5, seed)
    rotation = sparsest_rotation(turned)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(5), rtol=0, atol=1e-5)
    found = (turned @ rotation).abs() > 0.2
    truth, found = (sparse != 0).double().numpy(), found.double().numpy()
    assert mask_scores(truth, found, match_factors(truth, found))["f1"] > 0.85


def test_without_effects_the_axes_stay():
    torch.testing.assert_close(sparsest_rotation(torch.zeros(6, 3)), torch.eye(3))


@pytest.mark.parametrize("name", MASKED)
def test_turning_the_axes_changes_no_decoded_state(name, cells):
    """What was z is z R, for encoder, decoder and embeddings alike."""
    model = build_model(MASKED[name], cells.counts.shape[1], 8)
    rotation, latent = random_rotation(4), torch.randn(7, 4)
    counts, size = cells.counts[:7].float(), cells.library_size[:7]

    def encoded(shift):
        given = [shift] if len(model.encoder.hidden.first) > 1 else []
        return model.encoder(model.standardise(counts), *given)[0]

    with torch.no_grad():
        if name == "mean_field":
            model.embedding.location.normal_()
        before = (
            model.likelihood.mean(latent, size),
            encoded(latent) @ rotation,
            unmasked_effects(model) @ rotation,
        )
        rotate_latent_space(model, rotation)
        after = (
            model.likelihood.mean(latent @ rotation, size),
            encoded(latent @ rotation),
            unmasked_effects(model),
        )
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MASKED)
def test_open_masks_are_open_and_learn_nothing(name, cells):
    model, batch = build_model(MASKED[name], cells.counts.shape[1], 8), cells.batch(torch.arange(9))
    rotated = []
    warmup = MaskWarmup(
        lambda: rotated.append("rotated"),
        lambda: rotated.append("renewed"),
        2,
        4,
        kl_weight=3.0,
        device=torch.device("cpu"),
    )
    warmup.prepare(0, NOTHING)
    with warmup:
        trace = pyro.poutine.trace(model.global_guide).get_trace()
        assert (trace.nodes["mask"]["value"] == 1).all()
        prior = pyro.poutine.trace(model.global_prior).get_trace()
        assert (prior.nodes["mask"]["value"] == 0).any()
        elbo(model, batch, 2).loss_at(warmup.weight).backward()
    of_masks = [
        p
        for n, p in model.named_parameters()
        if n.endswith(("logits", "shapes")) and "like" not in n
    ]
    assert len(of_masks) == 1
    assert of_masks[0].grad.abs().max() < 1e-5
    warmup.prepare(1, NOTHING)
    assert not rotated
    warmup.prepare(2, NOTHING)
    warmup.prepare(3, NOTHING)
    assert rotated == ["rotated"]
    warmup.prepare(4, NOTHING)
    assert rotated == ["rotated", "renewed"]
    with warmup:
        elbo(model, batch, 2).loss_at(warmup.weight).backward()
    assert of_masks[0].grad.abs().max() > 1e-5
    assert warmup.weight == 3


class OfAnotherKind(torch.nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.of_known_kind = embedding

    def forward(self, mask):
        return self.of_known_kind(mask)


def test_a_model_that_cannot_be_rotated_is_refused_before_it_is_trained(cells):
    model = build_model(MASKED["mean_field"], cells.counts.shape[1], 8)
    model.embedding = OfAnotherKind(model.embedding)
    with pytest.raises(InputError, match="mask_warmup_fraction"):
        TrainingStep([model], cells, Training())
    TrainingStep([model], cells, Training(mask_warmup_fraction=0))


@pytest.mark.parametrize("name", [*MASKED, *UNMASKED])
def test_only_the_loss_is_weighted_and_only_by_masks(name, cells):
    settings = {**MASKED, **UNMASKED}[name]
    bound = elbo(build_model(settings, cells.counts.shape[1], 8), cells.batch(torch.arange(9)), 2)
    kl = sum(bound.terms_per_cell.get(term, 0) for term in ("kl_mask", "kl_rate"))
    torch.testing.assert_close(bound.loss_at(torch.tensor(1.0)), bound.loss)
    torch.testing.assert_close(bound.loss_at(torch.tensor(4.0)), bound.loss + 3 * kl)


@pytest.mark.parametrize(("name", "first"), [("mean_field", 20), ("cpa", 10)])
def test_a_step_is_chosen_once_masks_are_decided(name, first, cells):
    settings = {**MASKED, **UNMASKED}[name]
    model = build_model(settings, cells.counts.shape[1], 8)
    history = History(model, Training(max_steps=40, validate_every=10, patience=1))
    stopped = []
    for step in (10, 20, 30, 40):
        history.record(step, {"elbo": 0.0}, {"elbo": -float(step)}, model.state_dict())
        stopped.append(history.is_exhausted(step))
    assert history.best_step == first
    assert stopped.index(True) == first // 10
    learnt = Training(max_steps=40, mask_warmup_fraction=0)
    assert learnt.first_settled_step(model) == 0


def states_as_of_control_cells(model, cells):
    """By the encoder itself."""
    batch = cells.batch(torch.arange(len(cells)))
    zero = torch.zeros(1, len(cells), model.n_latent)
    given = [zero] if getattr(model, "basal_encoder", "mean_field") == "correlated" else []
    with torch.no_grad():
        location, _ = model.encoder(model.standardise(batch.counts), *given, *batch.covariates)
    return location.reshape(len(cells), -1).double().numpy()


@pytest.mark.parametrize("name", ["correlated", "basal_mean_field", "svae_plus"])
@pytest.mark.parametrize("covariates", [0, 3])
def test_estimated_effects_are_least_squares(name, covariates, cells):
    """Against statsmodels; the screen has combinations of its perturbations."""
    rng = torch.Generator().manual_seed(0)
    given = (torch.eye(3)[torch.randint(3, (len(cells),), generator=rng)],) if covariates else ()
    cells = dataclasses.replace(cells, covariates=given)
    model = build_model(MASKED[name], cells.counts.shape[1], 8, covariates)
    found = estimate_effects(model, cells)
    design = cells.design[cells.condition].double().numpy()
    assert (design.sum(axis=1) > 1).any()
    others = given[0][:, 1:].double().numpy() if covariates else np.zeros((len(cells), 0))
    everything = sm.add_constant(np.concatenate([design, others], axis=1))
    for axis, state in enumerate(states_as_of_control_cells(model, cells).T):
        fitted = sm.OLS(state, everything).fit()
        np.testing.assert_allclose(found.effects[:, axis], fitted.params[1:9], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(
            found.standard_error[:, axis], fitted.bse[1:9], rtol=2e-2
        )  # the intercept and all levels of a covariate are one column too many


def test_a_perturbation_without_cells_has_the_prior_odds(cells):
    design = torch.cat([cells.design, torch.zeros(len(cells.design), 1)], dim=1)
    cells = dataclasses.replace(cells, design=design)
    model = build_model(MASKED["mean_field"], cells.counts.shape[1], 9)
    start_masks_at_evidence(model, cells)
    prior = np.log(0.01 / 0.99)
    np.testing.assert_allclose(model.mask.logits[8].detach(), prior, atol=1e-3)
    assert (model.mask.logits[:8] - prior).abs().max() > 0.1


@pytest.mark.parametrize("name", ["correlated", "mean_field", "beta_point", "svae_plus"])
def test_masks_start_at_their_bayes_factors(name, cells):
    """Two normal densities of the estimate; the axes are not exactly known."""
    model = build_model(MASKED[name], cells.counts.shape[1], 8)
    estimated = estimate_effects(model, cells)
    logits, probabilities, scale = model.mask_start()
    [p] = set(probabilities)
    start_masks_at_evidence(model, cells)
    e, u, deviation = (
        each.numpy() for each in (estimated.effects, estimated.standard_error, estimated.deviation)
    )
    for t, k in ((0, 0), (3, 2), (7, 3)):
        others = np.delete(e[t], k)
        error = np.hypot(u[t, k], 0.05 * np.sqrt((others**2).sum()))
        wide = np.hypot(error, scale * deviation[k] ** 2)
        factor = stats.norm.logpdf(e[t, k], 0, wide) - stats.norm.logpdf(e[t, k], 0, error)
        expected = np.clip(np.log(p / (1 - p)) + factor, -5, 5)
        assert float(logits[t, k]) == pytest.approx(expected, rel=1e-4)
    expected = {"beta_point": 1 / 11, "svae_plus": 1 / 3}.get(name, 0.01)
    assert p == pytest.approx(expected)


def test_a_guide_without_logits_of_masks_starts_as_it_is(cells):
    model = build_model(MASKED["beta_beta"], cells.counts.shape[1], 8)
    before = copy.deepcopy(model.state_dict())
    start_masks_at_evidence(model, cells)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def simulated(seed, permuted=False, **changes):
    """Cells of an additive simulation, and its truth."""
    settings = AdditiveSimulation(
        seed=seed, n_latent=8, n_perturbations=60, n_genes=60, mask_probability=0.15, n_layers=2,
        n_train=200, n_validation=30, n_test=0, **changes,
    )  # fmt: skip
    made = simulate_additive(settings)
    design = torch.cat([torch.zeros(1, 60), torch.eye(60)])
    condition = torch.from_numpy(made.design @ np.arange(1, 61)).long()
    if permuted:
        condition = condition[torch.randperm(len(condition))]

    def cells_of(part):
        chosen = torch.from_numpy(made.part == part)
        values = torch.from_numpy(made.values)[chosen]
        return Cells(values, torch.ones(len(values)), design, condition[chosen])

    return made, cells_of(TRAIN), cells_of(VAL)


OF_SIMULATION = {
    "kind": "sams_vae", "embedding": "mean_field", "n_latent": 8, "n_hidden": 64, "n_layers": 2,
    "likelihood": "normal",
}  # fmt: skip


def test_nothing_has_no_evidence():
    """Whatever the encoder: one without training here, and permuted perturbations."""
    n_open = []
    for seed in range(8):
        pyro.set_rng_seed(seed)
        _, cells, _ = simulated(seed, permuted=True)
        model = build_model(OF_SIMULATION, 60, 60)
        start_masks_at_evidence(model, cells)
        n_open.append(int((model.mask.logits > 0).any(1).sum()))
    assert sum(n_open) <= 0.02 * 8 * 60


@pytest.mark.slow
def test_weak_and_strong_effects_are_recovered_as_the_plain_objective_does_not():
    """Effects of 0.5 to 2 basal standard deviations."""
    made, *cells = simulated(0, effect_size=1.25, effect_spread=0.4)
    how_to_fit = {"max_steps": 1000, "batch_size": 256, "particles": 1, "learning_rate": 5e-3}

    def recovered(**options):
        training = Training(**how_to_fit, **options)
        [fitted] = fit(lambda: build_model(OF_SIMULATION, 60, 60), *cells, training, [0])
        mask = (mask_probability(fitted.model) > 0.5).double().numpy()
        factor, dimension = matching = match_factors(made.mask, mask)
        size = np.abs(made.mask * made.embedding)[:, factor]
        weak = (size > 0) & (size < 1)
        return mask_scores(made.mask, mask, matching)["f1"], mask[:, dimension][weak].mean()

    f1, recall_of_weak = recovered()
    assert f1 > 0.85
    assert recall_of_weak > 0.7
    assert f1 > 0.15 + recovered(mask_warmup_fraction=0, mask_kl_weight=0)[0]
