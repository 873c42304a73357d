import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse, special, stats
from scipy.spatial import distance
from sklearn import metrics as sklearn_metrics
from sklearn import preprocessing as sklearn_preprocessing

from samsvae.evaluation import agreement
from samsvae.evaluation.agreement import weights_of
from samsvae.evaluation.compared import target_genes, top_genes
from samsvae.evaluation.differential_expression import slope
from samsvae.evaluation.effects import UNITS, effects_table, group_means
from samsvae.evaluation.metrics import (
    DE,
    EXPRESSED,
    HELD_OUT,
    MEASURED_CONTROL,
    METRICS,
    VARIANTS,
    WEIGHTED_METRICS,
    WITH_TARGETS,
    de_metrics,
    heading,
    meaning,
    of_perturbations,
)
from samsvae.evaluation.observed import t_of_others
from samsvae.evaluation.scores import effect_scores, missed_effects

N_PERTURBATIONS, N_GENES, N_DE, N_TOP = 5, 8, 3, 3
DE_METRICS = de_metrics(N_TOP)
ALL_METRICS = [*METRICS.items(), *WEIGHTED_METRICS.items(), *DE_METRICS.items()]


def is_told_apart(matrix):
    """No row is constant, and no two rows are alike or point the same way."""
    angles = distance.pdist(matrix, "cosine")
    return np.ptp(matrix, axis=1).min() > 0.1 and angles.min() > 1e-3


ENTRIES = st.floats(-5, 5, allow_subnormal=False).map(lambda value: round(value, 3))
# matrices of equal entries are what hypothesis likes best, so they are added to one of others
DISTINCT = np.random.default_rng(8).normal(size=(N_PERTURBATIONS, N_GENES))
MATRICES = (
    arrays(np.float64, DISTINCT.shape, elements=ENTRIES)
    .map(lambda matrix: matrix + DISTINCT)
    .filter(is_told_apart)
)


def significant(matrix):
    """The three genes of largest effect, as a test might find them."""
    cut = np.sort(np.abs(matrix), axis=1)[:, [-N_DE]]
    return np.where(np.abs(matrix) >= cut, matrix, np.nan)


def score(name, observed, predicted, weights=None):
    if name in WEIGHTED_METRICS:
        weights = weights_of(observed) if weights is None else weights
        return WEIGHTED_METRICS[name].function(observed, predicted, weights)
    if name in DE_METRICS:
        return DE_METRICS[name].function(significant(observed), predicted)
    return METRICS[name].function(observed, predicted)


# each metric once more, for one perturbation i, as a textbook would write it


def share_nearer(distances, right):
    others = [d for j, d in enumerate(distances) if j != right]
    nearer = [
        0.5 if np.isclose(d, distances[right]) else float(d < distances[right]) for d in others
    ]
    return np.mean(nearer)


def others(o, i):
    return np.mean(np.delete(o, i, axis=0), axis=0)


def weights(o, i):
    """Squares of the absolute effect, from 0 for the weakest gene to 1 for the strongest."""
    strength = sklearn_preprocessing.minmax_scale(np.abs(o[i])) ** 2
    return strength / strength.sum()


def weighted_correlation(o, p, i):
    [[a, c], [_, b]] = np.cov(o[i], p[i], aweights=weights(o, i))
    return c / np.sqrt(a * b)


def is_de(o, i):
    return ~np.isnan(significant(o)[i])


def found(o, p, i, k):
    strongest = sorted(range(N_GENES), key=lambda gene: -abs(p[i, gene]))[:k]
    return set(strongest) & set(np.flatnonzero(is_de(o, i)))


