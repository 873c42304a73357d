"""Intervals, paired differences and verdicts against closed forms, truth and the null."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from samsvae.config.experiments import Split
from samsvae.evaluation.agreement import (
    correlation_with_noise_free,
    error_of_noise_free,
    mean_absolute_error,
    pearson,
    rmse,
)
from samsvae.evaluation.comparison import (
    Replicates,
    Rules,
    differences_of_runs,
    holm,
    intervals,
    mean_and_interval,
    p_value,
    paired_differences,
    replicates_of_runs,
)
from samsvae.evaluation.metrics import METRICS, NAMES, described, meaning
from samsvae.evaluation.summary import (
    NOISE_CEILING,
    ComparedModels,
    compare_models,
    relative_bounds,
)
from samsvae.runtime.files import write_parquet_parts

KINDS = {"a": "sams_vae", "b": "cpa_vae", "floor": "mean_effect", "half": "split_half"}
MODELS = list(KINDS)
MEANING = partial(meaning, n_top=20)
RULES = Rules(MODELS, MEANING, "holm", 0.05)


def runs(model, values, metric="pearson_held_out", scope="test", split="s", seeds=None):
    seeds = range(len(values)) if seeds is None else seeds
    splits = split if isinstance(split, list) else [split] * len(values)
    rows = zip(splits, seeds, values, strict=True)
    return pd.DataFrame(
        [
            {
                "split": s,
                "model": model,
                "seed": seed,
                "scope": scope,
                "metric": metric,
                "value": value,
            }
            for s, seed, value in rows
        ]
    )


def test_the_paired_test_is_students_on_the_differences():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 3))
    values[2, 1] = np.nan
    replicates = Replicates("splits", ["a", "b", "c"], values, np.ones(3, dtype=bool))
    table = paired_differences(replicates, "higher", "bh", 0.05).set_index(["first", "second"])
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        x, y = values[:, first], values[:, second]
        both = np.isfinite(x) & np.isfinite(y)
        expected = stats.ttest_rel(x[both], y[both])
        row = table.loc[("abc"[first], "abc"[second])]
        assert row["p_value"] == pytest.approx(expected.pvalue)
        assert row["n"] == both.sum()
        interval = expected.confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    corrected = stats.false_discovery_control(table["p_value"])
    np.testing.assert_allclose(table["p_adjusted"], corrected)


@pytest.mark.slow
@settings(max_examples=15)  # statsmodels takes its time
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p):
    np.testing.assert_allclose(holm(np.array(p)), multipletests(p, method="holm")[1], atol=1e-12)


@given(
    st.lists(
        st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=3, max_size=3),
        min_size=2,
        max_size=6,
    ),
    st.floats(-5, 5).map(lambda x: round(x, 2)),
)
def test_order_of_models_and_common_shifts_do_not_matter(rows, shared):
    values = np.array(rows)
    names, every = ["a", "b", "c"], np.ones(3, dtype=bool)
    table = paired_differences(Replicates("seeds", names, values, every), "lower", "holm", 0.05)
    harder = values + shared * np.arange(len(values))[:, None]  # a split may be harder for all
    again = paired_differences(Replicates("seeds", names, harder, every), "lower", "holm", 0.05)
    np.testing.assert_allclose(again["difference"], table["difference"], atol=1e-9)
    turned = Replicates("seeds", names[::-1], values[:, ::-1], every)
    back = paired_differences(turned, "lower", "holm", 0.05)
    forth = {frozenset((r["first"], r["second"])): r for _, r in table.iterrows()}
    for _, row in back.iterrows():
        same = forth[frozenset((row["first"], row["second"]))]
        assert row["difference"] == pytest.approx(-same["difference"], abs=1e-12)
        assert row["better"] == same["better"]


def test_what_cannot_be_tested_is_missing_and_no_difference_is_a_tie():
    one = Replicates("seeds", ["a", "b"], np.array([[1.0, 2.0]]), np.ones(2, dtype=bool))
    [row] = paired_differences(one, "higher", "holm", 0.05).to_dict("records")
    assert row["difference"] == -1
    assert row["better"] is None
    assert np.isnan([row["low"], row["p_value"], row["p_adjusted"]]).all()
    alike = Replicates("seeds", ["a", "b"], np.ones((3, 2)), np.ones(2, dtype=bool))
    [row] = paired_differences(alike, "higher", "holm", 0.05).to_dict("records")
    assert (row["p_value"], row["better"], row["fraction_better"]) == (1.0, "tie", 0.5)
    assert p_value(np.array([[2.0], [2.0]])) == [0.0]


def test_intervals_of_means_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    for n in (3, 5, 20):
        _, low, high = mean_and_interval(rng.normal(1.0, 2.0, size=(n, 20_000)))
        assert np.mean((low < 1) & (high > 1)) == pytest.approx(0.95, abs=0.006)


def test_seeds_on_a_split_are_averaged_and_baselines_stand_beside_every_seed():
    splits = ["s", "s", "t", "t"]
    table = runs("a", [1.0, 2.0, 4.0, 6.0], split=splits, seeds=[0, 1, 0, 1])
    replicates = replicates_of_runs(table, ["a"])
    assert replicates.over == "splits"
    np.testing.assert_allclose(replicates.values, [[1.5], [5.0]])
    single = pd.concat([runs("a", [1.0, 2.0, 3.0]), runs("floor", [0.5]), runs("half", [0.4])])
    replicates = replicates_of_runs(single, MODELS)
    assert replicates.over == "seeds"
    assert list(replicates.replicated) == [True, False, False, False]
    np.testing.assert_allclose(replicates.values[:, 2], 0.5)
    assert np.isnan(replicates.values[:, 1]).all()
    pairs = differences_of_runs(single, RULES).set_index(["first", "second"])
    assert pairs.loc[("a", "floor"), "n"] == 3
    assert pairs.loc[("floor", "half"), "n"] == 1
    assert np.isnan(pairs.loc[("floor", "half"), "p_value"])
    means = intervals(single, RULES).set_index("model")
    # Student's t reaches from -0.48 to 4.48, a correlation to 1
    assert (means.loc["a", "low"], means.loc["a", "high"]) == (pytest.approx(-0.484, abs=1e-3), 1)
    assert (means.loc["floor", "n"], means.loc["a", "n"]) == (1, 3)
    assert np.isnan(means.loc["floor", "low"])


def null_scores(rng, n_metrics, n_models, n_splits):
    """Simulate scores of one model under several names: splits, seeds and noise differ."""
    tables = []
    for metric in range(n_metrics):
        difficulty = rng.standard_t(4, size=n_splits) * rng.choice([0.1, 10])
        scores = difficulty[:, None] + rng.normal(size=(n_splits, n_models))
        tables += [
            runs(f"m{m}", scores[:, m], f"x{metric}", split=[f"s{s}" for s in range(n_splits)])
            for m in range(n_models)
        ]
    return pd.concat(tables)


@pytest.mark.parametrize("n_splits", [3, 5])
def test_two_seeds_of_one_model_are_told_apart_no_more_often_than_they_should(n_splits):
    rng = np.random.default_rng(3)
    rules = Rules(["m0", "m1"], lambda name: METRICS["pearson"], "holm", 0.05)
    table = differences_of_runs(null_scores(rng, 200, 2, n_splits), rules)
    assert len(table) == 200
    assert np.mean(table["better"] != "tie") < 0.1
    # 200 repeats leave the rate uncertain by 1.5 points; as many as it takes to tell 5 from 6
    scores = rng.standard_t(4, size=(n_splits, 20_000, 1)) + rng.normal(size=(n_splits, 20_000, 2))
    assert 0.045 < np.mean(p_value(scores[..., 0] - scores[..., 1]) < 0.05) < 0.055


def test_holm_bounds_the_chance_of_any_false_claim_among_many_models():
    rng = np.random.default_rng(4)
    names = [f"m{m}" for m in range(6)]
    rules = Rules(names, lambda name: METRICS["pearson"], "holm", 0.05)
    table = differences_of_runs(null_scores(rng, 300, 6, 5), rules)
    assert (table["better"] != "tie").groupby(table["metric"]).any().mean() < 0.09


def test_a_real_difference_smaller_than_the_spread_of_splits_is_found():
    rng = np.random.default_rng(5)
    split = rng.normal(0, 18, size=5)  # nats, as the paper's bounds on Norman's screen
    names = [f"s{i}" for i in range(5)]
    table = pd.concat(
        [
            runs(m, split + gain + 0.1 * rng.normal(size=5), "iwelbo", split=names)
            for m, gain in (("a", 0.6), ("b", 0.0))
        ]
    )
    [pair] = differences_of_runs(table, RULES).to_dict("records")
    assert pair["better"] == "a"
    assert 0.3 < pair["low"] < 0.6 < pair["high"] + 0.3
    means = intervals(table, RULES)
    assert (means["high"] - means["low"]).min() > 10


def halves_and_truth(rng, noise, n=200_000):
    true = rng.normal(size=n)
    halves = true + noise * np.sqrt(2) * rng.normal(size=(2, n))
    return true, halves


@pytest.mark.parametrize("noise", [0.2, 1.0, 3.0])
def test_the_noise_ceiling_is_what_the_truth_scores(noise):
    true, (first, second) = halves_and_truth(np.random.default_rng(6), noise)
    measured = (first + second) / 2
    expected = pearson(measured, true)
    assert correlation_with_noise_free(pearson(second, first)) == pytest.approx(expected, abs=0.01)
    for error in (rmse, mean_absolute_error):
        ceiling = error_of_noise_free(error(second, first))
        assert ceiling == pytest.approx(error(measured, true), rel=0.01)
    assert np.isnan(correlation_with_noise_free(-0.1))
    assert np.isnan(correlation_with_noise_free(np.nan))
    assert correlation_with_noise_free(1.0) == 1


def write_metrics(path: Path, scores, gains):
    """Write the scores of runs, and of perturbations of which the models differ by their gains."""
    rng = np.random.default_rng(7)
    hard = rng.normal(size=40)
    tables = [
        pd.DataFrame(
            {
                "split": "s",
                "model": model,
                "seed": 0,
                "perturbation": [f"P{i}" for i in range(40)],
                "tested": np.arange(40) < 30,
                "scope": "perturbation",
                "metric": "de_auroc",
                "value": hard + gain + 0.1 * rng.normal(size=40),
            }
        )
        for model, gain in gains.items()
    ]
    write_parquet_parts([described(table, 20) for table in (scores, *tables)], NAMES, "{}", path)
    return path


def test_the_summary_marks_the_best_ties_and_ceilings(tmp_path):
    scores = pd.concat(
        [
            runs("a", [0.80, 0.81, 0.79]),
            runs("b", [0.79, 0.82, 0.78]),
            runs("floor", [0.2]),
            runs("half", [0.60, 0.61, 0.62]),
            runs("a", [0.9], "median_de_auroc"),
            runs("b", [0.5], "median_de_auroc"),
            runs("a", [3.0], "spread_pearson"),
        ]
    )
    path = write_metrics(tmp_path / "p.parquet", scores, {"a": 0.4, "b": 0.0})
    splits = {"s": Split("random", 0)}
    made = compare_models(path, {}, splits, RULES, ComparedModels.of(KINDS), 20)
    summary = made.summary.set_index(["metric", "model"])
    held_out = summary.loc["pearson_held_out"]
    assert held_out["verdict"].to_dict() == {
        "a": "best",
        "b": "not_different",
        "floor": "worse",
        "half": "ceiling",
        NOISE_CEILING: "ceiling",
    }
    ceiling = np.sqrt(2 * 0.61 / 1.61)
    assert held_out.loc[NOISE_CEILING, "value"] == pytest.approx(ceiling)
    assert held_out.loc["floor", "normalised"] == 0
    assert held_out.loc["a", "normalised"] == pytest.approx((0.8 - 0.2) / (ceiling - 0.2))
    assert held_out.loc["b", "tested_over"] == "seeds"
    auroc = summary.loc["median_de_auroc"]
    assert auroc["verdict"].to_dict() == {"a": "best", "b": "worse"}
    assert auroc.loc["b", "tested_over"] == "perturbations"
    within = made.differences[made.differences["over"] == "perturbations"]
    assert (within["n"] == 30).all()
    assert (within["fraction_better"] == 1).all()
    assert "spread_pearson" in set(made.intervals["metric"])
    assert "spread_pearson" not in set(made.differences["metric"])


def test_cells_are_replicates_of_single_runs(tmp_path):
    rng = np.random.default_rng(8)
    cells = rng.normal(-600, 50, size=400)
    paths = {}
    for model, gain in (("a", 1.0), ("b", 0.0)):
        paths[model] = tmp_path / f"{model}.parquet"
        pd.DataFrame(
            {
                "cell": [f"c{i}" for i in range(400)],
                "split": np.where(np.arange(400) < 200, "val", "test"),
                "iwelbo": cells + gain + rng.normal(size=400),
            }
        ).to_parquet(paths[model])
    scores = pd.concat([runs("a", [-599.0], "iwelbo"), runs("b", [-600.0], "iwelbo")])
    splits = {"s": Split("random", 0)}
    path = write_metrics(tmp_path / "metrics.parquet", scores, {})
    made = compare_models(path, paths, splits, RULES, ComparedModels.of(KINDS), 20)
    summary = made.summary.set_index("model")
    assert summary.loc["b", "verdict"] == "worse"
    assert summary.loc["b", "tested_over"] == "cells"
    assert set(made.differences["n"][made.differences["over"] == "cells"]) == {200}


def test_bounds_are_relative_to_the_first_model_at_the_smallest_fraction():
    splits = {f"f{f:g}-{k}": Split("unseen_combinations", k, f) for f in (0.0, 1.0) for k in (0, 1)}
    scores = pd.concat(
        [
            runs(m, [base + gain], "iwelbo", split=[name], seeds=[0])
            for m, gain in (("floor", 0.0), ("a", 1.0), ("b", 3.0))
            for name, base in zip(splits, (-10.0, -20.0, -8.0, -18.0), strict=True)
            if m != "floor"
        ]
    )
    table = relative_bounds(scores, splits, ["floor", "a", "b"]).set_index(["split", "model"])
    assert (table["metric"] == "iwelbo_relative").all()
    expected = {"f0-0": 0, "f0-1": 0, "f1-0": 2, "f1-1": 2}
    for name, value in expected.items():
        assert table.loc[(name, "a"), "value"] == value
        assert table.loc[(name, "b"), "value"] == value + 2
    assert relative_bounds(scores[:0], splits, ["a"]).empty


def test_every_metric_of_a_table_has_a_meaning_or_none_by_intent():
    assert MEANING("median_pearson_top20_held_out") is METRICS["pearson"]
    assert MEANING("rmse_held_out").direction == "lower"
    assert MEANING("mean_retrieval_rank").direction == "lower"
    assert MEANING("median_de_auroc").best == 1
    assert MEANING("iwelbo").unit == "nats per cell"
    assert MEANING("mean_correlation").direction == "higher"
    assert MEANING("spread_pearson") is None
    assert MEANING("mask_density") is None
