"""Intervals of predicted effects cover what they should, whatever the order and the blocks."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy import stats

from samsvae.evaluation import intervals as intervals_module
from samsvae.evaluation.effects import effects_table
from samsvae.evaluation.expression import log_cp10k
from samsvae.evaluation.intervals import (
    FEWEST,
    Calibration,
    EffectDraws,
    intervals_of,
    probability_transform,
    summarise_draws,
)
from samsvae.evaluation.observed_by_use import (
    PRIOR_DEGREES,
    cells_by_use,
    moderated,
    observed_by_use,
)
from samsvae.evaluation.predicted import design_of, expected_expression, predicted_effects
from samsvae.evaluation.scores import (
    LEVELS,
    SIGNIFICANT,
    TESTED,
    coverage_table,
    covered,
    with_mean_coverage,
)
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import NO_COVARIATES, Covariates, Encoding, sizes_of
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import draw_effects
from samsvae.models import MODELS, build_model
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import perturbations
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TEST, TRAIN, UNUSED, VAL

NAMES = ["TARGET01", "TARGET03", "TARGET01+TARGET02", "TARGET02"]
ONE_SIZE = [10_000.0]


def model_of(screen, seed=0, covariates=None):
    """A model as after training, some masks decided and others not; each seed with its weights."""
    settings = {"kind": "sams_vae", "combinations": "additive", "n_latent": 4, "n_hidden": 16}
    genes = list(screen.var_names)
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    known = Covariates.of(screen.obs, covariates)
    with seeded(seed, torch.device("cpu")), torch.no_grad():
        model = build_model(settings, len(genes), *sizes_of(encoding, known))
        model.mask.logits.normal_(0, 3)
        model.embedding.network.head.bias.normal_(0, 1)
        model.embedding.network.head.bias[model.n_latent :] = -1.5
        model.likelihood.head.weight.normal_(0, 0.3)
    return TrainedModel(model.eval(), settings, genes, encoding, known)


def draws_of(trained, number=30, seed=0, names=NAMES, sizes=ONE_SIZE, **options):
    weights = options.pop("weights", None)
    if weights is None:
        weights = np.tile(trained.covariates.frequency, (len(names), 1))
    return EffectDraws(trained, number, seed, weights, sizes, **options)


@pytest.fixture(scope="module")
def trained(tiny_screen):
    return model_of(tiny_screen)


def unobserved(trained, names=NAMES):
    shape = len(names), len(trained.genes)
    return np.full(shape, np.nan), np.full(shape, np.nan)


def test_a_posterior_that_is_right_is_covered_at_every_level():
    """Normal truths about their means, with known noise: the transform is uniform."""
    rng = np.random.default_rng(0)
    shape = 40, 250
    mean, spread = rng.normal(size=shape), rng.uniform(0.2, 1.5, shape)
    noise = rng.uniform(0.1, 2, shape)
    observed = mean + spread * rng.normal(size=shape) + noise * rng.normal(size=shape)
    draws = mean + spread * rng.normal(size=(400, *shape))
    pit = probability_transform(draws, observed, noise)
    exact = stats.norm.cdf((observed - mean) / np.hypot(spread, noise))
    assert np.abs(pit - exact).max() < 0.1
    for level in LEVELS:
        error = np.sqrt(level * (1 - level) / pit.size)
        assert abs(covered(pit, level).mean() - level) < 4 * error
    narrow = probability_transform(mean + (draws - mean) / 4, observed, noise)
    assert covered(narrow, 0.9).mean() < 0.85


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_scale_factor_is_that_of_a_known_dispersion(factor):
    rng = np.random.default_rng(1)
    shape = 60, 200
    mean, variance = rng.normal(size=shape), rng.uniform(0.5, 2, shape)
    noise = np.full(shape, 0.2)
    truth = mean + factor * np.sqrt(variance) * rng.normal(size=shape)
    observed = truth + noise * rng.normal(size=shape)
    nothing = np.zeros(shape[1])
    found = Calibration.of(mean, variance, nothing, observed, noise)
    deviation = found.standard_deviation(variance, nothing)
    assert np.median(deviation / np.sqrt(variance)) == pytest.approx(factor, rel=0.06)
    inside = stats.norm.cdf((observed - mean) / np.hypot(noise, deviation))
    assert covered(inside, 0.9).mean() == pytest.approx(0.9, abs=0.012)


def test_a_sure_posterior_is_calibrated_by_the_residual_variance():
    """Of closed masks, whose posterior variance is zero: no factor of it would widen anything."""
    rng = np.random.default_rng(2)
    shape = 60, 200
    mean, variance = np.zeros(shape), np.zeros(shape)
    cell_variance = rng.uniform(0.5, 4, shape[1])
    noise = np.full(shape, 0.3)
    truth = np.sqrt(0.05 * cell_variance) * rng.normal(size=shape)
    observed = truth + noise * rng.normal(size=shape)
    found = Calibration.of(mean, variance, cell_variance, observed, noise)
    assert found.residual == pytest.approx(0.05, rel=0.06)
    assert found.scale_factor == pytest.approx(1, abs=0.03)
    deviation = found.standard_deviation(variance, cell_variance)
    for level in LEVELS:
        inside = np.abs(truth) <= stats.norm.ppf((1 + level) / 2) * deviation
        assert inside.mean() == pytest.approx(level, abs=0.02)


def test_where_noise_dominates_the_posterior_stays_as_it_is():
    rng = np.random.default_rng(3)
    shape = 30, 100
    noise, nothing = np.ones(shape), np.ones(shape[1])
    observed = rng.normal(size=shape)
    mean, variance = np.zeros(shape), np.full(shape, 1e-4)
    assert Calibration.of(mean, variance, nothing, observed, noise).scale_factor == 1
    # errors that are claimed to be larger than they are
    assert Calibration.of(mean, variance, nothing, observed, 2 * noise).scale_factor == 1


def test_too_few_effects_calibrate_nothing():
    shape = 2, 40
    observed = np.full(shape, np.nan)
    observed[0, : FEWEST - 1] = 0.1
    ones = np.ones(shape)
    found = Calibration.of(0 * ones, ones, ones[0], observed, ones)
    assert np.isnan(found.scale_factor)
    assert np.isnan(found.standard_deviation(ones, ones[0])).all()
    observed[0, FEWEST] = 0.1
    assert Calibration.of(0 * ones, ones, ones[0], observed, ones).scale_factor > 0


@torch.no_grad()
def test_draws_are_those_of_the_guide_averaged_over_common_basal_states(trained):
    """Against the model's own decoder, state by state."""
    model, number = trained.model, 6
    source = draws_of(trained, number, seed=5, basal_draws=8)
    found = source.of(NAMES, slice(None))
    [cells] = source.cells
    states = cells.basal.variables["basal"][:, 0]
    assert states.shape == (8, model.n_latent)
    with seeded(5, torch.device("cpu")), pyro.validation_enabled(False):
        effects = draw_effects(model, number)
    design = design_of(trained, NAMES, None)[1:]
    expression = expected_expression(model.likelihood)
    for draw in range(number):
        for row in range(len(NAMES)):
            shifted = expression(states + design[row] @ effects[draw]) - expression(states)
            expected = shifted.mean(0).numpy()
            np.testing.assert_allclose(found[draw, row], expected, atol=2e-5)


