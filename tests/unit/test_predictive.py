import anndata
import numpy as np
import pyro
import pytest
import torch

from samsvae.evaluation.predicted import predicted_effects
from samsvae.evaluation.samples import counterfactual_cells, sample_cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.inference.objective import latent_sites
from samsvae.inference.posterior import draw_effects
from samsvae.models import MODELS, build_model
from samsvae.models.base import shift_of_conditions
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import build_screen
from samsvae.screen.design import Design

GENES, SMALL = 12, {"n_latent": 3, "n_hidden": 8}
LABELS = ["control", "A", "A+B", "B@0.5"]
CASES = [(kind, "negative_binomial") for kind in MODELS]
CASES += [("sams_vae", "poisson"), ("cpa_vae", "normal"), ("conditional_vae", "normal")]


def untrained(kind, likelihood="negative_binomial", n_genes=GENES, **settings):
    """A model with random weights, far enough from its start to have effects."""
    torch.manual_seed(0)
    combinations = "unique" if kind == "svae_plus" else "additive"
    entry = {"kind": kind, "likelihood": likelihood, "combinations": combinations, **SMALL}
    names = ("A", "A+B", "B") if combinations == "unique" else ("A", "B")
    model = build_model({**entry, **settings}, n_genes, len(names))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    genes = [f"G{i}" for i in range(n_genes)]
    return TrainedModel(model.eval(), entry, genes, Encoding(names, combinations))


def decoded_by_hand(kind, state, shift):
    """Add a shift to a basal state, or put it beside the state."""
    if kind != "conditional_vae":
        return state + shift
    shape = torch.broadcast_shapes(state.shape[:-1], shift.shape[:-1])
    return torch.cat([state.expand(*shape, -1), shift.expand(*shape, -1)], -1)


def drawn_from_prior(model, draws):
    with pyro.plate("particles", draws, dim=-2):
        trace = pyro.poutine.trace(model.global_prior).get_trace()
    return {name: site["value"] for name, site in latent_sites(trace).items()}


@pytest.mark.parametrize("sample_from", ["posterior", "prior"])
@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_samples_have_the_mean_that_the_decoder_says(kind, likelihood, sample_from):
    """Within the error of both averages, for every gene, seen perturbation or not."""
    trained, draws = untrained(kind, likelihood), 300
    cells = sample_cells(trained, LABELS, draws, [200.0, 600.0], 1, sample_from)
    model, many = trained.model, 20_000
    pyro.set_rng_seed(2)
    with torch.no_grad():
        design = torch.from_numpy(trained.encoding.design(LABELS))
        shift = shift_of_conditions(draw_effects(model, many, sample_from), design)
        decoded = decoded_by_hand(kind, torch.randn(many, 1, model.n_latent), shift)
        size = torch.tensor([200.0, 600.0])[torch.randint(2, (many, 1))]
        means = model.likelihood.mean(decoded, size).numpy()
    counts = cells.X.toarray().reshape(len(LABELS), draws, GENES)
    error = np.sqrt(counts.var(1) / draws + means.var(0) / many)
    assert (np.abs(counts.mean(1) - means.mean(0)) / error).max() < 5


@pytest.mark.parametrize("kind", MODELS)
def test_sampled_cells_say_what_they_are(kind):
    cells = sample_cells(untrained(kind), LABELS, 7, [10.0, 30.0], seed=0, provenance='{"a": 1}')
    assert cells.shape == (len(LABELS) * 7, GENES)
    assert cells.X.format == "csr"
    assert cells.X.dtype == np.int32
    assert list(cells.obs["perturbation"]) == [label for label in LABELS for _ in range(7)]
    assert list(cells.obs["draw"]) == list(range(7)) * len(LABELS)
    assert set(cells.obs["library_size"]) == {10.0, 30.0}
    assert cells.obs_names.is_unique
    assert list(cells.var_names) == [f"G{i}" for i in range(GENES)]
    assert cells.obsm["latent"].shape == (len(cells), 3)
    assert cells.uns["provenance"] == '{"a": 1}'
    assert sample_cells(untrained(kind), ["A"], 2, 50, seed=0).obs["library_size"].eq(50).all()


def test_values_that_are_no_counts_stay_what_they_are(tmp_path):
    cells = sample_cells(untrained("cpa_vae", "normal"), LABELS, 3, 100, seed=0)
    assert cells.X.dtype == np.float32
    assert (cells.X.data < 0).any()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert (again.X != cells.X).nnz == 0


@pytest.mark.parametrize("sample_from", ["posterior", "prior"])
def test_the_seed_decides_and_more_cells_begin_with_the_same(sample_from):
    trained = untrained("sams_vae")
    few, many, other = (
        sample_cells(trained, LABELS, n, [50.0, 99.0], seed, sample_from)
        for n, seed in ((4, 3), (9, 3), (4, 4))
    )
    same = many[many.obs["draw"] < 4]
    assert list(same.obs_names) == list(few.obs_names)
    assert (same.X != few.X).nnz == 0
    np.testing.assert_array_equal(same.obsm["latent"], few.obsm["latent"])
    assert (other.X != few.X).nnz > 0


def test_a_perturbation_moves_the_latent_state_of_its_cells():
    trained = untrained("cpa_vae")
    trained.model.embedding.log_scale.data.fill_(-20)
    trained.model.embedding.location.data.copy_(torch.tensor([[30.0, 0, 0], [0, 40, 0]]))
    cells = sample_cells(trained, LABELS, 200, 100, seed=0)
    means = cells.obsm["latent"].reshape(len(LABELS), 200, 3).mean(1)
    expected = [[0, 0, 0], [30, 0, 0], [30, 40, 0], [0, 20, 0]]
    np.testing.assert_allclose(means, expected, atol=5 / np.sqrt(200))