INDEPENDENT = {
    "pearson": lambda o, p, i: stats.pearsonr(o[i], p[i]).statistic,
    "r_squared": lambda o, p, i: sklearn_metrics.r2_score(o[i], p[i]),
    "rmse": lambda o, p, i: sklearn_metrics.root_mean_squared_error(o[i], p[i]),
    "l2": lambda o, p, i: distance.euclidean(o[i], p[i]),
    "cosine": lambda o, p, i: 1 - distance.cosine(o[i], p[i]),
    "mean_absolute_error": lambda o, p, i: sklearn_metrics.mean_absolute_error(o[i], p[i]),
    "sign_accuracy": lambda o, p, i: np.mean([a * b > 0 for a, b in zip(o[i], p[i], strict=True)]),
    "pearson_from_mean": lambda o, p, i: stats.pearsonr(o[i] - sum(o) / len(o), p[i] - sum(o) / len(o)).statistic,
    "retrieval_rank": lambda o, p, i: share_nearer([distance.cosine(o[i], row) for row in p], i),
    "discrimination_l1": lambda o, p, i: 1 - share_nearer([distance.cityblock(p[i], row) for row in o], i),
    "discrimination_l2": lambda o, p, i: 1 - share_nearer([distance.euclidean(p[i], row) for row in o], i),
    "discrimination_cosine": lambda o, p, i: 1 - share_nearer([distance.cosine(p[i], row) for row in o], i),
    "r_squared_from_others": lambda o, p, i: sklearn_metrics.r2_score(o[i] - others(o, i), p[i] - others(o, i)),
    "weighted_mse": lambda o, p, i: sklearn_metrics.mean_squared_error(o[i], p[i], sample_weight=weights(o, i)),
    "weighted_r_squared": lambda o, p, i: sklearn_metrics.r2_score(o[i], p[i], sample_weight=weights(o, i)),
    "weighted_pearson": weighted_correlation,
    "auroc": lambda o, p, i: sklearn_metrics.roc_auc_score(is_de(o, i), np.abs(p[i])),
    "auprc": lambda o, p, i: sklearn_metrics.average_precision_score(is_de(o, i), np.abs(p[i])),
    "precision_at_k": lambda o, p, i: len(found(o, p, i, is_de(o, i).sum())) / is_de(o, i).sum(),
    f"precision_at_{N_TOP}": lambda o, p, i: len(found(o, p, i, N_TOP)) / N_TOP,
    f"recall_at_{N_TOP}": lambda o, p, i: len(found(o, p, i, N_TOP)) / is_de(o, i).sum(),
    f"overlap_at_{N_TOP}": lambda o, p, i: len(found(o, p, i, N_DE)) / N_DE,
    "sign_agreement": lambda o, p, i: np.mean((o[i] * p[i] > 0)[is_de(o, i)]),
    "spearman": lambda o, p, i: stats.spearmanr(o[i][is_de(o, i)], p[i][is_de(o, i)]).statistic,
}  # fmt: skip


@pytest.mark.parametrize("name", dict(ALL_METRICS))
def test_every_metric_equals_an_independent_computation(name):
    rng = np.random.default_rng(5)
    for noise in (0.3, 1.0, 3.0):
        o = rng.normal(size=(N_PERTURBATIONS, N_GENES))
        p = o + noise * rng.normal(size=o.shape)
        expected = [INDEPENDENT[name](o, p, i) for i in range(N_PERTURBATIONS)]
        np.testing.assert_allclose(score(name, o, p), expected, atol=1e-9)


@given(MATRICES)
def test_perfect_predictions_score_the_best_value(matrix):
    distinct = np.sort(np.abs(matrix), axis=1)
    for name, metric in ALL_METRICS:
        # genes of the same effect leave open which of them are the top ones
        if name in DE_METRICS and np.diff(distinct, axis=1).min() == 0:
            continue
        np.testing.assert_allclose(
            score(name, matrix, matrix), metric.best, atol=1e-9, err_msg=name
        )


@given(
    MATRICES,
    MATRICES,
    st.permutations(range(N_PERTURBATIONS)),
    st.permutations(range(N_GENES)),
)
def test_order_of_perturbations_and_genes_does_not_matter(o, p, rows, columns):
    for name, _ in ALL_METRICS:
        moved = score(name, o[rows][:, columns], p[rows][:, columns])
        np.testing.assert_allclose(moved, score(name, o, p)[rows], atol=1e-9, err_msg=name)


@given(MATRICES, MATRICES, st.sampled_from([0.25, 4.0, 1024.0]))
def test_scale_of_predictions_does_not_matter_where_it_should_not(o, p, scale):
    for name, metric in ALL_METRICS:
        if metric.scale_free:
            np.testing.assert_allclose(
                score(name, o, scale * p), score(name, o, p), atol=1e-9, err_msg=name
            )


