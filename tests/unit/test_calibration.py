"""Calibration of metrics: closed forms, simulated screens, and scPertEval on the same cells."""

import anndata
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy import sparse

from samsvae.config.experiments import Split
from samsvae.evaluation.compared import (
    COLUMNS,
    LEAST_BDS,
    calibrate,
    calibrate_by,
    calibration_as_metrics,
    discriminates,
    dynamic_range,
)
from samsvae.evaluation.effects import group_means
from samsvae.evaluation.metrics import (
    MEAN_OF_ALL,
    MEAN_OF_OTHERS,
    METRICS,
    NAMES,
    NO_CHANGE,
    de_metrics,
    described,
    read_perturbation_metrics,
    read_run_metrics,
)
from samsvae.evaluation.observed import split_half, t_of_others
from samsvae.evaluation.scores import effect_scores
from samsvae.evaluation.summary import with_calibration
from samsvae.figures.scores import UNCALIBRATED, draw_metrics
from samsvae.report.verdict import calibration_in_words, condition_tables, sentences
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import write_parquet_parts
from samsvae.screen.splits import split_screen

N_TOP, FDR = 10, 0.05


def halves_of(first, second, t=None, n_test=1):
    """One half of the cells as the prediction of the other."""
    names = [f"P{row}" for row in range(len(first))]
    genes = [f"g{column}" for column in range(first.shape[1])]
    table = anndata.AnnData(first, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=genes))
    table.layers["ate"] = table.layers["ate_held_out"] = second
    table.layers["fdr"] = np.where(np.abs(second) > 1.5, 0.01, 1.0)
    table.layers["t_of_others"] = second if t is None else t
    table.obs["n_test"] = n_test
    for cells in ("", "_held_out", "_trained"):
        table.var[f"control_mean{cells}"] = np.arange(first.shape[1], dtype=float)
    return table


def calibration(first, second, **how):
    return calibrate(halves_of(first, second, **how), N_TOP, FDR).set_index("metric")


def test_the_two_scores_of_a_metric_are_their_definitions():
    error, correlation = METRICS["rmse"], METRICS["pearson"]
    positive, negative = np.array([1.0, 3, 1, np.nan]), np.array([2.0, 2, -1, 1])
    np.testing.assert_allclose(
        dynamic_range(positive, negative, error), [0.5, -0.5, np.nan, np.nan], atol=1e-5
    )
    np.testing.assert_array_equal(discriminates(positive, negative, error), [1, 0, 0, np.nan])
    positive, negative = np.array([0.5, -5, 0.2]), np.array([0.0, 0.5, 0.2])
    np.testing.assert_allclose(
        dynamic_range(positive, negative, correlation), [0.5, -1, 0], atol=1e-5
    )
    np.testing.assert_array_equal(discriminates(positive, negative, correlation), [1, 0, 0])


def test_every_metric_is_calibrated_and_separates_a_replicate_without_noise_from_the_mean():
    effect = np.random.default_rng(1).normal(size=(15, 60))
    table = calibration(effect, effect)
    assert [table.index.name, *table] == COLUMNS
    registered = [f"{name}{cells}" for name in METRICS for cells in ("", "_held_out")]
    assert {*registered, *(f"de_{name}" for name in de_metrics(N_TOP))} <= set(table.index)
    assert table["ranks_models"].all()
    assert (table["n"] == 15).all()
    # the 10 first genes need not all be differentially expressed
    attainable = table.drop(index=["de_precision_at_10", "de_recall_at_10"])
    np.testing.assert_allclose(attainable["drf"], 1, atol=0.01)


def test_pure_noise_calibrates_no_metric_of_specific_effects():
    """All perturbations have one effect: a replicate is no better than the mean of the others."""
    rng = np.random.default_rng(2)
    shared = rng.normal(size=200)
    first, second = shared + rng.normal(size=(2, 60, 200))
    table = calibration(first, second)
    for name in ("pearson_held_out", "rmse_held_out", "weighted_mse_held_out"):
        assert table.loc[name, "bds"] < 0.1
        assert not table.loc[name, "ranks_models"]
        assert table.loc[name, "drf"] < 0
    ranks = table.loc["retrieval_rank_held_out"]
    assert ranks["bds"] == pytest.approx(0.5, abs=0.2)
    assert ranks["negative_control"] == MEAN_OF_ALL
    assert table.loc["pearson_from_mean_held_out", "negative_control"] == NO_CHANGE


