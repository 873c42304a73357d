"""Scores of cells by the rules vcc2026: cell-eval2's numbers, what they must be, and counts."""

import json
import os
import subprocess
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from samsvae.config.experiments import Split
from samsvae.evaluation import vcc2026
from samsvae.evaluation.expression import log_cp10k
from samsvae.evaluation.population import HeldOutCells
from samsvae.evaluation.samples import CHANGES, ControlCells
from samsvae.evaluation.scores import DISCREPANCY, ENERGY, VARIANCE
from samsvae.evaluation.vcc2026 import (
    ERROR,
    FOLD_CHANGES,
    JACCARD,
    REACH,
    RETRIEVAL,
    SCORES,
    CellStatistics,
    cell_statistics,
    fold_change_error,
    profile_error,
    retrieval,
    target_columns,
    vcc_scores,
)
from samsvae.screen.splits import split_screen
from samsvae.sources.simulated import Simulation, simulate

HERE = Path(__file__).parent
# numbers of judged_by_cell_eval2.py, which is run again where SAMSVAE_CELL_EVAL2 names a Python
JUDGED = json.loads((HERE / "judged_by_cell_eval2.json").read_text())
MEASURED_TARGETS = Simulation(
    seed=5,
    n_genes=120,
    n_factors=4,
    n_perturbations=10,
    n_pairs=0,
    n_controls=150,
    cells_per_perturbation=60,
    programme_size=15,
    median_library_size=800,
    knock_down=2.0,
)


class Labelled:
    """Cells with raw counts and labels."""

    def __init__(self, counts, labels):
        self.counts, self.labels = sparse.csr_matrix(counts), np.asarray(labels, dtype=object)

    def __getitem__(self, chosen):
        return Labelled(self.counts[chosen], self.labels[chosen])

    def joined(self, other):
        counts = sparse.vstack([self.counts, other.counts], format="csr")
        return Labelled(counts, [*self.labels, *other.labels])

    def statistics(self, names):
        return cell_statistics(self.counts, self.labels, names)


@pytest.fixture(scope="module")
def screen():
    return simulate(MEASURED_TARGETS)[0]


@pytest.fixture(scope="module")
def names(screen):
    return sorted(set(screen.obs["perturbation"].astype(str)) - {"control"})


@pytest.fixture(scope="module")
def targets(screen, names):
    return target_columns(screen, names)


@pytest.fixture(scope="module")
def cases(screen, names):
    """Predicted and measured cells, and whose control cells the predicted ones have."""
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    cells = Labelled(screen.X, labels)
    rng = np.random.default_rng(0)
    half = rng.random(len(labels)) < 0.5
    measured, others = cells[~half], cells[half]
    thinned = others.counts.copy()
    thinned.data = rng.binomial(thinned.data, 0.7)
    thinned.eliminate_zeros()
    swapped = {names[0]: names[1], names[1]: names[0]}
    predicted = Labelled(thinned, [swapped.get(name, name) for name in others.labels])
    control = np.flatnonzero(others.labels == "control")
    drawn = others.counts[rng.choice(control, 30 * len(names))]
    nothing = Labelled(drawn, np.repeat(names, 30))
    return {
        "prediction": (predicted, measured, "real"),
        "replicate": (predicted, measured, "pred"),
        "no change": (nothing.joined(others[control]), measured, "real"),
    }


def judged(predicted, measured, control, names, targets):
    """Scores of predicted cells, compared with the measured control cells or their own."""
    if control == "real":
        perturbed = predicted[predicted.labels != "control"]
        predicted = perturbed.joined(measured[measured.labels == "control"])
    return vcc_scores(predicted.statistics(names), measured.statistics(names), targets)


@pytest.mark.parametrize("case", JUDGED)
def test_scores_are_those_of_cell_eval2(case, cases, names, targets):
    found = judged(*cases[case], names, targets)
    assert set(found) == set(SCORES)
    for name, value in found.items():
        print(f"{case}, {name}: {value:.6f}, cell-eval2 {JUDGED[case][name]:.6f}")
        assert value == pytest.approx(JUDGED[case][name], abs=1e-6)


