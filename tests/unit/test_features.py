"""Features of perturbations: regressions, prior and guide, splits, baselines, and refusals."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import poutine
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import optimize, stats
from scipy.linalg import block_diag
from scipy.special import expit

from samsvae.config.configuration import validate
from samsvae.config.experiments import Split, splits
from samsvae.evaluation.baselines import additive, bilinear, mean_effect, nearest_feature
from samsvae.evaluation.expression import log_expression
from samsvae.evaluation.observed import training_effects
from samsvae.evaluation.predicted import predicted_effects
from samsvae.evaluation.truth import true_effects
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import (
    StateFile,
    TrainedModel,
    load_model,
    save_model,
    with_perturbations,
)
from samsvae.inference.encoding import NO_COVARIATES, Encoding
from samsvae.inference.mask_warmup import start_masks_at_evidence, update_feature_prior
from samsvae.inference.objective import elbo
from samsvae.inference.posterior import mask_probability, unmasked_effects
from samsvae.inference.step import Training
from samsvae.inference.trainer import Trainer, fit
from samsvae.models import build_model
from samsvae.runtime.errors import InputError
from samsvae.runtime.layout import Layout
from samsvae.screen import features as module
from samsvae.screen.canonical import perturbations
from samsvae.screen.design import Design
from samsvae.screen.features import (
    PerturbationFeatures,
    check_sources,
    expression_components,
    logistic_weights,
    raw_features,
    read_features,
    ridge_weights,
    standardised,
)
from samsvae.screen.labels import components
from samsvae.screen.splits import (
    TEST,
    TRAIN,
    VAL,
    check_trained,
    held_out_perturbations,
    split_perturbations,
    split_screen,
)
from samsvae.sources import simulated
from samsvae.sources.simulated import simulate
from tests.conftest import TINY

CPU = torch.device("cpu")
SETTINGS = {
    "kind": "sams_vae", "combinations": "additive", "covariates": [], "on_target": False,
    "on_target_prior_scale": 2.0, "n_latent": 3, "n_hidden": 8, "embedding": "mean_field",
    "mask_prior": 0.2, "embedding_prior_scale": 1.5, "perturbation_features": "table.tsv",
    "feature_components": 20,
}  # fmt: skip
FOLLOWING = dataclasses.replace(
    TINY, n_features=2, n_perturbations=24, n_pairs=2, inert_fraction=0.0, n_controls=150
)
UNSEEN = Split("unseen_perturbations", 0, 0.75)


@pytest.fixture(autouse=True)
def _seeded():
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)


@pytest.fixture(scope="module")
def screen():
    """A screen whose effects follow two features of the targets."""
    return simulate(FOLLOWING)[0]


@pytest.fixture(scope="module")
def parts(screen):
    return split_screen(screen, UNSEEN)


def table_of(screen, path):
    """Write the features of the targets of a simulated screen."""
    truth = screen.uns["truth"]
    table = pd.DataFrame(truth["features"], truth["targets"], ["first", "second"])
    table.rename_axis("perturbation").to_csv(path, sep="\t")
    return str(path)


def features_for(n_perturbations, n_features=2, untrained=(1,), seed=0):
    rng = np.random.default_rng(seed)
    is_trained = ~np.isin(np.arange(n_perturbations), untrained)
    return PerturbationFeatures(rng.normal(size=(n_perturbations, n_features)), is_trained)


def model_with(features, n_genes=60, **changes):
    n = len(features.is_trained)
    return build_model(SETTINGS | changes, n_genes, n, features=features)


def with_weights(model):
    """Draw the weights of features."""
    with torch.no_grad():
        model.features.weights.normal_()
        model.features.logit_weights.normal_()
    return model


# Regressions


def ridge(X, y, g, variance):
    """Penalised least squares, as least squares of an augmented system."""
    rows = np.vstack([np.sqrt(g)[:, None] * X, np.diag(1 / np.sqrt(variance))])
    return np.linalg.lstsq(rows, np.concatenate([np.sqrt(g) * y, np.zeros(X.shape[1])]))[0]


def test_weights_are_those_of_ridge_regression_with_an_intercept(monkeypatch):
    rng = np.random.default_rng(0)
    f, y, g = rng.normal(size=(12, 3)), rng.normal(size=(12, 2)), rng.random((12, 2))
    monkeypatch.setattr(module, "VARIANCE_RATIOS", np.array([0.5]))
    found = ridge_weights(f, y, g, scale=1.0)
    X = np.column_stack([np.ones(12), f])
    for k in range(2):
        expected = ridge(X, y[:, k], g[:, k], np.array([1, 0.5, 0.5, 0.5]))
        np.testing.assert_allclose(found[k], expected, atol=1e-9)


def test_penalties_are_averaged_by_their_marginal_likelihood(monkeypatch):
    """Of a multivariate t distribution: the residual variance is integrated out."""
    rng = np.random.default_rng(1)
    f, scale = rng.normal(size=(9, 2)), 0.7
    y = f @ rng.normal(size=(2, 2)) + rng.normal(size=(9, 2))
    ratios, one = np.array([0.1, 1.0, 5.0]), np.ones((9, 2))
    evidence, weights = [], []
    for ratio in ratios:
        covariance = np.eye(9) + np.ones((9, 9)) + ratio * f @ f.T
        shape = scale**2 * block_diag(covariance, covariance)
        evidence.append(stats.multivariate_t(np.zeros(18), shape, df=2).logpdf(y.T.ravel()))
        monkeypatch.setattr(module, "VARIANCE_RATIOS", np.array([ratio]))
        weights.append(ridge_weights(f, y, one, scale))
    monkeypatch.setattr(module, "VARIANCE_RATIOS", ratios)
    posterior = np.exp(evidence - np.max(evidence))
    expected = np.tensordot(posterior / posterior.sum(), weights, 1)
    np.testing.assert_allclose(ridge_weights(f, y, one, scale), expected, atol=1e-8)


def test_logistic_weights_are_the_mode_of_the_posterior(monkeypatch):
    rng = np.random.default_rng(2)
    f, y, offset = rng.normal(size=(15, 2)), rng.random((15, 1)), rng.normal(size=15)
    monkeypatch.setattr(module, "LOGIT_VARIANCES", np.array([0.8]))
    monkeypatch.setattr(module, "LOGISTIC_ITERATIONS", 300)
    X, variance = np.column_stack([np.ones(15), f]), np.array([9, 0.8, 0.8])

    def loss(w):
        p = expit(offset + X @ w)
        likelihood = y[:, 0] * np.log(p) + (1 - y[:, 0]) * np.log1p(-p)
        return 0.5 * (w**2 / variance).sum() - likelihood.sum()

    expected = optimize.minimize(loss, np.zeros(3), tol=1e-12).x
    np.testing.assert_allclose(logistic_weights(f, y, offset)[0], expected, atol=1e-4)


def test_rare_masks_are_fitted_within_the_iterations():
    """From a prior of 0.001 to a mask that is open in every perturbation, and in none."""
    f = np.random.default_rng(0).normal(size=(20, 3))
    y = np.column_stack([np.full(20, 0.99), np.full(20, 0.001)])
    a = logistic_weights(f, y, np.full(20, np.log(0.001 / 0.999)))
    probability = expit(np.log(0.001 / 0.999) + a[:, 0])
    assert probability[0] > 0.9
    assert probability[1] < 0.02


@pytest.mark.parametrize("n_features", [1, 5, 19])
def test_features_that_tell_nothing_leave_the_mean(n_features):
    """All perturbations share an effect: it is predicted whatever the features."""
    rng = np.random.default_rng(3)
    f = PerturbationFeatures.of(rng.normal(size=(20, n_features)), np.ones(20, bool), 20).values
    y = 2.0 + 0.5 * rng.normal(size=(20, 4))
    weights = ridge_weights(f, y, np.ones((20, 4)), scale=1.0)
    predicted = weights[:, 0] + f @ weights[:, 1:].T
    np.testing.assert_allclose(predicted.mean(axis=0), y.mean(axis=0), rtol=0.06)
    assert predicted.std(axis=0).max() < 0.35
    error = np.square(y - y.mean(axis=0)).mean()
    assert np.square(predicted - 2.0).mean() < error


def test_effects_that_follow_features_are_found():
    rng = np.random.default_rng(4)
    raw, is_trained = rng.normal(size=(40, 3)), np.arange(40) < 30
    f = PerturbationFeatures.of(raw, is_trained, 20).values
    y = 1.0 + raw @ rng.normal(size=(3, 4)) + 0.3 * rng.normal(size=(40, 4))
    weights = ridge_weights(f[:30], y[:30], np.ones((30, 4)), scale=1.0)
    error = y[30:] - weights[:, 0] - f[30:] @ weights[:, 1:].T
    assert np.square(error).mean() < 0.15
    opened = (raw @ [2.0, -2.0, 0] > 0).astype(float)[:, None]
    weights = logistic_weights(f[:30], opened[:30], np.full(30, -2.0))
    odds = -2 + weights[:, 0] + f[30:] @ weights[:, 1:].T
    assert ((odds > 0) == opened[30:]).mean() > 0.85


# Features


@given(st.integers(0, 10**6))
def test_order_scale_and_origin_of_features_are_of_no_effect(seed):
    rng = np.random.default_rng(seed)
    raw, is_trained = rng.normal(size=(9, 4)), np.arange(9) % 4 > 0
    other = raw[:, rng.permutation(4)] * rng.uniform(0.5, 9, 4) + rng.normal(size=4)
    one, two = (PerturbationFeatures.of(each, is_trained, 20).values for each in (raw, other))
    np.testing.assert_allclose(one @ one.T, two @ two.T, atol=1e-9)
    np.testing.assert_allclose(np.abs(one), np.abs(two), atol=1e-6)
    np.testing.assert_allclose(one[is_trained].mean(axis=0), 0, atol=1e-12)
    assert np.square(one[is_trained]).sum() == pytest.approx(is_trained.sum())


def test_a_constant_feature_and_a_perturbation_without_features_are_0():
    raw = np.column_stack([np.full(6, 3.7), np.arange(6.0) ** 2])
    raw[5] = np.nan
    found = PerturbationFeatures.of(raw, np.ones(6, bool), 20)
    assert found.values.shape == (6, 1)
    assert found.values[5] == 0
    constant = PerturbationFeatures.of(raw[:5, :1], np.ones(5, bool), 20)
    assert constant.values.shape == (5, 0)


def test_expression_is_that_of_target_genes_in_training_cells():
    own = simulate(dataclasses.replace(TINY, knock_down=1.0))[0]
    train = np.random.default_rng(0).random(own.n_obs) < 0.7
    expression = log_expression(own, train).toarray()
    has = Design.of_screen(own).matrix[train].toarray() != 0
    groups = [*has.T, ~has.any(axis=1)]
    profiles = np.array([expression[group].mean(axis=0) for group in groups])
    centred = profiles.T - profiles.T.mean(axis=0)
    found = expression_components(own, train, 9).to_numpy()
    np.testing.assert_allclose(found @ found.T, centred @ centred.T, atol=1e-7)
    names = [*Design.of_screen(own).names, "UNMEASURED"]
    raw = raw_features("expression", own, train, names, 9)
    assert np.isnan(raw[-1]).all()
    row = list(own.var_names).index(names[0])
    np.testing.assert_array_equal(raw[0], found[row])


def test_too_few_targets_with_features_are_refused(screen, parts):
    for refused in (
        lambda: PerturbationFeatures.of_screen("expression", screen, parts == TRAIN, ["A"], 5),
        lambda: check_sources(["expression"], ["A", "B", "C"], ["A", "B", "C"], ["A", "B", "G"]),
        lambda: nearest_feature(screen, parts == TRAIN, ["TARGET01"]),
    ):
        with pytest.raises(InputError, match="at least 3"):
            refused()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gene\tx\nA\t1\nB\tlarge\n", ["1 values", "'large' of 'B'", "feature 'x'"]),
        ("gene\tx\nA\t1\nB\t\n", ["'' of 'B'"]),
        ("gene\tx\nA\tNaN\nB\t1\n", ["'NaN' of 'A'"]),
        ("gene\tx\nA\tinf\nB\t1\n", ["'inf' of 'A'"]),
        ("gene\tx\nA\t1\nA\t2\n", ["perturbation 'A' twice"]),
        ("gene\tx\tx\nA\t1\t2\n", ["feature 'x' twice"]),
        ("gene,x\nA,1\n", ["no features", "tabs"]),
        ("gene\tx\n", ["no features"]),
        ("", ["cannot be read"]),
        ("gene\tx\nA\t1\t2\n", ["cannot be read"]),
        (None, ["no such file"]),
    ],
)
def test_tables_that_are_not_valid_are_refused(tmp_path, text, said):
    path = tmp_path / "features.tsv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_features(path)
    for words in ["perturbation_features", str(path), *said]:
        assert words in str(refused.value)


def test_a_table_that_lacks_perturbations_names_them(tmp_path):
    path = tmp_path / "features.csv"
    path.write_text("gene,x\nA,1\nB,2\nextra,3\n")
    with pytest.raises(InputError, match=r"no row for 1 of 3 .*: C\."):
        check_sources([str(path)], ["A", "B", "C"], ["A", "B", "C"], [])
    assert list(read_features(path).index) == ["A", "B", "extra"]


def test_names_like_missing_values_are_names(tmp_path):
    path = tmp_path / "features.tsv"
    path.write_text("gene\tx\nNA\t1\nnan\t2\n007\t3\n")
    assert list(read_features(path).index) == ["NA", "nan", "007"]


# Prior and guide


@pytest.mark.parametrize("embedding", ["mean_field", "correlated"])
def test_the_guide_of_an_unseen_perturbation_is_its_prior(embedding):
    features = features_for(5, untrained=(1, 3))
    model = with_weights(model_with(features, embedding=embedding))
    with torch.no_grad():  # parameters of the guide of unseen perturbations do not count
        model.mask.logits.normal_(0, 3)
    X = np.column_stack([np.ones(5), features.values])
    odds = np.log(0.2 / 0.8) + X @ model.features.logit_weights.numpy().T
    mean = X @ model.features.weights.numpy().T
    probability = mask_probability(model).numpy()
    np.testing.assert_allclose(probability[[1, 3]], expit(odds)[[1, 3]], atol=1e-6)
    np.testing.assert_allclose(unmasked_effects(model)[[1, 3]], mean[[1, 3]], atol=1e-5)
    seen = torch.sigmoid(model.mask.logits).detach().numpy()[[0, 2, 4]]
    np.testing.assert_allclose(probability[[0, 2, 4]], seen, atol=1e-6)
    with pyro.plate("particles", 4000, dim=-2), torch.no_grad():
        guide = poutine.trace(model.global_guide).get_trace()
        prior = poutine.trace(poutine.replay(model.global_prior, guide)).get_trace()
    for site in ("mask", "embedding"):
        q, p = (trace.nodes[site]["fn"].base_dist for trace in (guide, prior))
        value = guide.nodes[site]["value"]
        difference = q.log_prob(value) - p.log_prob(value)
        assert not difference[..., [1, 3], :].any()  # the KL of unseen perturbations is 0
        assert difference[..., [0, 2, 4], :].any()
    drawn = (guide.nodes["mask"]["value"] * guide.nodes["embedding"]["value"]).mean(0).numpy()
    np.testing.assert_allclose(drawn[1], (expit(odds) * mean)[1], atol=0.15)


def test_unseen_perturbations_add_nothing_to_the_bound(screen, parts):
    """Neither to its value nor to its gradient, since they have no cells."""
    design = Design.of_screen(screen)
    names = design.names
    trained = set(design[parts == TRAIN].names)
    is_trained = np.array([name in trained for name in names])
    features = PerturbationFeatures(screen.uns["truth"]["features"], is_trained)
    model = with_weights(model_with(features))
    cells = Cells.of(screen, parts == TRAIN, Encoding.of(design, "additive"), CPU)
    bound = elbo(model, cells.batch(torch.arange(64)), 3)
    bound.loss.backward()
    for gradient in (model.mask.logits.grad, model.embedding.location.grad):
        assert not gradient[~torch.from_numpy(is_trained)].any()
        assert gradient[torch.from_numpy(is_trained)].any(dim=1).all()
    assert model.features.weights.grad is None


def test_without_weights_the_prior_is_that_of_sams_vae(screen):
    """So that a training starts as one without features."""
    names = Design.of_screen(screen).names
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    cells = Cells.of(screen, np.ones(screen.n_obs, bool), encoding, CPU)
    bounds = []
    for features in (features_for(len(names), untrained=()), None):
        pyro.set_rng_seed(5)
        model = build_model(SETTINGS, 60, len(names), features=features)
        bounds.append(elbo(model, cells.batch(torch.arange(50)), 2).terms_per_cell)
    assert list(bounds[0]) == list(bounds[1])
    for name, value in bounds[0].items():
        assert value.item() == pytest.approx(bounds[1][name].item(), rel=1e-5)


def test_weights_are_estimated_from_the_guide_of_trained_perturbations():
    features = features_for(12, untrained=(0, 5))
    model = model_with(features)
    with torch.no_grad():
        model.mask.logits.normal_(0, 2)
        model.embedding.location.normal_()
    update_feature_prior(model)
    seen = features.is_trained
    p = torch.sigmoid(model.mask.logits).detach().double().numpy()[seen]
    e = model.embedding.location.detach().double().numpy()[seen]
    values = features.values.astype(np.float32).astype(float)[seen]
    expected = ridge_weights(values, e, p, 1.5)
    np.testing.assert_allclose(model.features.weights, expected, atol=1e-5)
    expected = logistic_weights(values, p, np.full(seen.sum(), np.log(0.2 / 0.8)))
    np.testing.assert_allclose(model.features.logit_weights, expected, atol=1e-4)


def test_masks_start_at_their_evidence_given_features(screen):
    """Of a trained perturbation with the evidence of a model without features, but other odds."""
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    cells = Cells.of(screen, np.ones(screen.n_obs, bool), encoding, CPU)
    model = model_with(features_for(len(encoding.names), untrained=()), mask_prior=0.01)
    start_masks_at_evidence(model, cells)
    assert model.features.weights.any()
    assert model.features.logit_weights.any()
    assert torch.isfinite(model.mask.logits).all()


def test_effects_in_contexts_have_no_features():
    features = features_for(4)
    model = build_model(SETTINGS, 60, 4, shared_effects=[0, 0, 2], features=features)
    with_weights(model)
    logits, location, _ = model.given_features()
    assert not location[4:].any()
    np.testing.assert_allclose(logits[4:], np.log(0.001 / 0.999), rtol=1e-4)
    update_feature_prior(model)
    assert mask_probability(model).shape == (7, 3)


def test_families_with_another_prior_have_no_features():
    for kind in ("cpa_vae", "sams_vae_beta_bernoulli"):
        with pytest.raises(InputError, match=kind):
            build_model({"kind": kind, "n_latent": 2}, 10, 3, features=features_for(3))


# Checkpoints and training


def trained_model(model, names):
    genes = [f"G{number}" for number in range(60)]
    return TrainedModel(model.eval(), SETTINGS, genes, Encoding(names), NO_COVARIATES)


def test_a_checkpoint_keeps_features_and_weights(tmp_path):
    names = ("A", "B", "C", "D")
    one = trained_model(with_weights(model_with(features_for(4))), names)
    save_model(one, "{}", tmp_path / "model.safetensors")
    other = load_model(tmp_path / "model.safetensors")
    for (name, a), b in zip(
        one.model.state_dict().items(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    labels = ["A", "B", "C+D"]
    for a, b in zip(*(predicted_effects(m, labels, 5, 0) for m in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_checkpoints_from_before_features_are_loaded(tmp_path):
    path = tmp_path / "model.safetensors"
    model = build_model(SETTINGS | {"perturbation_features": None}, 60, 4)
    save_model(trained_model(model, ("A", "B", "C", "D")), "{}", path)
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "n_features"}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings = json.loads(metadata["settings"])
    for key in ("perturbation_features", "feature_components"):
        del settings[key]
    save_file(weights, path, metadata={**metadata, "settings": json.dumps(settings)})
    assert load_model(path).model.n_features is None


@pytest.mark.parametrize("embedding", ["mean_field", "correlated"])
def test_perturbations_outside_the_screen_are_added_with_their_prior(tmp_path, embedding):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(7, 3)), list("ABCDEXY"))
    table.rename_axis("gene").to_csv(tmp_path / "table.tsv", sep="\t")
    is_trained = np.array([True, True, False, True, True])
    features = PerturbationFeatures.of(table.to_numpy()[:5], is_trained, 20)
    model = with_weights(model_with(features, embedding=embedding))
    with torch.no_grad():
        model.mask.logits.normal_()
    own = replace_settings(trained_model(model, tuple("ABCDE")), embedding)
    path = tmp_path / "table.tsv"
    more = with_perturbations(own, ["Y", "X"], path)
    assert more.encoding.names == (*"ABCDE", "Y", "X")
    np.testing.assert_allclose(mask_probability(more.model)[:5], mask_probability(model), atol=1e-5)
    np.testing.assert_allclose(unmasked_effects(more.model)[:5], unmasked_effects(model), atol=1e-4)
    z = standardised(table.to_numpy(), np.append(is_trained, [False, False]))
    known = z[:5][is_trained]
    # the prior mean is linear in features, so it is that of the same point in their space
    weights = np.linalg.lstsq(known, features.values[is_trained])[0]
    values = np.column_stack([np.ones(2), z[[6, 5]] @ weights])
    expected = values @ model.features.weights.numpy().T
    np.testing.assert_allclose(unmasked_effects(more.model)[5:], expected, atol=1e-4)
    assert predicted_effects(more, ["X", "A+Y"], 4, 0)[0].shape == (2, 60)
    table.loc["A"] += 1
    table.rename_axis("gene").to_csv(path, sep="\t")
    for names, said in ((["X"], "other features"), (["A"], "'A' already"), (["Z"], "Z")):
        with pytest.raises(InputError, match=said):
            with_perturbations(own, names, path)
    plain = dataclasses.replace(own, settings=SETTINGS | {"perturbation_features": "expression"})
    with pytest.raises(InputError, match="'expression'"):
        with_perturbations(plain, ["X"], path)


def replace_settings(trained, embedding):
    return dataclasses.replace(trained, settings=SETTINGS | {"embedding": embedding})


def short_training(screen, parts, seeds, steps=60, **changes):
    names = Design.of_screen(screen).names
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    trained = set(Design.of_screen(screen)[parts == TRAIN].names)
    is_trained = np.array([name in trained for name in names])
    features = PerturbationFeatures.of(screen.uns["truth"]["features"], is_trained, 20)
    cells = [Cells.of(screen, parts == part, encoding, CPU) for part in (TRAIN, VAL)]
    given = {"max_steps": steps, "batch_size": 64, "validate_every": 30, "particles": 2}
    training = Training(**given | changes)
    trainer = Trainer(lambda: model_with(features), cells[0], training, seeds)
    return trainer, cells[1]


def run(trainer, steps):
    for _ in range(steps):
        trainer.take_step()


def test_an_interrupted_training_ends_with_the_same_weights_of_features(screen, parts, tmp_path):
    state_file = StateFile(tmp_path / "state.safetensors", "a")
    whole, validation = short_training(screen, parts, [0])
    run(whole, 30)
    whole.evaluate(validation)
    whole.save(state_file)
    resumed, _ = short_training(screen, parts, [0])
    resumed.resume(state_file)
    for trainer in (whole, resumed):
        run(trainer, 30)
    one, other = (each.replicates[0].model.state_dict() for each in (whole, resumed))
    assert one["features.weights"].any()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_seeds_that_are_trained_together_have_weights_of_their_own(screen, parts):
    alone = [short_training(screen, parts, [seed], 50)[0] for seed in (0, 1)]
    together, _ = short_training(screen, parts, [0, 1], 50)
    for trainer in (*alone, together):
        run(trainer, 50)
    found = [together.training_step.weights["features.weights"][index] for index in (0, 1)]
    for own, one in zip(alone, found, strict=True):
        expected = own.replicates[0].model.features.weights
        assert expected.any()
        np.testing.assert_allclose(one, expected, atol=5e-3)
    assert not torch.allclose(*found)


def predictions(screen, features, seed):
    """Predicted and true effects of all perturbations, and which singles are held out."""
    parts = split_screen(screen, Split("unseen_perturbations", seed, 0.75))
    names, train = perturbations(screen), parts == TRAIN
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    given = PerturbationFeatures.of_screen(features, screen, train, encoding.names, 20)
    cells = [Cells.of(screen, parts == part, encoding, CPU) for part in (TRAIN, VAL)]
    training = Training(max_steps=500, batch_size=128, particles=2, learning_rate=5e-3)
    settings = {"n_latent": 6, "n_hidden": 16, "mask_prior": 0.01, "embedding_prior_scale": 1.0}
    model = fit(lambda: model_with(given, **settings), *cells, training, [0])[0].model
    trained = TrainedModel(model, SETTINGS, list(screen.var_names), encoding, NO_COVARIATES)
    tested = set(screen.obs["perturbation"].astype(str)[parts == TEST])
    held_out = np.array([name in tested and len(components(name)) == 1 for name in names])
    predicted = {
        "model": predicted_effects(trained, names, 200, 0)[0],
        "mean": mean_effect(screen, train, names),
        "bilinear": bilinear(screen, train, names, perturbation_features=features),
    }
    return predicted, true_effects(screen, names, 0), held_out


@pytest.mark.slow
def test_effects_that_follow_features_are_predicted_for_unseen_perturbations(screen, tmp_path):
    path = table_of(screen, tmp_path / "features.tsv")
    predicted, truth, held_out = predictions(screen, path, seed=1)
    error = {name: np.square(own - truth)[held_out].mean() for name, own in predicted.items()}
    assert error["model"] < 0.6 * error["mean"]
    assert error["model"] < error["bilinear"]


@pytest.mark.slow
def test_an_effect_that_all_perturbations_share_is_predicted_whatever_the_features(
    tmp_path, monkeypatch
):
    def shared(rng, settings):
        mask = np.zeros((settings.n_perturbations, settings.n_factors))
        mask[:, 0] = 1
        return mask, 2.0 * mask

    monkeypatch.setattr(simulated, "_effects", shared)
    alike = simulate(dataclasses.replace(FOLLOWING, n_features=0, n_pairs=0))[0]
    alike.uns["truth"]["features"] = np.random.default_rng(1).normal(size=(24, 2))
    path = table_of(alike, tmp_path / "features.tsv")
    predicted, truth, held_out = predictions(alike, path, seed=0)
    of_seen = predicted["model"][~held_out].mean(axis=0)
    for own, true in zip(predicted["model"][held_out], truth[held_out], strict=True):
        # but for the variance of the prior, which a decoder that is not linear turns into a mean
        assert np.linalg.norm(own - of_seen) < 0.3 * np.linalg.norm(of_seen)
        assert np.corrcoef(own, true)[0, 1] > 0.9


# Splits


@given(st.integers(0, 1000), st.sampled_from([0.25, 0.5, 0.75]))
def test_all_cells_of_held_out_perturbations_are_tested(seed, fraction):
    labels = np.array(["control", "A", "B", "C", "D", "E", "F", "G", "H", "A+B", "C+X"] * 9)
    design = Design.of_labels(list(labels))
    parts = split_perturbations(design, Split("unseen_perturbations", seed, max(fraction, 0.4)))
    held = held_out_perturbations(list("ABCDEFGH"), max(fraction, 0.4), seed)
    assert len(held) == 8 - round(8 * max(fraction, 0.4))
    has_held = np.array([bool(held & set(components(label))) for label in labels])
    np.testing.assert_array_equal(parts == TEST, has_held)
    for label in set(labels[~has_held]):
        own = parts[labels == label]
        assert (own == VAL).sum() == round(0.2 * len(own))
        assert (own == TRAIN).sum() == len(own) - round(0.2 * len(own))
    assert held <= held_out_perturbations(list("ABCDEFGH"), 0.1, seed)


def test_each_seed_is_another_draw_and_is_repeatable(screen, parts):
    assert (parts != split_screen(screen, Split("unseen_perturbations", 1, 0.75))).any()
    np.testing.assert_array_equal(parts, split_screen(screen, UNSEEN))
    untrained = check_trained(Design.of_screen(screen), parts, "keep_prior")
    tested = screen.obs["perturbation"].astype(str)[parts == TEST]
    assert set(untrained) == {name for name in set(tested) if len(components(name)) == 1}


@pytest.mark.parametrize(
    ("fraction", "said"), [(1.0, ["none of 24", "lower"]), (0.05, ["trains on 1 of 24", "raise"])]
)
def test_splits_that_hold_out_none_or_too_many_are_refused(screen, fraction, said):
    with pytest.raises(InputError) as refused:
        split_screen(screen, Split("unseen_perturbations", 0, fraction))
    for words in said:
        assert words in str(refused.value)


# Baselines


def test_the_nearest_perturbation_is_that_of_the_most_similar_features(screen, parts, tmp_path):
    path = table_of(screen, tmp_path / "features.tsv")
    train, names = parts == TRAIN, perturbations(screen)
    found = dict(
        zip(names, nearest_feature(screen, train, names, perturbation_features=path), strict=True)
    )
    table = read_features(path)
    singles = [name for name in perturbations(screen[train]) if len(components(name)) == 1]
    z = (table - table.loc[singles].mean()) / table.loc[singles].std(ddof=0)
    effects = dict(zip(singles, training_effects(screen, train, singles, None), strict=True))
    for name in set(names) - set(singles):
        expected = sum(
            effects[np.square(z.loc[singles] - z.loc[part]).sum(axis=1).idxmin()]
            for part in components(name)
        )
        np.testing.assert_allclose(found[name], expected, atol=1e-9)
    own = additive(screen, train, singles)
    np.testing.assert_allclose([found[name] for name in singles], own, atol=1e-12)


def test_equally_near_perturbations_are_averaged(screen, parts, tmp_path):
    train = parts == TRAIN
    singles = [name for name in perturbations(screen[train]) if len(components(name)) == 1]
    table = pd.DataFrame({"x": 1.0}, index=screen.uns["truth"]["targets"])
    table.loc[singles[:2], "x"] = [0.0, 2.0]
    table.loc[singles[2:], "x"] = 50.0
    table.rename_axis("gene").to_csv(tmp_path / "ties.csv")
    [held_out, *_] = set(table.index) - set(singles)
    found = nearest_feature(
        screen, train, [held_out], perturbation_features=str(tmp_path / "ties.csv")
    )
    expected = training_effects(screen, train, singles[:2], None).mean(axis=0)
    np.testing.assert_allclose(found[0], expected, atol=1e-9)


def test_bilinear_of_a_table_is_two_ridge_regressions_around_the_mean(screen, parts, tmp_path):
    path, train = table_of(screen, tmp_path / "features.tsv"), parts == TRAIN
    names = perturbations(screen)
    infinite = bilinear(screen, train, names, ridge=1e12, perturbation_features=path)
    np.testing.assert_allclose(infinite, mean_effect(screen, train, names), atol=1e-6)
    found = bilinear(screen, train, names, ridge=1e-9, perturbation_features=path)
    every = perturbations(screen[train])
    effects = training_effects(screen, train, every, None)
    design = Design.of_screen(screen)
    values = PerturbationFeatures.of_screen(path, screen, train, design.names, 10).values
    P = dict(zip(design.names, values, strict=True))
    X = np.array([sum(P[part] for part in components(name)) for name in every])
    Y = np.array([sum(P[part] for part in components(name)) for name in names])
    expected = Y @ np.linalg.lstsq(X, effects - effects.mean(axis=0))[0]
    genes = found - effects.mean(axis=0)
    # without a penalty, least squares on features, projected to the components of genes
    assert np.corrcoef(genes.ravel(), expected.ravel())[0, 1] > 0.95


# Simulation


def test_features_change_masks_and_effects_alone():
    plain, own = (simulate(dataclasses.replace(TINY, n_features=n))[0] for n in (0, 3))
    assert "features" not in plain.uns["truth"]
    for name in ("loadings", "log_proportion", "inverse_dispersion"):
        np.testing.assert_array_equal(plain.uns["truth"][name], own.uns["truth"][name])
    np.testing.assert_array_equal(plain.obsm["true_basal"], own.obsm["true_basal"])
    control = (plain.obs["perturbation"] == "control").to_numpy()
    assert plain[control].X.sum() != 0


@pytest.mark.parametrize(("strength", "explained"), [(1.0, 1.0), (0.0, 0.0)])
def test_effects_follow_features_as_far_as_they_should(strength, explained):
    settings = dataclasses.replace(
        TINY, n_perturbations=300, n_features=3, feature_strength=strength,
        n_pairs=0, cells_per_perturbation=1, effect_size=1.5,
    )  # fmt: skip
    truth = simulate(settings)[0].uns["truth"]
    X = np.column_stack([np.ones(300), truth["features"]])
    rest = truth["embedding"] - X @ np.linalg.lstsq(X, truth["embedding"])[0]
    r2 = 1 - rest.var() / truth["embedding"].var()
    assert r2 == pytest.approx(explained, abs=0.05)
    assert truth["mask"].mean() == pytest.approx(1.3 / 3, abs=0.01)


# Configuration


def configured(change):
    known = {
        "plain": {"kind": "sams_vae"},
        "cpa": {"kind": "cpa_vae"},
        "known": {"kind": "sams_vae", "perturbation_features": "table.tsv"},
        "unique": {
            "kind": "sams_vae", "perturbation_features": "table.tsv", "combinations": "unique",
        },
        "grid": {
            "kind": "sams_vae", "perturbation_features": "a.tsv", "grid": {"n_latent": [5, 6]},
        },
        "chosen": {"kind": "sams_vae", "grid": {"perturbation_features": ["a.tsv", "b.tsv"]}},
        "normal": {
            "kind": "sams_vae", "likelihood": "normal", "perturbation_features": "expression",
        },
        "own_gene": {"kind": "sams_vae", "perturbation_features": "a.tsv", "on_target": True},
        "nearest": {"kind": "nearest_feature", "perturbation_features": "own.csv"},
        "mean": {"kind": "mean_effect"},
    }  # fmt: skip
    own = {"screen": "one", "split": {"kind": "random"}, "models": ["mean"], **change}
    if "chosen" not in own["models"]:
        del known["chosen"]
    screens = {"one": {"source": "simulated"}, "gauss": {"source": "simulated_additive"}}
    return {"screens": screens, "models": known, "experiments": {"own": own}}


HELD_OUT = {"kind": "unseen_perturbations", "fractions": [0.75], "seeds": [0, 1]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split": HELD_OUT, "models": ["plain"]}, ["'plain'", "perturbation_features"]),
        ({"split": HELD_OUT, "models": ["known", "cpa"]}, ["'cpa'", "leave it out"]),
        ({"split": {"kind": "unseen_perturbations"}}, ["'fractions' is missing"]),
        ({"models": ["chosen"]}, ["models.chosen.grid", "'perturbation_features'"]),
        ({"models": ["unique"]}, ["models.unique.combinations", "additive"]),
        ({"models": ["own_gene"]}, ["models.own_gene.on_target", "set false"]),
        ({"screen": "gauss", "models": ["normal"]}, ["models.normal", "'expression'", "table"]),
    ],
)
def test_faults_of_features_are_told_before_anything_runs(change, said):
    with pytest.raises(InputError) as refused:
        validate(configured(change))
    for words in said:
        assert words in str(refused.value)


def test_tables_of_features_are_inputs_of_the_jobs_that_read_them():
    models = ["known", "grid", "nearest", "mean"]
    config = validate(configured({"split": HELD_OUT, "models": models}))
    names = ["unseen_perturbations-f0.75-seed0", "unseen_perturbations-f0.75-seed1"]
    assert list(splits(config["experiments"]["own"])) == names
    defaults = {"training": {"seeds_together": False}, "gene_sets": {}}
    layout = Layout({**defaults, **config})
    of_all = layout.feature_sources_of({"experiment": "own"})
    assert of_all == ["a.tsv", "own.csv", "table.tsv"]
    for model, expected in {
        "known": ["table.tsv"], "nearest": ["own.csv"], "mean": [], "grid--n_latent-5": ["a.tsv"],
    }.items():  # fmt: skip
        assert layout.features_of({"experiment": "own", "model": model}) == expected
