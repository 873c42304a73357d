"""Ranking of models: closed forms, a brute-force bootstrap, and exchangeable models."""

import numpy as np
import pandas as pd
import pytest

from samsvae.evaluation.agreement import correlation_with_noise_free
from samsvae.evaluation.metrics import METRICS, de_metrics
from samsvae.evaluation.ranking import (
    CHANCE,
    N_RESAMPLES,
    RANKING,
    Panel,
    normalised_scores,
    rank_models,
    ranked_metrics,
    resampled_averages,
    resampled_weights,
)

N_TOP = 20
RANK, AUROC, PEARSON, RMSE = "retrieval_rank_held_out", "de_auroc", "pearson_held_out", "rmse_held_out"  # fmt: skip
REPLICATES = {RANK: 0.1, AUROC: 0.9, PEARSON: 0.5}


def scores_of(values, split="s", tested=True):
    """Scores of perturbations by model and metric, one row of each per seed."""
    rows = [
        pd.DataFrame(
            {
                "split": split,
                "model": model,
                "seed": seed,
                "perturbation": [f"P{i}" for i in range(len(run))],
                "tested": tested,
                "metric": metric,
                "value": run,
            }
        )
        for (model, metric), runs in values.items()
        for seed, run in enumerate(np.atleast_2d(runs))
    ]
    return pd.concat(rows, ignore_index=True)


def calibration_of(replicates, bds=1.0, split="s"):
    return pd.DataFrame(
        {"split": split, "metric": list(replicates), "bds": bds, "replicate": replicates.values()}
    )


def ranking_of(values, replicates=REPLICATES, floor="floor", **more):
    models = list(dict.fromkeys(model for model, _ in values))
    calibration = calibration_of(replicates, **more)
    return rank_models(scores_of(values), calibration, models, floor, N_TOP).set_index("model")


