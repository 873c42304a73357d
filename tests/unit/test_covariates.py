"""Batches, contexts and further covariates of cells in encoder and decoder."""

import dataclasses

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from samsvae.evaluation.predicted import predicted_effects, weights_of_strata
from samsvae.inference.cells import Cells, CellStream
from samsvae.inference.checkpoint import TrainedModel, load_model, save_model
from samsvae.inference.encoding import Covariates, Encoding
from samsvae.inference.iwelbo import StreamedBounds, iwelbo
from samsvae.inference.objective import elbo
from samsvae.inference.posterior import cell_states
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import MODELS, build_model
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import write_tsv
from samsvae.screen.canonical import perturbations, write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TEST, TRAIN, VAL, split_table
from samsvae.sources.simulated import simulate
from tests.conftest import TINY

CPU = torch.device("cpu")
SMALL = {"n_latent": 4, "n_hidden": 8}


@pytest.fixture(autouse=True)
def _seeded():
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)


@pytest.fixture(scope="module")
def screen():
    """A screen with three batches and a continuous covariate."""
    screen = simulate(dataclasses.replace(TINY, n_batches=3, n_contexts=2))[0]
    screen.obs["depth"] = np.log(screen.obs["library_size"])
    return screen


def trained_on(screen, settings, columns=None):
    """An untrained model of the screen, and its cells."""
    settings = {"combinations": "additive", "covariates": columns, **settings}
    encoding = Encoding.of(Design.of_screen(screen), settings["combinations"])
    covariates = Covariates.of(screen.obs, columns)
    model = build_model(settings, screen.n_vars, len(encoding.names), len(covariates)).eval()
    trained = TrainedModel(model, settings, list(screen.var_names), encoding, covariates)
    every = np.ones(screen.n_obs, dtype=bool)
    return trained, Cells.of(screen, every, encoding, CPU, covariates)


def test_batch_and_context_are_the_covariates_of_a_screen_that_has_them(screen):
    covariates = Covariates.of(screen.obs, None)
    assert covariates.levels == {
        "batch": ["batch1", "batch2", "batch3"], "context": ["context1", "context2"],
    }  # fmt: skip
    assert len(covariates) == 5
    assert covariates.strata == [[b, c] for b in covariates.levels["batch"] for c in ("context1", "context2")]  # fmt: skip
    number = pd.crosstab(screen.obs["batch"], screen.obs["context"]).to_numpy().ravel()
    np.testing.assert_allclose(covariates.frequency, number / screen.n_obs)
    encoded = covariates.encode(screen.obs)
    for column, (name, level) in enumerate(
        (name, level) for name, levels in covariates.levels.items() for level in levels
    ):
        np.testing.assert_array_equal(encoded[:, column], screen.obs[name] == level)
    stratum = covariates.stratum(screen.obs)
    np.testing.assert_array_equal(covariates.of_strata()[stratum], encoded)


def test_numbers_are_standardised_and_constants_left_out(screen):
    obs = screen.obs.assign(same="x", is_deep=screen.obs["depth"] > screen.obs["depth"].median())
    covariates = Covariates.of(obs, ["depth", "same", "is_deep"])
    assert list(covariates.levels) == ["is_deep"]
    encoded = covariates.encode(obs)
    assert encoded.shape == (len(obs), 3)
    depth = encoded[:, 2]
    assert depth.mean() == pytest.approx(0, abs=1e-4)
    assert depth.std() == pytest.approx(1, abs=1e-4)
    assert not len(Covariates.of(obs, []))
    assert covariates.of_strata().tolist() == [[1, 0, 0], [0, 1, 0]]


def test_a_level_without_training_cells_is_none_of_the_levels(screen):
    covariates = Covariates.of(screen.obs[screen.obs["batch"] != "batch2"], ["batch"])
    encoded = covariates.encode(screen.obs)
    unseen = (screen.obs["batch"] == "batch2").to_numpy()
    assert (encoded[unseen] == 0).all()
    assert (encoded[~unseen].sum(axis=1) == 1).all()
    assert set(covariates.stratum(screen.obs)[unseen]) == {-1}


@pytest.mark.parametrize("dtype", ["float32", "float64", "Float64"])
def test_a_missing_number_of_a_cell_that_is_not_trained_is_the_mean(screen, dtype):
    covariates = Covariates.of(screen.obs, ["depth", "batch"])
    depth = screen.obs["depth"].astype(dtype)
    depth.iloc[[2, 5]] = pd.NA if dtype == "Float64" else np.nan
    at_mean = screen.obs["depth"].copy()
    at_mean.iloc[[2, 5]] = covariates.scaling["depth"][0]
    found, expected = (covariates.encode(screen.obs.assign(depth=own)) for own in (depth, at_mean))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found[[2, 5], -1] == 0).all()


