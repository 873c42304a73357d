"""Published results beside constructed ones: inside, outside, too short, missing."""

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from samsvae.config.configuration import merge, validate
from samsvae.config.experiments import Split, expanded, is_published
from samsvae.evaluation.reproduction import (
    MODELS,
    QUANTITIES,
    Experiment,
    differing_settings,
    models_like,
    overview,
    reproduction,
)
from tests.conftest import ROOT

PUBLISHED = pd.read_csv(ROOT / "data/reference/published_norman.csv")
CONFIG = validate(
    merge(
        yaml.safe_load((ROOT / "config.yaml").read_text()),
        yaml.safe_load((ROOT / "config/norman.yaml").read_text()),
    ),
)
SETTINGS = expanded(CONFIG["models"])
REFERENCE = "sams_vae_correlated--n_layers-1"
FITTED = {name: SETTINGS[name] for name in (REFERENCE, "cpa_vae--n_layers-1")}
KEYS = ["fraction", "model", "combinations", "quantity"]


def published(model, quantity, fraction, unique=False, task="norman_ood"):
    row = PUBLISHED[
        (PUBLISHED["task"] == task)
        & (PUBLISHED["model"] == model)
        & (PUBLISHED["encode_unique"] == unique)
        & (PUBLISHED["fraction"] == fraction)
    ].iloc[0]
    return row[f"{quantity}_mean"], row[f"{quantity}_sd"]


