import dataclasses

import numpy as np
import pytest
import torch

from samsvae.config.experiments import Split
from samsvae.inference.cells import Cells
from samsvae.inference.encoding import Encoding
from samsvae.screen.canonical import read_screen, write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import split_screen
from samsvae.sources import SIMULATORS, simulated_screen
from samsvae.sources.simulated import (
    AdditiveSimulation,
    SvaePlusSimulation,
    decode,
    latent_screen,
    orthogonal_layers,
    simulate_additive,
    simulate_svae_plus,
)

FEW = {"n_train": 20, "n_validation": 5, "n_test": 5}
SIMULATIONS = {
    "additive": (simulate_additive, AdditiveSimulation(**FEW)),
    "svae_plus": (simulate_svae_plus, SvaePlusSimulation(**FEW)),
}


@pytest.mark.parametrize("name", SIMULATIONS)
def test_a_seed_is_a_simulation(name):
    simulate, settings = SIMULATIONS[name]
    first, again = simulate(settings), simulate(settings)
    other = simulate(dataclasses.replace(settings, seed=1))
    for field in dataclasses.fields(first):
        assert (getattr(first, field.name) == getattr(again, field.name)).all()
    assert (first.values != other.values).any()
    assert (first.mask != other.mask).any()


@pytest.mark.parametrize("name", SIMULATIONS)
def test_every_perturbation_and_control_has_the_same_number_of_cells(name):
    simulate, settings = SIMULATIONS[name]
    made = simulate(settings)
    assert made.values.shape == (101 * 30, 100)
    for part, number in (("train", 20), ("val", 5), ("test", 5)):
        design = made.design[made.part == part]
        assert (design.sum(0) == number).all()
        assert (design.sum(1) == 0).sum() == number
        assert design.sum(1).max() == 1


@pytest.mark.parametrize("name", SIMULATIONS)
def test_latent_moments_are_those_of_the_model(name):
    simulate, settings = SIMULATIONS[name]
    made = simulate(settings)
    n = made.basal.size
    assert abs(made.basal.mean()) < 5 / np.sqrt(n)
    assert made.basal.std() == pytest.approx(1, abs=5 / np.sqrt(n))
    size, sign = np.abs(made.embedding), np.sign(made.embedding)
    entries = size.size
    assert size.mean() == pytest.approx(5, abs=5 * 0.5 / np.sqrt(entries))
    assert size.std() == pytest.approx(0.5, rel=0.1)
    assert abs(sign.mean()) < 5 / np.sqrt(entries)
    assert (made.effects == np.where(made.mask == 1, made.embedding, 0)).all()


def test_additive_masks_have_their_density():
    mask = simulate_additive(AdditiveSimulation(**{**FEW, "n_perturbations": 400})).mask
    p = 2 / 15
    assert mask.mean() == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / mask.size))


def test_svae_plus_moves_one_to_three_dimensions_all_alike():
    mask = simulate_svae_plus(SvaePlusSimulation(**{**FEW, "n_perturbations": 600})).mask
    moved, number = np.unique(mask.sum(1), return_counts=True)
    assert moved.tolist() == [1, 2, 3]
    assert number == pytest.approx([200, 200, 200], abs=60)
    assert mask.sum(0) == pytest.approx(80, abs=5 * np.sqrt(80))


def test_a_decoder_of_orthonormal_layers_loses_no_direction():
    layers = orthogonal_layers(np.random.default_rng(0), 5, 8, 4)
    assert [weights.shape for weights in layers] == [(5, 8), (8, 8), (8, 8), (8, 8)]
    for weights in layers:
        np.testing.assert_allclose(weights @ weights.T, np.eye(len(weights)), atol=1e-12)
    positive = np.abs(np.random.default_rng(1).normal(size=(3, 5)))
    eye = np.eye(5)
    np.testing.assert_allclose(decode(positive, [eye] * 4), positive)
    np.testing.assert_allclose(decode(-positive, [eye] * 4), -positive * 0.2**3)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.6])
