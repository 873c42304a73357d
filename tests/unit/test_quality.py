"""Quality of a screen: known answers on simulated and real screens, and nothing where nothing is."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from samsvae.biology import calibration
from samsvae.biology.calibration import (
    depth_ratios,
    fake_targets,
    null_calibration,
    quantiles,
)
from samsvae.biology.guides import Groups, compare_guides, guide_groups, knock_down, mean_ratios
from samsvae.biology.quality import (
    batch_effects,
    cells_by_batch,
    common_shifts,
    detectable_effects,
    effects_by_context,
    hits,
    principal_components,
    screen_effects,
    split_half_correlations,
)
from samsvae.biology.similarity import similarity_table
from samsvae.evaluation.effects import effects_in_use
from samsvae.evaluation.expression import Expression, log_expression
from samsvae.evaluation.strata import Strata, strata_of_cells, stratified_effects
from samsvae.evaluation.stratified import stratified_rank_sum
from samsvae.screen.canonical import perturbations
from samsvae.sources.h5ad_source import H5adSource
from share_assessment import main as share_assessment
from tests.conftest import canonical, real_file

N_GENES = 60


def simulated(rng, shifts, n_controls=400, n_cells=80, batch_effect=0.0, guides=1, dead=()):
    """Poisson counts; a perturbation shifts logs of genes, and a dead guide does not.

    Half of the control cells, and three quarters of the perturbed ones, are in batch b.
    """
    names = ["control", *shifts]
    label = np.repeat(names, [n_controls, *[n_cells] * len(shifts)])
    guide = np.array([f"{name}_g{at % guides}" for at, name in enumerate(label)])
    in_b = rng.random(len(label)) < np.where(label == "control", 0.5, 0.75)
    log_mean = rng.normal(0, 1, N_GENES) + in_b[:, None] * rng.normal(0, batch_effect, N_GENES)
    for name, shift in shifts.items():
        log_mean[(label == name) & ~np.isin(guide, dead)] += shift
    depth = rng.lognormal(0, 0.3, len(label))[:, None]
    counts = sparse.csr_matrix(rng.poisson(depth * np.exp(log_mean)).astype(np.int32))
    screen = anndata.AnnData(counts)
    screen.var_names = [*shifts, *(f"G{i}" for i in range(N_GENES - len(shifts)))]
    screen.obs["perturbation"] = pd.Categorical(label)
    screen.obs["library_size"] = np.asarray(counts.sum(axis=1)).ravel()
    screen.obs["batch"] = np.where(in_b, "b", "a")
    screen.obs["guide"] = guide
    return screen


def assessed(screen, by_batch=True):
    expression = Expression(screen)
    labels, names = screen.obs["perturbation"], perturbations(screen)
    plain = Strata.of(labels, names)
    stratum = strata_of_cells(screen, by_batch)
    strata = Strata.of(labels, names, stratum, 10) if stratum.any() else plain
    return expression, strata, screen_effects(screen, expression, plain, strata, 0.05, "{}")


def random_shifts(rng, n, size=0.6, genes=12):
    shifts = {}
    for i in range(n):
        shift = np.zeros(N_GENES)
        shift[rng.choice(N_GENES, genes, replace=False)] = rng.choice([-size, size], genes)
        shift[i] = -2.0  # its own gene
        shifts[f"T{i}"] = shift
    return shifts


@pytest.fixture(scope="module")
def screen():
    rng = np.random.default_rng(0)
    shifts = {**random_shifts(rng, 4), "INERT1": np.zeros(N_GENES), "INERT2": np.zeros(N_GENES)}
    return simulated(rng, shifts, n_cells=160, batch_effect=1.0, guides=4, dead=["T0_g1", "T2_g3"])


def test_batches_make_false_genes_for_the_plain_test_alone(screen):
    _, strata, effects = assessed(screen)
    assert strata.sizes.shape[0] == 2
    inert = effects[["INERT1", "INERT2"]]
    assert (inert.layers["fdr"] < 0.05).sum() >= 10
    assert (inert.layers["fdr_stratified"] < 0.05).sum() <= 1
    assert (effects["T1"].obs["n_de"] >= 6).all()
    assert effects.obs["is_stratified"].all()
    np.testing.assert_array_equal(effects_in_use(effects, "fdr"), effects.layers["fdr_stratified"])
    np.testing.assert_array_equal(effects.X, effects.layers["ate_stratified"])
    _, alone, plain = assessed(screen, by_batch=False)
    assert alone.sizes.shape[0] == 1
    assert "ate_stratified" not in plain.layers
    np.testing.assert_array_equal(plain.layers["ate"], effects.layers["ate"])


def test_hits_are_the_perturbations_with_an_effect(screen):
    expression, strata, effects = assessed(screen)
    states = principal_components(expression, 0)
    table = hits(effects, states, expression, strata, 0.05, 0)
    table = table.set_index("perturbation")
    assert set(table.index[table["is_hit"]]) == {"T0", "T1", "T2", "T3"}
    assert list(table.index[-2:]) in (["INERT1", "INERT2"], ["INERT2", "INERT1"])
    assert (table.loc[["T1", "T3"], "split_half"] > 0.5).all()
    assert table.loc["INERT1", "split_half"] < 0.4
    assert not table["depth_difference"].any()
    again = hits(effects, states, expression, strata, 0.05, 0)
    pd.testing.assert_frame_equal(again.set_index("perturbation"), table)


def test_without_effects_there_are_no_hits_and_halves_do_not_agree():
    rng = np.random.default_rng(1)
    screen = simulated(rng, {f"N{i}": np.zeros(N_GENES) for i in range(20)}, batch_effect=0.5)
    expression, strata, effects = assessed(screen)
    states = principal_components(expression, 0)
    table = hits(effects, states, expression, strata, 0.05, 0)
    assert not table["is_hit"].any()
    assert abs(table["split_half"].mean()) < 0.1
    # against the same control cells, effects of halves agree by the noise of these
    values = [effects.X[row] for row in range(2)]
    assert np.corrcoef(values)[0, 1] > -0.5


def test_targets_are_knocked_down_as_by_hand(screen):
    expression, strata, effects = assessed(screen)
    library_size = screen.obs["library_size"].to_numpy(dtype=float)
    rows = pd.DataFrame({"perturbation": effects.obs_names, "guide": ""})
    error = effects_in_use(effects, "standard_error")
    groups = Groups(rows, strata, np.asarray(effects.X), error)
    how = expression, screen.var_names
    found = knock_down(groups, *how, "knockdown")
    assert list(found["perturbation"]) == list(effects.obs_names)  # each is a measured gene
    of = found.set_index("perturbation")
    assert of.loc[["T1", "T3"], "as_expected"].all()
    assert (of.loc[["T1", "T3"], "high"] < -0.8).all()
    assert (of.loc[["T1", "T3"], "rank"] <= 3).all()
    label, batch = screen.obs["perturbation"].to_numpy(), screen.obs["batch"].to_numpy()
    values = screen.X.toarray()[:, screen.var_names.get_loc("T1")]

    def cp10k(cells):
        return 1e4 * values[cells].sum() / library_size[cells].sum()

    own = label == "T1"
    mean = cp10k(own)
    weights = [library_size[own & (batch == b)].sum() / library_size[own].sum() for b in "ab"]
    control = np.dot(weights, [cp10k((label == "control") & (batch == b)) for b in "ab"])
    assert of.loc["T1", "mean"] == pytest.approx(mean)
    assert of.loc["T1", "control_mean"] == pytest.approx(control)
    assert of.loc["T1", "log2fc"] == pytest.approx(np.log2(mean / control))
    assert knock_down(groups, *how, None)["as_expected"].isna().all()
    raised = knock_down(groups, *how, "activation")
    assert not raised.set_index("perturbation").loc[["T1", "T3"], "as_expected"].any()


def test_intervals_of_changes_cover_the_truth():
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(200):
        library_size = rng.lognormal(0, 0.5, 300)
        rate = np.repeat([2.0, 5.0], [60, 240])
        counts = sparse.csr_matrix(rng.poisson(rate * library_size)[:, None].astype(float))
        strata = Strata(np.repeat([0, 1], [60, 240]), np.zeros(300, dtype=int), 1)
        mean, control, error = mean_ratios(counts, library_size, strata)
        z = (np.log2(mean / control) - np.log2(2 / 5)) / error
        covered.append(abs(z[0, 0]) < 1.96)
    assert 0.9 <= np.mean(covered) <= 0.99


def guides_of(screen):
    expression, strata, effects = assessed(screen)
    group, table = guide_groups(screen, 5)
    of = Strata(group, strata.stratum, len(table), 10)
    groups = Groups(table, of, *stratified_effects(expression, of))
    changes = knock_down(groups, expression, screen.var_names, None)
    significant = pd.DataFrame(effects_in_use(effects, "fdr") < 0.05, effects.obs_names)
    return compare_guides(table, groups.effect, changes, significant)


def test_dead_guides_are_odd(screen):
    found = guides_of(screen).set_index("guide")
    assert set(found["perturbation"]) == set(perturbations(screen))
    assert found.loc[["T0_g1", "T2_g3"], "odd"].all()
    assert found.loc[["T0_g1", "T2_g3"], "reason"].str.contains("weak effect").all()
    alive = found[found["perturbation"].str.startswith("T")].drop(["T0_g1", "T2_g3"])
    assert alive["odd"].mean() < 0.25
    assert found.loc[["INERT1_g0"], "concordance"].isna().all()


def test_the_size_of_a_guides_effect_tells_dead_guides_from_others():
    """Area under the ROC curve, of many perturbations and guides."""
    rng = np.random.default_rng(3)
    shifts = random_shifts(rng, 20)
    dead = [f"T{i}_g{i % 4}" for i in range(0, 20, 2)]
    screen = simulated(rng, shifts, n_cells=160, guides=4, dead=dead)
    found = guides_of(screen).set_index("guide")
    is_dead = found.index.isin(dead)
    ranks = stats.rankdata(-found["slope"])
    n = is_dead.sum()
    auroc = (ranks[is_dead].sum() - n * (n + 1) / 2) / (n * (~is_dead).sum())
    print(f"area under the ROC curve: {auroc:.3f}")
    assert auroc >= 0.9
    assert found.loc[is_dead, "odd"].mean() >= 0.9


def test_a_screen_without_guides_has_none(screen):
    bare = screen.copy()
    del bare.obs["guide"]
    group, table = guide_groups(bare, 5)
    assert table.empty
    assert set(group) == {0, -1}


@pytest.mark.parametrize("with_guides", [True, False])
def test_groups_of_control_cells_are_calibrated(with_guides):
    rng = np.random.default_rng(4)
    screen = simulated(rng, {"T": np.zeros(N_GENES)}, n_controls=1200, guides=6, batch_effect=0.5)
    if not with_guides:
        del screen.obs["guide"]
    stratum = strata_of_cells(screen, True)
    group = fake_targets(screen, stratum, 30, 0)
    is_control = (screen.obs["perturbation"] == "control").to_numpy()
    library_size = screen.obs["library_size"].to_numpy(dtype=float)
    table, found = null_calibration(
        log_expression(screen)[is_control], group, stratum[is_control], library_size[is_control],
        10, 0.05,
    )  # fmt: skip
    assert len(table) == (6 if with_guides else 30)
    assert table["n_cells"].sum() == 1200
    assert table["fraction_p05"].mean() == pytest.approx(0.05, abs=0.02)
    assert table["lambda"].mean() == pytest.approx(1, abs=0.2)
    assert table["n_significant"].sum() <= 2
    assert table["depth_ratio"].between(0.85, 1.15).all()
    outside = (found["observed"] > found["low"].clip(found["high"])) | (
        found["observed"] < found["high"].clip(upper=found["low"])
    )
    assert outside.mean() < 0.5


@pytest.mark.parametrize("with_guides", [True, False])
def test_at_most_so_many_groups_of_control_cells_are_tested(with_guides, monkeypatch):
    rng = np.random.default_rng(4)
    screen = simulated(rng, {"T": np.zeros(N_GENES)}, n_controls=1200, guides=6)
    if not with_guides:
        del screen.obs["guide"]
    monkeypatch.setattr(calibration, "MOST_FAKE", 3)
    group = fake_targets(screen, strata_of_cells(screen, True), 30, 0)
    assert group.nunique() == 3
    assert (group.value_counts() >= 30).all()


def test_quantiles_are_those_of_uniform_p_values():
    table = quantiles(np.arange(1, 1001) / 1001)
    np.testing.assert_allclose(table["expected"], table["observed"], atol=1e-12)
    assert (table["high"] >= table["expected"]).all() or (table["low"] >= table["expected"]).all()
    assert quantiles(np.empty(0)).empty


def test_power_is_what_a_test_finds():
    """An effect of the detectable size is found in about 80 % of simulations."""
    rng = np.random.default_rng(5)
    n_genes, found = 50, []
    error = np.full((1, n_genes), 0.1)
    every = np.ones_like(error, dtype=bool)
    [size] = detectable_effects(error, every, 0.05)
    for _ in range(2000):
        z = rng.normal(size / 0.1)
        found.append(2 * stats.norm.sf(abs(z)) < 0.05 / n_genes)
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    assert np.isnan(detectable_effects(np.full((1, n_genes), np.nan), every, 0.05)).all()
    silent = np.hstack([error, np.zeros((1, 3 * n_genes))])
    assert detectable_effects(silent, silent > 0, 0.05) == pytest.approx([size])
    assert np.isnan(detectable_effects(error, ~every, 0.05)).all()


def test_composition_is_told_from_depth_and_from_regulation():
    """One gene takes 40 % of the counts; cells are deeper; a third of the genes are raised."""
    rng = np.random.default_rng(0)
    n_genes, n_cells = 60, 200
    share = rng.dirichlet(np.full(n_genes, 5.0))
    one, many = share.copy(), share.copy()
    one[7] = 0.4 * (1 - share[7]) / 0.6
    many[:20] *= 2.0
    shares = [one / one.sum(), share, many / many.sum(), share]
    depth = [2000, 6000, 2000, 2000]
    counts = np.vstack(
        [rng.multinomial(size, own, n_cells) for size, own in zip(depth, shares, strict=True)]
    )
    library_size = counts.sum(axis=1).astype(float)
    strata = Strata(np.repeat(np.arange(4), n_cells), np.zeros(4 * n_cells, dtype=int), 3)
    means = mean_ratios(sparse.csr_matrix(counts), library_size, strata)[:2]
    genes = pd.Index([f"G{number}" for number in range(n_genes)])
    table = common_shifts(*means, genes)
    assert list(table["composition_gene"]) == ["G7", None, None]
    assert table["common_shift"][0] == pytest.approx(np.log2(0.6 / (1 - share[7])), abs=0.03)
    assert table["common_shift"][1] == pytest.approx(0, abs=0.03)
    assert depth_ratios(library_size, strata) == pytest.approx([1, 3, 1], rel=0.01)


def test_depth_is_compared_within_batches():
    library_size = np.array([100.0, 100, 400, 400, 150, 600])
    strata = Strata(np.array([1, 1, 1, 1, 0, 0]), np.array([0, 0, 1, 1, 0, 1]), 1)
    assert depth_ratios(library_size, strata) == pytest.approx([1.5])


def test_strata_are_batches_and_depths(screen):
    batch = strata_of_cells(screen, True)
    assert set(batch) == {0, 1}
    assert (batch == (screen.obs["batch"] == "b")).all()
    assert not strata_of_cells(screen, False).any()
    depth = strata_of_cells(screen, True, 4)
    assert set(depth) == set(range(8))
    np.testing.assert_array_equal(depth // 4, batch)
    controls = (screen.obs["perturbation"] == "control").to_numpy()
    counts = np.bincount(depth[controls & (batch == 0)], minlength=4)[:4]
    assert counts.max() - counts.min() <= 0.15 * counts.sum()  # library sizes have ties


def test_batches_are_counted(screen):
    table = cells_by_batch(screen, 10)
    assert table.groupby("perturbation")["fraction"].sum().to_numpy() == pytest.approx(1)
    assert table["compared"].all()
    assert not cells_by_batch(screen, 10_000)["compared"].any()
    own = (screen.obs["perturbation"] == "T0") & (screen.obs["batch"] == "b")
    row = table[(table["perturbation"] == "T0") & (table["batch"] == "b")].iloc[0]
    assert row["n_cells"] == own.sum()
    del screen.obs["batch"]
    assert cells_by_batch(screen, 10).empty


@pytest.fixture(scope="module")
def papalexi(tmp_path_factory):
    path = tmp_path_factory.mktemp("papalexi") / "cells.h5ad"
    path.symlink_to(real_file("papalexi2021_thp1_ko_20729x299.h5ad"))
    source = H5adSource(
        str(path), perturbation_column="condition", batch_column="bio_rep", guide_column="guide"
    )
    return canonical(source)


@pytest.mark.slow
def test_known_numbers_of_significant_genes_on_a_real_screen(papalexi):
    """Plain, stratified and both, of all cells against all controls and without a gate."""
    expression = log_expression(papalexi)
    names = perturbations(papalexi)
    stratum = strata_of_cells(papalexi, True)
    tests = [
        stratified_rank_sum(expression, Strata.of(papalexi.obs["perturbation"], names, *how))
        for how in ((), (stratum, 10))
    ]
    plain, within = (stats.false_discovery_control(p, axis=1) < 0.05 for p in tests)
    found = {
        name: (int(plain[i].sum()), int(within[i].sum()), int((plain[i] & within[i]).sum()))
        for i, name in enumerate(names)
    }
    expected = {
        "IFNGR1": (102, 98, 92), "IRF1": (43, 43, 35), "SMAD4": (87, 80, 76), "CUL3": (8, 5, 5),
        "STAT2": (5, 3, 3), "ATF2": (0, 0, 0), "CAV1": (0, 0, 0), "CD86": (0, 0, 0),
        "ETV7": (0, 0, 0),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    is_control = (papalexi.obs["perturbation"] == "control").to_numpy()
    guide = papalexi.obs.loc[is_control, "guide"].astype(str)
    inflation = []
    for name in guide.value_counts().index[:9]:
        strata = Strata.of(guide.where(guide == name, "control"), [name])
        [pvalue] = stratified_rank_sum(expression[is_control], strata)
        inflation.append(np.median(stats.chi2.isf(pvalue[np.isfinite(pvalue)], 1)) / 0.4549)
    assert (min(inflation), max(inflation)) == pytest.approx((0.73, 1.31), abs=0.01)


@pytest.mark.slow
def test_the_real_screen_is_sound_and_shows_what_is_known_of_it(papalexi):
    expression, strata, effects = assessed(papalexi)
    library_size = papalexi.obs["library_size"].to_numpy(dtype=float)
    table = hits(
        effects, principal_components(expression, 0), expression, strata, 0.05, 0
    ).set_index("perturbation")
    assert set(table.index[:4]) == {"IFNGR1", "IFNGR2", "JAK2", "STAT1"}
    assert not table.loc[["ATF2", "CAV1", "CD86", "ETV7", "PDCD1LG2"], "is_hit"].any()
    assert (table.loc[["IFNGR2", "JAK2", "STAT1"], "split_half"] > 0.9).all()
    rows = pd.DataFrame({"perturbation": effects.obs_names, "guide": ""})
    plain = Strata.of(papalexi.obs["perturbation"], list(effects.obs_names))
    layers = (np.asarray(effects.layers[name]) for name in ("ate", "standard_error"))
    groups = Groups(rows, plain, *layers)
    changes = knock_down(groups, expression, papalexi.var_names, "knockout")
    changes = changes.set_index("perturbation")
    assert len(changes) == 9
    assert (changes["high"] < 0).all()
    known = {"JAK2": (36, 130), "STAT1": (145, 594), "STAT2": (41, 74), "NFKBIA": (101, 149), "STAT3": (75, 107)}  # fmt: skip
    found = changes.loc[list(known), ["mean", "control_mean"]].to_numpy()
    np.testing.assert_allclose(found, np.array(list(known.values())), atol=0.6)
    is_control = (papalexi.obs["perturbation"] == "control").to_numpy()
    stratum = strata_of_cells(papalexi, False)
    null, _ = null_calibration(
        log_expression(papalexi, is_control), fake_targets(papalexi, stratum, 30, 0), stratum[is_control],
        library_size[is_control], 10, 0.05,
    )  # fmt: skip
    print(null[["fake_target", "fraction_p05", "lambda", "n_significant"]])
    assert len(null) == 9
    assert null["lambda"].between(0.65, 1.5).all()
    assert null["fraction_p05"].between(0.02, 0.1).all()
    assert null["n_significant"].max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("n_cells", [20, 60, 200])
def test_few_groups_of_control_cells_of_a_real_screen_have_a_significant_gene(papalexi, n_cells):
    is_control = (papalexi.obs["perturbation"] == "control").to_numpy()
    expression = log_expression(papalexi)[is_control]
    rng = np.random.default_rng(n_cells)
    false = 0
    for _ in range(200):
        group = pd.Series(np.nan, range(is_control.sum()), dtype=object)
        group[rng.choice(len(group), n_cells, replace=False)] = "fake"
        ones = np.ones(len(group))
        table, _ = null_calibration(expression, group, ones.astype(int), ones, 1, 0.05)
        false += int(table["n_significant"].iloc[0] > 0)
    print(f"{n_cells} cells: {false / 2:.1f} % of 200 groups have a significant gene")
    assert false <= 0.07 * 200


@pytest.mark.slow
def test_a_real_screen_with_permuted_labels_has_no_hits_and_a_pale_map(papalexi):
    rng = np.random.default_rng(0)
    screen = papalexi.copy()
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    for batch in screen.obs["batch"].unique():
        inside = np.flatnonzero(screen.obs["batch"] == batch)
        labels[inside] = labels[rng.permutation(inside)]
    screen.obs["perturbation"] = pd.Categorical(labels)
    expression, strata, effects = assessed(screen)
    states = principal_components(expression, 0)
    table = hits(effects, states, expression, strata, 0.05, 0)
    assert not table["is_hit"].any()
    assert stats.kstest(table["pvalue"], "uniform").pvalue > 0.01
    assert abs(table["split_half"].mean()) < 0.05
    long = effects.to_df().rename_axis("perturbation").reset_index()
    long = long.melt("perturbation", var_name="gene", value_name="screen_effect")
    long = long.assign(model="no_change", predicted=0.0)
    mean = []
    for error in (0 * effects.var["control_standard_error"], effects.var["control_standard_error"]):
        pairs = similarity_table(long, pd.DataFrame(columns=["model"]), error)
        mean.append(pairs.loc[pairs["first"] != pairs["second"], "similarity"].mean())
    print(f"mean similarity with the control cells' noise {mean[0]:.3f}, without {mean[1]:.3f}")
    assert mean[0] > 0.15
    assert abs(mean[1]) < 0.08


def test_effects_that_depend_on_the_context_are_found():
    """Cells of two lines that differ in every gene; one perturbation acts in one line alone."""
    rng = np.random.default_rng(7)
    shifts = random_shifts(rng, 3, size=0.8)
    lines = []
    for line, acting in (("x", ["T0", "T1", "T2"]), ("y", ["T0", "T1"])):
        own = {name: shift * (name in acting) for name, shift in shifts.items()}
        own["INERT"] = np.zeros(N_GENES)
        one = simulated(rng, own, n_cells=150)
        one.obs["context"] = line
        lines.append(one)
    screen = anndata.concat(lines, index_unique="-")
    screen.obs["perturbation"] = pd.Categorical(screen.obs["perturbation"])
    del screen.obs["batch"]
    expression, strata, effects = assessed(screen)
    assert strata.sizes.shape[0] == 2
    assert effects.obs.loc["INERT", "n_de"] <= 1
    table = effects_by_context(screen, expression, strata, 0.05).set_index(
        ["perturbation", "context"]
    )
    assert (table.loc["T2", "n_heterogeneous"] >= 5).all()
    assert (table.loc[["T0", "T1", "INERT"], "n_heterogeneous"] <= 2).all()
    assert (table.loc[["T0", "T1"], "correlation"] > 0.6).all()
    assert table.loc[("T2", "y"), "n_de"] <= 1 < table.loc[("T2", "x"), "n_de"]
    alone = screen[screen.obs["context"] == "x"].copy()
    inside, _ = stratified_effects(
        log_expression(alone), Strata.of(alone.obs["perturbation"], perturbations(alone))
    )
    assert table.loc[("T2", "x"), "n_cells"] == 150
    assert np.isfinite(inside).all()
    del screen.obs["context"]
    assert effects_by_context(screen, expression, strata, 0.05).empty


def test_batches_are_compared_by_analysis_of_variance_within_contexts():
    rng = np.random.default_rng(7)
    batch = rng.choice(list("abc"), 300)
    context = np.where(rng.random(300) < 0.6, "x", "y")
    dense = rng.poisson(1.0, (300, 6)).astype(float)
    dense[:, 1] += 2.0 * (batch == "a")
    dense[:, 2] += 5.0 * (context == "x")  # of the context, not of batches
    dense[:, 3] = 0.0
    cells = sparse.csr_matrix(dense)
    pvalue, variance = batch_effects(cells, batch, np.zeros(300))
    expected = stats.f_oneway(*(dense[batch == name] for name in "abc"))
    np.testing.assert_allclose(pvalue[:3], expected.pvalue[:3], rtol=1e-8)
    assert np.isnan([pvalue[3], variance[3]]).all()
    assert variance[1] > 0.3 > 0.02 > variance[0]
    pvalue, variance = batch_effects(cells, batch, context)
    design = pd.get_dummies(pd.Series(context) + batch).to_numpy(dtype=float)
    alone = pd.get_dummies(context).to_numpy(dtype=float)
    rest = [np.linalg.lstsq(x, dense[:, [0, 1, 2]], rcond=None)[1] for x in (alone, design)]
    f = (rest[0] - rest[1]) / 4 / (rest[1] / 294)
    np.testing.assert_allclose(pvalue[:3], stats.f.sf(f, 4, 294), rtol=1e-6)
    assert variance[2] < 0.05
    for nothing in (
        batch_effects(cells, context, context),
        batch_effects(cells[:0], batch[:0], batch[:0]),
    ):
        assert np.isnan(nothing).all()


def test_control_cells_of_equal_batches_do_not_differ():
    rng = np.random.default_rng(8)
    cells = sparse.csr_matrix(rng.poisson(2.0, (400, 2000)).astype(float))
    pvalue, variance = batch_effects(cells, rng.choice(list("abcd"), 400), np.zeros(400))
    assert stats.kstest(pvalue, "uniform").pvalue > 0.01
    assert variance.mean() < 0.004  # half of the genes are below 0 by chance, and count as 0


def test_halves_of_an_effect_agree_though_they_share_no_cell():
    rng = np.random.default_rng(6)
    screen = simulated(rng, random_shifts(rng, 3), n_cells=200)
    expression, strata, _ = assessed(screen)
    assert (split_half_correlations(expression, strata, 0) > 0.6).all()


def test_an_assessment_is_copied_whole(tmp_path):
    given = {name: tmp_path / name for name in ("effects", "hits")}
    for name, path in given.items():
        path.write_text(f"of {name}")
    copies = {name: tmp_path / "other" / name for name in given}
    share_assessment(SimpleNamespace(input=given, output=copies))
    assert {path.read_text() for path in copies.values()} == {"of effects", "of hits"}
    assert copies["hits"].read_text() == "of hits"
