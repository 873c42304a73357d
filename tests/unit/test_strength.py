import numpy as np
import pandas as pd
import pytest

from samsvae.evaluation.differential_expression import (
    LOWER_LIMITS,
    scores_by_strength,
    stratum_names,
)


@pytest.fixture
def comparison():
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([["s"], ["a", "b"], [0, 1], [f"P{i}" for i in range(60)]])
    table = index.to_frame(index=False, name=["split", "model", "seed", "perturbation"])
    table["n_held_out"] = np.tile(rng.integers(2, 600, 60), 4)
    table["n_de"] = np.tile(rng.integers(0, 400, 60) * rng.integers(0, 2, 60), 4)
    table["auroc"], table["slope"] = rng.uniform(size=(2, len(table)))
    table.loc[table["n_de"] == 0, ["auroc", "slope"]] = np.nan
    return table


def test_strata_are_named_by_their_limits():
    assert stratum_names((1, 3, 4, 10)) == ["1–2", "3", "4–9", "10+"]


@pytest.mark.parametrize("by", LOWER_LIMITS)
def test_every_stratum_averages_its_own_perturbations(comparison, by):
    table = scores_by_strength(comparison)
    own = comparison[(comparison["model"] == "b") & (comparison["seed"] == 1)]
    found = table[(table["model"] == "b") & (table["seed"] == 1) & (table["metric"] == "slope")]
    strata = found[found["stratified_by"] == by]
    limits = [*LOWER_LIMITS[by], np.inf]
    for _, row in strata.iterrows():
        upper = limits[limits.index(row["lower"]) + 1]
        chosen = own[own[by].between(row["lower"], upper, inclusive="left") & (own["n_de"] > 0)]
        assert row["n_perturbations"] == len(chosen)
        assert row["median"] == pytest.approx(chosen["slope"].median())
        assert row["upper_quartile"] == pytest.approx(chosen["slope"].quantile(0.75))
    [every] = found[found["stratified_by"] == "all"].to_dict("records")
    assert strata["n_perturbations"].sum() == every["n_perturbations"] == (own["n_de"] > 0).sum()


def test_the_order_of_rows_does_not_matter(comparison):
    shuffled = comparison.sample(frac=1, random_state=0)
    key = ["model", "seed", "stratified_by", "metric", "lower"]
    first, second = (
        scores_by_strength(table).sort_values(key, ignore_index=True)
        for table in (comparison, shuffled)
    )
    pd.testing.assert_frame_equal(first, second)


def test_a_screen_without_differential_expression_has_no_rows(comparison):
    assert scores_by_strength(comparison.assign(n_de=0)).empty
