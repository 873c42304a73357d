"""Effects of perturbations on the expression of the genes that they target."""

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy import sparse

from samsvae.evaluation.predicted import predicted_effects
from samsvae.evaluation.samples import counterfactual_cells, sample_cells
from samsvae.inference.cells import Cells, CellStream
from samsvae.inference.checkpoint import TrainedModel, load_model, save_model
from samsvae.inference.encoding import Encoding
from samsvae.inference.iwelbo import StreamedBounds, iwelbo
from samsvae.inference.objective import elbo
from samsvae.inference.posterior import mask_probability
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import MODELS, build_model
from samsvae.runtime.files import write_tsv
from samsvae.screen.canonical import write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TEST, split_table
from samsvae.sources.simulated import simulate
from tests.conftest import TINY

CPU = torch.device("cpu")
SMALL = {"n_latent": 4, "n_hidden": 8}


@pytest.fixture(autouse=True)
def _seeded():
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)


@pytest.fixture(scope="module")
def screen():
    """A screen whose first four targets are measured genes."""
    screen = simulate(TINY)[0]
    targets = Design.of_screen(screen).names[:4]
    screen.var_names = [*targets, *screen.var_names[4:]]
    return screen


def untrained(screen, **settings):
    """A model with on-target effects, and its cells."""
    settings = {"kind": "sams_vae", "combinations": "additive", **SMALL, **settings}
    settings |= {"on_target": True, "on_target_prior_scale": 2.0}
    genes = list(screen.var_names)
    encoding = Encoding.of(Design.of_screen(screen), settings["combinations"], genes)
    sizes = len(genes), len(encoding.names)
    model = build_model(settings, *sizes, target_genes=encoding.target_genes).eval()
    every = np.ones(screen.n_obs, dtype=bool)
    return TrainedModel(model, settings, genes, encoding), Cells.of(screen, every, encoding, CPU)


def test_pairs_are_perturbations_with_a_measured_target():
    names = ["A", "A+B", "B", "C", "X"]
    genes = ["B", "G", "A"]
    matrix = np.array([[1, 0, 0], [0.5, 1, 0], [0, 0, 0], [0, 0, 1]])
    design = Design.of(matrix, ["A", "B", "C"])
    additive = Encoding.of(design, "additive", genes)
    assert additive.targets == ((0, 2), (1, 0))
    pairs, dose = additive.pairs(torch.from_numpy(matrix))
    assert pairs.tolist() == [[0, 0], [0, 1], [0, 0], [0, 0]]
    assert dose.tolist() == [[1, 0], [0.5, 1], [0, 0], [0, 0]]
    unique = Encoding(tuple(names), "unique", ((0, 2), (1, 2), (1, 0), (2, 0)))
    pairs, dose = unique.pairs(torch.eye(5))
    assert pairs.tolist() == [[0, 0], [1, 2], [3, 0], [0, 0], [0, 0]]
    assert dose.tolist() == [[1, 0], [1, 1], [1, 0], [0, 0], [0, 0]]
    assert Encoding.of(design, "additive").pairs(torch.eye(3)) == ()


def test_a_combination_that_is_one_perturbation_has_the_targets_of_its_genes(screen):
    trained, _ = untrained(screen, kind="svae_plus", combinations="unique")
    names, genes = trained.encoding.names, trained.genes
    pairs = {(names[index], genes[gene]) for index, gene in trained.encoding.targets}
    targets = set(genes[:4])
    assert pairs == {(n, part) for n in names for part in n.split("+") if part in targets}
    assert any("+" in name for name, _ in pairs)


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson", "normal"])
def test_the_bound_has_a_term_of_on_target_effects(screen, kind, likelihood):
    combinations = "unique" if kind == "svae_plus" else "additive"
    trained, cells = untrained(screen, kind=kind, likelihood=likelihood, combinations=combinations)
    own = trained.model.on_target
    with torch.no_grad():
        own.location.normal_()
    bound = elbo(trained.model, cells.batch(torch.arange(len(cells))[::7]), 2)
    scale = own.log_scale.exp()
    kl = (scale / 2) ** 2 / 2 + (own.location / 2) ** 2 / 2 - 0.5 - torch.log(scale / 2)
    torch.testing.assert_close(bound.kl_global["on_target"], kl.sum())
    bound.loss.backward()
    assert own.location.grad.abs().min() > 0