@pytest.mark.parametrize(
    ("kind", "settings", "mean"),
    [
        ("sams_vae", {"mask_prior": 0.2}, 0.2),
        ("sams_vae_beta_bernoulli", {"alpha": 1.0, "beta": 3.0}, 0.25),
        ("svae_plus", {"beta": 4.0}, 0.2),
    ],
)
def test_masks_of_the_prior_have_its_mean(kind, settings, mean):
    model = untrained(kind, **settings).model
    mask = drawn_from_prior(model, 4000)["mask"]
    assert mask.shape == (4000, model.n_perturbations, 3)
    error = np.sqrt(mean * (1 - mean) / mask.numel())
    assert float(mask.mean()) == pytest.approx(mean, abs=5 * error)


@pytest.mark.parametrize("kind", ["sams_vae", "cpa_vae"])
def test_embeddings_of_the_prior_have_its_scale(kind):
    model = untrained(kind, embedding_prior_scale=2.5).model
    drawn = drawn_from_prior(model, 4000)["embedding"]
    assert float(drawn.mean()) == pytest.approx(0, abs=0.1)
    assert float(drawn.std()) == pytest.approx(2.5, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sams_vae", "svae_plus", "conditional_vae"])
def test_predicted_effects_are_those_of_sampled_cells(kind):
    """At a library size of 10,000, draw by draw: within the error of both."""
    trained, draws = untrained(kind, n_genes=40), 600
    cells = sample_cells(trained, LABELS, draws, 1e4, seed=0)
    logs = np.log2(1 + cells.X.toarray()).reshape(len(LABELS), draws, 40)
    difference = logs[1:] - logs[0]
    effects, error = predicted_effects(trained, LABELS[1:], 3000, seed=1)
    error = np.sqrt(difference.var(1) / draws + error**2)
    assert (np.abs(difference.mean(1) - effects) / error).max() < 5


def screen_of(labels, n_genes=GENES, all_alike=False):
    rows = 1 if all_alike else len(labels)
    counts = 1 + np.random.default_rng(0).poisson(4.0, (rows, n_genes))
    counts = np.broadcast_to(counts, (len(labels), n_genes))
    genes = [f"G{i}" for i in range(n_genes)]
    return build_screen(
        counts, Design.of_labels(labels), [f"cell{i}" for i in range(len(labels))], genes
    )


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "conditional_vae"])
def test_a_counterfactual_moves_the_same_cells_by_the_difference_of_effects(kind):
    trained = untrained(kind)
    screen = screen_of(["control", "A", "A", "B", "A@0.5", "A+B"] * 3)
    names = list(screen.obs["perturbation"])
    same = counterfactual_cells(trained, screen, None, seed=1)
    moved = counterfactual_cells(trained, screen, "A+B", seed=1)
    pyro.set_rng_seed(1)
    with torch.no_grad():
        effects = draw_effects(trained.model, 1)[0]
    design = trained.encoding.design
    expected = (design(["A+B"]) - design(names)) @ effects.numpy()
    np.testing.assert_allclose(moved.obsm["latent"] - same.obsm["latent"], expected, atol=1e-5)
    assert list(same.obs["perturbation"]) == list(same.obs["received"]) == names
    assert set(moved.obs["perturbation"]) == {"A+B"}
    assert list(moved.obs_names) == list(screen.obs_names)
    assert (moved.obs["library_size"] == screen.obs["library_size"]).all()


@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_counterfactual_counts_have_the_mean_that_the_decoder_says(kind, likelihood):
    """Of one cell, many times over, at the latent states drawn for it."""
    trained, many = untrained(kind, likelihood), 4000
    screen = screen_of(["A"] * many + ["control"], all_alike=True)
    cells = counterfactual_cells(trained, screen, "B", seed=3)[:many]
    model = trained.model
    with torch.no_grad():
        latent = torch.from_numpy(cells.obsm["latent"])[None]
        if kind == "conditional_vae":
            latent = torch.cat([latent, torch.tensor([[[0.0, 1.0]]]).expand(1, many, 2)], -1)
        size = torch.tensor(screen.obs["library_size"].to_numpy()[:many], dtype=torch.float32)
        means = model.likelihood.mean(latent, size)[0].numpy()
    difference = cells.X.toarray() - means
    error = difference.std(0) / np.sqrt(many)
    assert (np.abs(difference.mean(0)) / error).max() < 5
    assert cells.obsm["latent"].std(0).min() > 1e-4


def test_counterfactual_cells_need_the_models_genes_and_perturbations():
    trained = untrained("sams_vae")
    with pytest.raises(InputError, match=r"genes of the cells .*first unknown gene: \w+"):
        counterfactual_cells(trained, screen_of(["control", "A"], GENES + 1), "A", seed=0)
    for labels, asked in ((["control", "C"], "A"), (["control", "A"], "C")):
        with pytest.raises(InputError, match="no perturbation 'C'"):
            counterfactual_cells(trained, screen_of(labels), asked, seed=0)


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(InputError, match=r"no perturbation 'C'; .*\bA, B\b"):
        sample_cells(untrained("sams_vae"), ["A+C"], 1, 100, seed=0)
    with pytest.raises(InputError, match="'guide' is not allowed; allowed: posterior, prior"):
        sample_cells(untrained("sams_vae"), ["A"], 1, 100, seed=0, sample_from="guide")