def test_noise_is_its_share_of_every_genes_variance(fraction):
    """Without noise the same seed gives the same means, so noise is the difference."""
    settings = AdditiveSimulation(**{**FEW, "n_train": 40})
    noisy = simulate_additive(dataclasses.replace(settings, noise_fraction=fraction)).values
    mean = simulate_additive(dataclasses.replace(settings, noise_fraction=0.0)).values
    share = (noisy - mean).var(0) / noisy.var(0)
    np.testing.assert_allclose(share, fraction, atol=0.04)
    assert noisy.dtype == np.float32


def test_svae_plus_counts_are_poisson_given_the_state():
    """At one state, without spread of the library size: mean and variance agree."""
    settings = SvaePlusSimulation(
        **{**FEW, "library_size_spread": 0.0, "effect_size": 0.0, "effect_spread": 0.0}
    )
    made = simulate_svae_plus(settings)
    assert np.issubdtype(made.values.dtype, np.integer)
    total = made.values.sum(1)
    assert total.mean() == pytest.approx(1000, abs=5 * np.sqrt(1000 / len(total)))
    assert total.var() == pytest.approx(1000, rel=0.15)
    spread = simulate_svae_plus(dataclasses.replace(settings, library_size_spread=0.3))
    assert np.log(spread.values.sum(1)).std() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("name", SIMULATIONS)
def test_perturbed_cells_differ_from_control_and_unmoved_ones_do_not(name):
    simulate, settings = SIMULATIONS[name]
    made = simulate(dataclasses.replace(settings, n_train=200))
    control = made.values[made.design.sum(1) == 0]
    error = made.values.std(0) / np.sqrt(len(control))

    def distance(perturbation):
        cells = made.values[made.design[:, perturbation] == 1]
        return np.abs((cells.mean(0) - control.mean(0)) / error).max()

    moved = made.mask.sum(1)
    assert min(distance(t) for t in np.flatnonzero(moved)[:10]) > 8
    assert all(distance(t) < 7 for t in np.flatnonzero(moved == 0)[:5])


@pytest.mark.parametrize("name", SIMULATIONS)
def test_a_screen_keeps_cells_and_truth_and_comes_back_from_its_file(name, tmp_path):
    simulate, settings = SIMULATIONS[name]
    made = simulate(settings)
    write_source_screen(latent_screen(made), "{}", tmp_path / "screen.h5ad")
    screen = read_screen(tmp_path / "screen.h5ad")
    assert (screen.X.toarray() == made.values).all()
    truth = screen.uns["truth"]
    assert (truth["mask"] == made.mask).all()
    assert (truth["embedding"] == made.embedding).all()
    np.testing.assert_allclose(screen.obsm["true_basal"], made.basal, rtol=1e-6)
    assert list(truth["targets"]) == list(screen.uns["perturbations"])
    assert (screen.obsm["dosage"].toarray() == made.design).all()
    assert ((screen.obs["perturbation"] == CONTROL) == (made.design.sum(1) == 0)).all()
    total = made.values.sum(1) if name == "svae_plus" else np.ones(len(made.values))
    assert (screen.obs["library_size"] == total).all()
    assert (split_screen(screen, Split("as_simulated", 0)) == made.part).all()


@pytest.mark.parametrize("name", SIMULATIONS)
def test_models_are_given_the_very_values(name):
    simulate, settings = SIMULATIONS[name]
    made = simulate(settings)
    screen = latent_screen(made)
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    cells = Cells.of(screen, made.part == "val", encoding, torch.device("cpu"))
    assert (
        cells.batch(torch.arange(7)).counts.numpy() == made.values[made.part == "val"][:7]
    ).all()


@pytest.mark.parametrize("source", SIMULATORS)
def test_every_simulator_is_reached_by_its_name(source):
    few = {"n_perturbations": 3} | ({"n_pairs": 0} if source == "simulated" else {})
    screen, gene_sets = simulated_screen({"source": source, "seed": 1, **few})
    assert len(screen.uns["truth"]["targets"]) == 3
    assert bool(gene_sets) == (source == "simulated")
