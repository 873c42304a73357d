from itertools import permutations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LinearRegression

from samsvae.evaluation.agreement import (
    latent_effect_scores,
    mask_scores,
    match_factors,
    match_factors_by_effects,
)
from samsvae.evaluation.metrics import RUN_SCORES
from samsvae.evaluation.scores import summarise_iwelbo, with_monte_carlo_errors
from samsvae.evaluation.truth import (
    effect_recovery,
    mask_recovery,
    matched_masks,
    state_recovery,
    state_scores,
    true_effects,
)
from samsvae.inference.posterior import CellStates
from tests.conftest import true_shifts


def test_bounds_are_paired_by_cell():
    def cells(values):
        return pd.DataFrame(
            {"cell": list("abcd"), "split": ["val", "val", "test", "test"], "iwelbo": values}
        )

    def run(model):
        return {"split": "s", "model": model, "seed": 0}

    first = cells([-10.0, -20, -300, -40])
    second = cells([-11.0, -21, -301, -41])[::-1]
    table = summarise_iwelbo([(run("a"), first), (run("b"), second)]).set_index(["model", "scope"])
    assert table.loc[("a", "test"), "iwelbo"] == -170
    assert table.loc[("b", "test"), "difference"] == -1
    assert table.loc[("b", "test"), "difference_standard_error"] == 0
    assert table.loc[("a", "val"), "difference"] == 0
    by_particles = pd.DataFrame(
        {
            "scope": ["val", "val", "test", "test"],
            "particles": [1, 9] * 2,
            "standard_error": [4, 3, 2, 1],
        }
    )
    both = [(run("b"), by_particles), (run("a"), by_particles[::-1])]
    told = with_monte_carlo_errors(table.reset_index(), both)
    assert told["iwelbo"].tolist() == table["iwelbo"].tolist()
    assert told["particles"].eq(9).all()
    assert told["iwelbo_monte_carlo_error"].tolist() == [
        {"val": 3, "test": 1}[s] for s in told["scope"]
    ]


def permuted_mask(screen, rng, extra=2):
    truth = screen.uns["truth"]["mask"]
    order = rng.permutation(truth.shape[1])
    return np.hstack([truth[:, order] * 0.9, np.zeros((len(truth), extra))])


def test_the_true_mask_is_recovered_whatever_the_order_of_dimensions(tiny_screen):
    names = list(tiny_screen.uns["truth"]["targets"])
    mask = permuted_mask(tiny_screen, np.random.default_rng(0))
    scores = mask_recovery(tiny_screen, mask, names)
    assert (scores["mask_precision"], scores["mask_recall"], scores["mask_f1"]) == (1, 1, 1)
    reverse = mask_recovery(tiny_screen, mask[::-1], names[::-1])
    assert reverse == pytest.approx(scores)
    factor, dimension = match_factors(tiny_screen.uns["truth"]["mask"], (mask > 0.5).astype(float))
    assert len(set(factor)) == len(set(dimension)) == 3


def test_false_positives_and_empty_masks_are_told(tiny_screen):
    names = list(tiny_screen.uns["truth"]["targets"])
    full = mask_recovery(tiny_screen, np.ones((8, 6)), names)
    true = tiny_screen.uns["truth"]["mask"].sum()
    assert full["mask_recall"] == 1
    assert full["mask_precision"] == pytest.approx(true / 48)
    empty = mask_recovery(tiny_screen, np.zeros((8, 6)), names)
    assert empty["mask_f1"] == 0
    assert np.isnan(empty["mask_precision"])


def test_matched_masks_lay_truth_beside_inference(tiny_screen):
    names = list(tiny_screen.uns["truth"]["targets"])
    mask = permuted_mask(tiny_screen, np.random.default_rng(1))
    table = matched_masks(tiny_screen, mask, names)
    assert ((table["probability"] > 0.5) == (table["true_mask"] > 0.5)).all()
    assert set(table["factor"]) == set(tiny_screen.uns["truth"]["factors"])


