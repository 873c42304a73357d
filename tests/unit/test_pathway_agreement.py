import numpy as np
import pandas as pd
import pytest
from scipy import stats

from samsvae.biology.enrichment import OVER_REPRESENTATION, PRERANKED, pathway_agreement

N_SETS = 12


def enrichment(model, score, pvalue, method=PRERANKED, perturbation="P", seed=0):
    fdr = stats.false_discovery_control(pvalue)
    sets = [f"S{i}" for i in range(len(score))]
    return pd.DataFrame(
        {"split": "s", "model": model, "seed": seed, "gene_sets": "c", "method": method,
         "perturbation": perturbation, "set": sets, "score": score, "pvalue": pvalue, "fdr": fdr}
    )  # fmt: skip


@pytest.fixture
def observed():
    rng = np.random.default_rng(0)
    score = rng.normal(size=N_SETS)
    pvalue = np.r_[1e-6, 1e-5, rng.uniform(0.5, 1, N_SETS - 2)]
    return enrichment("observed", score, pvalue, seed=np.nan)


def agreement(observed, *guesses):
    return pathway_agreement(pd.concat([observed, *guesses], ignore_index=True), 0.05)


def test_the_same_result_agrees_in_full_whatever_the_order(observed):
    guess = observed.assign(model="m", seed=0).sample(frac=1, random_state=1)
    [row] = agreement(observed, guess).to_dict("records")
    assert row["correlation"] == pytest.approx(1)
    assert (row["n_observed"], row["n_predicted"], row["n_shared"]) == (2, 2, 2)
    assert (row["overlap"], row["top_observed"], row["top_predicted"]) == (1, "S0", "S0")
    assert row["same_top"]
    assert row["rank_of_top"] == 1


def test_sets_that_move_the_other_way_are_not_shared(observed):
    guess = observed.assign(model="m", seed=0, score=-observed["score"])
    [row] = agreement(observed, guess).to_dict("records")
    assert row["correlation"] == pytest.approx(-1)
    assert (row["n_shared"], row["overlap"]) == (0, 0)


def test_over_representation_is_compared_by_p_and_has_no_sign(observed):
    truth = observed.assign(method=OVER_REPRESENTATION)
    pvalue = np.random.default_rng(1).uniform(0.01, 1, N_SETS)
    pvalue[3] = 1e-9
    guess = enrichment("m", -observed["score"], pvalue, OVER_REPRESENTATION)
    [row] = agreement(truth, guess).to_dict("records")
    expected = stats.spearmanr(truth["pvalue"], pvalue).statistic
    assert row["correlation"] == pytest.approx(expected)
    assert (row["top_predicted"], row["same_top"]) == ("S3", False)
    assert row["rank_of_top"] == 1 + np.sum(pvalue < pvalue[0])
    assert (row["n_shared"], row["overlap"]) == (0, 0)


def test_every_run_and_perturbation_has_its_row_and_nothing_is_made_up(observed):
    silent = enrichment("observed", np.ones(N_SETS), np.ones(N_SETS), perturbation="Q", seed=np.nan)
    guesses = [
        enrichment(model, np.ones(N_SETS), np.ones(N_SETS), perturbation=name, seed=seed)
        for model in ("m", "n")
        for seed in (0, 1)
        for name in ("P", "Q")
    ]
    table = agreement(pd.concat([observed, silent]), *guesses)
    assert len(table) == 8
    assert table["correlation"].isna().all()
    assert (
        table.loc[table["perturbation"] == "Q", ["same_top", "top_observed"]].isna().all(axis=None)
    )
    assert (table.loc[table["perturbation"] == "P", "overlap"] == 0).all()
    assert pathway_agreement(observed, 0.05).empty
