import copy
import dataclasses
from functools import partial

import anndata
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from samsvae.biology.quality import screen_effects
from samsvae.config import experiments
from samsvae.config.experiments import Split
from samsvae.evaluation import predicted as predicted_module
from samsvae.evaluation.baselines import BASELINES, additive, mean_effect, no_change
from samsvae.evaluation.effects import (
    as_compared,
    effects_table,
    list_perturbations,
    long_table,
    read_effects,
    rows_of_perturbation,
    strongest_genes,
    write_effects,
)
from samsvae.evaluation.expression import log_expression
from samsvae.evaluation.observed import observed_effects, split_half
from samsvae.evaluation.predicted import ExpectedLogCounts, predicted_effects
from samsvae.evaluation.strata import Strata
from samsvae.evaluation.stratified import gated_tests
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.inference.posterior import draw_effects
from samsvae.models import build_model
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import write_parquet
from samsvae.screen.canonical import open_screen, perturbations, write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.labels import file_name, perturbation_of
from samsvae.screen.splits import split_cells


@pytest.mark.slow
@pytest.mark.parametrize("largest_block", [60 * 7, 60 * 100])
def test_effects_come_from_the_file_as_from_memory_whatever_the_block(
    largest_block, tiny_screen, tmp_path, monkeypatch
):
    screen = tiny_screen.copy()
    write_source_screen(screen, "{}", tmp_path / "screen.h5ad")
    parts = pd.Series(
        split_cells(Design.of_screen(screen), Split("random", 0)), index=screen.obs_names
    )
    train, names = (parts == "train").to_numpy(), perturbations(screen)
    makers = [
        lambda of: observed_effects(of, parts, "{}"),
        lambda of: split_half(of, parts, 0, "{}"),
        *(
            partial(baseline_table, predict, train, names)
            for kind, predict in BASELINES.items()
            if kind != "other_contexts"  # of a screen with contexts
        ),
    ]
    for make in makers:
        whole = make(screen)
        with monkeypatch.context() as patched, open_screen(tmp_path / "screen.h5ad") as opened:
            patched.setattr("samsvae.evaluation.expression.LARGEST_BLOCK", largest_block)
            found = make(opened)
        for layer in (None, *whole.layers):
            np.testing.assert_allclose(found.to_df(layer), whole.to_df(layer), rtol=1e-9, atol=1e-9)
        pd.testing.assert_frame_equal(found.obs, whole.obs)
        pd.testing.assert_frame_equal(found.var, whole.var)


def baseline_table(predict, train, names, screen):
    try:
        effects = predict(screen, train, names)
    except InputError:  # bilinear, of a screen that measures no target
        effects = np.zeros((len(names), screen.n_vars))
    return effects_table(effects, names, list(screen.var_names), {}, "{}")


def test_a_part_of_the_cells_counts_as_a_screen_of_them_does(tiny_screen):
    parts = pd.Series(
        split_cells(Design.of_screen(tiny_screen), Split("random", 0)),
        index=tiny_screen.obs_names,
    )
    keep = np.arange(tiny_screen.n_obs) % 4 > 0
    # of one perturbation no test cell, so that its validation cells are held out
    first = perturbations(tiny_screen)[0]
    keep &= ~((tiny_screen.obs["perturbation"] == first) & (parts == "test")).to_numpy()
    part = observed_effects(tiny_screen, parts, "{}", keep)
    alone = observed_effects(tiny_screen[keep].copy(), parts[keep], "{}")
    for layer in alone.layers:
        np.testing.assert_allclose(part.to_df(layer), alone.to_df(layer))
    pd.testing.assert_frame_equal(part.obs, alone.obs)
    pd.testing.assert_frame_equal(part.var, alone.var)
    assert part.uns["n_control_cells"] == alone.uns["n_control_cells"]


def brute_force_mean_log(c, mean, scale=1.0):
    x = np.arange(200 + int(40 * mean / min(c, 1.0)))
    return float(np.sum(stats.nbinom.pmf(x, c, c / (c + mean)) * np.log2(1 + scale * x)))