def test_only_perturbations_with_test_cells_and_both_halves_count():
    rng = np.random.default_rng(3)
    effect = rng.normal(size=(10, 40))
    second = effect.copy()
    second[8:] = np.nan
    n_test = np.array([1] * 5 + [0] * 3 + [1] * 2)
    table = calibration(effect, second, n_test=n_test)
    assert (table.loc[["rmse_held_out", "pearson"], "n"] == 5).all()
    assert (calibration(effect, second, n_test=0).loc[["rmse", "cosine_held_out"], "n"] == 8).all()
    nothing = calibration(effect, np.full_like(effect, np.nan))
    assert nothing["bds"].isna().all()
    assert not nothing["ranks_models"].any()


def test_a_screen_of_strong_effects_is_calibrated_without_any_model(tiny_screen):
    parts = pd.Series("test", index=tiny_screen.obs_names)
    halves = split_half(tiny_screen, parts, 0, "{}")
    table = calibrate(halves, N_TOP, FDR).set_index("metric")
    for name in ("discrimination_cosine", "weighted_pearson", "pearson_measured_control"):
        assert 0 < table.loc[f"{name}_held_out", "drf"] < 1
        assert table.loc[f"{name}_held_out", "ranks_models"]
    assert set(table["negative_control"]) == {MEAN_OF_OTHERS, MEAN_OF_ALL, NO_CHANGE}


def test_a_split_without_held_out_control_cells_is_not_calibrated(tiny_screen):
    labels = tiny_screen.obs["perturbation"].astype(str)
    parts = pd.Series(split_screen(tiny_screen, Split("random", 0)), index=tiny_screen.obs_names)
    parts[labels == "control"] = "train"
    with pytest.raises(InputError, match="held-out"):
        split_half(tiny_screen, parts, 0, "{}")
    halves = split_half(tiny_screen, parts, 0, "{}", required=False)
    assert not np.asarray(halves.X).any()
    assert np.isnan(halves.layers["ate_held_out"]).all()
    assert (calibrate(halves, N_TOP, FDR)["n"] == 0).all()


def test_calibration_stands_among_the_metrics_but_is_no_score_of_a_model(tmp_path):
    first, second = np.random.default_rng(4).normal(size=(2, 12, 30)) + np.arange(12)[:, None]
    table = calibrate(halves_of(first, second), N_TOP, FDR)
    rows = calibration_as_metrics(table).assign(split="s", model="split_half", seed=0)
    score = pd.DataFrame({"scope": ["test"], "metric": "pearson_held_out", "value": 0.5})
    parts = [described(one, N_TOP) for one in (rows, score.assign(split="s", model="m", seed=1))]
    path = tmp_path / "metrics.parquet"
    write_parquet_parts(parts, NAMES, "{}", path)
    every = pd.read_parquet(path)
    assert every["description"].notna().all()
    assert not every["metric"].duplicated().any()
    found = every[every["scope"] == "calibration"].set_index("metric")["value"]
    assert len(found) == 2 * len(table)
    for _, row in table.iterrows():
        for name in ("drf", "bds"):
            np.testing.assert_equal(found[f"{name}_{row['metric']}"], row[name])
    assert read_run_metrics(path)["model"].tolist() == ["m"]
    assert read_perturbation_metrics(path, ["s"]).empty


def test_the_replicates_score_is_the_average_of_its_metric():
    first, second = np.random.default_rng(5).normal(size=(2, 9, 30)) + np.arange(9)[:, None] % 2
    table = calibration(first, second)
    ranks = METRICS["retrieval_rank"].function(second, first)
    assert table.loc["retrieval_rank_held_out", "replicate"] == pytest.approx(ranks.mean())
    errors = METRICS["rmse"].function(second, first)
    assert table.loc["rmse_held_out", "replicate"] == pytest.approx(np.median(errors))


