import numpy as np
import pytest

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import content_digest
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