@pytest.mark.parametrize("c", [0.05, 1.0, 300.0])
@pytest.mark.parametrize("scale", [1.0, 60.0, 0.2])
def test_expected_log_counts_equal_the_sum_over_all_counts(c, scale):
    """Of cells of 10,000 counts, of shallow cells and of deep ones."""
    table = ExpectedLogCounts(torch.tensor([1.0, c]), 1e4, scale)
    for mean in (1.1e-4, 0.01, 0.7, 12.3, 456.7, 5000.0):
        found = float(table(torch.tensor([[mean, mean]]))[0, 1])
        assert found == pytest.approx(brute_force_mean_log(c, mean, scale), rel=1e-4, abs=1e-8)


def test_expected_log_counts_are_the_same_looked_up_by_torch(monkeypatch):
    """As on a GPU, against the compiled look-up."""
    table = ExpectedLogCounts(torch.logspace(-2, 8, 50), 1e4)
    mean = torch.logspace(-6, 4, 300)[:, None].expand(-1, 50)
    compiled = table(mean)
    monkeypatch.setattr(predicted_module, "is_compiled_for", lambda _: False)
    torch.testing.assert_close(table(mean), compiled, rtol=1e-6, atol=1e-7)
    assert table(torch.zeros(1, 50)).abs().max() == 0
    assert table(torch.full((1, 50), torch.nan)).isnan().all()


def test_expected_log_counts_are_smooth_and_rise_with_the_mean():
    table = ExpectedLogCounts(torch.tensor([0.8]), 1e4)
    values = table(torch.logspace(-4, 4, 5000)[:, None])[:, 0]
    assert (values.diff() > 0).all()


@pytest.fixture(scope="module")
def trained(tiny_screen):
    pyro.set_rng_seed(0)
    settings = {"kind": "sams_vae", "combinations": "additive", "n_latent": 4, "n_hidden": 16}
    encoding = Encoding.of(Design.of_screen(tiny_screen), "additive")
    model = build_model(settings, tiny_screen.n_vars, len(encoding.names))
    model.mask.logits.data.fill_(3.0)
    return TrainedModel(model.eval(), settings, list(tiny_screen.var_names), encoding)


@torch.no_grad()
def test_predicted_effects_agree_with_sampled_counts(trained):
    """The integrated estimator against drawing counts, from the same draws of latent variables."""
    names, draws = ["TARGET01", "TARGET02"], 400
    effects, _ = predicted_effects(trained, names, draws, seed=3)
    pyro.set_rng_seed(3)
    model = trained.model
    shifts = draw_effects(model, draws)
    basal = torch.randn(draws, 1, model.n_latent)
    design = torch.from_numpy(trained.encoding.design(names))
    size = torch.full((1,), 1e4)

    def sampled(latent):
        law = model.likelihood(latent, size)
        return torch.stack([torch.log2(1 + law.sample()) for _ in range(60)]).mean(0)

    difference = (sampled(basal + design @ shifts) - sampled(basal)).mean(0)
    assert np.abs(effects - difference.numpy()).max() < 0.12
    assert np.corrcoef(effects.ravel(), difference.numpy().ravel())[0, 1] > 0.9


@pytest.fixture(scope="module")
def certain(trained):
    """A model as after training: masks decided, embeddings known rather well."""
    model = copy.deepcopy(trained.model)
    with torch.no_grad():
        model.mask.logits[:] = 8.0
        model.mask.logits[:, 1:] = -8.0
        model.embedding.network.head.bias[model.n_latent :] = -3.0
        model.embedding.network.head.weight[model.n_latent :] = 0.0
    return dataclasses.replace(trained, model=model)


@pytest.mark.parametrize(("estimator", "draws"), [("integrated", 50), ("sampled", 100)])
def test_standard_errors_cover_the_long_run_mean(estimator, draws, certain):
    """Of 95 % intervals in 50 repeats; by both ways the long-run mean is the same."""
    names = ["TARGET03", "TARGET01+TARGET02"]
    truth, _ = predicted_effects(certain, names, 20_000, seed=99)
    covered, scores = [], []
    for seed in range(50):
        effects, error = predicted_effects(certain, names, draws, seed, estimator)
        covered.append(np.abs(effects - truth) < 1.96 * error)
        scores.append((effects - truth) / error)
    assert 0.9 < np.mean(covered) < 0.99
    assert np.abs(np.mean(scores, axis=0)).max() < 5 / np.sqrt(50)