@pytest.mark.parametrize("name", [name for name, m in ALL_METRICS if not m.scale_free])
def test_scale_of_predictions_matters_where_nothing_else_is_said(name):
    rng = np.random.default_rng(3)
    o, p = rng.normal(size=(2, 12, 40))
    assert (np.abs(score(name, o, 3 * p) - score(name, o, p)) > 1e-3).any()


@given(MATRICES, MATRICES, st.sampled_from([0.25, 4.0, 1024.0]))
def test_units_change_errors_in_proportion_and_nothing_else(o, p, scale):
    for name, metric in ALL_METRICS:
        factor = scale if metric.unit.startswith("log2") else 1
        factor = factor**2 if metric.unit.endswith("squared") else factor
        both = score(name, scale * o, scale * p)
        np.testing.assert_allclose(
            both, factor * score(name, o, p), rtol=1e-9, atol=1e-9, err_msg=name
        )


# what a metric without a chance value of its own scores for effects from N(0, 1), 40 genes of which
# N_DE are differentially expressed, and unrelated predictions from N(0, 1)
N = 40
HARMONIC = np.sum(1 / np.arange(1, N + 1))
DISTANCE = 2 * np.exp(special.gammaln((N + 1) / 2) - special.gammaln(N / 2))
N_MIXED = 12  # perturbations
SHRUNKEN = 1 - 1 / N_MIXED  # of an effect, given its difference from the mean of the others
UNRELATED = {
    "r_squared": -(N + 1) / (N - 3),
    "r_squared_from_others": 1
    - SHRUNKEN**2 * (N - 2) / (N - 3)
    - N * (1 + 1 / N_MIXED) * SHRUNKEN / (N - 3),
    "weighted_r_squared": -(N + 1) / (N - 3),
    "weighted_mse": 2,
    "l2": DISTANCE,
    "rmse": DISTANCE / np.sqrt(N),
    "mean_absolute_error": 2 / np.sqrt(np.pi),
    "auprc": ((N_DE - 1) / (N - 1) * (N - HARMONIC) + HARMONIC) / N,
    "precision_at_k": N_DE / N,
    f"precision_at_{N_TOP}": N_DE / N,
    f"recall_at_{N_TOP}": N_TOP / N,
    f"overlap_at_{N_TOP}": N_DE / N,
}


@pytest.mark.parametrize("name", dict(ALL_METRICS))
def test_permuted_predictions_score_chance(name):
    """Whole perturbations change places, and so do genes, each perturbation's in its own way."""
    rng = np.random.default_rng(11)
    means = []
    for _ in range(60):
        o = rng.normal(size=(N_MIXED, N))
        permuted = rng.permuted(rng.permutation(o), axis=1)
        equal = np.full_like(o, 1 / N)
        means.append(np.nanmean(score(name, o, permuted, equal)))
    error = np.std(means) / np.sqrt(len(means))
    chance = dict(ALL_METRICS)[name].chance
    expected = UNRELATED[name] if chance is None else chance
    assert np.mean(means) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("name", [name for name, m in METRICS.items() if m.attainable])
@pytest.mark.parametrize("noise", [0.3, 1.5])
def test_what_is_attainable_is_what_the_truth_scores(name, noise):
    rng = np.random.default_rng(12)
    true = rng.normal(size=(60, 3000))
    first, second = true + noise * np.sqrt(2) * rng.normal(size=(2, *true.shape))
    attainable = METRICS[name].attainable(score(name, second, first).mean())
    expected = score(name, (first + second) / 2, true).mean()
    assert attainable == pytest.approx(expected, rel=0.02)


