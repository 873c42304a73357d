"""Marginal effects of single perturbations in cells with several."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import sparse, stats

from assess_screen import assess_perturbations
from samsvae.biology.many_guides import (
    MOST_FAKE,
    cells_of_guides,
    marginal_effects_by_context,
    marginal_null,
    marginal_screen_effects,
)
from samsvae.config.experiments import Split
from samsvae.evaluation.baselines import BASELINES
from samsvae.evaluation.effects import group_means
from samsvae.evaluation.energy import energy_tests
from samsvae.evaluation.expression import expression_in_blocks, log_expression
from samsvae.evaluation.marginal import Regression, fit, marginal_energy_tests
from samsvae.evaluation.observed import observed_effects, split_half
from samsvae.evaluation.samples import compared_cells
from samsvae.evaluation.truth import true_effects
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import content_digest, perturbations
from samsvae.screen.splits import split_screen
from samsvae.sources.simulated import Simulation, simulate


def cells(seed, n_cells=300, n_genes=8, n_perturbations=5, n_batches=2, how="controls", chance=0.4):
    """Random cells with several perturbations, deeper cells with more, and their expression."""
    rng = np.random.default_rng(seed)
    depth = rng.normal(size=n_cells)
    present = rng.random((n_cells, n_perturbations)) < chance + 0.1 * np.sign(depth)[:, None]
    batch = rng.integers(n_batches, size=n_cells)
    nuisance = np.column_stack(
        [np.ones(n_cells), depth, *(batch == number for number in range(1, n_batches))]
    )
    mean = np.exp(0.3 * depth[:, None] + rng.normal(0.5, 0.5, n_genes) + 0.3 * batch[:, None])
    expression = np.log2(1 + rng.poisson(mean))
    names = [f"T{number}" for number in range(n_perturbations)]
    regression = Regression(
        names, sparse.csr_matrix(present, dtype=float), nuisance, batch * 2 + (depth > 0), how
    )
    return sparse.csr_matrix(expression), regression


@pytest.mark.parametrize("how", ["controls", "complement"])
def test_effects_and_errors_are_those_of_statsmodels(how):
    expression, regression = cells(0, how=how)
    found = fit(expression, regression)
    present = regression.present.toarray()
    for at in range(len(regression.names)):
        own = present if how == "controls" else present[:, [at]]
        column = at if how == "controls" else 0
        regressors = np.column_stack([own, regression.nuisance])
        for gene, values in enumerate(expression.toarray().T):
            theirs = sm.OLS(values, regressors).fit(cov_type="HC2")
            assert found.effect[at, gene] == pytest.approx(theirs.params[column], rel=1e-8)
            assert found.standard_error[at, gene] == pytest.approx(theirs.bse[column], rel=1e-8)


def test_cells_in_blocks_are_as_at_once(monkeypatch):
    expression, regression = cells(1)
    whole = fit(expression, regression)
    monkeypatch.setattr("samsvae.evaluation.marginal.LARGEST_BLOCK", 7 * expression.shape[1])
    for ours, theirs in zip(
        vars(whole).values(), vars(fit(expression, regression)).values(), strict=False
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_doses_are_regressors():
    expression, regression = cells(2)
    doubled = Regression(**{**vars(regression), "present": 2 * regression.present})
    ours, theirs = fit(expression, regression), fit(expression, doubled)
    np.testing.assert_allclose(ours.effect, 2 * theirs.effect, rtol=1e-9)
    np.testing.assert_allclose(ours.pvalue, theirs.pvalue, rtol=1e-7)


@pytest.mark.parametrize("how", ["controls", "complement"])
@pytest.mark.parametrize("chance", [0.4, 0.12])
def test_pvalues_of_no_effect_are_uniform(how, chance):
    """Depth raises expression and the number of guides alike, and most genes are rare."""
    pvalues, plain = [], []
    for seed in range(200):
        expression, regression = cells(seed, n_genes=3, how=how, chance=chance)
        pvalues.append(fit(expression, regression).pvalue[0, 0])
        has = regression.present[:, [0]].toarray().ravel() > 0
        values = expression[:, [0]].toarray().ravel()
        plain.append(stats.mannwhitneyu(values[has], values[~has]).pvalue)
    assert stats.kstest(pvalues, "uniform").pvalue > 0.01
    if chance < 0.4:
        assert stats.kstest(plain, "uniform").pvalue < 1e-4


def test_the_test_of_rare_genes_holds_where_robust_errors_do_not():
    false, of_errors, n_tests = 0, 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        present = sparse.csr_matrix(rng.random((2000, 10)) < 0.02, dtype=float)
        expression = sparse.csr_matrix(np.log2(1 + 5 * rng.poisson(0.15, (2000, 50))))
        regression = Regression(
            [f"T{number}" for number in range(10)], present, np.ones((2000, 1)),
            np.zeros(2000, dtype=int), "controls",
        )  # fmt: skip
        found = fit(expression, regression)
        tested = np.isfinite(found.pvalue)
        robust = 2 * stats.norm.sf(np.abs(found.effect / found.standard_error))
        false += int((found.pvalue[tested] < 0.001).sum())
        of_errors += int((robust[tested] < 0.001).sum())
        n_tests += int(tested.sum())
    assert n_tests > 5000
    assert false / n_tests < 0.002
    assert of_errors > 3 * false


def test_a_perturbation_that_the_others_determine_is_compared_with_the_others():
    """Every cell has one perturbation, and none has none."""
    expression, regression = cells(3, n_perturbations=3, n_batches=1)
    own = np.arange(expression.shape[0]) % 3
    present = sparse.csr_matrix(np.eye(3)[own])
    one_each = Regression(**{**vars(regression), "present": present})
    found = fit(expression, one_each)
    complement = Regression(**{**vars(one_each), "compared_with": "complement"})
    np.testing.assert_allclose(found.effect, fit(expression, complement).effect, rtol=1e-8)
    np.testing.assert_allclose(
        found.standard_error, fit(expression, complement).standard_error, rtol=1e-6
    )


def test_perturbations_of_few_cells_have_no_effect():
    expression, regression = cells(4)
    present = regression.present.tolil()
    present[:, 0] = 0
    present[0, 0] = 1
    present[:, 1] = 0
    few = Regression(**{**vars(regression), "present": present.tocsr()})
    found = fit(expression, few)
    assert np.isnan(found.effect[1]).all()
    assert np.isnan(found.standard_error[:2]).all()
    assert np.isnan(found.pvalue[:2]).all()
    assert np.isfinite(found.effect[2:]).all()
    assert np.isfinite(found.standard_error[2:]).all()


HIGH_MOI = Simulation(
    n_perturbations=30, n_pairs=0, n_controls=200, cells_per_perturbation=240, guides_per_cell=6,
    n_batches=2, guides_per_target=3, dead_guides=0.2, knock_down=1.5, effect_size=3.0,
    unit="perturbation",
)  # fmt: skip


@pytest.fixture(scope="module")
def high_moi():
    """Cells with six perturbations each; parts of a split."""
    screen, _ = simulate(HIGH_MOI)
    parts = pd.Series(split_screen(screen, Split("random", None, 0)), index=screen.obs_names)
    return screen, parts


def correlation(first, second):
    return np.corrcoef(np.asarray(first).ravel(), np.asarray(second).ravel())[0, 1]


def test_marginal_effects_of_many_guides_are_nearly_as_good_as_those_of_one_each():
    """At the same number of cells of a target, and better at the same number of cells."""
    settings = replace(Simulation(), n_perturbations=100, n_pairs=0, cells_per_perturbation=60)
    one, _ = simulate(settings)
    names = perturbations(one)
    true = true_effects(one, names, 0)
    alone = group_means(expression_in_blocks(one), names, one.n_vars).effects()[0]
    reached = {}
    for n_cells in (60, 360):
        several = replace(
            settings, guides_per_cell=6, unit="perturbation", cells_per_perturbation=n_cells
        )
        screen, _ = simulate(several)
        assert perturbations(screen) == names
        found = fit(log_expression(screen), Regression.of(screen)).effect
        reached[n_cells] = correlation(found, true_effects(screen, names, 0))
        # few combinations have cells enough for an effect of their own
        cells = screen.obs["perturbation"].value_counts().drop("control")
        assert (cells < 10).all()
    assert reached[60] > 0.95 * correlation(alone, true)
    assert reached[360] > correlation(alone, true)


def test_observed_effects_of_a_screen_with_several_are_marginal(high_moi):
    screen, parts = high_moi
    observed = observed_effects(screen, parts, "")
    names = perturbations(screen)
    assert list(observed.obs_names) == names == list(screen.uns["perturbations"])
    has = screen.obsm["dosage"].toarray() > 0
    np.testing.assert_array_equal(observed.obs["n_cells"], has.sum(axis=0))
    held_out = (parts == "test").to_numpy()
    np.testing.assert_array_equal(observed.obs["n_held_out"], has[held_out].sum(axis=0))
    np.testing.assert_array_equal(observed.obs["n_train"], has[parts == "train"].sum(axis=0))
    assert observed.obs["n_unused"].eq(0).all()
    logs = log_expression(screen)
    for layer, by_batch, chosen, name in [
        ("ate", False, slice(None), "effect"),
        ("ate_stratified", True, slice(None), "effect"),
        ("standard_error_stratified", True, slice(None), "standard_error"),
        ("ate_held_out", False, held_out, "effect"),
        ("fdr", False, held_out | (screen.obs["perturbation"] == "control").to_numpy(), "fdr"),
    ]:
        cells = Regression.of(screen, by_batch)[chosen]
        np.testing.assert_allclose(
            observed.layers[layer], getattr(fit(logs[chosen], cells), name), rtol=1e-4, atol=1e-6
        )
    assert correlation(observed.layers["ate_stratified"], true_effects(screen, names, 0)) > 0.85
    # how specific effects are is judged by all cells without the perturbation
    others = replace(Regression.of(screen, False)[held_out], compared_with="complement")
    specific = fit(logs[held_out], others)
    np.testing.assert_allclose(
        np.nan_to_num(observed.layers["t_of_others"]),
        np.nan_to_num(specific.effect / specific.standard_error),
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip


def test_batches_of_a_screen_with_several_are_covariates(high_moi):
    """Cells of one batch share no perturbation, but much of their expression."""
    screen, _ = high_moi
    rng = np.random.default_rng(0)
    own = rng.random(screen.n_obs) < np.where(screen.obs["batch"] == "batch1", 0.25, 0.05)
    logs = log_expression(screen)
    false = []
    for by_batch in (False, True):
        cells = Regression.of(screen, by_batch)
        both = sparse.hstack([cells.present, own[:, None]])
        found = fit(logs, cells.with_groups([*cells.names, "batch1"], both))
        false.append(np.nanmean(found.pvalue[-1] < 0.05))
    assert false[0] > 0.15
    assert false[1] < 0.09


def test_baselines_and_ceiling_of_a_screen_with_several_are_marginal(high_moi):
    screen, parts = high_moi
    train = (parts == "train").to_numpy()
    names = perturbations(screen)
    found = fit(log_expression(screen, train), Regression.of(screen, False)[train]).effect
    np.testing.assert_allclose(BASELINES["additive"](screen, train, names), found, atol=1e-9)
    mean = BASELINES["mean_effect"](screen, train, names)
    np.testing.assert_allclose(mean[0], found.mean(axis=0), atol=1e-9)
    ceiling = split_half(screen, parts, 0, "")
    assert list(ceiling.obs_names) == names
    assert 0.3 < correlation(ceiling.X, ceiling.layers["ate_held_out"]) < 1
    bilinear = BASELINES["bilinear"](screen, train, names)
    assert correlation(bilinear, true_effects(screen, names, 0)) > 0.5


def test_quality_of_a_screen_with_several(high_moi):
    screen, _ = high_moi
    settings = {
        "effects": None, "min_controls_per_batch": 10, "depth_bins": 1, "min_cells_null": 15,
        "min_cells_guide": 20, "fdr": 0.05, "perturbation_kind": "knockdown",
    }  # fmt: skip
    effects, tables = assess_perturbations(screen, settings, "")
    assert effects.obs["is_stratified"].all()
    hits = tables["hits"].set_index("perturbation")
    inert = [f"TARGET{number}" for number in (28, 29, 30)]
    assert hits.drop(index=inert)["is_hit"].mean() > 0.9
    assert hits.loc[inert, "n_de"].max() <= 2  # their own gene
    assert (hits.drop(index=inert)["split_half"] > 0.4).mean() > 0.8
    assert hits["depth_ratio"].between(0.85, 1.15).all()
    null = tables["null"]
    assert set(null["fake_target"]) <= {f"NT_g{number + 1}" for number in range(8)}
    assert null["fraction_p05"].mean() == pytest.approx(0.05, abs=0.02)
    changes = tables["knock_down"]
    pooled = changes[changes["guide"] == ""]
    assert set(pooled["perturbation"]) == set(effects.obs_names)
    assert pooled["as_expected"].mean() > 0.9
    guides = tables["guides"]
    alive = pd.Series(screen.uns["guides"]["guide"]).isin(guides["guide"])
    assert alive.sum() == len(guides) == 90
    assert score_of_dead_guides(screen, guides) > 0.9
    batches = tables["batches"]
    assert (batches.groupby("perturbation")["fraction"].sum()).to_numpy() == pytest.approx(1)
    both = batches.groupby("batch")[["n_cells", "n_control_cells"]].sum().sum(axis=1)
    assert both.sum() == 30 * screen.n_obs


def score_of_dead_guides(screen, guides):
    """Area under the ROC curve of the slope, of guides that do not act."""
    present = screen.obsm["guides"].toarray()[:, : len(guides)] > 0
    target = screen.uns["guides"]["target"].iloc[: len(guides)]
    column = [list(screen.uns["perturbations"]).index(name) for name in target]
    response = screen.obsm["true_response"][:, column]
    dead = (present * response).sum(axis=0) == 0
    slope = guides.set_index("guide")["slope"].reindex(screen.uns["guides"]["guide"][: len(guides)])
    known = np.isfinite(slope.to_numpy())
    assert 5 <= dead[known].sum() < known.sum()
    ranks = stats.mannwhitneyu(slope[known & ~dead], slope[known & dead])
    return ranks.statistic / ((known & ~dead).sum() * (known & dead).sum())


def test_the_energy_test_is_that_of_conditions_against_all_other_cells():
    """Of many cells with an effect, a weak one, and none; each in two strata."""
    rng = np.random.default_rng(0)
    present = rng.random((600, 3)) < 0.2
    stratum = rng.integers(2, size=600)
    values = rng.normal(size=(600, 4)) + stratum[:, None]
    values[:, 0] += 2 * present[:, 0] + 0.25 * present[:, 1]
    nuisance = np.column_stack([np.ones(600), stratum])
    cells = Regression(
        list("ABC"), sparse.csr_matrix(present, dtype=float), nuisance, stratum, "complement"
    )
    distance, pvalue = marginal_energy_tests(values, cells, 0.05, 0)
    left = values - nuisance @ np.linalg.lstsq(nuisance, values, rcond=None)[0]
    for at, name in enumerate(cells.names):
        theirs = energy_tests(left, cells.against_others(name, stratum), n_permutations=4999)
        assert distance[at] == pytest.approx(theirs[0][0], rel=1e-9)
        error = 3 * np.sqrt(theirs[1][0] * (1 - theirs[1][0]) / 200)
        assert pvalue[at] == pytest.approx(theirs[1][0], abs=max(error, 0.001))
    assert pvalue[0] == pytest.approx(1 / 1000)
    # the effect of the first perturbation is no distance of the others, nor is theirs subtracted
    together = replace(cells, compared_with="controls")
    assert marginal_energy_tests(values, together, 0.05, 0)[0][0] == pytest.approx(
        distance[0], rel=0.1
    )


@pytest.mark.parametrize("how", ["controls", "complement"])
def test_pvalues_of_the_energy_test_are_uniform_without_effects(how):
    """Of a tenth as many perturbations as cells, which the linear model fits all."""
    rng = np.random.default_rng(1)
    found = []
    for seed in range(20):
        present = sparse.csr_matrix(rng.random((200, 20)) < 0.1, dtype=float)
        cells = Regression(
            list(map(str, range(20))), present, np.ones((200, 1)), np.zeros(200, dtype=int), how
        )
        found.append(marginal_energy_tests(rng.normal(size=(200, 5)), cells, 0.05, seed)[1])
    assert stats.kstest(np.concatenate(found), "uniform").pvalue > 0.01


def test_few_control_cells_make_no_hits():
    """The noise of few control cells is in every coefficient, and in no permutation."""
    rng = np.random.default_rng(5)
    own = rng.integers(4, size=400)
    present = np.eye(4)[own]
    present[:20] = 0
    cells = Regression(
        list("ABCD"), sparse.csr_matrix(present), np.ones((400, 1)), np.zeros(400, dtype=int),
        "controls",
    )  # fmt: skip
    found = [
        marginal_energy_tests(rng.normal(size=(400, 30)), cells, 0.05, seed)[1]
        for seed in range(40)
    ]
    assert np.mean(np.concatenate(found) < 0.05) < 0.1


def test_perturbations_of_the_same_cells_and_of_a_batch_are_compared_with_others():
    rng = np.random.default_rng(6)
    present = rng.random((500, 5)) < 0.2
    present[:, 1] = present[:, 0]
    batch = rng.integers(2, size=500)
    present[:, 2] = batch == 1
    values = rng.normal(size=(500, 6))
    values[:, 0] += 3 * present[:, 0] + 5 * batch
    nuisance = np.column_stack([np.ones(500), batch])
    cells = Regression(
        list("ABCDE"), sparse.csr_matrix(present, dtype=float), nuisance, batch, "controls"
    )
    distance, pvalue = marginal_energy_tests(values, cells, 0.05, 0)
    alone = marginal_energy_tests(values, replace(cells, compared_with="complement"), 0.05, 0)
    np.testing.assert_allclose(distance[:2], alone[0][:2])
    assert pvalue[:2].max() < 0.002
    assert np.isnan(distance[2])
    assert np.isnan(pvalue[2])
    assert np.isfinite(distance[3:]).all()
    found = fit(sparse.csr_matrix(values), cells)
    assert np.isnan(found.effect[2]).all()
    assert np.isfinite(found.effect[[0, 1, 3, 4]]).all()


def test_a_perturbation_of_a_batch_is_compared_without_batches(high_moi):
    screen, parts = high_moi[0].copy(), high_moi[1]
    has = screen.obsm["dosage"].toarray()
    has[:, 0] = screen.obs["batch"] == "batch1"
    screen.obsm["dosage"] = sparse.csr_matrix(has)
    logs = log_expression(screen)
    effects = marginal_screen_effects(screen, logs, True, 0.05, "")
    assert list(effects.obs["is_stratified"]) == [False, *[True] * 29]
    np.testing.assert_array_equal(effects.X[0], effects.layers["ate"][0])
    assert np.isfinite(effects.X).all()
    assert np.isfinite(split_half(screen, parts, 0, "").layers["ate"]).all()


@pytest.mark.parametrize("how", ["controls", "complement"])
def test_doses_of_any_size_are_estimable(how):
    expression, regression = cells(7, how=how)
    doses = sparse.diags_array([1e5, 1.0, 2.0, 0.5, 1e-8])
    dosed = replace(regression, present=sparse.csr_matrix(regression.present @ doses))
    ours, theirs = fit(expression, regression), fit(expression, dosed)
    np.testing.assert_allclose(doses @ theirs.effect, ours.effect, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(theirs.pvalue, ours.pvalue, rtol=1e-5)


def test_without_guides_random_groups_are_the_null(high_moi):
    screen = high_moi[0].copy()
    del screen.obsm["guides"]
    cells = Regression.of(screen)
    settings = {"min_cells_null": 15, "fdr": 0.05}
    table, quantiles = marginal_null(screen, log_expression(screen), cells, settings, 0)
    assert len(table) == MOST_FAKE
    assert table["fraction_p05"].mean() == pytest.approx(0.05, abs=0.015)
    assert table["n_significant"].gt(0).mean() <= 0.15
    assert quantiles["expected"].max() > 3
    rows, _ = cells_of_guides(screen, cells, 20)
    assert rows.empty


def test_effects_differ_between_contexts(high_moi):
    screen = high_moi[0].copy()
    context = np.arange(screen.n_obs) % 2
    screen.obs["context"] = pd.Categorical(context.astype(str))
    logs = log_expression(screen).tolil()
    first = screen.obsm["dosage"][:, [0]].toarray().ravel() > 0
    logs[np.flatnonzero(first & (context == 1)), 5] = 15.0
    table = marginal_effects_by_context(screen, logs.tocsr(), Regression.of(screen), 0.05)
    number = table.groupby("perturbation")["n_heterogeneous"].first()
    assert number["TARGET01"] >= 1
    assert number.drop("TARGET01").max() <= 1
    assert table["n_cells"].sum() == screen.obsm["dosage"].nnz


def test_a_screen_with_several_says_so_in_its_digest_and_refuses_cell_eval(high_moi):
    screen, parts = high_moi
    combinations, _ = simulate(replace(HIGH_MOI, unit="combination"))
    complement, _ = simulate(replace(HIGH_MOI, compared_with="complement"))
    digests = {content_digest(one) for one in (screen, combinations, complement)}
    assert len(digests) == 3
    assert len(perturbations(combinations)) > 500
    with pytest.raises(InputError, match="unit"):
        compared_cells(screen, parts)
    with pytest.raises(InputError, match="guides_per_cell"):
        replace(HIGH_MOI, guides_per_cell=31)
