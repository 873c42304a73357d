from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from samsvae.biology.quality import effects_by_context
from samsvae.evaluation.expression import Expression, log_expression
from samsvae.evaluation.strata import Strata
from samsvae.evaluation.truth import true_effects
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import content_digest, perturbations
from samsvae.screen.labels import components
from samsvae.sources.simulated import Simulation, simulate
from tests.conftest import TINY, true_shifts


def test_a_seed_is_a_screen():
    first, again = simulate(TINY)[0], simulate(TINY)[0]
    other = simulate(Simulation(**{**vars(TINY), "seed": 4}))[0]
    assert content_digest(first) == content_digest(again) != content_digest(other)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_design_and_depth_are_as_asked_for(seed):
    settings = Simulation(**{**vars(TINY), "seed": seed})
    screen, gene_sets = simulate(settings)
    number = screen.obs["perturbation"].value_counts()
    assert number["control"] == settings.n_controls
    assert set(number.drop("control")) == {settings.cells_per_perturbation}
    assert sum(len(components(name)) == 2 for name in number.index) == settings.n_pairs
    assert np.median(screen.obs["library_size"]) == pytest.approx(400, rel=0.15)
    assert len(gene_sets) == 3 * (1 + 4)
    assert {gene for members in gene_sets.values() for gene in members} <= set(screen.var_names)


def test_truth_is_kept_and_every_factor_is_moved(tiny_screen):
    truth = tiny_screen.uns["truth"]
    assert truth["mask"].shape == (8, 3)
    assert (truth["mask"].sum(0) > 0).all()
    assert (true_shifts(tiny_screen).to_numpy() != 0).astype(int).tolist() == truth["mask"].astype(
        int
    ).tolist()
    assert tiny_screen.obsm["true_basal"].shape == (tiny_screen.n_obs, 5)


def test_cells_move_where_their_target_moves_them():
    settings = Simulation(**{**vars(TINY), "cells_per_perturbation": 400, "n_controls": 400})
    screen, gene_sets = simulate(settings)
    shares = screen.to_df().div(screen.obs["library_size"], axis=0)
    control = shares[screen.obs["perturbation"] == "control"].mean()
    shifts = true_shifts(screen)
    target = shifts.abs().max(axis=1).idxmax()
    programme = shifts.loc[target].abs().idxmax()
    loadings = screen.uns["truth"]["loadings"][list(shifts.columns).index(programme)]
    genes = list(screen.var_names[loadings > 0])
    assert set(genes) <= set(gene_sets[programme])
    change = np.log(shares.loc[screen.obs["perturbation"] == target, genes].mean() / control[genes])
    assert np.sign(change.mean()) == np.sign(shifts.loc[target, programme])


def test_impossible_sizes_are_refused_by_name():
    with pytest.raises(InputError, match="n_pairs"):
        Simulation(n_perturbations=3, n_pairs=4)
    with pytest.raises(InputError, match="programme_size"):
        Simulation(n_genes=50, n_factors=6, programme_size=20)


REAL = {
    "n_batches": 3,
    "batch_imbalance": 0.5,
    "guides_per_target": 4,
    "dead_guides": 0.25,
    "escapers": 0.3,
    "knock_down": 2.0,
}


def test_a_screen_with_batches_guides_and_escapers_has_what_was_asked_for():
    settings = Simulation(n_pairs=4, n_controls=900, **REAL)
    screen = simulate(settings)[0]
    label = screen.obs["perturbation"].astype(str)
    composition = pd.crosstab(label, screen.obs["batch"], normalize="index")
    assert composition.loc["control", "batch1"] == pytest.approx(2 / 3, abs=0.05)
    perturbed = (label != "control").to_numpy()
    assert screen.obs.loc[perturbed, "batch"].value_counts(normalize=True).max() < 0.4
    guide = screen.obs["guide"].astype(str)
    assert guide[label == "control"].str.fullmatch(r"NT_g[1-8]").all()
    assert set(guide[label == "TARGET03"]) == {f"TARGET03_g{i}" for i in range(1, 5)}
    pair = next(name for name in set(label) if "+" in name)
    assert guide[label == pair].str.count(r"\|").eq(1).all()
    table = screen.uns["guides"]
    assert set(table["target"]) == {*(f"TARGET{i:02d}" for i in range(1, 25)), "control"}
    response = screen.obsm["true_response"]
    own = response[:, 2][(label == "TARGET03").to_numpy()]
    by_guide = pd.Series(own).groupby(guide[label == "TARGET03"].to_numpy()).mean()
    assert all(fraction == 0 or 0.45 < fraction < 0.95 for fraction in by_guide)
    everywhere = response[screen.obsm["dosage"].toarray() > 0]
    assert everywhere.mean() == pytest.approx(0.75 * 0.7, abs=0.03)