def test_among_many_perturbations_ranks_are_those_among_a_fixed_sample(monkeypatch):
    rng = np.random.default_rng(3)
    observed = rng.normal(size=(90, N_GENES))
    predicted = observed + rng.normal(0, 0.8, observed.shape)
    names = ("retrieval_rank", "discrimination_l1", "discrimination_l2", "discrimination_cosine")
    among_all = {name: METRICS[name].function(observed, predicted) for name in names}
    drawn = np.sort(np.random.default_rng(0).choice(90, 40, replace=False))
    samples = [[row, *drawn[drawn != row]] for row in range(90)]
    among_few = {
        name: [METRICS[name].function(observed[own], predicted[own])[0] for own in samples]
        for name in names
    }
    monkeypatch.setattr(agreement, "MOST_OTHERS", 40)
    for name in names:
        found = METRICS[name].function(observed, predicted)
        np.testing.assert_allclose(found, among_few[name])
        assert found.mean() == pytest.approx(among_all[name].mean(), abs=0.03)


def test_mixing_up_perturbations_alone_is_told_by_the_ranks():
    """Of three others, the one that has the right effect is nearer at least."""
    o = np.random.default_rng(0).normal(size=(4, 30))
    mixed = o[[1, 0, 3, 2]]
    assert score("retrieval_rank", o, mixed).min() == pytest.approx(1 / 3)
    assert score("discrimination_l1", o, mixed).max() == pytest.approx(2 / 3)


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_one_prediction_for_all_is_at_chance(constant):
    o = np.random.default_rng(1).normal(size=(6, 20))
    p = np.full_like(o, constant)
    for name in ("retrieval_rank", "auroc"):
        np.testing.assert_allclose(score(name, o, p), 0.5)
    assert score("discrimination_l1", o, p).mean() == pytest.approx(0.5)
    assert np.isnan(score("pearson", o, p)).all()
    for name in ("precision_at_k", f"precision_at_{N_TOP}"):
        np.testing.assert_allclose(score(name, o, p), N_DE / 20)
    if not constant:
        assert np.isnan(score("cosine", o, p)).all()
        assert not score("sign_accuracy", o, p).any()
        assert not score("sign_agreement", o, p).any()


def test_a_shift_that_all_perturbations_share_earns_nothing_from_the_mean():
    rng = np.random.default_rng(2)
    o = 5 * rng.normal(size=500) + rng.normal(size=(8, 500))
    p = np.tile(o.mean(axis=0), (8, 1)) + 0.1 * rng.normal(size=o.shape)
    assert score("pearson", o, p).min() > 0.9
    assert np.abs(score("pearson_from_mean", o, p)).max() < 0.2


def test_what_is_undefined_is_nan_and_warns_of_nothing():
    alone = np.array([[1.0, 2, 3]])
    assert np.isnan(score("retrieval_rank", alone, alone)).all()
    assert np.isnan(score("discrimination_l1", alone, alone)).all()
    nothing = np.full((2, 3), np.nan)
    for name, metric in DE_METRICS.items():
        assert np.isnan(metric.function(nothing, np.ones((2, 3)))).all(), name
    everything = np.arange(6.0).reshape(2, 3)
    assert np.isnan(DE_METRICS["auroc"].function(everything, everything)).all()
    assert (DE_METRICS["overlap_at_3"].function(everything, everything) == 1).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pearson", "Pearson r, all cells"),
        (f"median_pearson_top{N_TOP}{HELD_OUT}", f"Pearson r, top {N_TOP} genes, held-out cells"),
        ("median_de_auroc", "AUROC of DE genes"),
        ("iwelbo", "IWELBO (nats per cell)"),
        ("mean_retrieval_rank", "perturbation retrieval rank, all cells"),
        (f"rmse{HELD_OUT}", f"RMSE, held-out cells ({UNITS})"),
        ("spread_cosine", "spread of cosine"),
    ],
)
def test_a_heading_names_metric_genes_cells_and_unit(name, expected):
    assert heading(name, N_TOP, unit=True) == expected


def test_what_is_not_registered_has_no_heading():
    with pytest.raises(KeyError, match="pearsen"):
        heading("pearsen", N_TOP)


def test_every_metric_says_what_it_is():
    for name, metric in ALL_METRICS:
        assert metric.description, name
        assert metric.heading, name
        in_table = f"{metric.average}_{DE * (name in DE_METRICS)}{name}{HELD_OUT}"
        assert meaning(in_table, N_TOP).description == metric.description
        assert metric.direction == ("higher" if metric.best == 1 else "lower")
        if metric.chance is not None:
            assert (metric.best > metric.chance) == (metric.direction == "higher")