def test_shared_draws_and_integrated_counts_cut_the_variance(certain):
    """Of a single draw, as the estimators claim it and as they scatter."""
    names, errors, scatters = ["TARGET03"], {}, {}
    for estimator, draws in (("integrated", 20), ("sampled", 20)):
        found = [predicted_effects(certain, names, draws, s, estimator) for s in range(20)]
        errors[estimator] = np.mean([error**2 for _, error in found])
        scatters[estimator] = np.mean(np.var([effects for effects, _ in found], axis=0, ddof=1))
        assert 0.7 < errors[estimator] / scatters[estimator] < 1.4
    cut = errors["sampled"] / errors["integrated"]
    print(f"variance cut {cut:.0f} times")
    assert cut > 30


@pytest.mark.parametrize("estimator", ["integrated", "sampled"])
def test_an_arm_without_effect_has_none(estimator, certain):
    """Exactly, where draws are shared; within its error, where they are not."""
    none = dataclasses.replace(certain, model=copy.deepcopy(certain.model))
    none.model.mask.logits.data[:] = -1e4
    effects, error = predicted_effects(none, ["TARGET01"], 200, 0, estimator)
    assert np.abs(effects).max() <= (0 if estimator == "integrated" else 4.5 * error.max())


@pytest.mark.parametrize("estimator", ["integrated", "sampled"])
def test_predictions_do_not_depend_on_chunks(estimator, trained, monkeypatch):
    names = ["TARGET01", "TARGET02"]
    monkeypatch.setattr(predicted_module, "LARGEST_TENSOR", 4 * 3 * len(trained.genes))
    found = predicted_effects(trained, names, 30, 0, estimator)
    again = predicted_effects(trained, names, 30, 0, estimator)
    assert all(map(np.array_equal, found, again))
    monkeypatch.setattr(predicted_module, "LARGEST_TENSOR", 1)  # arm by arm
    apart = predicted_effects(trained, names, 30, 0, estimator)
    if estimator == "integrated":
        for ours, theirs in zip(found, apart, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    else:
        tolerance = 5 * np.hypot(found[1], apart[1]).max()
        np.testing.assert_allclose(found[0], apart[0], atol=tolerance)


def test_integrated_predictions_do_not_depend_on_what_else_is_asked(trained):
    both, _ = predicted_effects(trained, ["TARGET01", "TARGET02"], 30, seed=0)
    one, _ = predicted_effects(trained, ["TARGET02"], 30, seed=0)
    np.testing.assert_allclose(both[1:], one, atol=1e-5)


@pytest.fixture(scope="module")
def observed(tiny_screen):
    parts = split_cells(Design.of_screen(tiny_screen), Split("random", 0))
    return observed_effects(tiny_screen, pd.Series(parts, index=tiny_screen.obs_names), "{}")


@pytest.fixture(scope="module")
def all_cells(tiny_screen):
    strata = Strata.of(tiny_screen.obs["perturbation"], perturbations(tiny_screen))
    return screen_effects(tiny_screen, log_expression(tiny_screen), strata, strata, 0.05, "{}")


def test_effects_within_batches_are_compared_where_there_are_any():
    plain, within = np.array([[1.0, 2.0]] * 3), np.array([[3.0, 4.0], [5.0, 6.0], [np.nan] * 2])
    held_out = np.array([[7.0, 8.0], [np.nan] * 2, [np.nan] * 2])
    fdr = np.array([[0.1, np.nan]] * 3)
    layers = {
        "ate": plain, "ate_held_out": plain, "fdr": fdr, "ate_stratified": within,
        "ate_held_out_stratified": held_out, "fdr_stratified": fdr / 2,
    }  # fmt: skip
    names = ["A", "B", "C"]
    chosen = as_compared(effects_table(plain, names, ["x", "y"], layers, "{}"), None)
    np.testing.assert_array_equal(chosen.X, [[3, 4], [5, 6], [1, 2]])
    np.testing.assert_array_equal(chosen.layers["ate_held_out"], [[7, 8], [1, 2], [1, 2]])
    np.testing.assert_allclose(chosen.layers["fdr"][:, 0], [0.05, 0.05, 0.1])
    assert np.isnan(chosen.layers["fdr"][:, 1]).all()
    kept = as_compared(effects_table(plain, names, ["x", "y"], layers, "{}"), "plain")
    np.testing.assert_array_equal(kept.X, plain)


def test_observed_effects_are_differences_of_means(tiny_screen, observed):
    counts = tiny_screen.X.toarray()
    logs = np.log2(1 + 1e4 * counts / counts.sum(1, keepdims=True))
    label = tiny_screen.obs["perturbation"].to_numpy()
    expected = logs[label == "TARGET05"].mean(0) - logs[label == "control"].mean(0)
    np.testing.assert_allclose(observed["TARGET05"].X.ravel(), expected, atol=1e-5)
    np.testing.assert_array_equal(observed.X, observed.layers["ate"])
    assert set(observed.layers) >= {"ate", "ate_held_out", "log2fc", "pvalue", "fdr"}
    assert observed.uns["units"] == "log2(CP10k + 1)"
    assert (
        observed.obs[["n_train", "n_val", "n_test", "n_unused"]].sum(axis=1)
        == observed.obs["n_cells"]
    ).all()


def test_pvalues_are_of_held_out_cells_and_rates_are_benjamini_hochbergs(tiny_screen, observed):
    """The skewness of the rank sum changes little where many cells express a gene."""
    parts = split_cells(Design.of_screen(tiny_screen), Split("random", 0))
    logs = log_expression(tiny_screen).toarray()
    label = tiny_screen.obs["perturbation"].to_numpy()
    for name in ("TARGET01", observed.obs_names[-1]):
        held_out = (label == name) & (parts == "test")
        theirs = stats.mannwhitneyu(
            logs[held_out], logs[label == "control"], method="asymptotic"
        ).pvalue
        row = observed.obs_names.get_loc(name)
        expressed = (logs[label == "control"] > 0).mean(axis=0) * held_out.sum()
        ours = observed.layers["pvalue"][row]
        tested = expressed >= 5
        np.testing.assert_array_equal(np.isfinite(ours), tested)
        assert 5 < tested.sum() < len(tested)
        np.testing.assert_allclose(np.log(ours[tested]), np.log(theirs[tested]), rtol=0.5, atol=0.1)
        np.testing.assert_allclose(
            observed.layers["fdr"][row, tested],
            stats.false_discovery_control(ours[tested]),
            rtol=1e-9,
        )


def test_order_of_cells_and_names_of_genes_do_not_matter(tiny_screen, observed):
    order = np.random.default_rng(1).permutation(tiny_screen.n_obs)
    parts = pd.Series(
        split_cells(Design.of_screen(tiny_screen), Split("random", 0)),
        index=tiny_screen.obs_names,
    )
    shuffled = tiny_screen[order].copy()
    shuffled.var_names = [f"renamed{i}" for i in range(shuffled.n_vars)]
    again = observed_effects(shuffled, parts.iloc[order], "{}")
    for layer in observed.layers:
        np.testing.assert_allclose(
            again.layers[layer], observed.layers[layer], rtol=1e-5, atol=1e-6
        )


def test_a_perturbation_without_held_out_cells_has_no_pvalue(tiny_screen):
    labels = tiny_screen.obs["perturbation"].astype(str)
    logs = log_expression(tiny_screen)
    keep = (
        (labels != "TARGET01") | (np.arange(len(labels)) == labels.tolist().index("TARGET01"))
    ).to_numpy()
    pvalue, fdr = gated_tests(logs[keep], Strata.of(labels[keep], ["TARGET01", "TARGET02"]))
    assert np.isnan(pvalue[0]).all()
    assert np.isnan(fdr[0]).all()
    assert np.isfinite(fdr[1]).any()


def test_baselines(tiny_screen):
    label = tiny_screen.obs["perturbation"].to_numpy()
    pair = next(name for name in set(label) if "+" in name)
    first, second = pair.split("+")
    train = np.ones(tiny_screen.n_obs, bool)
    predicted = additive(tiny_screen, train, [first, second, pair])
    np.testing.assert_allclose(predicted[2], predicted[0] + predicted[1])
    logs = log_expression(tiny_screen).toarray()
    expected = logs[label == first].mean(0) - logs[label == "control"].mean(0)
    np.testing.assert_allclose(predicted[0], expected, atol=1e-9)
    unknown = additive(tiny_screen, label != first, [first, second, pair])
    assert (unknown[0] == 0).all()
    np.testing.assert_allclose(unknown[2], unknown[1])
    assert not no_change(tiny_screen, train, [pair]).any()
    assert set(BASELINES) == set(experiments.BASELINES)
    average = mean_effect(tiny_screen, label != first, [first, second])
    effects = [
        logs[label == name].mean(0) - logs[label == "control"].mean(0)
        for name in sorted(set(label) - {"control", first})
    ]
    np.testing.assert_allclose(average, [np.mean(effects, axis=0)] * 2, atol=1e-9)


def test_effects_survive_their_file(observed, all_cells, tmp_path):
    write_effects(observed, tmp_path / "e.h5ad")
    again = read_effects(tmp_path / "e.h5ad")
    assert isinstance(again, anndata.AnnData)
    np.testing.assert_array_equal(again.layers["pvalue"], observed.layers["pvalue"])
    table = long_table(observed, all_cells, {"m": observed[::-1, ::-1]}, 0.05)
    assert len(table) == observed.n_obs * observed.n_vars
    assert (table["observed"] == table["predicted"]).all()
    np.testing.assert_allclose(table[["pearson", "pearson_of_perturbation"]], 1)
    listed = list_perturbations(all_cells, 0.05).set_index("perturbation")["n_de"]
    number = table.drop_duplicates("perturbation").set_index("perturbation")["screen_n_de"]
    assert number.to_dict() == listed.to_dict()


def test_one_perturbations_rows_are_read_alone_and_a_misspelt_one_is_told(
    observed, all_cells, tmp_path
):
    table = long_table(observed, all_cells, {"same": observed}, 0.05)
    write_parquet(table, "{}", tmp_path / "effects.parquet")
    name = str(observed.obs_names[0])
    rows = rows_of_perturbation(tmp_path / "effects.parquet", name)
    pd.testing.assert_series_equal(
        rows["predicted"], table.loc[table["perturbation"] == name, "predicted"]
    )
    with pytest.raises(InputError, match=f"{name}X.*similar.*{name}"):
        rows_of_perturbation(tmp_path / "effects.parquet", f"{name}X")


def test_perturbations_are_listed_with_the_genes_they_change(all_cells):
    table = list_perturbations(all_cells, 0.05)
    assert table["n_de"].is_monotonic_decreasing
    assert set(table["perturbation"]) == set(all_cells.obs_names)
    first = table.iloc[0]
    row = all_cells.obs_names.get_loc(first["perturbation"])
    effect = pd.Series(all_cells.X[row], index=all_cells.var_names)
    is_de = all_cells.layers["fdr"][row] < 0.05
    assert first["n_de"] == is_de.sum()
    assert first["raised"].split(" ")[0] == effect[is_de].idxmax()
    assert f"{effect[is_de].max():+.2f}" in first["raised"]
    assert "−" in first["lowered"]


def test_genes_keep_the_hyphens_of_their_names():
    genes = pd.Index(["NKX2-1", "HLA-A", "KLF1"])
    effect, chosen = np.array([0.5, -1.25, 9.0]), np.array([True, True, False])
    assert strongest_genes(effect, chosen, genes, 5) == "HLA-A −1.25, NKX2-1 +0.50"
    assert strongest_genes(effect, chosen, genes, 1) == "HLA-A −1.25"
    assert strongest_genes(effect, ~chosen & False, genes, 5) == ""


@given(st.text(min_size=1))
def test_any_perturbation_can_name_a_file(name):
    written = file_name(name)
    assert perturbation_of(written) == name
    assert not {"/", "\\", "{", "}", "\x00", " ", "*"} & set(written)
    assert not written.startswith(".")
