"""Mask warm-up, rotation of latent space, learnt masks; and the truth that is recovered."""

import numpy as np
import pyro
import pytest
import torch

from samsvae.evaluation.agreement import mask_scores, match_factors
from samsvae.inference.cells import Cells, Encoding
from samsvae.inference.mask_warmup import MaskWarmup, rotate_latent_space, sparsest_rotation
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
    warmup = MaskWarmup(lambda: rotated.append(1), 2, kl_weight=3.0, device=torch.device("cpu"))
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
    assert rotated == [1]
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_true_masks_are_recovered_as_the_plain_objective_does_not(seed):
    settings = AdditiveSimulation(
        seed=seed, n_latent=6, n_perturbations=40, n_genes=40, mask_probability=0.2, n_layers=2,
        n_train=150, n_validation=20, n_test=0,
    )  # fmt: skip
    made = simulate_additive(settings)
    design = torch.cat([torch.zeros(1, 40), torch.eye(40)])
    condition = torch.from_numpy(made.design @ np.arange(1, 41)).long()

    def cells_of(part):
        chosen = torch.from_numpy(made.part == part)
        values = torch.from_numpy(made.values)[chosen]
        return Cells(values, torch.ones(len(values)), design, condition[chosen])

    model = {"kind": "sams_vae", "embedding": "mean_field", "mask_prior": 0.001}
    model |= {"n_latent": 6, "n_hidden": 64, "n_layers": 2, "likelihood": "normal"}
    how_to_fit = {"max_steps": 1000, "batch_size": 256, "particles": 1, "learning_rate": 5e-3}

    def recovered(**options):
        training = Training(**how_to_fit, **options)
        [fitted] = fit(
            lambda: build_model(model, 40, 40), cells_of(TRAIN), cells_of(VAL), training, [seed]
        )
        mask = (mask_probability(fitted.model) > 0.5).double().numpy()
        return mask_scores(made.mask, mask, match_factors(made.mask, mask))["f1"]

    found = recovered()
    assert found > 0.85
    assert found > 0.15 + recovered(mask_warmup_fraction=0, mask_kl_weight=0)