def test_top_genes_are_those_of_largest_observed_effect():
    o = np.array([[1.0, -5, 2], [0, 3, -4]])
    kept, guessed = top_genes(o, 10 * o, 2)
    assert kept.tolist() == [[-5, 2], [-4, 3]]
    assert guessed.tolist() == [[-50, 20], [-40, 30]]


def effects(matrix, **layers):
    table = anndata.AnnData(np.asarray(matrix, dtype=np.float32))
    table.obs_names = [f"P{i}" for i in range(table.n_obs)]
    table.var_names = [f"g{i}" for i in range(table.n_vars)]
    for name, layer in layers.items():
        table.layers[name] = np.asarray(layer, dtype=np.float32)
    return table


def observed_effects(matrix, **layers):
    same = {"ate": matrix, "ate_held_out": matrix, "fdr": np.ones_like(matrix)}
    table = effects(matrix, **{**same, **layers})
    for part in ("train", "val", "test"):
        table.obs[f"n_{part}"] = 1
    table.obs["n_held_out"] = 9
    return table


def summary_of(observed, predicted, n_top=3):
    table = effect_scores(observed, predicted, n_top, 0.05).summary
    assert not table.duplicated(["scope", "metric"]).any()
    return table.set_index(["scope", "metric"])["value"]


def test_scopes_and_truths_have_their_own_rows():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(4, 8))
    observed = observed_effects(matrix, ate_held_out=-matrix)
    observed.obs["n_test"] = [0, 0, 5, 5]
    guess = matrix.copy()
    guess[:2] = rng.normal(size=(2, 8))
    value = summary_of(observed, effects(guess)[::-1, ::-1])
    assert value["test", "pearson"] == pytest.approx(1)
    assert value["test", "pearson_held_out"] == pytest.approx(-1)
    assert value["all", "pearson"] < 0.9
    assert value["test", "pearson_top3"] == pytest.approx(1)
    assert value["test", "median_rmse"] == pytest.approx(0, abs=1e-6)


def test_perturbations_are_averaged_with_their_spread_and_ranked_among_all():
    rng = np.random.default_rng(4)
    observed = observed_effects(rng.normal(size=(5, 9)))
    observed.obs["n_val"] = [0, 1, 1, 0, 0]
    predicted = effects(observed.X + rng.normal(size=(5, 9)))
    scores = effect_scores(observed, predicted, 4, 0.05)
    value = scores.summary.set_index(["scope", "metric"])["value"]
    per = scores.by_perturbation
    assert value["all", "median_pearson"] == pytest.approx(per["pearson"].median())
    quartiles = per["pearson"].quantile([0.25, 0.75])
    assert value["all", "spread_pearson"] == pytest.approx(quartiles[0.75] - quartiles[0.25])
    # two perturbations validate, yet each has four others to be told from
    assert value["val", "mean_retrieval_rank"] == pytest.approx(
        per["retrieval_rank"].iloc[1:3].mean()
    )
    assert set(4 * per["retrieval_rank"]) <= set(range(5))
    table = scores.tidy()
    single = table[table["scope"] == "perturbation"]
    values = single.set_index(["metric", "perturbation"])["value"]
    assert len(values) == per.size
    assert all(values[metric].equals(per[metric]) for metric in per)
    over_scopes = table[table["perturbation"].isna()]
    pd.testing.assert_frame_equal(over_scopes[list(scores.summary)], scores.summary)


def test_a_perturbation_without_held_out_cells_has_no_value_there():
    matrix = np.random.default_rng(6).normal(size=(4, 7))
    held_out = matrix.copy()
    held_out[2] = np.nan
    scores = effect_scores(
        observed_effects(matrix, ate_held_out=held_out), effects(matrix), 3, 0.05
    )
    missing = scores.by_perturbation["rmse_held_out"].isna()
    assert missing.tolist() == [False, False, True, False]
    value = scores.summary.set_index(["scope", "metric"])["value"]
    assert value["all", "pearson_held_out"] == pytest.approx(1)
    held_out[:] = np.nan
    nowhere = observed_effects(matrix, ate_held_out=held_out)
    assert np.isnan(summary_of(nowhere, effects(matrix))["all", "median_rmse_held_out"])