def experiment(shift=0.0, seeds=range(5), fractions=(0.0, 0.5), steps=30_000, **changed):
    """Runs whose means are the paper's, plus so many of its standard deviations."""
    splits = {
        s.name: s for f in fractions for s in (Split("unseen_combinations", k, f) for k in seeds)
    }
    spread = np.linspace(-1, 1, len(seeds)) if len(seeds) > 1 else np.zeros(1)
    metrics, history = [], []
    for name, split in splits.items():
        for model, ours in (("sams_vae_correlated", REFERENCE), ("cpa_vae", "cpa_vae--n_layers-1")):
            run = {"split": name, "model": ours, "seed": 0}
            for quantity, (scope, metric) in QUANTITIES.items():
                if metric == "iwelbo_relative":
                    continue
                mean, sd = published(model, quantity, split.fraction)
                value = mean + sd * (shift + spread[list(seeds).index(split.seed)])
                metrics.append({**run, "scope": scope, "metric": metric, "value": value})
            history += [{**run, "step": step, "cells": "val"} for step in (steps // 2, steps)]
    given = {
        "models": FITTED,
        "training": CONFIG["training"],
        "evaluation": CONFIG["evaluation"],
        "n_cells": 111_255,
        "n_genes": 5_000,
        **changed,
    }
    return Experiment(pd.DataFrame(metrics), pd.DataFrame(history), splits, **given)


def table(**options):
    made = reproduction(PUBLISHED, experiment(**options))
    assert not made.duplicated([*KEYS, "our_model"]).any()
    return made.set_index(KEYS)


def run_rows(made):
    return made[made["our_mean"].notna()]


CPA = (0.5, "cpa_vae", "additive", "test_iwelbo")


def test_what_reproduces_the_paper_is_inside_with_the_right_intervals():
    made = table()
    row = made.loc[CPA]
    mean, sd = published("cpa_vae", "test_iwelbo", 0.5)
    t = stats.t.ppf(0.975, 4)
    assert (row["paper_mean"], row["paper_sd"], row["paper_splits"]) == (mean, sd, 5)
    assert (row["paper_low"], row["paper_high"]) == pytest.approx(
        (mean - t * sd / np.sqrt(5), mean + t * sd / np.sqrt(5))
    )
    assert (row["prediction_low"], row["prediction_high"]) == pytest.approx(
        (mean - t * sd * np.sqrt(0.4), mean + t * sd * np.sqrt(0.4))
    )
    values = mean + sd * np.linspace(-1, 1, 5)
    ours = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (row["our_mean"], row["our_low"], row["our_high"]) == pytest.approx(
        (mean, ours.low, ours.high)
    )
    assert row["difference"] == pytest.approx(0)
    assert (row["our_splits"], row["steps"]) == (5, 30_000)
    assert (row["verdict"], row["scale"], row["settings"]) == ("inside", *["as in the paper"] * 2)
    assert row["our_model"] == "cpa_vae--n_layers-1"
    assert set(run_rows(made)["verdict"]) == {"inside", "0 by definition"}


@pytest.mark.parametrize(
    ("shift", "in_mean", "in_expected", "verdict"),
    [(1.1, "yes", "yes", "inside"), (1.5, "no", "yes", "inside"), (-1.8, "no", "no", "outside")],
)
def test_between_the_two_intervals_the_wider_one_decides(shift, in_mean, in_expected, verdict):
    row = table(shift=shift).loc[CPA]
    assert row["difference"] == pytest.approx(shift * published("cpa_vae", "test_iwelbo", 0.5)[1])
    assert (row["in_confidence_interval"], row["in_prediction_interval"]) == (in_mean, in_expected)
    assert row["verdict"] == verdict


def test_the_expected_interval_holds_what_it_says():
    """Of results that do not differ from the paper's, as many as 95 in 100 are inside."""
    rng = np.random.default_rng(0)
    paper, ours = rng.normal(size=(2, 20_000, 5))
    n = 3
    half = stats.t.ppf(0.975, 4) * paper.std(axis=1, ddof=1) * np.sqrt(1 / 5 + 1 / n)
    inside = np.abs(ours[:, :n].mean(axis=1) - paper.mean(axis=1)) <= half
    assert 0.94 < inside.mean() < 0.96
    row = table(seeds=range(n)).loc[CPA]
    mean, sd = published("cpa_vae", "test_iwelbo", 0.5)
    assert row["prediction_high"] == pytest.approx(
        mean + stats.t.ppf(0.975, 4) * sd * np.sqrt(1 / 5 + 1 / n)
    )


@pytest.mark.parametrize(
    ("options", "said", "comparable"),
    [
        ({"steps": 3_000}, "training steps 3,000 (paper: 30,000)", True),
        ({"seeds": [0, 1]}, "split seeds 2 (paper: 5)", True),
        ({"n_cells": 3_375}, "cells 3,375 (paper: 111,255)", False),
        ({"n_genes": 500}, "genes 500 (paper: 5,000)", False),
    ],
)
def test_less_than_the_paper_is_said_and_gets_no_verdict(options, said, comparable):
    made = run_rows(table(**options))
    assert set(made["verdict"]) == {"not at full scale", "0 by definition"}
    assert (made["scale"] == f"not at full scale: {said}").all()
    judged = made[made["verdict"] != "0 by definition"]
    assert judged["difference"].notna().all() == comparable
    assert judged["in_prediction_interval"].notna().any() == comparable


def test_other_settings_are_named_and_get_no_verdict():
    models = {**FITTED, REFERENCE: {**FITTED[REFERENCE], "n_latent": 50, "mask_prior": 0.1}}
    training = {**CONFIG["training"], "mask_warmup_fraction": 0.2}
    made = run_rows(table(models=models, training=training))
    row = made.loc[(0.5, "sams_vae_correlated", "additive", "test_iwelbo")]
    assert row["verdict"] == "other settings"
    assert row["settings"] == (
        "n_latent 50 (paper: 200); mask_prior 0.1 (paper: 0.01); mask_warmup_fraction 0.2 (paper: 0)"
    )
    assert made.loc[CPA]["settings"] == "mask_warmup_fraction 0.2 (paper: 0)"


def test_effects_are_the_papers_if_they_are_sampled():
    integrated = {**CONFIG["evaluation"], "effect_estimator": "integrated"}
    made = run_rows(table(evaluation=integrated))
    effects = made.index.get_level_values("quantity").str.startswith("ate_")
    assert set(made["verdict"][effects]) == {"other settings"}
    assert made["settings"][effects].str.startswith("effect_estimator integrated (paper: sam").all()
    assert set(made["verdict"][~effects]) == {"inside", "0 by definition"}


def test_what_was_not_run_is_blank():
    made = table()
    missing = made[made["our_mean"].isna()]
    assert len(missing) == len(made) - 2 * 2 * 5
    assert (missing["verdict"] == "not run").all()
    assert (missing["scale"] == "not run").all()
    numbers = ["our_low", "our_high", "our_splits", "difference", "prediction_low", "steps"]
    assert missing[[*numbers, "our_model", "in_confidence_interval"]].isna().all(axis=None)
    assert len(made) == 45 * 5  # every published number of the task, and of no other
    assert set(made["task"]) == {"norman_ood"}


def test_relative_bounds_are_to_the_papers_reference_whatever_stands_first():
    models = dict(reversed(FITTED.items()))
    made = table(models=models)
    row = made.loc[(0.5, "cpa_vae", "additive", "test_iwelbo_relative")]
    cpa, _ = published("cpa_vae", "test_iwelbo", 0.5)
    reference, _ = published("sams_vae_correlated", "test_iwelbo", 0.0)
    assert row["our_mean"] == pytest.approx(cpa - reference)
    own = made.loc[(0.0, "sams_vae_correlated", "additive", "test_iwelbo_relative")]
    assert (own["our_mean"], own["verdict"]) == (0, "0 by definition")
    without = reproduction(PUBLISHED, experiment(fractions=[0.5]))
    row = without.set_index(KEYS).loc[(0.5, "cpa_vae", "additive", "test_iwelbo_relative")]
    assert row["verdict"] == "not run"
    shown = overview(without)
    assert len(shown) == 45
    assert "4 inside, 1 not run" in set(shown["verdict"])


def test_models_are_told_by_kind_and_hyperparameters_not_by_name():
    renamed = {f"m{i}": settings for i, settings in enumerate(SETTINGS.values())}
    back = dict(zip(renamed, SETTINGS, strict=True))
    for model in MODELS:
        for unique in (False, True):
            names = [back[name] for name in models_like(model, unique, renamed)]
            names = [name for name in names if name not in CONFIG["models"]]
            expected = model.replace("+", "_plus") + ("_unique" if unique else "") + "--n_layers-1"
            if model == "svae+":
                expected = "svae_plus--n_layers-1"
                assert names == ([expected] if unique else [])
            else:
                assert names == [expected]
            for name in names:
                for quantity in QUANTITIES:
                    given = SETTINGS[name], CONFIG["training"], CONFIG["evaluation"]
                    assert differing_settings(*given, quantity) == []
    control = {"control": {**FITTED[REFERENCE], "shuffle_labels": True}}
    other = {"other": {**FITTED[REFERENCE], "basal_encoder": "mean_field"}}
    assert models_like("sams_vae_correlated", False, {**control, **other}) == []


def test_two_models_that_are_the_published_one_are_both_shown():
    models = {**FITTED, "another": FITTED["cpa_vae--n_layers-1"]}
    given = experiment(models=models)
    copied = given.metrics[given.metrics["model"] == "cpa_vae--n_layers-1"].assign(model="another")
    steps = given.history[given.history["model"] == "cpa_vae--n_layers-1"].assign(model="another")
    given.__dict__["metrics"] = pd.concat([given.metrics, copied])
    given.__dict__["history"] = pd.concat([given.history, steps])
    made = reproduction(PUBLISHED, given).set_index(KEYS)
    assert set(made.loc[[CPA], "our_model"]) == {"cpa_vae--n_layers-1", "another"}


def test_the_overview_has_a_row_for_each_model_and_fraction():
    shown = overview(reproduction(PUBLISHED, experiment(steps=3_000)))
    assert len(shown) == 45
    row = shown[(shown["model"] == "cpa_vae") & (shown["fraction"] == "0.5")].iloc[0]
    assert row["pairs"] == "additive"
    assert row["test_iwelbo_paper"] == "−1774.74 ± 22.33"
    assert row["test_iwelbo_ours"].startswith("−1774.74 ± ")
    assert row["verdict"] == "not at full scale"
    assert row["scale"] == "not at full scale: training steps 3,000 (paper: 30,000)"
    missing = shown[shown["model"] == "svae+"].iloc[0]
    assert missing["test_iwelbo_ours"] == missing["verdict"] == missing["scale"] == "not run"


def test_only_the_papers_screen_and_splits_have_published_results():
    assert is_published("norman", "unseen_combinations")
    assert is_published("norman", "data_efficiency")
    assert not is_published("norman", "random")
    assert not is_published("h5ad", "unseen_combinations")
