"""A trained model applied to cells: its own, shuffled, with missing genes or unknown labels."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import samsvae
from samsvae.biology.applied import (
    PROBABILITY,
    SCORE,
    ScreenModel,
    fit_to_cells,
    write_cells,
)
from samsvae.evaluation.predicted import predicted_effects
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel, restrict_genes, save_model
from samsvae.inference.encoding import Covariates, Encoding
from samsvae.inference.iwelbo import iwelbo
from samsvae.inference.posterior import cell_states
from samsvae.models import MODELS, build_model
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.labels import components
from samsvae.sources.simulated import Simulation, simulate
from tests.conftest import TINY

CPU = torch.device("cpu")
SIZES = {"combinations": "additive", "n_latent": 4, "n_hidden": 8}
PARTICLES = 5
STATES = ["X_basal", "X_latent", "X_shift"]


def untrained(screen, kind="sams_vae", covariates=(), on_target=False, **settings):
    """A model with open masks and random effects."""
    settings = {"kind": kind, **SIZES, "on_target_prior_scale": 2.0, **settings}
    genes = list(screen.var_names)
    targets = genes if on_target else ()
    encoding = Encoding.of(Design.of_screen(screen), settings["combinations"], targets)
    given = Covariates.of(screen.obs, list(covariates))
    torch.manual_seed(1)
    sizes = len(genes), len(encoding.names), len(given)
    model = build_model(settings, *sizes, encoding.target_genes).eval()
    model.standardise.mean.uniform_(0.2, 1.0)
    if hasattr(model, "mask"):
        model.mask.logits.data.fill_(3.0)
        model.embedding.network.head.bias.data.normal_()
    if on_target:
        model.on_target.location.data.normal_()
    return TrainedModel(model, settings, genes, encoding, given)


@pytest.fixture(scope="module")
def screen():
    changes = {"n_batches": 2, "guides_per_target": 2, "knock_down": 1.0, "n_genes": 70}
    return simulate(Simulation(**{**vars(TINY), **changes}))[0]


@pytest.fixture(scope="module")
def written(screen, tmp_path_factory):
    """The cells of a screen, written by a model of them."""
    folder = tmp_path_factory.mktemp("cells")
    write_source_screen(screen, "{}", folder / "screen.h5ad")
    trained = untrained(screen, covariates=["batch"], on_target=True)
    factors = {"factors": pd.DataFrame({"dimension": [0, 1], "perturbations": ["A;B", None]})}
    how = PARTICLES, 0, '{"made": "here"}', factors
    _, notes = write_cells(trained, folder / "screen.h5ad", folder / "cells.h5ad", *how)
    assert notes == []
    return trained, anndata.read_h5ad(folder / "cells.h5ad")


def same(one, other):
    for name in STATES:
        np.testing.assert_array_equal(one.obsm[name], other.obsm[name], err_msg=name)
    for name in ("bound", SCORE, PROBABILITY):
        np.testing.assert_array_equal(one.obs[name], other.obs[name], err_msg=name)


def test_cells_hold_the_screen_and_what_the_model_infers(screen, written):
    trained, cells = written
    assert (cells.X != screen.X).nnz == 0
    pd.testing.assert_frame_equal(
        cells.obs[screen.obs.columns], screen.obs, check_categorical=False
    )
    every = np.ones(screen.n_obs, dtype=bool)
    states = cell_states(trained, screen, every, 0)
    np.testing.assert_allclose(cells.obsm["X_basal"], states.basal, atol=1e-5)
    np.testing.assert_allclose(cells.obsm["X_latent"], states.total, atol=1e-5)
    np.testing.assert_allclose(
        cells.obsm["X_shift"], cells.obsm["X_latent"] - cells.obsm["X_basal"], atol=1e-6
    )
    is_control = cells.obs["perturbation"] == "control"
    assert np.abs(cells.obsm["X_shift"][is_control]).max() == 0
    own = Cells.of(screen, every, trained.encoding, CPU, trained.covariates)
    bound = iwelbo(trained.model, own, PARTICLES, 0)[0]
    np.testing.assert_allclose(cells.obs["bound"], bound, rtol=1e-5)
    assert cells.obs.loc[is_control, SCORE].isna().all()
    assert cells.obs.loc[~is_control, SCORE].notna().all()
    assert cells.uns["provenance"] == '{"made": "here"}'
    assert list(cells.uns["factors"]["factors"]["perturbations"]) == ["A;B", ""]


def test_shuffled_genes_and_raw_files_give_the_same_to_the_bit(screen, written):
    trained, cells = written
    order = np.random.default_rng(0).permutation(screen.n_vars)
    shuffled = screen[:, order].copy()
    same(ScreenModel(trained).encode(shuffled, particles=PARTICLES), cells)
    raw = anndata.AnnData(shuffled.X, shuffled.obs[["perturbation", "batch"]].copy(), shuffled.var)
    raw.obs = raw.obs.rename(columns={"perturbation": "label"})
    same(ScreenModel(trained).encode(raw, "label", PARTICLES), cells)
    more = anndata.concat([raw, raw], axis="var", merge="same")
    more.var_names = [*raw.var_names, *(f"other{at}" for at in range(raw.n_vars))]
    same(ScreenModel(trained).encode(more, "label", PARTICLES), cells)


def test_a_run_of_blocks_gives_the_same_as_one_block(screen, written, monkeypatch):
    trained, cells = written
    monkeypatch.setattr("samsvae.biology.responders.LARGEST_BLOCK", 37 * screen.n_vars)
    found = ScreenModel(trained).encode(screen, particles=PARTICLES)
    for name in STATES:
        np.testing.assert_allclose(found.obsm[name], cells.obsm[name], atol=1e-5)
    np.testing.assert_allclose(found.obs["bound"], cells.obs["bound"], rtol=1e-5)
    np.testing.assert_allclose(found.obs[SCORE], cells.obs[SCORE], atol=1e-3)


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("likelihood", ["negative_binomial", "normal"])
def test_a_restricted_model_has_the_decoder_of_the_measured_genes(screen, kind, likelihood):
    trained = untrained(screen, kind, ["batch"], True, likelihood=likelihood)
    kept = [gene for at, gene in enumerate(trained.genes) if at % 3]
    some = restrict_genes(trained, kept)
    assert some.genes == kept
    chosen = [trained.genes.index(gene) for gene in kept]
    [first] = trained.model.likelihood.hidden.first[-1:]
    decoded = torch.randn(6, first.in_features)
    given = torch.ones(6), torch.zeros(6, len(trained.covariates))
    whole, part = (each.model.likelihood.mean(decoded, *given).detach() for each in (trained, some))
    expected = whole[:, chosen]
    if likelihood == "negative_binomial":
        expected = (expected - 1e-4) / (expected - 1e-4).sum(1, keepdim=True) + 1e-4
    torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-6)
    # targets that are measured keep their effects
    names = [(trained.encoding.names[t], trained.genes[g]) for t, g in trained.encoding.targets]
    left = [(some.encoding.names[t], some.genes[g]) for t, g in some.encoding.targets]
    assert left == [pair for pair in names if pair[1] in set(kept)]
    location = dict(zip(names, trained.model.on_target.location.tolist(), strict=True))
    if left:
        assert some.model.on_target.location.tolist() == [location[pair] for pair in left]
        genes = [some.genes[gene] for gene in some.model.on_target.gene.tolist()]
        assert genes == [gene for _, gene in left]


def test_the_encoder_takes_missing_genes_at_their_mean(screen):
    trained = untrained(screen)
    kept = list(trained.genes[5:])
    some = restrict_genes(trained, kept)
    counts = screen.X[:20].toarray().astype(np.float32)
    at_means = counts.copy()
    at_means[:, :5] = np.expm1(trained.model.standardise.mean[:5].numpy())
    encoded = []
    for model, values in ((trained.model, at_means), (some.model, counts[:, 5:])):
        standardised = model.standardise(torch.from_numpy(values))
        encoded.append(model.encoder(standardised, torch.zeros(20, 4))[0])
    torch.testing.assert_close(*encoded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(MODELS))
def test_states_do_not_depend_on_whether_a_target_of_the_cell_is_measured(screen, kind):
    """The guide does not read it; cells with other perturbations do differ."""
    combinations = "unique" if kind == "svae_plus" else "additive"
    trained = untrained(screen, kind, on_target=True, combinations=combinations)
    gene = trained.genes[trained.encoding.targets[0][1]]
    model = ScreenModel(trained)
    without = screen[:, screen.var_names != gene].copy()
    whole, part = (model.encode(one, particles=2).obsm["X_basal"] for one in (screen, without))
    targets = screen.obs["perturbation"].astype(str).map(components)
    has = np.array([gene in own for own in targets])
    assert {len(own) for own in targets[has]} == {1, 2}
    np.testing.assert_allclose(whole[has], part[has], atol=1e-6)
    assert np.abs(whole[~has] - part[~has]).max() > 1e-3


def test_all_genes_give_the_same_model(screen):
    trained = untrained(screen)
    assert restrict_genes(trained, set(trained.genes) | {"another"}) is trained


def test_what_cells_lack_is_said(screen):
    trained = untrained(screen, covariates=["batch"])
    cells = screen[:, 10:].copy()
    cells.obs = cells.obs.drop(columns=["batch"])
    cells.obs["perturbation"] = (
        cells.obs["perturbation"].astype(str).replace({"TARGET01": "STRANGER"})
    )
    raw = anndata.AnnData(cells.X, cells.obs[["perturbation"]], cells.var)
    found = ScreenModel(trained).encode(raw, particles=2)
    strange = (raw.obs["perturbation"] == "STRANGER").to_numpy()
    assert strange.any()
    assert found.obs.loc[strange, "bound"].isna().all()
    assert found.obs.loc[~strange, "bound"].notna().all()
    assert found.obs.loc[strange, SCORE].isna().all()
    assert (found.obsm["X_shift"][strange] == 0).all()
    canonical = cells.copy()
    canonical.uns["perturbations"] = np.array(
        ["STRANGER" if name == "TARGET01" else name for name in canonical.uns["perturbations"]],
        dtype=object,
    )
    _, notes = fit_to_cells(trained, canonical)
    told = " ".join(notes)
    assert all(
        word in told for word in ("10 of the model's 70 genes", "GENE001", "batch", "STRANGER")
    )


def test_cells_with_few_of_the_genes_are_refused(screen):
    trained = untrained(screen)
    with pytest.raises(InputError, match=r"Only 34 of the model's 70 genes"):
        ScreenModel(trained).encode(screen[:, :34].copy())


def test_bad_cells_are_refused(screen):
    model = ScreenModel(untrained(screen))
    raw = anndata.AnnData(screen.X.astype(np.float32), screen.obs[["perturbation"]], screen.var)
    logs = raw.copy()
    logs.X = sparse.csr_matrix(logs.X.log1p())
    with pytest.raises(InputError, match="integer"):
        model.encode(logs)
    counts = raw.X.toarray()
    counts[3] = 0
    with pytest.raises(InputError, match=r"\b3\b"):
        model.encode(anndata.AnnData(counts, raw.obs, raw.var))


def test_cells_without_labels_are_control_cells(screen):
    model = ScreenModel(untrained(screen))
    raw = anndata.AnnData(screen.X, pd.DataFrame(index=screen.obs_names), screen.var)
    found = model.encode(raw, particles=2)
    assert (found.obsm["X_shift"] == 0).all()
    assert found.obs[SCORE].isna().all()
    assert len(found.uns["responders"]) == 0


def test_a_loaded_model_predicts_and_samples(screen, tmp_path):
    trained = untrained(screen)
    save_model(trained, "{}", tmp_path / "model.safetensors")
    model = samsvae.load(tmp_path / "model.safetensors")
    assert model.genes == list(screen.var_names)
    assert "sams_vae" in repr(model)
    pair = "+".join(model.perturbations[:2])
    effects = model.effects([model.perturbations[0], pair], draws=20)
    expected = predicted_effects(trained, [model.perturbations[0], pair], 20, 0)[0]
    np.testing.assert_allclose(effects.to_numpy(), expected, atol=1e-6)
    assert list(effects.index) == [model.perturbations[0], pair]
    assert len(model.effects(draws=2)) == len(model.perturbations)
    cells = model.sample(["control", pair], 3, [500.0, 700.0])
    assert cells.n_obs == 6
    assert set(cells.obs["library_size"]) <= {500.0, 700.0}
    with pytest.raises(InputError, match="STRANGER"):
        model.effects(["STRANGER"])
    every = np.ones(screen.n_obs, dtype=bool)
    own = Cells.of(screen, every, trained.encoding, CPU)
    bound = model.log_likelihood(screen, particles=4)
    np.testing.assert_allclose(bound, iwelbo(trained.model, own, 4, 0)[0], rtol=1e-5)
    assert list(bound.index) == list(screen.obs_names)


def test_marginal_screens_have_a_probability_of_each_perturbation(tmp_path):
    changes = {"guides_per_cell": 2.0, "n_pairs": 0, "unit": "perturbation"}
    many = simulate(Simulation(**{**vars(TINY), **changes}))[0]
    write_source_screen(many, "{}", tmp_path / "screen.h5ad")
    trained = untrained(many)
    write_cells(trained, tmp_path / "screen.h5ad", tmp_path / "cells.h5ad", 2, 0, "{}")
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert SCORE not in cells.obs
    for name in (SCORE, PROBABILITY):
        assert cells.obsm[name].shape == (many.n_obs, len(trained.encoding.names))
    assert (cells.obsm[SCORE] != 0).nnz == many.obsm["dosage"].nnz


def test_a_failed_pass_leaves_no_file(screen, tmp_path, monkeypatch):
    write_source_screen(screen, "{}", tmp_path / "screen.h5ad")
    trained = untrained(screen)

    def fails(*_):
        raise RuntimeError("interrupted")

    monkeypatch.setattr("samsvae.biology.applied.states_of", fails)
    with pytest.raises(RuntimeError, match="interrupted"):
        write_cells(trained, tmp_path / "screen.h5ad", tmp_path / "cells.h5ad", 2, 0, "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["screen.h5ad"]


def test_labels_of_a_canonical_file_are_read_anew(screen):
    """Neither an old design matrix nor old library sizes outlive a change of the cells."""
    model = ScreenModel(untrained(screen))
    shuffled = screen.copy()
    order = np.random.default_rng(0).permutation(screen.n_obs)
    shuffled.obs["perturbation"] = screen.obs["perturbation"].to_numpy()[order]
    columns = shuffled.obs[["perturbation", "batch"]].copy()
    raw = anndata.AnnData(screen.X, columns, screen.var)
    one, other = (model.encode(cells, particles=2) for cells in (shuffled, raw))
    np.testing.assert_array_equal(one.obs[SCORE], other.obs[SCORE])
    few = screen[:, :50].copy()
    plain = anndata.AnnData(few.X, few.obs[["perturbation"]].copy(), few.var)
    one, other = (model.encode(cells, particles=2) for cells in (few, plain))
    np.testing.assert_array_equal(one.obs["bound"], other.obs["bound"])
    logs = screen.copy()
    logs.X = sparse.csr_matrix(logs.X.astype(np.float32).log1p())
    with pytest.raises(InputError, match="integer"):
        model.encode(logs)


def test_cells_without_counts_of_the_models_genes_have_no_score(screen):
    counts = np.hstack([screen.X.toarray(), np.zeros((screen.n_obs, 1), dtype=int)])
    cell = int(np.argmax(screen.obs["perturbation"] != "control"))
    counts[cell, :-1], counts[cell, -1] = 0, 9
    var = pd.DataFrame(index=[*screen.var_names, "ELSEWHERE"])
    cells = anndata.AnnData(counts, screen.obs[["perturbation"]].copy(), var)
    found = ScreenModel(untrained(screen)).encode(cells, particles=2)
    assert found.obs[["bound", SCORE, PROBABILITY]].iloc[cell].isna().all()
    assert found.obs["bound"].isna().sum() == 1


def test_requests_that_cannot_be_met_are_refused(screen, tmp_path):
    model = ScreenModel(untrained(screen))
    for given in ({"draws": 0}, {"draws": -1}, {"library_sizes": []}, {"library_sizes": [0.0]}):
        with pytest.raises(InputError):
            model.effects(**given)
    with pytest.raises(InputError, match="cells: 0"):
        model.sample("control", cells=0)
    with pytest.raises(InputError, match="particles: 0"):
        model.encode(screen, particles=0)
    with pytest.raises(InputError, match="no counts in X"):
        model.encode(screen[:0])
    missing = screen.copy()
    missing.obs["perturbation"] = missing.obs["perturbation"].astype(object)
    missing.obs.iloc[4, missing.obs.columns.get_loc("perturbation")] = None
    with pytest.raises(InputError, match=screen.obs_names[4]):
        model.encode(missing)
    write_source_screen(screen.copy(), "{}", tmp_path / "screen.h5ad")
    with pytest.raises(InputError, match="to_memory"):
        model.encode(anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r"))
    assert list(model.effects("TARGET01", draws=2).index) == ["TARGET01"]


def test_control_cells_may_have_another_label(screen, caplog):
    model = ScreenModel(untrained(screen))
    other = anndata.AnnData(screen.X, screen.obs[["perturbation"]].copy(), screen.var)
    other.obs["perturbation"] = other.obs["perturbation"].astype(str).replace({"control": "NT"})
    found = model.encode(other, particles=2, control="NT")
    own = model.encode(screen, particles=2)
    np.testing.assert_array_equal(found.obs[SCORE], own.obs[SCORE])
    model.encode(other, particles=2)
    assert "No cell is a control cell" in caplog.text