def around(mean, n=30, seed=0):
    """Numbers whose mean and median are both the given one."""
    half = np.random.default_rng(seed).uniform(0.01, 0.08, n // 2)
    return mean + np.concatenate([half, -half])


def test_the_floor_has_0_and_the_ceiling_1():
    noise_free = correlation_with_noise_free(REPLICATES[PEARSON])
    levels = {
        "floor": {RANK: 0.5, AUROC: 0.6, PEARSON: 0.2},
        "ceiling": {**REPLICATES, PEARSON: noise_free},
        "half": {RANK: 0.3, AUROC: 0.75, PEARSON: (0.2 + noise_free) / 2},
        "beyond": {RANK: -0.1, AUROC: 1.05, PEARSON: 0.2 + 1.5 * (noise_free - 0.2)},
    }
    values = {(m, name): around(v) for m, own in levels.items() for name, v in own.items()}
    table = ranking_of(values)
    assert list(table.index) == ["beyond", "ceiling", "half", "floor"]
    expected = {"floor": 0, "half": 0.5, "ceiling": 1, "beyond": 1.5}
    assert table["score"].to_dict() == pytest.approx(expected)
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert table["difference"].tolist() == pytest.approx([0, -0.5, -1, -1.5])
    # all models have the same deviations of perturbations, so that no difference varies
    assert table["difference_low"].tolist() == pytest.approx(table["difference"].tolist(), abs=0.02)
    assert table.loc["floor", ["low", "high"]].tolist() == [0, 0]
    assert table["probability_best"].tolist() == [1, 0, 0, 0]
    assert (table["n_metrics"] == 3).all()
    assert table["metrics"].iloc[0] == f"{PEARSON}, {RANK}, {AUROC}"
    assert (table["reference"] == "floor").all()


def test_models_that_are_alike_share_a_rank():
    values = {(m, AUROC): around(0.8) for m in "ab"} | {("floor", AUROC): around(0.5)}
    table = ranking_of(values)
    assert table["rank"].tolist() == [1, 1, 3]
    np.testing.assert_allclose(table["probability_best"], [0.5, 0.5, 0])


def test_chance_takes_the_place_of_a_missing_floor_and_of_an_undefined_score():
    values = {("a", RANK): around(0.3), ("a", PEARSON): around(0.4)}
    values |= {("no_change", RANK): around(0.5), ("no_change", PEARSON): np.full(30, np.nan)}
    noise_free = correlation_with_noise_free(REPLICATES[PEARSON])
    for floor in (None, "elsewhere"):
        table = ranking_of(values, floor=floor)
        assert table.loc["a", "score"] == pytest.approx((0.2 / 0.4 + 0.4 / noise_free) / 2)
        assert table.loc["no_change", "score"] == pytest.approx(0)
        assert set(table["reference"]) == {CHANCE}
    by_floor = ranking_of(values, floor="no_change").loc["a", "score"]
    assert by_floor == pytest.approx(table.loc["a", "score"])


def test_metrics_without_a_scale_are_left_out():
    levels = {"floor": (0.5, 0.6, 2.0), "a": (0.3, 0.7, 1.0)}
    values = {
        (m, name): around(v)
        for m, own in levels.items()
        for name, v in zip((RANK, AUROC, RMSE), own, strict=True)
    }

    def counted(**replicates):
        table = ranking_of(values, {RANK: 0.1, AUROC: 0.9, RMSE: 1.5} | replicates)
        return set(table["metrics"].iloc[0].split(", ")) if len(table) else set()

    assert counted() == {RANK, AUROC, RMSE}
    assert counted(**{RANK: 0.6}) == {AUROC, RMSE}  # worse than the floor
    assert counted(**{RANK: 0.46}) == {AUROC, RMSE}  # 8 % of the range from 0.5 to 0
    assert counted(**{RANK: np.nan, AUROC: 0.55}) == {RMSE}
    assert counted(**{RMSE: 4.0}) == {RANK, AUROC}  # half of it is the noise-free error
    nothing = ranking_of(values, {RANK: 0.1}, bds=0.79)
    assert nothing.empty
    assert [nothing.index.name, *nothing] == RANKING
    values["b", RANK] = around(0.2)  # has no error, which has no value by chance, and no AUROC
    values["b", AUROC] = values["b", RMSE] = np.full(30, np.nan)
    assert counted() == {RANK, AUROC}


def test_only_calibrated_metrics_of_held_out_cells_count_each_once():
    names = [
        "pearson", PEARSON, "pearson_top20_held_out", "pearson_expressed_held_out", AUROC,
        "de_auroc_with_targets", "l2_held_out", RMSE, "retrieval_rank_with_targets_held_out",
        "weighted_mse_held_out", "pearson_measured_control_held_out",
    ]  # fmt: skip
    table = calibration_of(dict.fromkeys(names, 0.5))
    table = pd.concat(
        [table, table.assign(split="t", bds=np.where(table["metric"] == RMSE, 0.5, 1))]
    )
    assert set(ranked_metrics(table, N_TOP)) == {PEARSON, AUROC, "weighted_mse_held_out"}
    unknown = table.assign(bds=np.nan)
    assert not ranked_metrics(unknown, N_TOP)


def test_only_tested_perturbations_count():
    values = {("a", AUROC): around(0.8), ("floor", AUROC): around(0.5)}
    untested = {key: np.zeros(50) for key in values}
    tested = scores_of(values)
    others = scores_of(untested, tested=False)
    others["perturbation"] = "U" + others["perturbation"]
    both = pd.concat([others, tested])
    calibration = calibration_of(REPLICATES)
    expected = rank_models(tested, calibration, ["a", "floor"], "floor", N_TOP)
    pd.testing.assert_frame_equal(
        rank_models(both, calibration, ["a", "floor"], "floor", N_TOP), expected
    )
    none = rank_models(others, calibration, ["a", "floor"], "floor", N_TOP)
    assert none["n_perturbations"].tolist() == [50, 50]


@pytest.mark.parametrize("average", ["mean", "median"])
@pytest.mark.parametrize("n", [1, 2, 7, 40, 3001])
def test_averages_of_samples_are_those_of_repeated_numbers(average, n):
    rng = np.random.default_rng(n)
    weights = resampled_weights(n, n, rng)[:, :60]
    values = rng.normal(size=(4, n))
    values[1] = rng.integers(0, 3, n)  # ties
    values[2, rng.random(n) < 0.4] = np.nan
    values[3] = np.nan
    found = resampled_averages(values, weights, average)
    for column, row in enumerate(values):
        for sample in range(60):
            repeated = np.repeat(row, weights[:, sample].astype(int))
            repeated = repeated[np.isfinite(repeated)]
            expected = getattr(np, average)(repeated) if len(repeated) else np.nan
            assert found[column, sample] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def panel_of(values, metric=AUROC, splits=("s",)):
    """Splits x seeds x models x perturbations, one metric; models are a, b, ..."""
    known = {RANK: METRICS["retrieval_rank"], AUROC: de_metrics(N_TOP)["auroc"]}
    models = list("abcdef")[: values.shape[2]]
    return Panel(values[:, :, :, None], list(splits), models, {metric: known[metric]})


def draws_of(values, metric=RANK, floor=None):
    panel = panel_of(values, metric, range(len(values)))
    ceilings = np.full((len(values), 1), 0.0 if metric == RANK else 1.0)
    draws, [_] = normalised_scores(panel, ceilings, floor)
    return draws


def test_the_spread_of_samples_is_the_standard_error():
    """Of a mean over perturbations, over seeds on one split, and over splits; 0.5 is the scale."""
    rng = np.random.default_rng(2)
    for axis, shape in ((3, (1, 1, 1, 80)), (1, (1, 10, 1, 1)), (0, (10, 1, 1, 1))):
        values = rng.normal(0.3, 0.05, shape)
        expected = values.std(ddof=1, axis=axis).item() / np.sqrt(shape[axis]) / 0.5
        draws = draws_of(values)
        assert draws[0, 0] == pytest.approx((0.5 - values.mean()) / 0.5)
        assert len(draws) == 1 + N_RESAMPLES
        assert draws[1:, 0].std() == pytest.approx(expected, rel=0.12)
        assert draws[1:, 0].mean() == pytest.approx(draws[0, 0], abs=4 * expected / 30)
    # seeds on several splits are averaged first
    values = np.broadcast_to(rng.normal(0.3, 0.05, (1, 4, 1, 1)), (3, 4, 1, 1))
    assert np.ptp(draws_of(values)) == pytest.approx(0, abs=1e-6)


def test_a_baseline_without_seeds_is_compared_with_each_of_them():
    rng = np.random.default_rng(3)
    values = rng.normal(0.3, 0.05, (1, 5, 2, 1))
    values[:, 1:, 1] = np.nan
    draws = draws_of(values)
    assert np.ptp(draws[:, 1]) == 0
    assert draws[1:, 0].std() > 0
    against = draws_of(values, floor="b")
    expected = (values[0, 0, 1, 0] - values[0, :, 0, 0].mean()) / values[0, 0, 1, 0]
    assert against[0].tolist() == pytest.approx([expected, 0])


def test_one_perturbation_has_no_interval():
    """Also with several seeds, which a baseline without any would seem not to need."""
    table = ranking_of({("a", RANK): [[0.1], [0.3]], ("floor", RANK): [0.5]})
    assert table.loc["a", "score"] == pytest.approx(0.75)
    assert table[["low", "high", "probability_best", "difference_low"]].isna().all(axis=None)


def test_a_metric_and_its_mirror_image_give_the_same_scores():
    values = np.random.default_rng(4).uniform(0.1, 0.4, (1, 3, 3, 25))
    mean = draws_of(values)
    half = 0.5 - values
    np.testing.assert_allclose(mean[0], 2 * half.mean(axis=(0, 1, 3)))
    higher = draws_of(0.5 + half, metric=AUROC, floor=None)
    expected = 2 * np.median(half, axis=3).mean(axis=(0, 1))
    np.testing.assert_allclose(higher[0], expected)


def test_the_order_of_rows_and_models_does_not_matter_and_numbers_are_seeded():
    rng = np.random.default_rng(5)
    values = {
        (m, name): rng.uniform(0.2, 0.9, (3 if m != "floor" else 1, 20))
        for m in ("a", "b", "floor")
        for name in (AUROC, RANK)
    }
    values["floor", RANK] += 1
    scores, calibration = scores_of(values), calibration_of(REPLICATES)
    one = rank_models(scores, calibration, ["a", "b", "floor"], "floor", N_TOP)
    shuffled = scores.sample(frac=1, random_state=1)
    other = rank_models(shuffled, calibration, ["floor", "b", "a"], "floor", N_TOP)
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_seeds", "n_perturbations", "of_seeds", "of_perturbations"),
    [(3, 60, 0.001, 0.1), (15, 60, 0.02, 0.1), (1, 60, 0.0, 0.1)],
)
def test_exchangeable_models_differ_at_the_nominal_rate(
    n_seeds, n_perturbations, of_seeds, of_perturbations
):
    rng = np.random.default_rng(6)
    hard = rng.uniform(0.1, 0.4, n_perturbations)
    missed = 0
    n_simulations = 400
    for _ in range(n_simulations):
        own = of_perturbations * rng.normal(size=(1, 1, 2, n_perturbations))
        seeds = of_seeds * rng.normal(size=(1, n_seeds, 2, 1))
        draws = draws_of(hard + own + seeds)
        low, high = np.quantile(draws[1:, 0] - draws[1:, 1], [0.025, 0.975])
        missed += not low <= 0 <= high
    assert 0.02 <= missed / n_simulations <= 0.09
