"""The command that revisits the paper's claim: what it runs, and how it counts what tables say."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from benchmarks.paper_claim import MODELS, N_TOP, configuration, read_options, report

from samsvae.config.configuration import merge, validate
from samsvae.evaluation.comparison import (
    Rules,
    differences_within_runs,
    intervals_and_differences,
)
from samsvae.evaluation.metrics import meaning
from samsvae.evaluation.summary import with_calibration
from tests.conftest import ROOT

RANK, ERROR, CORRELATION = (
    "mean_retrieval_rank_held_out",
    "median_rmse_held_out",
    "median_pearson_held_out",
)
BDS = {"retrieval_rank_held_out": 0.9, "rmse_held_out": 0.3, "pearson_held_out": 1.0}
SPLITS = [f"random-seed{seed}" for seed in range(3)]
FIRST, SECOND = "sams_vae_correlated", "training_mean"


def level(model: str, metric: str) -> float:
    """SAMS-VAE is best by the rank, where low is good, and the training mean by the correlation."""
    better = {RANK: {FIRST: 0.1}, CORRELATION: {SECOND: 0.9}, ERROR: {FIRST: 0.2}}[metric]
    return better.get(model, {RANK: 0.3, CORRELATION: 0.5, ERROR: 0.4}[metric])


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Lines of a run in which all that differs is :func:`level`, but for noise of 1e-3."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    rules = Rules(list(MODELS), lambda name: meaning(name, N_TOP), "holm", 0.05)

    def noisy(value):
        return value + 1e-3 * rng.normal()

    runs = [
        (split, model, 0, "test", metric, noisy(level(model, metric)))
        for split in SPLITS for model in MODELS for metric in (RANK, ERROR, CORRELATION)
    ]  # fmt: skip
    runs += [(split, FIRST, 0, "test", "iwelbo", -184.0) for split in SPLITS]
    runs += [
        (split, "cpa_vae", 0, "test", "iwelbo", -185 - 0.1 * i) for i, split in enumerate(SPLITS)
    ]
    runs += [
        (split, model, 0, "test", "rmse_held_out", noisy(level(model, ERROR)))
        for split in SPLITS
        for model in MODELS
    ]
    columns = ["split", "model", "seed", "scope", "metric", "value"]
    means, of_runs = intervals_and_differences(pd.DataFrame(runs, columns=columns), rules)
    units = pd.DataFrame(
        [
            (metric, unit, model, noisy(level(model, metric)))
            for metric in (RANK, ERROR, CORRELATION) for unit in range(25) for model in MODELS
        ],
        columns=["metric", "unit", "model", "value"],
    )  # fmt: skip
    within = differences_within_runs(units, "test", "perturbations", rules)
    calibration = pd.DataFrame({"metric": list(BDS), "bds": list(BDS.values()), "drf": 0.5})
    tables = {"intervals": means, "paired_differences": pd.concat([of_runs, within])}
    for name, table in tables.items():
        with_calibration(table, calibration, N_TOP).to_csv(
            folder / f"{name}.tsv", sep="\t", index=False
        )
    cells = pd.DataFrame(
        [(split, model, 0, noisy(0.5)) for split in SPLITS for model in MODELS],
        columns=["split", "model", "seed", "value"],
    )
    anchors = {"baseline": 0.0, "replicate": 1.0, "control": 0.5}
    cells = cells.assign(**anchors)
    vcc = [
        cells.assign(metric="pds_cosine", scaled=cells["value"]),
        cells.assign(metric="de_wilcoxon_lfc_nmae", scaled=np.nan),
    ]
    pd.concat(vcc).to_csv(folder / "vcc2026.tsv", sep="\t", index=False)
    cells.assign(metric="mmd").to_csv(folder / "population.tsv", sep="\t", index=False)
    pd.DataFrame(
        {"model": [SECOND, FIRST], "score": [0.9, 0.8], "low": 0.7, "high": 1.0,
         "probability_best": [0.6, np.nan], "metrics": "pearson_held_out"}
    ).to_csv(folder / "ranking.tsv", sep="\t", index=False)  # fmt: skip
    found = [json.dumps(line, allow_nan=False) for line in report(folder)]
    return [json.loads(line) for line in found]


def test_only_calibrated_metrics_are_reported(lines):
    assert lines[0]["calibrated"] == ["retrieval_rank_held_out", "pearson_held_out"]
    assert lines[0]["not_calibrated"] == {"rmse_held_out": 0.3}
    named = {line["metric"] for line in lines if "metric" in line}
    assert {RANK, CORRELATION} <= named
    assert ERROR not in named


def test_every_model_has_its_scores(lines):
    models = {line["model"]: line for line in lines if "model" in line}
    assert list(models) == list(MODELS)
    mean, low, high = models[FIRST]["metrics"][RANK]
    assert low < mean < high
    assert mean == pytest.approx(0.1, abs=5e-3)
    assert models[FIRST]["iwelbo"]["iwelbo"][0] == -184
    assert set(models[FIRST]["population"]) == {"mmd"}
    assert set(models[FIRST]["not_ranked"]) == {ERROR, "rmse_held_out"}
    # a metric that no replicate is better by has no scaled score and no part in the mean
    assert set(models[SECOND]["vcc2026"]) == {"pds_cosine", "de_wilcoxon_lfc_nmae"}
    scaled = models[SECOND]["vcc2026_scaled"]
    assert set(scaled) == {"pds_cosine", "mean_scaled"}
    assert scaled["mean_scaled"] == scaled["pds_cosine"] == models[SECOND]["vcc2026"]["pds_cosine"]
    anchors = lines[1]["anchors"]
    assert anchors["vcc2026"]["pds_cosine"] == {"baseline": 0, "replicate": 1, "splits": 3}
    assert anchors["vcc2026"]["de_wilcoxon_lfc_nmae"]["splits"] == 0
    assert anchors["population"] == {"mmd": {"control": 0.5, "replicate": 1}}


def test_the_direction_of_a_metric_decides_which_model_is_better(lines):
    metrics = {line["metric"]: line for line in lines if "bds" in line}
    assert (metrics[RANK]["best"], metrics[CORRELATION]["best"]) == (FIRST, SECOND)
    assert SECOND in metrics[RANK]["significant"]["perturbations"][FIRST]
    assert FIRST in metrics[CORRELATION]["significant"]["perturbations"][SECOND]
    assert metrics[RANK]["perturbations"] == 25
    assert "split_half" not in str(metrics)


def test_pairs_of_models_are_counted(lines):
    [pair] = [one for one in lines if one.get("first") == FIRST and one["second"] == SECOND]
    assert pair["metrics"] == 2
    assert (pair["ahead"], pair["behind"]) == ([RANK], [CORRELATION])
    once = {
        "mean": 1, "every_split": 1, "significant_over_splits": 1,
        "significant_over_perturbations": 1,
    }  # fmt: skip
    assert pair["first_better"] == pair["second_better"] == once


def test_the_ranking_is_that_of_the_workflow(lines):
    [line] = [one for one in lines if "ranking" in one]
    assert list(line["ranking"]) == [SECOND, FIRST]
    assert line["ranking"][FIRST] == {
        "score": 0.8, "low": 0.7, "high": 1, "probability_best": None
    }  # fmt: skip


def test_differences_are_those_of_the_first_model(lines):
    pairs = {
        (line["first"], line["second"]): line["differences"] for line in lines if "first" in line
    }
    difference, low, high, p_adjusted = pairs[FIRST, "cpa_vae"]["iwelbo"]
    assert difference == pytest.approx(1.1)
    assert low < difference < high
    assert p_adjusted < 0.05
    # also of a metric that cannot rank models, in either order of the models
    assert pairs[FIRST, SECOND]["rmse_held_out"][0] == pytest.approx(-0.2, abs=5e-3)
    mean_field = "sams_vae_mean_field"
    one, other = (
        pairs[pair]["rmse_held_out"] for pair in ((FIRST, mean_field), (mean_field, FIRST))
    )
    assert other[:3] == pytest.approx([-one[0], -one[2], -one[1]])


@pytest.mark.parametrize("options", [["papalexi"], ["norman"], ["norman", "--unseen-pairs"]])
def test_the_configuration_is_valid_and_that_of_the_template(options):
    screen, *more = options
    own = configuration(read_options(["screen.h5ad", "--screen", screen, *more]))
    defaults = yaml.safe_load((ROOT / "config.yaml").read_text())
    made = validate(merge(defaults, own))
    template = yaml.safe_load((ROOT / "config" / "own_screen.yaml").read_text())
    for name, settings in template["models"].items():
        assert settings.items() <= made["models"][name].items(), name
    assert made["evaluation"]["effect_library_size"] is None
    [experiment] = made["experiments"].values()
    assert ("bilinear" in experiment["models"]) == (screen == "papalexi")
    assert experiment["split"]["seeds"] == experiment["seeds"] == [0, 1, 2]
