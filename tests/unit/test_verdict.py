"""The paragraph that compares models: what it says follows from the tables, in plain sentences."""

import numpy as np
import pandas as pd
import pytest

from samsvae.evaluation.ranking import CHANCE
from samsvae.evaluation.summary import NOT_RANKED, Tables
from samsvae.report.verdict import DIFFERENCES, RANKING, VERDICT, ranking_in_words, verdicts

N_TOP = 20
PEARSON, RANK, AUROC, ALL = "pearson_held_out", "mean_retrieval_rank_held_out", "median_de_auroc", "pearson"  # fmt: skip
WITH_TARGETS = "median_de_auroc_with_targets"
MODELS = ["sams_vae", "cpa_vae", "additive", "mean_effect"]
# who is better than the first model, and where that is tested
OUTCOMES = {
    ("cpa_vae", PEARSON): ("tie", "seeds"),
    ("cpa_vae", RANK): ("tie", "seeds"),
    ("cpa_vae", AUROC): ("tie", "perturbations"),
    ("additive", PEARSON): ("sams_vae", "seeds"),
    ("additive", RANK): ("additive", "seeds"),
    ("additive", AUROC): ("tie", "seeds"),
    ("mean_effect", PEARSON): ("sams_vae", "seeds"),
    ("mean_effect", RANK): ("sams_vae", "seeds"),
}


def ranking_of(models, **more):
    n = len(models)
    table = pd.DataFrame(
        {
            "model": models,
            "score": np.linspace(0.8, -0.1, n),
            "low": np.linspace(0.7, -0.2, n),
            "high": np.linspace(0.9, 0.0, n),
            "probability_best": [0.9] + [0.1 / max(n - 1, 1)] * (n - 1),
            "n_metrics": 7,
            "n_perturbations": 36,
            "n_splits": 1,
            "n_seeds": 3,
            "reference": "mean_effect",
            "fraction": np.nan,
        }
    )
    return table.assign(**more)


def tables_of(outcomes=OUTCOMES, bds=None, models=MODELS, fraction=np.nan):
    """Tables with the first model in either place of a pair, and tests within runs beside others."""
    bds = {PEARSON: 0.9, RANK: 0.8, AUROC: 1.0, ALL: 1.0, WITH_TARGETS: 1.0} | (bds or {})
    rows = []
    for number, ((other, metric), (better, over)) in enumerate(outcomes.items()):
        pair = ("sams_vae", other) if number % 2 else (other, "sams_vae")
        n = {"seeds": 3, "splits": 5, "perturbations": 36}[over]
        rows.append((*pair, metric, over, n, better))
        if over == "seeds":
            rows.append((*pair, metric, "perturbations", 36, "elsewhere"))
    columns = ["first", "second", "metric", "over", "n", "better"]
    differences = pd.DataFrame(rows, columns=columns).assign(scope="test", p_adjusted=0.01)
    summary = pd.DataFrame({"metric": bds.keys(), "bds": bds.values(), "scope": "test"})
    tables = (summary, differences, summary, ranking_of(models))
    return Tables(*(table.assign(fraction=fraction) for table in tables))


def said_of(tables):
    return " ".join(verdicts(tables, N_TOP, "holm", 0.05)["verdict"])


def test_the_verdict_names_models_metrics_and_what_was_repeated():
    assert said_of(tables_of()) == (
        "Mean score over 7 calibrated metrics, on a scale from 0 (mean effect) to 1 (noise "
        "ceiling, or a replicate), with 95 % intervals: SAMS-VAE 0.80 (0.70 to 0.90), CPA-VAE 0.50 "
        "(0.40 to 0.60), additive 0.20 (0.10 to 0.30), mean effect −0.10 (−0.20 to 0.00). SAMS-VAE "
        "is the best in 90 % of bootstrap samples of 36 perturbations and 3 training seeds. "
        "Main scores that can rank models here: “Pearson r”, “perturbation retrieval rank” and "
        "“AUROC of DE genes”. "
        "SAMS-VAE does not differ significantly from CPA-VAE on any of them. "
        "It is significantly better than additive on “Pearson r”, significantly worse on "
        "“perturbation retrieval rank” and not significantly different on the others. "
        "It is significantly better than mean effect on all of them (undefined or not tested: "
        "“AUROC of DE genes”). "
        "These are paired t-tests over 3 training seeds and 36 perturbations, with p < 0.05 after "
        "correction (Holm) over all pairs of models."
    )