def test_effects_rise_by_the_term_of_the_target_alone_in_the_logits(screen):
    """With certain effects, the mean follows from the softmax in closed form."""
    trained, _ = untrained(screen, kind="cpa_vae")
    own = trained.model.on_target
    first, second = screen.var_names[:2]
    with torch.no_grad():
        trained.model.embedding.log_scale.fill_(-20)  # no latent effect
        own.log_scale.fill_(-20)
        own.location[:2, 0] = torch.tensor([1.5, -0.5])
    cells = {
        name: sample_cells(trained, [name], 1500, 10_000, seed=0)
        for name in (CONTROL, first, "+".join(sorted([first, second])))
    }
    control, single, pair = (np.asarray(each.X.mean(axis=0)).ravel() for each in cells.values())
    ratio = single / control
    odds = (single[0] / single[1:].sum()) / (control[0] / control[1:].sum())
    assert np.log(odds) == pytest.approx(1.5, abs=0.15)
    assert np.abs(np.log(ratio[4:20]).mean() - np.log(single[1:].sum() / control[1:].sum())) < 0.1
    rest = pair[2:].sum() / control[2:].sum()
    np.testing.assert_allclose(np.log(pair[:2] / control[:2] / rest), [1.5, -0.5], atol=0.15)
    effects, _ = predicted_effects(trained, [first, "+".join(sorted([first, second]))], 50, 0)
    assert effects[0].argmax() == 0
    assert effects[1].argmin() == 1
    sampled, error = predicted_effects(trained, [first], 40_000, 0, "sampled")
    integrated, other = predicted_effects(trained, [first], 4_000, 0)
    assert (np.abs(sampled - integrated) < 6 * np.hypot(error, other) + 1e-3).all()


@pytest.mark.parametrize("kind", MODELS)
def test_the_guide_does_not_read_the_targets_of_a_cell(screen, kind):
    """Their counts tell of the perturbation; those of other cells' targets it does read."""
    trained, cells = untrained(screen, kind=kind)
    design = cells.design[cells.condition] != 0
    row = int(np.flatnonzero(design[:, :4].sum(dim=1) == 2)[0])  # a pair
    own = [int(gene) for gene in np.flatnonzero(design[row, :4])]
    [other] = np.flatnonzero(~design[row, :4])[:1]

    def locations(gene: int) -> torch.Tensor:
        batch = cells.batch(torch.tensor([row, 0]))
        batch.counts[0, gene] += 50
        pyro.set_rng_seed(0)
        trace = pyro.poutine.trace(trained.model.guide).get_trace(batch)
        [name] = [name for name, site in trace.nodes.items() if is_of_cells(site)]
        return trace.nodes[name]["fn"].base_dist.loc

    def is_of_cells(site) -> bool:
        return site["type"] == "sample" and any(
            frame.name == "cells" for frame in site["cond_indep_stack"]
        )

    before = locations(own[0])
    assert torch.equal(before, locations(own[1]))
    assert not torch.equal(before, locations(int(other)))


def test_doses_scale_the_term(screen):
    trained, _ = untrained(screen, kind="cpa_vae")
    with torch.no_grad():
        trained.model.embedding.log_scale.fill_(-20)
        trained.model.on_target.log_scale.fill_(-20)
        trained.model.on_target.location[0] = 2.0
    name = screen.var_names[0]
    half, _ = predicted_effects(trained, [f"{name}@0.5"], 50, 0)
    with torch.no_grad():
        trained.model.on_target.location[0] = 1.0
    whole, _ = predicted_effects(trained, [name], 50, 0)
    np.testing.assert_allclose(half, whole, atol=1e-5)


def test_counterfactual_cells_have_the_term_of_the_given_perturbation(screen):
    trained, _ = untrained(screen)
    with torch.no_grad():
        trained.model.on_target.location[0] = 4.0
        trained.model.on_target.log_scale.fill_(-20)
    name = screen.var_names[0]
    given = counterfactual_cells(trained, screen, name, seed=0)
    without = counterfactual_cells(trained, screen, CONTROL, seed=0)
    received = counterfactual_cells(trained, screen, None, seed=0)
    counts = [np.asarray(each.X[:, 0].todense()).ravel() for each in (given, without, received)]
    assert counts[0].mean() > 5 * counts[1].mean()
    has = (screen.obs["perturbation"] == name).to_numpy()
    assert counts[2][has].mean() > 5 * counts[1].mean()
    assert counts[2][(screen.obs["perturbation"] == CONTROL).to_numpy()].mean() < counts[0].mean() / 5  # fmt: skip