def test_stored_numbers_are_still_those_of_cell_eval2(cases, screen, tmp_path):
    python = os.environ.get("SAMSVAE_CELL_EVAL2")
    if not python:
        pytest.skip("SAMSVAE_CELL_EVAL2 names no Python with cell-eval2 0.20.0 and pdex 0.3.0")
    found = {}
    for case, (*pair, control) in cases.items():
        for side, cells in zip(("predicted", "measured"), pair, strict=True):
            target = pd.Series(cells.labels).replace("control", "non-targeting").astype("category")
            table = anndata.AnnData(
                cells.counts.astype(np.float32), obs=pd.DataFrame({"target": target.to_numpy()})
            )
            table.var_names = screen.var_names
            table.write_h5ad(tmp_path / f"{side}.h5ad")
        done = subprocess.run(
            [python, HERE / "judged_by_cell_eval2.py", "predicted.h5ad", "measured.h5ad", control],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        values = json.loads(done.stdout.splitlines()[-1])
        found[case] = {name: values[name] for name in SCORES}
    (tmp_path / "judged_by_cell_eval2.json").write_text(json.dumps(found, indent=1))
    for case, values in found.items():
        assert values == pytest.approx(JUDGED[case], abs=1e-9)


def test_a_binding_budget_is_among_the_cases(cases, names, targets):
    """Cells without change claim more sampling noise than their profiles vary."""
    predicted, measured, _ = cases["no change"]
    statistics = predicted.joined(measured[measured.labels == "control"]).statistics(names)
    free = CellStatistics(**{**vars(statistics), "sampling": 1e9 + 0 * statistics.sampling})
    assert profile_error(free, measured.statistics(names), targets) == pytest.approx(1, abs=0.15)
    spread = ((statistics.profile[:-1] - statistics.profile[:-1].mean(axis=0)) ** 2).sum()
    assert spread < np.minimum(statistics.sampling, measured.statistics(names).sampling)[:-1].sum()


def test_order_of_cells_genes_and_perturbations_does_not_matter(cases, names, targets):
    predicted, measured, _ = cases["replicate"]
    expected = judged(predicted, measured, "real", names, targets)
    rng = np.random.default_rng(1)
    genes, rows = rng.permutation(targets.shape[1]), rng.permutation(len(names))
    shuffled = []
    for cells in (predicted, measured):
        order = rng.permutation(len(cells.labels))
        shuffled.append(Labelled(cells.counts[order][:, genes], cells.labels[order]))
    again = judged(*shuffled, "real", [names[row] for row in rows], targets[rows][:, genes])
    assert again == pytest.approx(expected, abs=1e-12)


def test_measured_cells_predict_themselves_perfectly(cases, names, targets):
    measured = cases["replicate"][1].statistics(names)
    scores = vcc_scores(measured, measured, targets)
    for name in (RETRIEVAL, REACH, JACCARD):
        assert scores[name] == 1
    assert scores[FOLD_CHANGES] == 0
    assert scores[ERROR] < 0  # noise is taken off, though it is the same on both sides


@pytest.mark.parametrize("number", [60, 61])
def test_predictions_without_information_retrieve_by_chance(number):
    rng = np.random.default_rng(2)
    measured = rng.normal(size=(number, 200))
    none = np.zeros(measured.shape, dtype=bool)
    np.testing.assert_array_equal(retrieval(0 * measured, measured, none), 0.5)
    same = np.tile(rng.normal(size=200), (number, 1))
    assert retrieval(same, measured, none).mean() == pytest.approx(0.5)
    independent = [
        retrieval(rng.normal(size=measured.shape), measured, none).mean() for _ in range(40)
    ]
    assert np.mean(independent) == pytest.approx(0.5, abs=4 * np.std(independent) / np.sqrt(40))
    np.testing.assert_array_equal(retrieval(measured, measured, none), 1)


def test_retrieval_in_blocks_is_that_at_once(monkeypatch):
    rng = np.random.default_rng(6)
    measured = rng.normal(size=(23, 40))
    predicted = measured + rng.normal(size=measured.shape)
    targets = rng.random(measured.shape) < 0.01
    at_once = retrieval(predicted, measured, targets)
    monkeypatch.setattr(vcc2026, "LARGEST_BLOCK", 100)
    np.testing.assert_allclose(retrieval(predicted, measured, targets), at_once)


def test_spikes_in_the_genes_of_other_targets_retrieve_nothing(cases, names, targets):
    """Not even if the measured effect of the perturbation's own gene is known."""
    measured = cases["prediction"][1].statistics(names)
    spiked = np.where(targets.any(axis=0) & ~targets, 5.0, 0.0)
    np.testing.assert_array_equal(retrieval(spiked, measured.effect, targets), 0.5)
    known = np.where(targets, measured.effect, 0.0)
    np.testing.assert_array_equal(retrieval(known, measured.effect, targets), 0.5)


def test_combinations_have_the_targets_of_their_components(tiny_screen):
    other = tiny_screen.copy()
    other.var_names = ["TARGET01", "X", *other.var_names[2:]]
    names = ["TARGET01", "TARGET01+TARGET02", "TARGET02@0.5", "TARGET03"]
    own = target_columns(other, names)
    assert [list(np.flatnonzero(row)) for row in own] == [[0], [0], [], []]
    gene = other.obs["perturbation"].astype(str)
    other.obs["gene"] = gene.where(gene != "TARGET02", "X")
    own = target_columns(other, names)
    assert [list(np.flatnonzero(row)) for row in own] == [[0], [0, 1], [1], []]


def test_what_is_said_of_targets_changes_no_score(cases, names, targets):
    predicted, measured = (cells.statistics(names) for cells in cases["replicate"][:2])
    pairs = targets | np.roll(targets, 1, axis=0)  # two targets each
    expected = vcc_scores(predicted, measured, pairs)
    rng = np.random.default_rng(3)
    profile = predicted.profile.copy()
    profile[:-1][pairs] = rng.normal(0, 9, pairs.sum())
    log2fc = np.where(pairs, -predicted.log2fc, predicted.log2fc)
    rates = {
        name: np.where(pairs, rng.random(pairs.shape) ** 9, getattr(predicted, name))
        for name in ("pvalue", "fdr")
    }
    told = CellStatistics(profile, predicted.sampling, log2fc, **rates)
    again = vcc_scores(told, measured, pairs)
    assert again == pytest.approx(expected, abs=1e-12)


def test_sampling_error_is_that_of_the_jackknife(cases, names):
    measured = cases["replicate"][1]
    found = measured.statistics(names)
    for row, name in enumerate([*names[:3], "control"]):
        cells = measured.counts[measured.labels == name].toarray().astype(float)
        n = len(cells)
        without = np.stack([np.delete(cells, at, axis=0).sum(axis=0) for at in range(n)])
        profiles = np.log1p(5e4 * without / without.sum(axis=1, keepdims=True))
        expected = (n - 1) * profiles.var(axis=0).sum()
        position = row if name != "control" else -1
        assert found.sampling[position] == pytest.approx(expected, rel=1e-9)
        profile = np.log1p(5e4 * cells.sum(axis=0) / cells.sum())
        np.testing.assert_allclose(found.profile[position], profile, rtol=1e-12)


def test_groups_of_one_cell_or_none_have_no_sampling_error(cases, names):
    measured = cases["replicate"][1]
    few = measured[np.r_[np.flatnonzero(measured.labels == names[0])[:1], 0:0]]
    found = few.joined(measured[measured.labels == "control"]).statistics(names)
    assert (found.sampling[:-1] == 0).all()
    assert (found.profile[1:-1] == 0).all()
    assert np.isnan(found.pvalue[1:]).all()


def test_fold_changes_of_halves_are_scored_on_the_genes_of_all_cells(cases, names, targets):
    first, second = (cells.statistics(names) for cells in cases["replicate"][:2])
    gate = cases["replicate"][1].statistics(names)
    gate = CellStatistics(**{**vars(gate), "fdr": gate.fdr * 0.5, "log2fc": gate.log2fc * 2})
    found = fold_change_error(first, second, targets, gate)
    for row in range(len(names)):
        genes = np.flatnonzero((gate.fdr[row] < 0.05) & ~targets[row])
        if len(genes) < 10:
            assert np.isnan(found[row])
            continue
        error = np.abs(first.log2fc[row, genes] - second.log2fc[row, genes]).mean()
        assert found[row] == pytest.approx(error / np.abs(gate.log2fc[row, genes]).mean())


def true_cells(screen, names, numbers, seed):
    """New cells of a simulation without noise in its parameters: what a perfect model samples."""
    rng = np.random.default_rng(seed)
    truth = screen.uns["truth"]
    shift = pd.DataFrame(truth["mask"] * truth["embedding"], index=truth["targets"])
    blocks = []
    for name, number in zip(names, numbers, strict=True):
        basal = rng.normal(size=(number, len(truth["loadings"])))
        basal[:, : shift.shape[1]] += shift.loc[name.split("+")].sum(axis=0).to_numpy()
        rate = np.exp(basal @ truth["loadings"] + truth["log_proportion"])
        size = rng.choice(screen.obs["library_size"].to_numpy(), number)
        rate *= (size / rate.sum(axis=1))[:, None]
        shape = truth["inverse_dispersion"]
        blocks.append(
            sparse.csr_matrix(rng.poisson(rate * rng.gamma(shape, 1 / shape, rate.shape)))
        )
    return sparse.vstack(blocks, format="csr"), np.repeat(names, numbers)


@pytest.fixture(scope="module")
def held_out():
    settings = Simulation(n_perturbations=12, n_pairs=6, cells_per_perturbation=240)
    simulated = simulate(settings)[0]
    parts = pd.Series(split_screen(simulated, Split("random", 0)), index=simulated.obs_names)
    return HeldOutCells(simulated, parts, 200)


def test_mean_response_scores_0_a_replicate_about_1_and_the_truth_above(held_out):
    run = {"split": "s", "model": "m", "seed": 0}

    def scaled(values):
        return held_out.vcc_table(values, run).set_index("metric")["scaled"]

    mean = scaled(held_out.vcc_scores_of(held_out.mean_response))
    assert (mean == 0).all()
    halves = pd.concat([scaled(held_out.vcc_scores_of_half(seed)) for seed in (11, 12, 13)], axis=1)
    print(halves.mean(axis=1))
    np.testing.assert_allclose(halves.mean(axis=1), 1, atol=0.15)
    cells = type(held_out.cells)(
        *true_cells(held_out.screen, held_out.names, held_out.numbers, seed=1)
    )
    truth = scaled(held_out.vcc_scores_of(cells))
    print(truth)
    assert (truth.drop(ERROR) > 1).all()


def test_truth_and_replicate_have_the_profile_error_0(held_out):
    """Its noise is taken off, so that both are perfect in expectation."""
    baseline, replicate, spread = held_out.vcc_anchors[ERROR]
    raw = [held_out.vcc_scores_of_half(seed)[ERROR] for seed in range(5)]
    assert np.mean(raw) < 0
    assert spread == pytest.approx(np.std(raw, ddof=1))
    assert replicate == 0
    errors = []
    for seed in range(8):
        cells = type(held_out.cells)(
            *true_cells(held_out.screen, held_out.names, held_out.numbers, seed=seed)
        )
        errors.append(held_out.vcc_scores_of(cells)[ERROR])
    standard_error = np.std(errors, ddof=1) / np.sqrt(len(errors))
    print(f"profile error of the truth: {np.mean(errors):.4f}, standard error {standard_error:.4f}")
    assert abs(np.mean(errors)) < max(3 * standard_error, 0.03) < 0.1 * baseline
    assert held_out.vcc_scores_of(cells)[ERROR] == pytest.approx(0, abs=0.1)


def test_new_cells_of_the_truth_are_distributed_as_held_out_cells(held_out):
    cells = type(held_out.cells)(
        *true_cells(held_out.screen, held_out.names, held_out.numbers, seed=1)
    )
    found, anchors = held_out.distances_of(cells), held_out.distance_anchors
    print(found, anchors)
    for name in (ENERGY, DISCREPANCY):
        control, replicate = anchors[name]
        assert abs(found[name] - replicate) < 0.02 * control
    assert found[VARIANCE] == pytest.approx(1, abs=0.03)


def test_a_metric_on_which_a_replicate_is_not_better_has_no_scale(held_out):
    values = held_out.vcc_anchors
    swapped = {name: (high, low, spread) for name, (low, high, spread) in values.items()}
    other = HeldOutCells.__new__(HeldOutCells)
    other.__dict__["vcc_anchors"] = swapped
    table = other.vcc_table(dict.fromkeys(SCORES, 0.5), {"split": "s", "model": "m", "seed": 0})
    assert table["scaled"].isna().all()
    assert list(table["baseline"]) == [anchors[0] for anchors in swapped.values()]
    assert list(table["replicate_sd"]) == [anchors[2] for anchors in swapped.values()]


def test_cells_of_a_baseline_are_counts_with_the_predicted_mean_effects(held_out):
    control = held_out.control_cells
    assert (np.diff(control.shift, axis=0) >= 0).all()
    rng = np.random.default_rng(4)
    effects = rng.normal(0, 0.4, (2, control.counts.shape[1]))
    expression = log_cp10k(control.counts, np.asarray(control.counts.sum(axis=1)).ravel())
    start = np.asarray(expression.mean(axis=0)).ravel()
    effects = np.maximum(effects, -start / 2)
    number = 3000
    cells = control.perturbed(effects, [number, number], seed=5)
    assert cells.dtype == np.int32
    assert cells.min() == 0
    again = control.perturbed(effects, [number, number], seed=5)
    assert (cells != again).nnz == 0
    expression = log_cp10k(cells, np.asarray(cells.sum(axis=1)).ravel())
    for row, wanted in enumerate(effects):
        block = expression[row * number : (row + 1) * number]
        found = np.asarray(block.mean(axis=0)).ravel() - start
        # the library size changes with the sum of effects, by the same factor in all genes
        difference = found - wanted
        print(np.abs(difference).mean(), np.corrcoef(found, wanted)[0, 1])
        assert np.corrcoef(found, wanted)[0, 1] > 0.97
        assert np.abs(difference).mean() < 0.12


def test_cells_without_change_are_control_cells(held_out):
    control = held_out.control_cells
    nothing = control.perturbed(np.zeros((1, control.counts.shape[1])), [50], seed=1)
    known = {row.tobytes() for row in control.counts.toarray().astype(np.int32)}
    assert all(row.tobytes() in known for row in nothing.toarray())


def test_a_gene_without_counts_can_rise_and_any_gene_can_vanish():
    counts = sparse.csr_matrix(np.c_[np.full(40, 300), np.zeros(40, dtype=int), np.full(40, 3)])
    control = ControlCells.of(counts)
    assert control.changes(np.array([[-99.0, 0.0, 99.0]])).tolist() == [[-1, 0, CHANGES[-1]]]
    cells = control.perturbed(np.array([[0.0, 3.0, -99.0]]), [200], seed=0).toarray()
    assert (cells[:, 0] == 300).all()
    assert (cells[:, 1] > 0).any()
    assert not cells[:, 2].any()


def test_every_score_is_described():
    for score in SCORES.values():
        assert score.heading
        assert score.direction in ("higher", "lower")
    assert set(SCORES) == {
        vcc2026.RETRIEVAL, vcc2026.ERROR, vcc2026.FIDELITY, vcc2026.REACH, vcc2026.JACCARD,
        vcc2026.FOLD_CHANGES,
    }  # fmt: skip