@pytest.mark.parametrize(("value", "shown"), [(np.inf, "in 1 cells"), ("deep", "deep")])
def test_values_that_are_no_finite_numbers_are_refused(screen, value, shown):
    covariates = Covariates.of(screen.obs, ["depth"])
    depth = screen.obs["depth"].astype(object if value == "deep" else float)
    depth.iloc[4] = value
    with pytest.raises(InputError, match=f"'depth'.*{shown}"):
        covariates.encode(screen.obs.assign(depth=depth))
    if value == np.inf:
        with pytest.raises(InputError, match=f"'depth'.*{shown}"):
            Covariates.of(screen.obs.assign(depth=depth), ["depth"])


@pytest.mark.parametrize("problem", ["no such column", "missing values"])
def test_columns_that_cannot_be_covariates_are_refused(screen, problem):
    obs = screen.obs.copy()
    if problem == "missing values":
        obs["age"] = [np.nan, *range(len(obs) - 1)]
    with pytest.raises(InputError) as refused:
        Covariates.of(obs, ["age"])
    assert "age" in str(refused.value)
    assert ("batch" if problem == "no such column" else "1 ") in str(refused.value)


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("likelihood", ["negative_binomial", "normal"])
def test_bounds_depend_on_the_covariates(screen, kind, likelihood):
    """By the decoder and by the encoder, whose weights get a gradient."""
    trained, cells = trained_on(screen, {"kind": kind, "likelihood": likelihood, **SMALL})
    bound = elbo(trained.model, cells.batch(torch.arange(40)), 2)
    bound.loss.backward()
    assert torch.isfinite(bound.loss)
    of_decoder = trained.model.likelihood.hidden.first[0].weight
    of_encoder = trained.model.encoder.hidden.first[-1].weight
    for weight in (of_decoder, of_encoder):
        assert weight.shape == (8, 5)
        assert weight.grad.abs().min() > 0


