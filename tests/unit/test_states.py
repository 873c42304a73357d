"""Latent states of cells: inferred, classified, laid out, and compared with the truth."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from samsvae.biology import states
from samsvae.biology.states import (
    ALL,
    G2M_GENES,
    OTHER,
    S_GENES,
    cell_cycle_scores,
    classify_basal_state,
    classify_states,
    discriminate,
    map_and_cluster,
    perturbation_map,
    shown_as,
    shrunken_covariance,
    state_map,
)
from samsvae.evaluation.truth import mask_thresholds, state_recovery, state_scores
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.inference.posterior import (
    BasalCells,
    CellStates,
    cell_states,
    looked_up_shifts,
)
from samsvae.models import build_model
from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design

KINDS = ("sams_vae", "sams_vae_beta_bernoulli", "cpa_vae", "svae_plus", "conditional_vae")


def untrained(kind, screen, **settings):
    torch.manual_seed(0)
    combinations = "unique" if kind == "svae_plus" else "additive"
    settings = {
        "kind": kind,
        "n_latent": 3,
        "n_hidden": 8,
        "combinations": combinations,
        **settings,
    }
    encoding = Encoding.of(Design.of_screen(screen), combinations)
    model = build_model(settings, screen.n_vars, len(encoding.names))
    model.standardise.fit(torch.ones(screen.n_vars), torch.ones(screen.n_vars))
    return TrainedModel(model.eval(), settings, list(screen.var_names), encoding)


@pytest.mark.parametrize("kind", KINDS)
def test_the_total_state_is_the_basal_one_plus_the_effects(kind, tiny_screen):
    trained = untrained(kind, tiny_screen)
    if kind in ("cpa_vae", "sams_vae"):
        with torch.no_grad():  # certain effects, and every mask open
            guide = trained.model.embedding
            if kind == "sams_vae":
                trained.model.mask.logits.fill_(40)
            else:
                guide.location.normal_()
                guide.log_scale.fill_(-20)
    keep = np.arange(tiny_screen.n_obs) % 3 == 0
    states = cell_states(trained, tiny_screen, keep, seed=0)
    assert states.basal.shape == states.total.shape == (keep.sum(), 3)
    control = (tiny_screen.obs["perturbation"] == "control").to_numpy()[keep]
    difference = states.total - states.basal
    np.testing.assert_allclose(difference[control], 0, atol=1e-6)
    if kind == "cpa_vae":
        labels = list(tiny_screen.obs["perturbation"][keep])
        expected = trained.encoding.design(labels) @ guide.location.detach().numpy()
        np.testing.assert_allclose(difference, expected, atol=1e-4)
    if kind == "conditional_vae":
        assert (difference == 0).all()
    again = cell_states(trained, tiny_screen, keep, seed=0)
    assert (again.basal == states.basal).all()


def test_the_basal_state_is_the_location_that_the_encoder_gives(tiny_screen):
    trained = untrained("cpa_vae", tiny_screen, basal_encoder="mean_field")
    keep = np.arange(tiny_screen.n_obs) < 50
    cells = Cells.of(tiny_screen, keep, trained.encoding, torch.device("cpu"))
    location, _ = trained.model.encoder(trained.model.standardise(cells.counts.float()))
    states = cell_states(trained, tiny_screen, keep, seed=0)
    np.testing.assert_allclose(states.basal, location.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("basal_encoder", ["mean_field", "correlated"])
@pytest.mark.parametrize("at_means", [True, False])
def test_inferred_cells_have_every_draw(basal_encoder, at_means, tiny_screen):
    trained = untrained("sams_vae", tiny_screen, basal_encoder=basal_encoder)
    keep = np.arange(tiny_screen.n_obs) < 7
    cells = Cells.of(tiny_screen, keep, trained.encoding, torch.device("cpu"))
    batch = cells.batch(torch.arange(7))
    shifts = torch.randn(4, len(cells.design), 3)
    inferred = BasalCells.from_guide(trained.model, batch, shifts, at_means=at_means)
    assert inferred.variables["basal"].shape == (4, 7, 3)
    assert inferred[1:3].variables["basal"].shape == (2, 7, 3)


def cells_and_labels(rng, n_control=120, n_each=40, n_perturbations=6):
    names = ["control"] * n_control
    names += [f"P{p}" for p in range(n_perturbations) for _ in range(n_each)]
    return rng.normal(size=(len(names), 5)), np.array([*names, *["RARE"] * 4], dtype=object)


def test_a_classifier_sees_what_differs_and_nothing_else():
    rng = np.random.default_rng(0)
    basal, labels = cells_and_labels(rng)
    basal = np.vstack([basal, rng.normal(size=(4, 5))])
    moves = {name: rng.normal(0, 4, 5) for name in set(labels) - {"control"}}
    total = basal + np.array([moves.get(name, np.zeros(5)) for name in labels])
    table = classify_states({"basal": basal, "total": total}, labels, seed=0)
    assert set(table["perturbation"]) == {*(f"P{p}" for p in range(6)), ALL}
    means = table.groupby(["perturbation", "state", "labels"])["accuracy"].first()
    for state, kind in (("basal", "true"), ("basal", "shuffled"), ("total", "shuffled")):
        against_control = [means[f"P{p}", state, kind] for p in range(6)]
        assert abs(np.mean(against_control) - 0.5) < 0.1
        assert abs(means[ALL, state, kind] - 1 / 7) < 0.1
    assert min(means[f"P{p}", "total", "true"] for p in range(6)) > 0.95
    assert means[ALL, "total", "true"] > 0.9
    # as many cells of each class
    number = table.drop_duplicates("perturbation").set_index("perturbation")["n_cells"]
    assert number.to_dict() == {**{f"P{p}": 80 for p in range(6)}, ALL: 7 * 40}
    again = classify_states({"basal": basal, "total": total}, labels, seed=0)
    pd.testing.assert_frame_equal(again, table)


def test_of_many_perturbations_those_with_most_cells_are_classified(monkeypatch):
    monkeypatch.setattr(states, "CLASSIFIED", 2)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.array(["A", "B", "C", "D", "control"], object), [12, 30, 20, 20, 40])
    values = rng.normal(size=(len(labels), 3))
    table = classify_states({"basal": values}, labels, seed=0)
    assert set(table["perturbation"]) == {"B", "C", ALL}
    assert set(table.loc[table["perturbation"] == ALL, "chance"]) == {1 / 3}


def test_a_difference_of_spread_alone_is_not_seen():
    """As posterior means have it where counts tell more of some states than of others."""
    rng = np.random.default_rng(1)
    values, labels = cells_and_labels(rng, 600, 300, 2)
    values = np.vstack([values, rng.normal(size=(4, 5))])
    values[labels == "P0"] *= 0.5
    table = classify_states({"basal": values}, labels, seed=0).set_index(["labels", "perturbation"])
    assert abs(table.loc[("true", "P0"), "accuracy"] - 0.5) < 0.06


def test_dimensions_that_no_cell_uses_tell_nothing():
    """However well they tell apart on their own scale."""
    rng = np.random.default_rng(2)
    used, labels = cells_and_labels(rng)
    used = np.vstack([used, rng.normal(size=(4, 5))])
    away = (labels == "P0")[:, None]
    states = {
        "kept": np.hstack([used, 0.01 * (rng.normal(size=(len(labels), 1)) + 9 * away)]),
        "told apart": np.hstack([used, rng.normal(size=(len(labels), 1)) + 9 * away]),
        "unused": 0.01 * (rng.normal(size=(len(labels), 3)) + 9 * away),
    }
    table = classify_states(states, labels, seed=0)
    of_p0 = table[(table["perturbation"] == "P0") & (table["labels"] == "true")].set_index("state")
    assert of_p0["n_dimensions"].to_dict() == {"kept": 5, "told apart": 6, "unused": 0}
    assert abs(of_p0.loc["kept", "accuracy"] - 0.5) < 0.2
    assert of_p0.loc["told apart", "accuracy"] > 0.95
    assert of_p0.loc["unused", "accuracy"] == 0.5


def test_nothing_is_classified_where_cells_are_few():
    labels = np.array(["control"] * 30 + ["P"] * 3, dtype=object)
    table = classify_states({"basal": np.zeros((33, 2))}, labels, seed=0)
    assert table.empty
    assert "accuracy" in table


@pytest.mark.parametrize(
    ("kind", "claimed"), [("sams_vae", True), ("cpa_vae", True), ("svae_plus", False), ("conditional_vae", False)]
)  # fmt: skip
def test_who_claims_a_basal_state_that_is_free_of_the_perturbation(kind, claimed, tiny_screen):
    few = tiny_screen[tiny_screen.obs["perturbation"].isin(["control", "TARGET01"])]
    parts = pd.Series(np.where(np.arange(few.n_obs) % 2, "train", "test"))
    table = classify_basal_state(untrained(kind, few), few, parts, seed=0)
    assert (table["claimed"] == claimed).all()
    assert 0 < table["n_cells"].max() <= (parts == "test").sum()


def test_the_perturbations_that_move_cells_farthest_are_named():
    labels = np.array(["control", "near", "far", "control", "near", "far"], dtype=object)
    total = np.array([0, 1, 9, 0, 1, 9.0])[:, None]
    assert list(shown_as(labels, total)) == list(labels)
    many = np.array(["control", *(f"P{p:02d}" for p in range(20))], dtype=object)
    shown = shown_as(many, np.arange(21.0)[:, None])
    assert set(shown) == {"control", OTHER, *(f"P{p}" for p in range(13, 20))}


@pytest.mark.slow
def test_groups_of_states_are_clusters_and_stay_together_on_the_map():
    rng = np.random.default_rng(0)
    group = np.repeat([1, 0, 2], [60, 150, 40])
    states = rng.normal(size=(250, 4)) + 30 * group[:, None]
    table = map_and_cluster(states, seed=3)
    # clusters may split a group, but join no two; the largest is the first
    assert (table.groupby("leiden").apply(lambda rows: len(set(group[rows.index]))) == 1).all()
    sizes = table["leiden"].value_counts()
    assert sizes.index.min() == 0
    assert sizes[0] == sizes.max()
    assert sorted(sizes.index) == list(range(len(sizes)))
    # each cell's nearest on the map is of its group
    places = table[["x", "y"]].to_numpy()
    distance = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(250)
    assert (group[distance.argmin(axis=1)] == group).mean() > 0.98
    pd.testing.assert_frame_equal(map_and_cluster(states, seed=3), table)


@pytest.mark.parametrize("n_cells", [5, 16])
def test_few_cells_are_mapped_or_refused(n_cells):
    states = np.random.default_rng(0).normal(size=(n_cells, 3))
    assert np.isfinite(map_and_cluster(states, 0)).all(axis=None)
    with pytest.raises(InputError, match=r"evaluation\.mapped_cells"):
        map_and_cluster(states[:4], 0)


def test_states_without_any_difference_are_one_cluster():
    table = map_and_cluster(np.zeros((40, 3)), 0)
    assert np.isfinite(table).all(axis=None)
    assert set(table["leiden"]) == {0}


def test_a_state_map_has_every_cell_in_both_states(tiny_screen):
    parts = pd.Series(np.where(np.arange(tiny_screen.n_obs) % 3, "train", "test"))
    table = state_map(untrained("sams_vae", tiny_screen), tiny_screen, parts, 50, seed=0)
    assert table.groupby("state").size().to_dict() == {"basal": 50, "total": 50}
    first, second = (set(rows["cell"]) for _, rows in table.groupby("state"))
    assert first == second <= set(tiny_screen.obs_names[parts == "test"])
    assert np.isfinite(table[["x", "y"]]).all(axis=None)
    assert {"perturbation", "shown_as", "leiden"} <= set(table.columns)


@pytest.mark.slow
def test_perturbations_of_the_same_group_are_clustered_by_observed_and_by_latent_effects():
    rng = np.random.default_rng(0)
    names, genes = [f"P{i:02d}" for i in range(24)], [f"G{i}" for i in range(40)]
    group = np.arange(24) % 3
    means = rng.normal(0, 1, (3, 40))[group] + rng.normal(0, 0.1, (24, 40))
    keys = pd.MultiIndex.from_product([names, genes], names=["perturbation", "gene"])
    effects = pd.DataFrame({"model": "m", "screen_effect": means.ravel()}, index=keys).reset_index()
    shifts = 3 * np.eye(3)[group] + rng.normal(0, 0.1, (24, 3))
    keys = pd.MultiIndex.from_product([names, range(3)], names=["perturbation", "dimension"])
    latents = pd.DataFrame({"model": "m", "shift": shifts.ravel()}, index=keys).reset_index()
    table = perturbation_map(effects, latents.assign(mask_probability=np.nan), seed=0)
    assert table.groupby("kind").size().to_dict() == {"observed": 24, "latent": 24}
    for _, rows in table.groupby("kind"):
        assert pd.crosstab(rows["leiden"], group).to_numpy().astype(bool).sum() == 3
    np.testing.assert_allclose(table["strength"][:24], means.std(axis=1, ddof=1))
    alone = perturbation_map(effects, pd.DataFrame(), seed=0)
    pd.testing.assert_frame_equal(alone, table[table["kind"] == "observed"])
    few = effects[effects["perturbation"].isin(names[:4])]
    assert perturbation_map(few, pd.DataFrame(), seed=0).empty


def cycling(n_each=60, markers=12, others=400, seed=0):
    """Cells whose phase is known: one of three, in which its markers are expressed tenfold."""
    rng = np.random.default_rng(seed)
    s_genes, g2m_genes = S_GENES[:markers], G2M_GENES[:markers]
    genes = [*s_genes, *g2m_genes, *(f"GENE{i}" for i in range(others))]
    phase = np.repeat(["G1", "S", "G2M"], n_each)
    mean = np.tile(rng.lognormal(0, 1, len(genes)), (len(phase), 1))
    mean[:, : 2 * markers] = 1.0
    mean[phase == "S", :markers] *= 10
    mean[phase == "G2M", markers : 2 * markers] *= 10
    obs = pd.DataFrame({"true_phase": phase}, [f"c{i}" for i in range(len(phase))])
    counts = sparse.csr_matrix(rng.poisson(mean).astype(np.int32))
    return anndata.AnnData(counts, obs, pd.DataFrame(index=genes))


def test_cells_are_scored_by_the_phase_that_they_are_in():
    screen = cycling()
    cells = np.arange(0, screen.n_obs, 2)
    before = screen.X.copy()
    found = cell_cycle_scores(screen, cells, seed=0)
    assert list(found.columns) == ["phase", "S_score", "G2M_score"]
    assert list(found.index) == list(screen.obs_names[cells])
    true = screen.obs["true_phase"].to_numpy()[cells]
    for phase in ("S", "G2M"):
        assert (found.loc[true == phase, "phase"] == phase).all()
    means = found.groupby(true)[["S_score", "G2M_score"]].mean()
    assert means["S_score"].idxmax() == "S"
    assert means["G2M_score"].idxmax() == "G2M"
    assert (before != screen.X).nnz == 0


@pytest.mark.parametrize(("markers", "others"), [(9, 400), (12, 20)])
def test_cells_have_no_phase_where_its_genes_are_not_measured(markers, others):
    found = cell_cycle_scores(cycling(5, markers, others), np.arange(15), seed=0)
    assert found.shape == (15, 0)


def test_marker_genes_are_those_published():
    renamed = {"MLF1IP", "FAM64A", "HN1"}
    assert len(set(S_GENES) - renamed) == 43
    assert len(set(G2M_GENES) - renamed) == 54
    assert not set(S_GENES) & set(G2M_GENES)


def test_states_up_to_order_and_sign_are_the_true_ones(tiny_screen):
    truth = tiny_screen.uns["truth"]
    keep = np.arange(tiny_screen.n_obs) % 2 == 0
    basal = tiny_screen.obsm["true_basal"][keep].astype(float)
    shift = np.zeros_like(basal)
    shift[:, : len(truth["factors"])] = tiny_screen.obsm["dosage"][keep] @ (
        truth["mask"] * truth["embedding"]
    )
    order = np.random.default_rng(0).permutation(basal.shape[1])
    same = CellStates(-basal[:, order], 2 * (basal + shift)[:, order])
    table = state_recovery(tiny_screen, keep, same)
    assert table["value"].to_numpy() == pytest.approx(1)
    assert set(table["factor"]) == {*truth["factors"], "NUISANCE_1", "NUISANCE_2"}
    # other axes hold as much, but factor by factor they are not the true ones
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(basal.shape[1],) * 2))[0]
    turned = state_scores(
        state_recovery(tiny_screen, keep, CellStates(basal @ turn, (basal + shift) @ turn))
    )
    assert turned["basal_r_squared"] == pytest.approx(1)
    assert turned["basal_correlation"] < 0.95
    assert set(turned) == {
        f"{s}_{m}" for s in ("basal", "total") for m in ("correlation", "r_squared")
    }


def test_a_sure_mask_has_the_same_f1_at_every_threshold(tiny_screen):
    truth = tiny_screen.uns["truth"]
    names = list(truth["targets"])
    sure = mask_thresholds(tiny_screen, truth["mask"] * 0.98 + 0.01, names)
    f1 = sure[sure["measure"] == "f1"].set_index("threshold")["value"]
    assert (f1[(f1.index > 0.01) & (f1.index < 0.99)] == 1).all()
    assert 0.5 in f1.index
    unsure = mask_thresholds(tiny_screen, truth["mask"] * 0.4 + 0.2, names)
    f1 = unsure[unsure["measure"] == "f1"].set_index("threshold")
    assert f1.loc[0.5, "value"] == 1
    assert f1.loc[0.9, "value"] == 0
    assert f1.loc[0.1, "density"] == 1


@pytest.mark.parametrize(
    ("n_classes", "n_cells", "n_dimensions"), [(2, 60, 5), (7, 90, 3), (2, 20, 1)]
)
def test_the_discriminant_is_that_of_scikit_learn(n_classes, n_cells, n_dimensions):
    rng = np.random.default_rng(0)
    classes = np.arange(n_cells) % n_classes
    cells = rng.normal(size=(n_cells, n_dimensions)) * [3, 1, 0.1, 1, 2][:n_dimensions]
    cells += 0.7 * classes[:, None]
    other = rng.normal(2, 3, size=(200, n_dimensions))
    reference = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage="auto", priors=np.full(n_classes, 1 / n_classes)
    ).fit(cells, classes)
    assert (discriminate(cells, classes, other) == reference.predict(other)).all()
    group = cells[classes == 0]
    if n_dimensions > 1:
        shrunken = LedoitWolf().fit(group / group.std(axis=0)).covariance_
        expected = shrunken * np.outer(group.std(axis=0), group.std(axis=0))
        np.testing.assert_allclose(shrunken_covariance(group), expected, rtol=1e-10)


@pytest.mark.parametrize("combined", [False, True])
def test_shifts_of_single_perturbations_are_looked_up(combined):
    rng = torch.Generator().manual_seed(0)
    effects = torch.randn(4, 6, 3, generator=rng)
    design = torch.zeros(5, 6)
    design[[0, 1, 3, 4], [2, 5, 0, 2]] = torch.tensor([1.0, 0.5, 1.0, 2.0])
    if combined:
        design[3, 4] = 1
    expected = torch.einsum("ct,qtk->qck", design, effects)
    torch.testing.assert_close(looked_up_shifts(effects, design), expected)
    assert looked_up_shifts(None, design) is design