def test_their_mean_is_the_predicted_effect(trained):
    source = draws_of(trained, 300, basal_draws=300)
    effects, error = predicted_effects(trained, NAMES, 3000, seed=1)
    draws = source.of(NAMES, slice(None))
    # the mean varies by global draws and, apart from these, by basal states
    spread = np.sqrt(draws.var(axis=0) / 300 + 3000 * error**2 / 300)
    assert (np.abs(draws.mean(0) - effects) < 4.5 * np.hypot(spread, error) + 1e-4).all()


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "sams_vae"])
def test_every_family_has_draws(tiny_screen, kind):
    combinations = "unique" if kind == "svae_plus" else "additive"
    settings = {"kind": kind, "combinations": combinations, "n_latent": 3, "n_hidden": 8}
    encoding = Encoding.of(Design.of_screen(tiny_screen), combinations)
    genes = list(tiny_screen.var_names)
    model = build_model(settings, len(genes), *sizes_of(encoding, NO_COVARIATES))
    own = TrainedModel(model.eval(), settings, genes, encoding)
    names = perturbations(tiny_screen)[:3]
    draws = draws_of(own, 100, names=names, basal_draws=200).of(names, slice(None))
    effects, error = predicted_effects(own, names, 1000, 1)
    spread = np.sqrt(draws.var(axis=0) / 100 + 1000 * error**2 / 200)
    assert (np.abs(draws.mean(0) - effects) < 5 * np.hypot(spread, error) + 1e-4).all()
    has_globals = draw_effects(model, 2) is not None
    assert (draws.std(axis=0).max() > 1e-5) == has_globals