def test_metrics_that_cannot_rank_models_decide_nothing():
    calibrated = pd.DataFrame(
        {
            "split": ["s0", "s1"] * 2,
            "metric": ["rmse_held_out"] * 2 + ["pearson_held_out"] * 2,
            "drf": [0.1, 0.3, 0.5, 0.5],
            "bds": [LEAST_BDS, LEAST_BDS - 0.1, 0.9, 0.8],
        }
    )
    metrics = ["median_rmse_held_out", "median_rmse_held_out", "pearson_held_out", "iwelbo"]
    summary = pd.DataFrame(
        {
            "metric": metrics,
            "verdict": ["best", "ceiling", "best", "best"],
            "p_adjusted": 0.01,
            "tested_over": "seeds",
        }
    )
    found = with_calibration(summary, calibrated, N_TOP)
    assert found["verdict"].tolist() == ["not_ranked", "ceiling", "best", "best"]
    assert found["p_adjusted"].isna().tolist() == [True, False, False, False]
    np.testing.assert_allclose(found["bds"], [0.75, 0.75, 0.85, np.nan])
    np.testing.assert_allclose(found["drf"], [0.2, 0.2, 0.5, np.nan])
    differences = pd.DataFrame({"metric": metrics, "better": ["a", None, "tie", "b"]})
    found = with_calibration(differences, calibrated, N_TOP)
    assert found["better"].tolist() == ["not_ranked", None, "tie", "b"]


# metrics of scPertEval, ours, and whether they are calibrated by the same controls
OF_SCPERTEVAL = {
    "pearson_ctrl": ("pearson_measured_control_held_out", True),
    "r2_ctrl": ("r_squared_measured_control_held_out", True),
    "l2_heg_k": ("l2_expressed_held_out", True),
    "pearson_ctrl_heg_k": ("pearson_expressed_held_out", True),
    "wmse_exp2": ("weighted_mse_held_out", True),
    "weighted_r2_ctrl_exp2": ("weighted_r_squared_held_out", True),
    "weighted_pearson_ctrl_exp2": ("weighted_pearson_held_out", True),
    "nir": ("discrimination_l2_measured_control_held_out", True),
    "r2_pert": ("r_squared_from_others_held_out", False),
}


@pytest.fixture(scope="module")
def scperteval():
    pytest.importorskip("scperteval", reason="scPertEval is not installed")
    import scperteval

    return scperteval


@pytest.fixture(scope="module")
def cells():
    """Expression of cells: a shared and a specific effect of each perturbation, and noise."""
    rng = np.random.default_rng(5)
    n_genes, labels = 1100, np.repeat([f"P{i:02d}" for i in range(12)] + ["control"], 40)
    effect = 0.3 * rng.normal(size=n_genes) + 0.3 * rng.normal(size=(12, n_genes))
    mean = rng.gamma(2, size=n_genes) + np.repeat(
        np.vstack([effect, np.zeros(n_genes)]), 40, axis=0
    )
    expression = np.maximum(mean + rng.normal(size=mean.shape), 0)
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    return anndata.AnnData(expression, obs=obs)


@pytest.fixture(scope="module")
def prepared(scperteval, cells):
    return scperteval.prepare(cells, list(OF_SCPERTEVAL), workers=1)


def profiles(cells, chosen=slice(None)):
    """Mean expression of perturbations, control last."""
    names = sorted(set(cells.obs["perturbation"]) - {"control"})
    some = cells[chosen]
    blocks = [(sparse.csr_matrix(some.X), some.obs["perturbation"])]
    return group_means(blocks, names, cells.n_vars)