def test_true_effects_are_what_many_cells_show(tiny_screen):
    """Inert targets move nothing; others move the genes of their factors, in the right sense."""
    shifts = true_shifts(tiny_screen)
    names = list(shifts.index)
    true = true_effects(tiny_screen, names, seed=0)
    inert = (shifts == 0).all(axis=1).to_numpy()
    assert inert.any()
    assert np.abs(true[inert]).max() < 1e-9
    expected = shifts.to_numpy() @ tiny_screen.uns["truth"]["loadings"][: shifts.shape[1]]
    for row in np.flatnonzero(~inert):
        moved = np.abs(expected[row]) > 0.4
        agreement = np.mean(np.sign(true[row, moved]) == np.sign(expected[row, moved]))
        assert agreement > 0.8
    assert effect_recovery(true, true) == {"effect_pearson": pytest.approx(1), "effect_rmse": 0}


def test_factors_are_matched_by_effects_whatever_their_order_and_sign():
    rng = np.random.default_rng(2)
    true = rng.normal(size=(9, 3)) * (rng.random((9, 3)) < 0.7)
    order, sign = rng.permutation(3), np.array([1.0, -1.0, -1.0])
    inferred = np.hstack([0.01 * rng.normal(size=(9, 2)), (true * sign)[:, order]])
    factor, dimension = match_factors_by_effects(true, inferred)
    assert dimension.tolist() == [2 + order.tolist().index(f) for f in factor]
    assert latent_effect_scores(true, inferred) == pytest.approx(
        {"mean_correlation": 1, "effect_r_squared": 1}
    )
    scores = mask_scores(true != 0, inferred != 0, (factor, dimension))
    assert scores["recall"] == 1
    assert scores["precision"] == pytest.approx((true != 0).sum() / (inferred != 0).sum())


def test_a_factor_without_a_dimension_or_without_effect_counts_nothing():
    true = np.random.default_rng(3).normal(size=(9, 2))
    scores = latent_effect_scores(true, true[:, :1])
    assert scores["mean_correlation"] == pytest.approx(0.5)
    assert scores["effect_r_squared"] < 1
    assert latent_effect_scores(true, np.zeros((9, 4)))["mean_correlation"] == 0


# scores of the recovered truth, each once more as a textbook would write it, over every one-to-one
# matching of true factors with dimensions

N_TARGETS, N_FACTORS = 12, 3


def of_effects(true, inferred):
    return effect_recovery(true, inferred)


def of_masks(true, inferred):
    masks = true > 0, inferred > 0
    scores = mask_scores(*masks, match_factors(*(mask.astype(float) for mask in masks)))
    return {f"mask_{name}": value for name, value in scores.items()}


def shift_of(true):
    """What a perturbation of every factor adds to the basal state of some of the cells."""
    return 0.7 * (true.sum(axis=1, keepdims=True) > 0) * np.ones(N_FACTORS)


def of_states(true, inferred):
    """Rows are cells here, whose states are the basal ones and a shift."""
    shift = shift_of(true)
    screen = anndata.AnnData(shape=(len(true), 1))
    screen.obsm["true_basal"] = true - shift
    screen.obsm["dosage"] = shift[:, :1] / 0.7
    screen.uns["truth"] = {
        "mask": np.ones((1, N_FACTORS)),
        "embedding": np.full((1, N_FACTORS), 0.7),
        "factors": [f"F{k}" for k in range(N_FACTORS)],
    }
    states = CellStates(basal=inferred - shift, total=inferred)
    return state_scores(state_recovery(screen, np.ones(len(true), dtype=bool), states))


def matchings(inferred):
    return (inferred[:, list(order)] for order in permutations(range(N_FACTORS)))


def best_mask_score(function):
    def score(true, inferred):
        return max(function(true.ravel() > 0, m.ravel() > 0) for m in matchings(inferred))

    return score