def test_strata_and_library_sizes_are_those_of_predicted_effects(tiny_screen):
    screen = tiny_screen.copy()
    screen.obs["batch"] = np.where(np.arange(screen.n_obs) % 3 == 0, "a", "b")
    trained = model_of(screen, covariates=["batch"])
    sizes = [400.0, 2000.0]
    by_strata = {}
    for weights in ([1.0, 0.0], [0.0, 1.0], [0.3, 0.7]):
        rows = np.tile(weights, (len(NAMES), 1))
        source = draws_of(trained, 150, sizes=sizes, weights=rows, basal_draws=400)
        draws = by_strata[tuple(weights)] = source.of(NAMES, slice(None))
        effects, error = predicted_effects(
            trained, NAMES, 2000, 1, strata_weights=rows, library_sizes=sizes
        )
        spread = np.sqrt(draws.var(axis=0) / 150 + 2000 * error**2 / 150)
        assert (np.abs(draws.mean(0) - effects) < 4.5 * np.hypot(spread, error) + 1e-3).all()
    first, second, both = by_strata.values()
    assert np.abs(first - second).mean() > 1e-3
    mixed = (0.3 * first + 0.7 * second).mean(0)
    assert np.abs(both.mean(0) - mixed).mean() < 0.05 * np.abs(mixed).mean()


def test_on_target_effects_are_drawn_too(tiny_screen):
    names = list(tiny_screen.var_names)
    names[:2] = ["TARGET01", "TARGET02"]
    screen = tiny_screen.copy()
    screen.var_names = names
    genes = list(screen.var_names)
    settings = {"kind": "sams_vae", "combinations": "additive", "n_latent": 4, "n_hidden": 16}
    settings |= {"on_target": True, "on_target_prior_scale": 2.0}
    encoding = Encoding.of(Design.of_screen(screen), "additive", genes)
    model = build_model(settings, len(genes), *sizes_of(encoding, NO_COVARIATES))
    with torch.no_grad():
        model.mask.logits.fill_(-1e4)
        model.on_target.location.fill_(1.0)
    own = TrainedModel(model.eval(), settings, genes, encoding)
    draws = draws_of(own, 40).of(NAMES, slice(None))
    spread = draws.std(0)
    assert spread[0, 0] > 0.02  # TARGET01 on itself
    assert spread[2, 0] > 0.02
    assert spread[2, 1] > 0.02
    assert draws[:, 0, 0].mean() > 0.5
    assert spread[1].max() < 1e-6  # TARGET03 is not measured
    effects, _ = predicted_effects(own, NAMES, 2000, 1)
    np.testing.assert_allclose(draws.mean(0), effects, atol=0.1)