def test_models_with_the_same_outcomes_share_a_sentence():
    outcomes = {(model, RANK): ("sams_vae", "splits") for model in MODELS[1:]}
    text = said_of(tables_of(outcomes, {PEARSON: 0.5, AUROC: 0.79}))
    assert "Main scores that can rank models here: “perturbation retrieval rank”. " in text
    rivals = "CPA-VAE, additive and mean effect"
    assert f"SAMS-VAE is significantly better than {rivals} on “perturbation retrieval" in text
    assert "t-tests over 5 splits, with" in text
    assert text.count("significantly") == 1


def test_metrics_that_cannot_rank_models_are_named_and_decide_nothing():
    text = said_of(tables_of(bds={PEARSON: 0.5}))
    ranked, cannot = text.split("These metrics cannot rank models on this screen")
    assert "“Pearson r”" not in ranked
    assert cannot.endswith("(fraction in brackets): Pearson r (0.50).")
    nothing = tables_of(bds=dict.fromkeys((PEARSON, RANK, AUROC), 0.5))
    assert "significantly" not in said_of(nothing)
    none_at_all = Tables(
        nothing.intervals, nothing.differences, nothing.summary, nothing.ranking[:0]
    )
    text = said_of(none_at_all)
    assert text.startswith("No metric of predicted effects has a scale on this screen")
    assert "better" not in text.replace("is better than a prediction", "")


def test_one_run_of_each_model_is_compared_by_the_median_over_perturbations():
    outcomes = {(model, f"median_{PEARSON}"): ("tie", "perturbations") for model in MODELS[1:]}
    text = said_of(tables_of(outcomes, {RANK: 0.1, AUROC: 0.1}))
    assert "scores that can rank models here: “Pearson r”." in text
    assert "differ significantly from CPA-VAE, additive and mean effect on it." in text
    assert "t-tests over 36 perturbations, with" in text


def test_tests_without_result_are_not_called_equality():
    text = said_of(tables_of({}))
    assert "Differences between models are not tested, since there are no replicates." in text
    alone = said_of(tables_of(models=MODELS[:1]))
    assert "tested" not in alone
    assert "is the best" not in alone
    not_ranked = {at: (NOT_RANKED, over) for at, (_, over) in OUTCOMES.items()}
    assert "significantly" not in said_of(tables_of(not_ranked, dict.fromkeys((PEARSON, RANK, AUROC), 0.1)))  # fmt: skip


def test_each_fraction_has_its_verdict():
    parts = [tables_of(fraction=0.5), tables_of({}, fraction=0.0)]
    both = Tables(
        *(
            pd.concat([getattr(part, name) for part in parts])
            for name in ("intervals", "differences", "summary", "ranking")
        )
    )
    table = verdicts(both, N_TOP, "bh", 0.1)
    assert list(table) == VERDICT
    said = table.set_index(["fraction", "about"])["verdict"]
    assert list(said.index) == [(f, about) for f in (0.0, 0.5) for about in (RANKING, DIFFERENCES)]
    assert said[0.0, RANKING].startswith("Fraction 0: Mean score")
    assert "are not tested" in said[0.0, DIFFERENCES]
    assert "p < 0.1 after correction (Benjamini and Hochberg)" in said[0.5, DIFFERENCES]


def test_without_calibration_there_is_no_verdict():
    made = tables_of()
    tables = Tables(
        made.intervals, made.differences, made.summary.drop(columns="bds"), made.ranking
    )
    assert verdicts(tables, N_TOP, "holm", 0.05).empty


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"reference": CHANCE}, "from 0 (value by chance) to 1"),
        ({"n_splits": 4}, "samples of 36 perturbations and 4 splits."),
        ({"n_seeds": 1}, "samples of 36 perturbations."),
        ({"n_metrics": 1}, "Mean score over 1 calibrated metric,"),
        (
            {"low": np.nan, "high": np.nan, "probability_best": np.nan},
            "replicate): SAMS-VAE 0.80, ",
        ),
    ],
)
def test_the_ranking_in_words_says_what_was_resampled(more, said):
    assert said in " ".join(ranking_in_words(ranking_of(MODELS, **more)))