def test_a_prediction_made_of_held_out_cells_is_judged_by_the_others():
    matrix = np.random.default_rng(7).normal(size=(4, 7))
    predicted = observed_effects(-matrix)
    predicted.obs["n_held_out"] = 4
    scores = effect_scores(observed_effects(matrix), predicted[::-1], 3, 0.05)
    assert (scores.by_perturbation["pearson"] > 0.999).all()
    assert (scores.differential_expression["n_held_out"] == 4).all()


def test_differential_expression_is_ranked_by_the_absolute_effect():
    fdr = np.ones((3, 10))
    fdr[0, :4] = fdr[1, :4] = 0.01
    effect = np.tile(np.linspace(-1, 1, 10), (3, 1))
    guess = np.zeros((3, 10))
    guess[0, :4] = 2 * effect[0, :4]
    scores = effect_scores(observed_effects(effect, fdr=fdr), effects(guess), 2, 0.05)
    table = scores.differential_expression.set_index("perturbation")
    perfect, constant, nothing = table.loc["P0"], table.loc["P1"], table.loc["P2"]
    assert perfect[["auroc", "auprc", "precision_at_k", "sign_agreement"]].tolist() == [1] * 4
    assert perfect[["precision_at_2", "recall_at_2", "overlap_at_2"]].tolist() == [1, 0.5, 1]
    assert perfect["spearman"] == pytest.approx(1)
    assert (perfect["slope"], constant["slope"]) == (pytest.approx(2), 0)
    assert np.isnan(nothing["slope"])
    assert constant["auroc"] == 0.5
    assert constant["precision_at_k"] == pytest.approx(0.4)
    assert constant["sign_agreement"] == 0
    assert nothing["n_de"] == 0
    assert np.isnan(nothing["auroc"])


@given(MATRICES, MATRICES)
def test_the_slope_is_that_of_least_squares_through_zero(o, p):
    found = slope(significant(o), p)
    for i in range(N_PERTURBATIONS):
        [expected], *_ = np.linalg.lstsq(o[i, is_de(o, i)][:, None], p[i, is_de(o, i)])
        assert found[i] == pytest.approx(expected, abs=1e-9)


def observed_with_noise(effect, error, n_held_out=20):
    """Observed effects of held-out cells, with standard errors."""
    names = [f"P{row}" for row in range(len(effect))]
    genes = [f"G{column}" for column in range(effect.shape[1])]
    layers = {"ate": effect, "ate_held_out": effect, "standard_error_held_out": error}
    table = effects_table(effect, names, genes, layers, "{}")
    table.obs["n_held_out"] = n_held_out
    return table