@pytest.mark.parametrize("kind", list(MODELS))
def test_without_such_columns_weights_are_as_before(screen, kind):
    """Those of the same seed, whether the option is there or not."""
    drawn = []
    for arguments in ((), (0,)):
        pyro.set_rng_seed(3)
        drawn.append(build_model({"kind": kind, **SMALL}, 20, 4, *arguments).state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    trained, cells = trained_on(screen, {"kind": kind, **SMALL}, columns=[])
    assert cells.covariates == ()
    assert trained.model.likelihood.hidden.first[0].weight.shape[1] in (4, 4 + len(trained.encoding.names))  # fmt: skip


def test_a_saved_model_has_its_covariates(screen, tmp_path):
    trained, _ = trained_on(screen, {"kind": "sams_vae", **SMALL}, ["batch", "depth"])
    save_model(trained, "{}", tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert len(again.covariates) == 4
    np.testing.assert_array_equal(
        again.covariates.encode(screen.obs), trained.covariates.encode(screen.obs)
    )
    names = perturbations(screen)[:3]
    effects = [predicted_effects(one, names, 10, seed=0)[0] for one in (trained, again)]
    np.testing.assert_array_equal(*effects)


def test_streamed_bounds_are_those_of_the_cells(screen, tmp_path):
    trained, _ = trained_on(screen, {"kind": "sams_vae", **SMALL}, ["context", "depth", "batch"])
    parts = np.random.default_rng(0).choice([TRAIN, VAL, TEST], screen.n_obs)
    paths = tmp_path / "screen.h5ad", tmp_path / "split.tsv"
    write_source_screen(screen, "{}", paths[0])
    write_tsv(split_table(screen, parts), paths[1])
    own = trained.encoding, CPU, trained.covariates
    bounds = StreamedBounds(trained.model, CellStream.of(*paths, [TEST], *own), 20, seed=3)
    table = pd.concat(bounds.tables(), ignore_index=True)
    cells = Cells.of(screen, parts == TEST, *own)
    expected, _ = iwelbo(trained.model, cells, 20, seed=3)
    np.testing.assert_allclose(table["iwelbo"], expected, rtol=1e-5)
    shuffled = dataclasses.replace(cells, covariates=(cells.covariates[0].flip(0),))
    assert np.abs(iwelbo(trained.model, shuffled, 20, seed=3)[0] - expected).max() > 0.01


@pytest.mark.parametrize("estimator", ["integrated", "sampled"])
def test_effects_are_averaged_over_strata(screen, estimator):
    trained, _ = trained_on(screen, {"kind": "cpa_vae", **SMALL}, ["batch"])
    with torch.no_grad():  # batches that matter, and certain effects of all perturbations
        trained.model.likelihood.hidden.first[0].weight.mul_(8)
        trained.model.embedding.location.normal_()
        trained.model.embedding.log_scale.fill_(-20)
    names = perturbations(screen)[:2]
    draws = 4000 if estimator == "integrated" else 60_000

    def effects(weights):
        return predicted_effects(trained, names, draws, 0, estimator, np.array(weights))

    of_strata = [effects([row, row])[0] for row in np.eye(3)]
    weights = np.array([[0.2, 0.3, 0.5], [0.0, 0.9, 0.1]])
    found, error = effects(weights)
    expected = np.einsum("ts,stg->tg", weights, of_strata)
    assert (np.abs(found - expected) < 6 * error + 1e-3).all()
    assert np.abs(of_strata[0] - of_strata[1]).max() > 0.05
    by_default, error = predicted_effects(trained, names, draws, 0, estimator)
    expected = np.einsum("s,stg->tg", trained.covariates.frequency, of_strata)
    assert (np.abs(by_default - expected) < 6 * error + 1e-3).all()


def test_strata_weigh_what_their_cells_weigh(screen):
    trained, _ = trained_on(screen, {"kind": "sams_vae", **SMALL}, ["batch"])
    names = perturbations(screen)
    cells = np.random.default_rng(0).random(screen.n_obs) < 0.5
    weights = weights_of_strata(trained, screen, names, cells, min_controls=1)
    obs = screen.obs[cells]
    number = pd.crosstab(obs["perturbation"], obs["batch"])
    for name, row in zip(names, weights, strict=True):
        np.testing.assert_allclose(row, number.loc[name] / number.loc[name].sum())
    # a batch with too few control cells is not compared
    controls = number.loc[CONTROL]
    weights = weights_of_strata(trained, screen, names, cells, int(controls.min()) + 1)
    kept = (controls > controls.min()).to_numpy()
    assert (weights[:, ~kept] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    # without cells, those of the training cells
    weights = weights_of_strata(trained, screen, ["nobody"], cells, 1)
    np.testing.assert_allclose(weights[0], trained.covariates.frequency)
    # nor for cells of unknown batches
    unknown = screen.copy()
    del unknown.obs["batch"]
    weights = weights_of_strata(trained, unknown, names, cells, 1)
    np.testing.assert_allclose(weights, np.tile(trained.covariates.frequency, (len(names), 1)))


@pytest.mark.slow
def test_seeds_trained_together_see_the_covariates(screen):
    trained, cells = trained_on(screen, {"kind": "sams_vae", **SMALL})
    sizes = screen.n_vars, len(trained.encoding.names), len(trained.covariates)
    how = Training(max_steps=20, batch_size=32, particles=2, validate_every=10)

    def build():
        return build_model(trained.settings, *sizes)

    together = fit(build, cells, cells, how, [0, 1])
    for seed, other in enumerate(together):
        [alone] = fit(build, cells, cells, how, [seed])
        pd.testing.assert_frame_equal(alone.history, other.history, rtol=1e-4)


@pytest.mark.slow
def test_basal_states_are_free_of_batches_where_the_model_knows_them():
    """Known batches leave the basal state; unknown ones are in it."""
    settings = dataclasses.replace(
        TINY, n_batches=2, batch_effect=0.6, cells_per_perturbation=60, n_controls=300
    )
    screen = simulate(settings)[0]
    accuracy = {}
    for columns in (None, []):
        model = {"kind": "sams_vae", "n_latent": 6, "n_hidden": 32, "embedding": "mean_field"}
        trained, cells = trained_on(screen, model, columns)
        sizes = screen.n_vars, len(trained.encoding.names), len(trained.covariates)
        how = Training(max_steps=800, batch_size=128, particles=2)

        def build(settings=trained.settings, sizes=sizes):
            return build_model(settings, *sizes)

        [fitted] = fit(build, cells, cells, how, [0])
        trained = dataclasses.replace(trained, model=fitted.model)
        every = np.ones(screen.n_obs, dtype=bool)
        basal = cell_states(trained, screen, every, seed=0).basal
        scores = cross_val_score(LogisticRegression(), basal, screen.obs["batch"], cv=5)
        accuracy[columns is None] = scores.mean()
    chance = screen.obs["batch"].value_counts(normalize=True).max()
    print(accuracy, chance)
    assert accuracy[True] < chance + 0.03
    assert accuracy[False] > 0.9


def dispersed(screen, kind="sams_vae"):
    """An untrained model whose concentrations differ between batches, and its cells."""
    settings = {"kind": kind, "dispersion": "gene-batch", **SMALL}
    trained, cells = trained_on(screen, settings, ["batch"])
    with torch.no_grad():
        trained.model.likelihood.by_covariate.normal_()
    return trained, cells


@pytest.mark.parametrize("kind", list(MODELS))
def test_dispersion_may_depend_on_the_batch(screen, kind):
    """The log-probability of counts, by scipy's negative binomial of each cell's batch."""
    trained, cells = dispersed(screen, kind)
    likelihood = trained.model.likelihood
    batch = cells.batch(torch.arange(0, screen.n_obs, 9))
    inputs = torch.randn(len(batch.counts), likelihood.hidden.first[-1].weight.shape[1])
    law = likelihood(inputs, batch.library_size, *batch.covariates)
    found = law.log_prob(batch.counts).detach()
    log_c = likelihood.log_concentration + likelihood.by_covariate[batch.covariates[0].argmax(1)]
    c, mean = log_c.exp().detach().numpy(), law.mean.detach().numpy()
    expected = stats.nbinom.logpmf(batch.counts.numpy(), c, c / (c + mean)).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    bound = elbo(trained.model, batch, 2)
    bound.loss.backward()
    assert likelihood.by_covariate.grad.abs().sum() > 0
    drawn = law.expand((400, len(batch.counts))).sample()
    np.testing.assert_allclose(drawn.mean((0, 1)), mean.mean(0), rtol=0.5, atol=0.5)


def test_without_covariates_or_by_gene_the_dispersion_is_that_of_genes(screen):
    trained, _ = trained_on(screen, {"kind": "cpa_vae", "dispersion": "gene-batch", **SMALL}, [])
    assert trained.model.likelihood.by_covariate is None
    trained, _ = trained_on(screen, {"kind": "cpa_vae", "dispersion": "gene", **SMALL})
    assert trained.model.likelihood.by_covariate is None
    for likelihood in ("normal", "poisson"):
        settings = {"kind": "cpa_vae", "dispersion": "gene-batch", "likelihood": likelihood}
        with pytest.raises(TypeError):
            trained_on(screen, {**settings, **SMALL})


def test_at_first_the_dispersion_is_the_same_in_all_batches(screen):
    """So that the bound is that of the fused kernels."""
    bounds = []
    for dispersion in ("gene", "gene-batch"):
        pyro.set_rng_seed(0)
        trained, cells = trained_on(screen, {"kind": "sams_vae", "dispersion": dispersion, **SMALL})
        pyro.set_rng_seed(1)
        bounds.append(float(elbo(trained.model, cells.batch(torch.arange(50)), 2).loss.detach()))
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-5)


def test_effects_are_integrated_at_the_dispersion_of_each_batch(screen, tmp_path):
    trained, _ = dispersed(screen, "cpa_vae")
    save_model(trained, "{}", tmp_path / "model.safetensors")
    trained = load_model(tmp_path / "model.safetensors")
    with torch.no_grad():
        trained.model.embedding.location.normal_()
        trained.model.embedding.log_scale.fill_(-20)
    names = perturbations(screen)[:2]
    for row in np.eye(3)[:2]:
        weights = np.array([row, row])
        found, error = predicted_effects(trained, names, 3000, 0, "integrated", weights)
        sampled, other = predicted_effects(trained, names, 60_000, 0, "sampled", weights)
        assert (np.abs(found - sampled) < 6 * np.hypot(error, other)).all()


@pytest.mark.slow
def test_replicates_learn_the_dispersion_together(screen):
    trained, cells = trained_on(screen, {"kind": "sams_vae", "dispersion": "gene-batch", **SMALL})
    sizes = screen.n_vars, len(trained.encoding.names), len(trained.covariates)
    how = Training(max_steps=20, batch_size=32, particles=2, validate_every=10)

    def build():
        return build_model(trained.settings, *sizes)

    for seed, other in enumerate(fit(build, cells, cells, how, [0, 1])):
        [alone] = fit(build, cells, cells, how, [seed])
        pd.testing.assert_frame_equal(alone.history, other.history, rtol=1e-4)
        assert other.model.likelihood.by_covariate.abs().max() > 0