def test_a_target_is_a_measured_gene_that_is_lowered():
    screen = simulate(Simulation(n_pairs=2, knock_down=2.0))[0]
    assert {f"TARGET{i:02d}" for i in range(1, 25)} <= set(screen.var_names)
    names = [name for name in perturbations(screen) if "+" not in name]
    label = screen.obs["perturbation"].to_numpy()
    rate = {}
    for name in names:
        counts = screen[:, name].X.toarray().ravel()
        own, control = (
            counts[label == kind].sum() / screen.obs["library_size"][label == kind].sum()
            for kind in (name, "control")
        )
        rate[name] = np.log2(own / control)
    assert np.median(list(rate.values())) == pytest.approx(-2, abs=0.3)
    true = true_effects(screen, names, seed=0)
    expected = [true[row, screen.var_names.get_loc(name)] for row, name in enumerate(names)]
    assert max(expected) < 0
    logs = log_expression(screen).toarray()
    observed = [
        (logs[label == name].mean(0) - logs[label == "control"].mean(0))[
            screen.var_names.get_loc(name)
        ]
        for name in names
    ]
    # true effects are those at 10,000 counts, and cells have fewer
    np.testing.assert_allclose(observed, expected, atol=0.8)
    assert np.corrcoef(observed, expected)[0, 1] > 0.9


def test_options_change_nothing_else():
    """Basal states, library sizes and effects are those of the screen without them."""
    plain = simulate(TINY)[0]
    other = simulate(replace(TINY, guides_per_target=3))[0]
    np.testing.assert_array_equal(plain.X.toarray(), other.X.toarray())
    real = simulate(replace(TINY, n_batches=2, knock_down=1.0))[0]
    np.testing.assert_array_equal(plain.obsm["true_basal"], real.obsm["true_basal"])
    for key in ("mask", "embedding", "loadings"):
        np.testing.assert_array_equal(plain.uns["truth"][key], real.uns["truth"][key])


def test_too_many_measured_targets_are_refused():
    with pytest.raises(InputError, match="knock_down"):
        Simulation(n_genes=60, n_factors=3, programme_size=19, knock_down=1.0)


def test_contexts_differ_and_some_targets_act_in_the_first_alone():
    settings = Simulation(n_contexts=2, context_specific=0.25, n_pairs=0, inert_fraction=0.0)
    screen, _ = simulate(settings)
    assert set(screen.obs["context"]) == {"context1", "context2"}
    has = screen.obsm["dosage"].toarray() > 0
    response = screen.obsm["true_response"] > 0
    second = (screen.obs["context"] == "context2").to_numpy()
    np.testing.assert_array_equal(response[~second], has[~second])
    silent = has[second].any(axis=0) & ~response[second].any(axis=0)
    assert silent.sum() == 6
    strata = Strata.of(screen.obs["perturbation"], perturbations(screen), second.astype(int))
    table = effects_by_context(screen, Expression(screen), strata, 0.05)
    number = table.pivot_table(index="perturbation", columns="context", values="n_de")
    names = np.array(screen.uns["perturbations"])
    assert number.loc[names[silent], "context2"].max() <= 1
    assert (number.loc[names[silent], "context1"] > 2).mean() > 0.6
    differ = table.groupby("perturbation")["n_heterogeneous"].first()
    assert differ[names[silent]].median() > 2 * differ[names[~silent]].median()