def test_what_is_explained_does_not_count_noise():
    """A prediction of the truth explains all, half of it three quarters, nothing nothing."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, (30, 4000)) * (rng.random((30, 4000)) < 0.1)
    error = np.full(truth.shape, 0.3)
    observed = observed_with_noise(truth + rng.normal(0, 0.3, truth.shape), error)
    for factor, expected in ((1, 1), (0.5, 0.75), (0, 0), (-1, -3)):
        predicted = effects_table(factor * truth, list(observed.obs_names), list(observed.var_names), {}, "{}")  # fmt: skip
        found = missed_effects(observed, predicted)
        np.testing.assert_allclose(found["explained"], expected, rtol=0.1, atol=0.15)
    np.testing.assert_allclose(found["effect_size"], np.sqrt(0.1), rtol=0.15)


def test_nothing_is_explained_of_an_effect_that_is_noise():
    rng = np.random.default_rng(0)
    error = np.full((200, 500), 0.3)
    observed = observed_with_noise(rng.normal(0, 0.3, error.shape), error)
    predicted = effects_table(np.zeros(error.shape), list(observed.obs_names), list(observed.var_names), {}, "{}")  # fmt: skip
    found = missed_effects(observed, predicted)
    assert found["explained"].isna().mean() > 0.97
    assert found["effect_size"].max() < 0.15


def test_missed_genes_are_those_of_largest_error_beyond_noise():
    effect = np.array([[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.1]])
    error = np.full(effect.shape, 0.1)
    guess = np.array([[0.5, -1.1, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    observed = observed_with_noise(effect, error)
    predicted = effects_table(guess, list(observed.obs_names), list(observed.var_names), {}, "{}")
    found = missed_effects(observed, predicted).set_index("perturbation")
    assert found.loc["P0", "n_missed"] == 2
    assert found.loc["P0", "missed_genes"] == "G0 +2.00 (+0.50), G2 +0.50 (+0.00)"
    signal = (effect[0] ** 2).sum() - 0.04
    missed = ((effect - guess)[0] ** 2).sum() - 0.04
    assert found.loc["P0", "explained"] == pytest.approx(1 - missed / signal)
    assert np.isnan(found.loc["P1", "explained"])
    assert found.loc["P1", "missed_genes"] == ""


def test_a_gene_that_no_held_out_cell_expresses_is_not_missed():
    effect, error = np.array([[2.0, 0.0]]), np.array([[0.1, 0.0]])
    observed = observed_with_noise(effect, error)
    guess = np.array([[1.0, 0.3]])
    predicted = effects_table(guess, list(observed.obs_names), list(observed.var_names), {}, "{}")
    [found] = missed_effects(observed, predicted).to_dict("records")
    assert (found["n_missed"], found["missed_genes"]) == (1, "G0 +2.00 (+1.00)")


def test_weights_are_those_of_the_statistic_alone():
    t = np.array([[-4.0, 2, 0, 1], [3, 3, -3, 3], [np.nan] * 4, [np.nan, 1, 2, 3]])
    found = weights_of(t)
    np.testing.assert_allclose(found[0], np.array([16, 4, 0, 1]) / 21)
    np.testing.assert_allclose(found[1], 0.25)
    assert np.isnan(found[2]).all()
    np.testing.assert_allclose(found[3], [0, 0, 0.2, 0.8])


def test_t_compares_a_perturbation_with_the_cells_of_all_others():
    rng = np.random.default_rng(0)
    labels = pd.Series(["A"] * 9 + ["B"] * 14 + ["C"] * 5 + ["control"] * 8 + ["D"])
    cells = rng.gamma(1, size=(len(labels), 6)) * (rng.random((len(labels), 6)) < 0.6)
    cells[:, 0] = 0
    means = group_means([(sparse.csr_matrix(cells), labels)], ["A", "B", "C", "D"], 6)
    found = t_of_others(means)
    assert np.isnan(found[3]).all()
    perturbed = (labels != "control").to_numpy()
    for row, name in enumerate("ABC"):
        own = (labels == name).to_numpy()
        expected = stats.ttest_ind(cells[own, 1:], cells[perturbed & ~own, 1:], equal_var=False)
        np.testing.assert_allclose(found[row, 1:], expected.statistic, rtol=1e-9)
        assert found[row, 0] == 0


def with_controls(matrix, rng):
    """Observed effects of single perturbations and a pair, whose targets are measured but one."""
    fdr = np.where(rng.random(matrix.shape) < 0.3, 0.01, 1.0)
    observed = observed_effects(matrix, fdr=fdr, t_of_others=rng.normal(size=matrix.shape))
    observed.obs_names = ["g0", "g1+g5", "X", "g3"][: len(matrix)]
    for name in ("", "_held_out", "_trained"):
        observed.var[f"control_mean{name}"] = rng.gamma(1, size=matrix.shape[1])
    return observed


TARGETS = [[0], [1, 5], [], [3]]


def test_variants_are_the_metric_of_fewer_genes_or_another_control(monkeypatch):
    monkeypatch.setattr("samsvae.evaluation.compared.N_EXPRESSED", 9)
    rng = np.random.default_rng(4)
    o, p = rng.normal(size=(2, 4, 20)).astype(np.float32)
    observed = with_controls(o, rng)
    predicted = effects(p)
    predicted.obs_names = observed.obs_names
    assert [list(np.flatnonzero(row)) for row in target_genes(observed)] == TARGETS
    found = effect_scores(observed, predicted, N_TOP, 0.05).by_perturbation
    o, p = o.astype(float), p.astype(float)
    kept = np.setdiff1d(np.arange(20), [gene for own in TARGETS for gene in own])
    expressed = np.argsort(observed.var["control_mean"].to_numpy())[-9:]
    shift = (
        observed.var["control_mean_trained"] - observed.var["control_mean_held_out"]
    ).to_numpy()
    for name, metric in METRICS.items():
        genes = kept if metric.without_targets else np.arange(20)
        for cells in ("", HELD_OUT):
            np.testing.assert_allclose(
                found[f"{name}{cells}"], metric.function(o[:, genes], p[:, genes])
            )
        for variant, has_it, pair in (
            (WITH_TARGETS, metric.without_targets, (o, p)),
            (EXPRESSED, metric.expressed_genes, (o[:, expressed], p[:, expressed])),
            (
                MEASURED_CONTROL,
                metric.measured_control,
                (o[:, genes], (p + shift)[:, genes]),
            ),
        ):
            assert (f"{name}{variant}{HELD_OUT}" in found) == has_it
            if has_it:
                np.testing.assert_allclose(
                    found[f"{name}{variant}{HELD_OUT}"], metric.function(*pair)
                )
    for name in WEIGHTED_METRICS:
        expected = score(name, o, p, weights_of(observed.layers["t_of_others"].astype(float)))
        np.testing.assert_allclose(found[f"{name}{HELD_OUT}"], expected)
    significant_ones = np.where(observed.layers["fdr"] < 0.05, o, np.nan)
    for name, metric in DE_METRICS.items():
        for row, targets in enumerate(TARGETS):
            whole = [matrix[[row]] for matrix in (significant_ones, p)]
            without = [np.delete(matrix, targets, axis=1) for matrix in whole]
            for variant, pair in (("", without), (WITH_TARGETS, whole)):
                value = found[f"{DE}{name}{variant}"].iloc[row]
                np.testing.assert_allclose(value, metric.function(*pair)[0])


def test_a_prediction_of_target_genes_alone_discriminates_by_nothing_else():
    rng = np.random.default_rng(1)
    o = rng.normal(size=(4, 20))
    spikes = np.zeros_like(o)
    for row, targets in enumerate(TARGETS):
        o[row, targets] = spikes[row, targets] = -9
    observed, predicted = with_controls(o, rng), effects(spikes)
    predicted.obs_names = observed.obs_names
    found = effect_scores(observed, predicted, N_TOP, 0.05).by_perturbation.mean()
    assert found["discrimination_cosine_with_targets_held_out"] > 0.8
    assert found["discrimination_cosine_held_out"] == 0.5
    assert found["retrieval_rank_held_out"] == 0.5


def test_large_matrices_have_the_same_ranks(monkeypatch):
    """Compiled distances, and blocks of rows."""
    rng = np.random.default_rng(3)
    o = rng.normal(size=(37, 50))
    p = 0.2 * o + rng.normal(size=o.shape)
    p[5] = p[6] = o[7]
    names = ("retrieval_rank", "discrimination_l1", "discrimination_l2", "discrimination_cosine")
    expected = {name: score(name, o, p) for name in names}
    monkeypatch.setattr("samsvae.evaluation.agreement.FEWEST_COMPILED", 1)
    monkeypatch.setattr("samsvae.evaluation.agreement.LARGEST_BLOCK", 37 * 5)
    for name in names:
        np.testing.assert_array_equal(score(name, o, p), expected[name])


def test_variants_are_named_in_headings_and_found_by_their_scores():
    for variant, words in VARIANTS.items():
        name = f"mean_discrimination_cosine{variant}{HELD_OUT}"
        assert heading(name, N_TOP) == f"cosine discrimination, {words}, held-out cells"
        assert meaning(name, N_TOP) is METRICS["discrimination_cosine"]
        assert of_perturbations(name, N_TOP) == name.removeprefix("mean_")
    assert of_perturbations("mean_absolute_error", N_TOP) == "mean_absolute_error"
    assert (
        of_perturbations("median_mean_absolute_error_held_out", N_TOP)
        == "mean_absolute_error_held_out"
    )
    assert of_perturbations("pearson_top3_held_out", N_TOP) == "pearson_top3_held_out"
    for name in ("iwelbo", "mean_correlation", "spread_pearson", "unknown"):
        assert of_perturbations(name, N_TOP) is None