def as_table(cells, measured, predicted):
    """Effects on the scale of scPertEval: all are differences from one control profile."""
    control = profiles(cells).mean[-1]
    table = halves_of(predicted - control, measured.mean[:-1] - control, t_of_others(measured))
    table.obs_names = sorted(set(cells.obs["perturbation"]) - {"control"})
    table.layers["fdr"][:] = 1.0
    for which in ("", "_held_out", "_trained"):
        table.var[f"control_mean{which}"] = control
    return table


@pytest.mark.parametrize("name", OF_SCPERTEVAL)
def test_metrics_equal_those_of_scperteval(scperteval, prepared, cells, name):
    rng = np.random.default_rng(6)
    predicted = cells[cells.obs["perturbation"] != "control"].copy()
    predicted.X = 0.7 * predicted.X + rng.gamma(1, size=predicted.shape)
    guess = np.vstack([predicted[predicted.obs["perturbation"] == p].X.mean(axis=0) for p in sorted(set(predicted.obs["perturbation"]))])  # fmt: skip
    table = as_table(cells, profiles(cells), guess)
    for part in ("train", "val", "test"):
        table.obs[f"n_{part}"] = 1
    table.obs["n_held_out"] = 40
    ours = effect_scores(table, table, N_TOP, FDR).by_perturbation[OF_SCPERTEVAL[name][0]]
    theirs = scperteval.score(prepared, name, predicted).per_perturbation
    theirs = theirs.set_index("perturbation")["score"].reindex(ours.index)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, (_, same) in OF_SCPERTEVAL.items() if same])
def test_calibration_equals_that_of_scperteval(scperteval, prepared, cells, name):
    halves = [
        np.concatenate([own[side] for own in prepared._ds.halves.values()]) for side in (0, 1)
    ]
    control = np.flatnonzero(cells.obs["perturbation"] == "control")
    measured, replicate = (profiles(cells, np.r_[half, control]) for half in halves)
    table = as_table(cells, measured, replicate.mean[:-1])
    # scPertEval compares the half with all cells of the others
    labels = cells.obs["perturbation"]
    for row, perturbation in enumerate(table.obs_names):
        own = np.intersect1d(halves[0], np.flatnonzero(labels == perturbation))
        others = np.flatnonzero(~labels.isin([perturbation, "control"]))
        two = pd.Series(["own"] * len(own) + ["rest"] * len(others))
        both = sparse.csr_matrix(cells.X[np.r_[own, others]])
        table.layers["t_of_others"][row] = t_of_others(group_means([(both, two)], ["own", "rest"], cells.n_vars))[0]  # fmt: skip
    everything = profiles(cells).mean
    mean = everything[:-1].mean(axis=0)
    without = (everything[:-1].sum(axis=0) - everything[:-1]) / (len(table) - 1)
    controls = {}
    for control_name, guess in ((MEAN_OF_OTHERS, without), (MEAN_OF_ALL, np.tile(mean, (12, 1)))):
        controls[control_name] = table.copy()
        controls[control_name].X = guess - everything[-1]
    ours = calibrate_by(table, controls, np.ones(12, dtype=bool), N_TOP, FDR)
    ours = ours.set_index("metric").loc[OF_SCPERTEVAL[name][0]]
    drf, bds = (
        scperteval.calibrate(prepared, name, calibrator=kind, positive="tech_dup").aggregate
        for kind in ("drf", "bds")
    )
    assert ours["drf"] == pytest.approx(drf["median"], abs=1e-6)
    assert ours["bds"] == bds["bds"]