def test_intervals_depend_neither_on_order_nor_on_blocks(trained, tiny_screen, monkeypatch):
    models = [draws_of(model_of(tiny_screen, seed), 12, seed) for seed in (0, 1)]
    rng = np.random.default_rng(0)
    shape = len(NAMES), len(trained.genes)
    observed = rng.normal(size=shape), rng.uniform(0.5, 1, shape)
    whole = dataclasses.astuple(summarise_draws(models, NAMES, *observed))
    backwards = [draws_of(m.trained, 12, m.seed, NAMES[::-1]) for m in models[::-1]]
    turned = summarise_draws(backwards, NAMES[::-1], *(each[::-1] for each in observed))
    monkeypatch.setattr(intervals_module, "LARGEST_BLOCK", 1)
    monkeypatch.setattr(intervals_module, "LARGEST_TENSOR", 1)
    apart = dataclasses.astuple(summarise_draws(models, NAMES, *observed))
    for one, other, reverse in zip(whole, apart, dataclasses.astuple(turned), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(one, reverse[::-1], atol=1e-5)


def test_intervals_contain_the_mean_and_widen_with_seeds(trained, tiny_screen):
    one = [draws_of(trained, 40)]
    several = [*one, *(draws_of(model_of(tiny_screen, seed), 40, seed) for seed in (1, 2))]
    single, pooled = (summarise_draws(each, NAMES, *unobserved(trained)) for each in (one, several))
    for posterior in (single, pooled):
        assert (posterior.lower <= posterior.mean).all()
        assert (posterior.upper >= posterior.mean).all()
        assert np.isnan(posterior.pit).all()
    assert (pooled.upper - pooled.lower).mean() > 1.5 * (single.upper - single.lower).mean()
    assert pooled.variance.mean() > 1.5 * single.variance.mean()


def test_surely_closed_masks_have_no_spread(trained):
    closed = dataclasses.replace(trained, model=copy.deepcopy(trained.model))
    closed.model.mask.logits.data[:] = -1e4
    posterior = summarise_draws([draws_of(closed)], NAMES, *unobserved(trained))
    assert np.abs(posterior.mean).max() < 1e-6
    assert posterior.variance.max() < 1e-12


def test_moderated_errors_lie_between_a_perturbations_own_and_the_pooled_variance():
    n_cells, n_controls = np.array([10.0, 30.0, 5.0]), 100
    per_cell = 1 / n_cells + 1 / n_controls
    variance = np.array([[1.0, 0.0], [3.0, 2.0], [np.nan, np.nan]])
    error, pooled = moderated(np.sqrt(variance * per_cell[:, None]), n_cells, n_controls)
    np.testing.assert_allclose(pooled, [(9 * 1 + 29 * 3) / 38, 29 * 2 / 38])
    expected = (9 * 1 + PRIOR_DEGREES * pooled[0]) / (9 + PRIOR_DEGREES)
    assert error[0, 0] ** 2 / per_cell[0] == pytest.approx(expected)
    assert error[0, 1] > 0
    assert np.isnan(error[2]).all()


def test_moderated_errors_of_normal_cells_are_right():
    """Of 12 cells: plain errors are exceeded too often, moderated ones as often as they should."""
    rng = np.random.default_rng(4)
    n, genes, groups = 12, 300, 40
    scale = rng.uniform(0.5, 2, genes)
    cells = scale * rng.normal(size=(groups, n, genes))
    controls = scale * rng.normal(size=(5000, genes))
    effect = cells.mean(1) - controls.mean(0)
    plain = np.sqrt(cells.var(1, ddof=1) / n + controls.var(0, ddof=1) / 5000)
    error, _ = moderated(plain, np.full(groups, float(n)), 5000)
    inside = [np.mean(np.abs(effect / each) <= stats.norm.ppf(0.95)) for each in (plain, error)]
    assert inside[0] < 0.88
    assert inside[1] == pytest.approx(0.9, abs=0.01)


def test_no_cell_calibrates_and_tests():
    labels = pd.Series([CONTROL] * 8 + ["A"] * 4)
    parts = pd.Series([VAL, VAL, TEST, TRAIN] * 3)
    calibration, test = cells_by_use(labels, parts)
    assert list(np.flatnonzero(test)) == [2, 6, 10]
    assert list(np.flatnonzero(calibration)) == [0, 1, 4, 5, 8, 9]
    parts = pd.Series([VAL, VAL, VAL, TRAIN] * 2 + [TEST, UNUSED, VAL, TRAIN])
    calibration, test = cells_by_use(labels, parts)
    assert not (calibration & test).any()
    assert list(np.flatnonzero(calibration | test)) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert test[:8].sum() == 3
    assert list(np.flatnonzero(test[8:])) == [0, 1]


@pytest.fixture(scope="module")
def observed(tiny_screen):
    parts = pd.Series(
        np.random.default_rng(0).choice([TRAIN, VAL, TEST], tiny_screen.n_obs, p=[0.4, 0.3, 0.3]),
        index=tiny_screen.obs_names,
    )
    return parts, observed_by_use(tiny_screen, parts, None, 10, 0.05, "{}")


def test_effects_are_those_of_the_cells_of_each_use(tiny_screen, observed):
    parts, table = observed
    expression = log_cp10k(tiny_screen.X, tiny_screen.obs["library_size"]).toarray()
    labels = tiny_screen.obs["perturbation"]
    assert list(table.obs_names) == perturbations(tiny_screen)
    for part, layer in ((TEST, table.X), (VAL, table.layers["calibration"])):
        for row, name in enumerate(table.obs_names):
            own, control = (
                expression[((parts == part) & (labels == label)).to_numpy()].mean(0)
                for label in (name, CONTROL)
            )
            known = np.isfinite(layer[row])
            assert known.any()
            np.testing.assert_allclose(layer[row][known], (own - control)[known], atol=1e-4)
    assert np.array_equal(np.isfinite(table.X), np.isfinite(table.layers["standard_error"]))
    assert 0 < table.layers["significant"].sum() < table.X.size / 2
    assert (table.var["cell_variance"] > 0).all()


def test_test_cells_have_no_part_in_the_calibrated_intervals(tiny_screen, observed, trained):
    """Other effects of test cells: other coverage, the same intervals."""
    _, table = observed
    names = list(table.obs_names)
    source = [draws_of(trained, 20, names=names)]
    intervals, coverage = intervals_of(source, table, "{}")
    changed = table.copy()
    changed.X = changed.X + 3
    again, other = intervals_of(source, changed, "{}")
    for name in intervals.layers:
        np.testing.assert_array_equal(intervals.layers[name], again.layers[name])
    assert not np.allclose(coverage["coverage"], other["coverage"])
    assert set(coverage["genes"]) == {TESTED, SIGNIFICANT}
    assert intervals.uns["level"] == 0.9
    width = stats.norm.ppf(0.95) * intervals.layers["calibrated_standard_deviation"]
    np.testing.assert_allclose(
        intervals.layers["calibrated_upper_90"], intervals.X + width, rtol=1e-4, atol=1e-5
    )
    at = coverage[(coverage["genes"] == TESTED) & (coverage["level"] == 0.9)].iloc[0]
    known = np.isfinite(table.X)
    total = np.hypot(table.layers["standard_error"], width / stats.norm.ppf(0.95))[known]
    inside = np.abs(table.X - intervals.X)[known] <= stats.norm.ppf(0.95) * total
    assert at["calibrated_coverage"] == pytest.approx(inside.mean(), abs=2 / known.sum())
    assert at["n"] == known.sum()


def test_without_validation_cells_intervals_are_not_calibrated(observed, trained):
    _, table = observed
    table = table.copy()
    table.layers["calibration"][:] = np.nan
    source = [draws_of(trained, 20, names=list(table.obs_names))]
    intervals, coverage = intervals_of(source, table, "{}")
    assert np.isnan(intervals.layers["calibrated_lower_90"]).all()
    assert coverage["calibrated_coverage"].isna().all()
    assert coverage["coverage"].between(0, 1).all()


def test_coverage_is_the_fraction_of_transforms_inside_each_level():
    pit = np.array([[0.5, 0.96, 0.04], [np.nan, 0.2, 0.999]])
    significant = np.array([[False, True, False], [True, False, True]])
    same = dict.fromkeys(("coverage", "calibrated_coverage", "noise_coverage"), pit)
    table = coverage_table(same, significant, 1.5).set_index(["genes", "level"])
    assert table.loc[(TESTED, 0.9)].tolist() == [5, 2 / 5, 2 / 5, 2 / 5, 1.5]
    assert table.loc[(SIGNIFICANT, 0.99), "coverage"] == 1 / 2
    assert table.loc[(SIGNIFICANT, 0.95), "n"] == 2
    assert set(coverage_table(same, significant & False, 1.0)["genes"]) == {TESTED}
    rows = [table.reset_index().assign(model="m", split=split) for split in ("a", "b")]
    rows[1]["coverage"] += 0.2
    mean = with_mean_coverage(pd.concat(rows)).iloc[0]
    assert mean["mean_coverage"] == pytest.approx(rows[0]["coverage"].iloc[0] + 0.1)
    assert mean["n_effects"] == 10


def test_bad_input_is_told(trained, observed):
    with pytest.raises(InputError, match=r"evaluation\.interval_draws"):
        summarise_draws([draws_of(trained, 1)], NAMES, *unobserved(trained))
    other = dataclasses.replace(trained, genes=["x", *trained.genes[1:]])
    with pytest.raises(InputError, match="different genes"):
        summarise_draws([draws_of(trained), draws_of(other)], NAMES, *unobserved(trained))
    genes = [f"other {gene}" for gene in trained.genes]
    table = effects_table(*[np.zeros((2, len(genes)))], NAMES[:2], genes, {}, "{}")
    for name in ("standard_error", "calibration", "calibration_standard_error"):
        table.layers[name] = table.X
    with pytest.raises(InputError, match="different genes"):
        intervals_of([draws_of(trained)], table, "{}")