def test_a_saved_model_and_streamed_cells_have_them(screen, tmp_path):
    trained, cells = untrained(screen)
    with torch.no_grad():
        trained.model.on_target.location.normal_()
    save_model(trained, "{}", tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert again.encoding == trained.encoding
    paths = tmp_path / "screen.h5ad", tmp_path / "split.tsv"
    write_source_screen(screen, "{}", paths[0])
    write_tsv(split_table(screen, np.full(screen.n_obs, TEST)), paths[1])
    stream = CellStream.of(*paths, [TEST], again.encoding, CPU)
    table = pd.concat(StreamedBounds(again.model, stream, 20, seed=3).tables())
    expected, _ = iwelbo(trained.model, cells, 20, seed=3)
    np.testing.assert_allclose(table["iwelbo"], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_change_of_a_single_gene_is_learnt_without_a_mask(screen):
    """A perturbation whose cells are control cells, but for counts of its target."""
    name, column = screen.var_names[2], 2  # expressed in every cell
    has = np.flatnonzero(screen.obs["perturbation"] == name)
    controls = np.flatnonzero(screen.obs["perturbation"] == CONTROL)
    rng = np.random.default_rng(0)
    counts = screen.X.toarray().astype(int)
    counts[has] = counts[rng.choice(controls, len(has))]
    with_it = np.flatnonzero(screen.obs["perturbation"].str.contains(name))  # and in pairs
    counts[with_it, column] = rng.binomial(counts[with_it, column], 0.2)
    knocked = screen.copy()
    knocked.X = sparse.csr_matrix(counts)
    knocked.obs["library_size"] = np.maximum(counts.sum(axis=1), 1)
    trained, cells = untrained(knocked, embedding="mean_field")
    sizes = knocked.n_vars, len(trained.encoding.names)
    how = Training(max_steps=600, batch_size=128, particles=2, learning_rate=1e-2)

    def build():
        return build_model(trained.settings, *sizes, target_genes=trained.encoding.target_genes)

    [pair] = [index for index, (_, gene) in enumerate(trained.encoding.targets) if gene == column]
    ratio = counts[has].sum(axis=0) / counts[controls].sum(axis=0)
    odds = np.log(ratio[column] / ratio[0])
    for one in fit(build, cells, cells, how, [0, 1]):
        own = one.model.on_target.location.detach().numpy()[:, 0]
        assert own[pair] == pytest.approx(odds, abs=0.4)
        mask = mask_probability(one.model)[trained.encoding.names.index(name)]
        assert (mask < 0.5).all()


def test_counts_of_a_target_may_be_dispersed_where_cells_escape(screen):
    """Variances of sampled cells, and effects that are integrated as they are sampled."""
    trained, _ = untrained(screen, kind="cpa_vae")
    own, first = trained.model.on_target, screen.var_names[0]
    with torch.no_grad():
        trained.model.embedding.log_scale.fill_(-20)  # no latent effect
        own.log_scale.fill_(-20)
        own.location[0] = 1.0
        own.log_factor[0] = -2.0
    counts = sample_cells(trained, [first], 4000, 10_000, seed=0).X.toarray()
    own.log_factor.data[0] = 0.0
    narrow = sample_cells(trained, [first], 4000, 10_000, seed=0).X.toarray()
    own.log_factor.data[0] = -2.0
    assert counts[:, 0].mean() == pytest.approx(narrow[:, 0].mean(), rel=0.1)
    assert counts[:, 0].var() > 3 * narrow[:, 0].var()
    np.testing.assert_allclose(counts[:, 1:].var(axis=0), narrow[:, 1:].var(axis=0), rtol=0.5)
    pair = "+".join(sorted([first, screen.var_names[1]]))
    for names in ([first], [pair, first]):
        sampled, error = predicted_effects(trained, names, 40_000, 0, "sampled")
        integrated, other = predicted_effects(trained, names, 4_000, 0)
        assert (np.abs(sampled - integrated) < 6 * np.hypot(error, other) + 1e-3).all()
    half, _ = predicted_effects(trained, [f"{first}@0.5"], 50, 0)
    own.location.data[0], own.log_factor.data[0] = 0.5, -1.0
    whole, _ = predicted_effects(trained, [first], 50, 0)
    np.testing.assert_allclose(half, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "has_dispersion"), [("negative_binomial", True), ("poisson", False)]
)
def test_dispersions_of_targets_are_learnt_where_there_are_any(screen, likelihood, has_dispersion):
    trained, cells = untrained(screen, kind="sams_vae", likelihood=likelihood)
    elbo(trained.model, cells.batch(torch.arange(len(cells))), 2).loss.backward()
    gradient = trained.model.on_target.log_factor.grad
    assert (gradient is not None and float(gradient.abs().min()) > 0) == has_dispersion