def summary_with(verdicts, bds):
    rows = [
        ("test", metric, model, value, verdict, bds.get(metric, np.nan))
        for metric, own in verdicts.items()
        for (model, verdict), value in zip(own.items(), (0.6, 0.4), strict=True)
    ]
    columns = ["scope", "metric", "model", "value", "verdict", "bds"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(fraction=np.nan, low=np.nan, high=np.nan, tested_over=None)


SUMMARY = summary_with(
    {
        "pearson_held_out": {"a": "best", "b": "worse"},
        "median_de_auroc": {"a": "not_ranked", "b": "not_ranked"},
    },
    {"pearson_held_out": 0.9, "median_de_auroc": 0.55},
)


def test_the_figure_greys_a_score_that_cannot_rank_models():
    figure = draw_metrics(SUMMARY, ["a", "b"], {"top_genes": N_TOP})
    ranked, not_ranked = figure.axes[:2]
    for axis, is_grey in ((ranked, False), (not_ranked, True)):
        colours = {line.get_markeredgecolor() for line in axis.lines if line.get_marker() == "o"}
        assert (colours == {UNCALIBRATED}) == is_grey
        assert ("cannot rank models" in axis.get_title()) == is_grey
    faces = [line.get_markerfacecolor() for line in not_ranked.lines if line.get_marker() == "o"]
    assert set(faces) == {"white"}
    plt.close(figure)


def test_the_report_names_scores_that_cannot_rank_models_and_why():
    [best] = sentences(SUMMARY, N_TOP)["effects"]
    assert best.startswith("For a, predicted effects agree best")
    [reason] = calibration_in_words(SUMMARY, N_TOP)
    assert "cannot rank models on this screen" in reason
    assert reason.endswith("AUROC of DE genes (0.55).")
    [table] = condition_tables(SUMMARY, ["a", "b"], N_TOP)
    assert [row[1]["verdict"] for row in table["rows"]] == ["best", "not_ranked"]
    assert not calibration_in_words(SUMMARY[SUMMARY["verdict"] != "not_ranked"], N_TOP)
    scores = pd.DataFrame(
        {
            "scope": "test",
            "metric": ["rmse_held_out", "median_rmse_held_out", "spread_rmse_held_out",
                       "median_rmse_top10_held_out", "l2_held_out", "iwelbo", "pearson", "rmse"],
            "bds": [0.2, 0.2, 0.2, 0.3, 0.2, np.nan, 0.5, 0.5],
        }
    )  # fmt: skip
    [reason] = calibration_in_words(scores, N_TOP)
    assert reason.endswith("(fraction in brackets): RMSE (0.20); Pearson r, all cells (0.50).")


# sevenths, by discrimination_score of cell-eval2 0.20.0 with rank_denominator="n-1": with
# exclude_target_gene=False, by default (without targets), and with control_source="real"
OF_CELL_EVAL2 = {
    "discrimination_l1_with_targets": [3, 0, 4, 7, 5, 7, 1, 7],
    "discrimination_l2_with_targets": [3, 2, 3, 6, 7, 7, 4, 7],
    "discrimination_cosine_with_targets": [3, 2, 3, 7, 7, 7, 4, 6],
    "discrimination_l1": [3, 2, 4, 4, 5, 6, 2, 7],
    "discrimination_l2": [4, 4, 3, 4, 6, 6, 3, 7],
    "discrimination_cosine": [4, 4, 3, 5, 6, 7, 3, 6],
    "discrimination_l1_measured_control": [7, 6, 2, 0, 6, 6, 3, 7],
    "discrimination_l2_measured_control": [7, 6, 1, 1, 7, 6, 3, 7],
    "discrimination_cosine_measured_control": [6, 6, 2, 1, 7, 6, 3, 7],
}


@pytest.mark.parametrize("name", OF_CELL_EVAL2)
def test_discrimination_equals_that_of_cell_eval2(name):
    rng = np.random.default_rng(7)
    real, noise = rng.normal(size=(2, 9, 30))  # profiles, control last
    predicted = real + 4 * noise
    observed = halves_of(predicted[:-1] - predicted[-1], real[:-1] - real[-1])
    observed.obs_names = [f"g{row}" for row in range(8)]
    observed.var["control_mean_held_out"] = real[-1]
    observed.var["control_mean_trained"] = predicted[-1]
    for part in ("train", "val", "test", "held_out"):
        observed.obs[f"n_{part}"] = 1
    found = effect_scores(observed, observed, N_TOP, FDR).by_perturbation[f"{name}_held_out"]
    np.testing.assert_allclose(7 * found, OF_CELL_EVAL2[name], atol=1e-6)