def correlations(true, matched):
    return [stats.pearsonr(true[:, k], matched[:, k]).statistic for k in range(N_FACTORS)]


def best_by_correlation(true, inferred):
    return max(matchings(inferred), key=lambda m: np.abs(correlations(true, m)).sum())


def r_squared_of_matched(true, inferred):
    matched = best_by_correlation(true, inferred)
    return sklearn_metrics.r2_score(
        true.ravel(), (matched * np.sign(correlations(true, matched))).ravel()
    )


def mean_correlation(true, inferred):
    return np.abs(correlations(true, best_by_correlation(true, inferred))).mean()


def linearly_explained(true, inferred):
    return np.mean([LinearRegression().fit(inferred, t).score(inferred, t) for t in true.T])


def of_basal(score):
    return lambda true, inferred: score(true - shift_of(true), inferred - shift_of(true))


TRUTH = {
    "effect_pearson": (of_effects, lambda t, i: stats.pearsonr(t.ravel(), i.ravel()).statistic),
    "effect_rmse": (of_effects, lambda t, i: np.sqrt(np.mean(np.square(t - i)))),
    "mask_f1": (of_masks, best_mask_score(sklearn_metrics.f1_score)),
    "mask_precision": (of_masks, best_mask_score(sklearn_metrics.precision_score)),
    "mask_recall": (of_masks, best_mask_score(sklearn_metrics.recall_score)),
    "mean_correlation": (latent_effect_scores, mean_correlation),
    "effect_r_squared": (latent_effect_scores, r_squared_of_matched),
    "total_correlation": (of_states, mean_correlation),
    "total_r_squared": (of_states, linearly_explained),
    "basal_correlation": (of_states, of_basal(mean_correlation)),
    "basal_r_squared": (of_states, of_basal(linearly_explained)),
}
OF_BOUNDS = {"iwelbo", "iwelbo_relative"}  # see test_inference.py and test_statistics.py


def drawn(rng):
    return rng.normal(size=(N_TARGETS, N_FACTORS))


def test_every_score_of_a_run_is_tested():
    assert TRUTH.keys() | OF_BOUNDS == RUN_SCORES.keys()


@pytest.mark.parametrize("name", TRUTH)
def test_a_score_of_the_truth_equals_an_independent_computation(name):
    function, expected = TRUTH[name]
    rng = np.random.default_rng(5)
    for noise in (0.3, 1.0, 3.0):
        true = drawn(rng)
        inferred = true[:, rng.permutation(N_FACTORS)] + noise * drawn(rng)
        assert function(true, inferred)[name] == pytest.approx(expected(true, inferred))


@pytest.mark.parametrize("name", TRUTH)
def test_the_truth_scores_best_and_in_any_order_and_what_is_permuted_does_not(name):
    function, _ = TRUTH[name]
    score = RUN_SCORES[name]
    rng = np.random.default_rng(6)
    permuted = []
    for _ in range(30):
        true = drawn(rng)
        assert function(true, true)[name] == pytest.approx(score.best)
        inferred = true + drawn(rng)
        rows = rng.permutation(N_TARGETS)
        columns = rng.permutation(N_FACTORS)
        moved = function(true[rows][:, columns], inferred[rows][:, columns])
        assert moved[name] == pytest.approx(function(true, inferred)[name])
        if function is not of_effects:  # rows are targets, columns in no order
            assert function(true, inferred[:, columns])[name] == pytest.approx(moved[name])
        permuted.append(function(true, rng.permuted(true.ravel()).reshape(true.shape))[name])
    is_worse = np.less if score.direction == "higher" else np.greater
    assert is_worse(np.mean(permuted), score.best - 0.2 if score.best else 0.2)
    if score.chance is not None:
        error = np.std(permuted) / np.sqrt(len(permuted))
        assert np.mean(permuted) == pytest.approx(score.chance, abs=4 * error)
