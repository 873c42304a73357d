"""Files for cell-eval: what it requires of them, and what it then says of them."""

import importlib.util
import os
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from samsvae.config.experiments import Split
from samsvae.evaluation.baselines import additive, no_change
from samsvae.evaluation.effects import effects_table, group_means
from samsvae.evaluation.observed import observed_effects
from samsvae.evaluation.samples import (
    CONTROL_LABEL,
    PERTURBATION_COLUMN,
    cells_of_effects,
    cells_of_model,
    compared_cells,
    halves,
    log_normalised,
    measured_cells,
    to_cell_eval,
    write_cells,
)
from samsvae.evaluation.scores import effect_scores
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.models import build_model
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import perturbations
from samsvae.screen.design import Design
from samsvae.screen.splits import TRAIN, split_screen

NUMBER = 40
LARGEST = 15  # from which on cell-eval takes values for raw counts


@pytest.fixture(scope="module")
def parts(tiny_screen):
    return pd.Series(split_screen(tiny_screen, Split("random", 0)), index=tiny_screen.obs_names)


@pytest.fixture(scope="module")
def effects(tiny_screen, parts):
    """Those of the additive baseline."""
    names = perturbations(tiny_screen)
    predicted = additive(tiny_screen, (parts == TRAIN).to_numpy(), names)
    return effects_table(predicted, names, list(tiny_screen.var_names), {}, "{}")


@pytest.fixture(scope="module")
def control(tiny_screen, parts):
    """Counts of training control cells."""
    is_control = (tiny_screen.obs["perturbation"] == "control").to_numpy()
    return tiny_screen.X[is_control & (parts == TRAIN).to_numpy()]


@pytest.fixture(scope="module")
def trained(tiny_screen):
    torch.manual_seed(0)
    settings = {"kind": "cpa_vae", "n_latent": 3, "n_hidden": 8}
    encoding = Encoding.of(Design.of_screen(tiny_screen), "additive")
    model = build_model(settings, tiny_screen.n_vars, len(encoding.names)).eval()
    return TrainedModel(model, settings, list(tiny_screen.var_names), encoding)


@pytest.fixture(scope="module")
def pairs(tiny_screen, parts, effects, control, trained):
    """Predicted and real cells of each kind of model."""
    compared = compared_cells(tiny_screen, parts)
    names = perturbations(tiny_screen)
    sizes = tiny_screen.obs["library_size"].to_numpy()
    half, others = halves(tiny_screen, parts, compared, seed=0)
    predicted = {
        "model": cells_of_model(trained, names, NUMBER, sizes, 0),
        "baseline": cells_of_effects(effects, control, names, NUMBER, 0),
        "ceiling": measured_cells(tiny_screen, half),
    }
    return {
        kind: (alone(cells), alone(measured_cells(tiny_screen, real)))
        for (kind, cells), real in zip(predicted.items(), (compared, compared, others), strict=True)
    }


def alone(blocks):
    """The only block of a small screen."""
    [cells] = blocks
    return cells


def test_a_model_has_its_cells_of_every_perturbation_in_blocks(tiny_screen, trained, monkeypatch):
    names, sizes = perturbations(tiny_screen), tiny_screen.obs["library_size"].to_numpy()
    whole = alone(cells_of_model(trained, names, NUMBER, sizes, 0))
    monkeypatch.setattr("samsvae.evaluation.samples.LARGEST_BLOCK", 3 * NUMBER * tiny_screen.n_vars)
    blocks = list(cells_of_model(trained, names, NUMBER, sizes, 0))
    assert [len(set(block.obs["perturbation"])) for block in blocks[:-1]] == [3] * (len(blocks) - 1)
    assert [name for block in blocks for name in block.obs_names] == list(whole.obs_names)
    first, second = (block.X.toarray()[:NUMBER] for block in blocks[:2])
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("size", [1, 7 * NUMBER])
def test_cells_are_written_block_by_block_as_at_once(
    tiny_screen, parts, effects, control, tmp_path, monkeypatch, size
):
    compared, names = compared_cells(tiny_screen, parts), perturbations(tiny_screen)
    makers = {
        "baseline": lambda: cells_of_effects(effects, control, names, NUMBER, 0),
        "real": lambda: measured_cells(tiny_screen, compared),
    }
    whole = {name: alone(make()) for name, make in makers.items()}
    monkeypatch.setattr("samsvae.evaluation.samples.LARGEST_BLOCK", size * tiny_screen.n_vars)
    for name, make in makers.items():
        write_cells(make(), '{"made": "by"}', tmp_path / "cells.h5ad")
        found = anndata.read_h5ad(tmp_path / "cells.h5ad")
        assert len(list(make())) > 1
        assert (found.X != whole[name].X).nnz == 0
        pd.testing.assert_frame_equal(found.obs, whole[name].obs)
        pd.testing.assert_frame_equal(found.var, whole[name].var)
        assert found.uns["provenance"] == '{"made": "by"}'
        with h5py.File(tmp_path / "cells.h5ad") as file:
            assert file["X/indptr"].dtype == np.int64  # of more than 2^31 values, too
    with pytest.raises(InputError, match="no cells to export"):
        write_cells([], "{}", tmp_path / "nothing.h5ad")
    assert not (tmp_path / "nothing.h5ad").exists()


@pytest.mark.parametrize("kind", ["model", "baseline", "ceiling"])
def test_files_are_as_cell_eval_requires(pairs, kind, tmp_path):
    written = []
    for number, cells in enumerate(pairs[kind]):
        cells.write_h5ad(tmp_path / f"{number}.h5ad")
        written.append(anndata.read_h5ad(tmp_path / f"{number}.h5ad"))
    for cells in written:
        assert isinstance(cells.X, sparse.csr_matrix)
        assert cells.X.dtype == np.float32
        assert np.isfinite(cells.X.data).all()
        assert cells.X.min() == 0
        assert 1 < cells.X.max() < LARGEST
        assert (np.modf(cells.X.data)[0] > 1e-3).any()  # not counts
        assert cells.obs_names.is_unique
        assert set(cells.obs["perturbation"]) - set(cells.obs[PERTURBATION_COLUMN]) == {"control"}
    predicted, real = written
    np.testing.assert_array_equal(predicted.var_names, real.var_names)
    for column, control in (("perturbation", "control"), (PERTURBATION_COLUMN, CONTROL_LABEL)):
        there = [cells.obs[column].value_counts() for cells in (predicted, real)]
        assert set(there[0].index) == set(there[1].index)
        assert control in there[0]
        if kind != "ceiling":
            assert (there[0] == NUMBER).all()


def test_real_cells_are_those_held_out_and_log_normalised(tiny_screen, parts):
    split = pd.Series(
        split_screen(tiny_screen, Split("unseen_combinations", 0, 0.5)),
        index=tiny_screen.obs_names,
    )
    chosen = compared_cells(tiny_screen, split)
    labels = tiny_screen.obs["perturbation"].astype(str)
    tested = set(labels[split == "test"])
    assert set(labels[chosen]) == {*tested, "control"}
    assert all("+" in label for label in tested)
    assert set(split[chosen & (labels == "control").to_numpy()]) == {"val"}
    real = alone(measured_cells(tiny_screen, chosen))
    counts = tiny_screen[chosen].X.toarray()
    expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(real.X.toarray(), expected, rtol=1e-6)
    assert list(real.obs_names) == list(tiny_screen.obs_names[chosen])


def means(cells):
    """Mean expression of each perturbation's cells, control last, as log2(CP10k + 1)."""
    labels = cells.obs["perturbation"].astype(str)
    names = sorted(set(labels) - {"control"})
    block = cells.X.astype(float) / np.log(2), labels
    return group_means([block], names, cells.n_vars), names


def test_cells_of_a_baseline_have_the_effects_that_it_predicts(pairs, effects):
    found, names = means(pairs["baseline"][0])
    wanted = found.mean[-1] + effects[names].X
    np.testing.assert_allclose(found.mean[:-1], np.maximum(wanted, 0), atol=1e-5)
    assert (wanted < 0).mean() < 0.02


def test_cells_without_change_are_control_cells_in_the_mean(tiny_screen, parts, control):
    names = perturbations(tiny_screen)
    nothing = no_change(tiny_screen, (parts == TRAIN).to_numpy(), names)
    table = effects_table(nothing, names, list(tiny_screen.var_names), {}, "{}")
    found, _ = means(alone(cells_of_effects(table, control, names, NUMBER, 0)))
    np.testing.assert_allclose(found.effects()[0], 0, atol=1e-5)


def test_halves_share_no_cell_and_have_the_same_perturbations(tiny_screen, parts):
    compared = compared_cells(tiny_screen, parts)
    half, others = halves(tiny_screen, parts, compared, seed=1)
    assert not (half & others).any()
    labels = tiny_screen.obs["perturbation"].astype(str)
    assert set(labels[half]) == set(labels[others]) == set(labels)
    assert np.array_equal(half | others, compared)


def test_a_cell_without_counts_stays_empty():
    assert log_normalised(sparse.csr_matrix([[0, 0], [3, 1]])).toarray()[0].tolist() == [0, 0]


def test_what_cell_eval_cannot_read_is_refused(tiny_screen, parts):
    measured = tiny_screen.copy()
    measured.X = measured.X.astype(np.float32)
    with pytest.raises(InputError, match=r"cell-eval .*counts"):
        compared_cells(measured, parts)
    trained = parts.mask((tiny_screen.obs["perturbation"] == "control").to_numpy(), TRAIN)
    with pytest.raises(InputError, match=r"cell-eval .*'control'"):
        compared_cells(tiny_screen, trained)
    with pytest.raises(InputError, match="'non-targeting'"):
        to_cell_eval(sparse.csr_matrix((1, 1)), [CONTROL_LABEL], ["G"])


def cell_eval_python():
    """An interpreter that has cell-eval: of SAMSVAE_CELL_EVAL, or else this one; None if none has."""
    own = os.environ.get("SAMSVAE_CELL_EVAL")
    return own or (sys.executable if importlib.util.find_spec("cell_eval") else None)


def judged_by_cell_eval(predicted, real, folder):
    """What its command says of two files with nothing but their paths, by perturbation."""
    python = cell_eval_python()
    if python is None:
        pytest.skip(
            "cell-eval is not installed; `pip install cell-eval` beside the tests, or name the "
            "Python of another environment in SAMSVAE_CELL_EVAL"
        )
    predicted.write_h5ad(folder / "predicted.h5ad")
    real.write_h5ad(folder / "real.h5ad")
    done = subprocess.run(
        [python, "-m", "cell_eval", "run", "-ap", "predicted.h5ad", "-ar", "real.h5ad",
         "-o", "judged", "--skip-metrics", "clustering_agreement"],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return pd.read_csv(folder / "judged/results.csv").set_index("perturbation").sort_index()


@pytest.mark.slow
def test_cell_eval_and_our_tables_agree_where_their_metrics_mean_the_same(
    pairs, tiny_screen, parts, effects, control, tmp_path
):
    """Of a baseline none of whose predicted means is below 0, so that its cells have its effects."""
    predicted, real = pairs["baseline"]
    possible = effects.copy()
    possible.X = np.maximum(effects.X, -means(predicted)[0].mean[-1])
    predicted = alone(cells_of_effects(possible, control, list(effects.obs_names), NUMBER, 0))
    table = judged_by_cell_eval(predicted, real, tmp_path)
    observed = observed_effects(tiny_screen, parts, "{}")
    scores = effect_scores(observed, possible, 10, 0.05).by_perturbation.loc[table.index]
    n = len(table)
    same = {
        "pearson_delta": scores["pearson_held_out"],
        "mae_delta": scores["mean_absolute_error_held_out"] * np.log(2),
        "mse_delta": (scores["rmse_held_out"] * np.log(2)) ** 2,
        # a share of n, ours is one of the n - 1 others
        "discrimination_score_l1": 1 - (1 - scores["discrimination_l1_held_out"]) * (n - 1) / n,
    }
    for name, expected in same.items():
        print(f"{name}: {table[name].mean():.6f}, ours {expected.mean():.6f}")
        np.testing.assert_allclose(table[name], expected, rtol=1e-4, err_msg=name)
    assert table["roc_auc"].dropna().between(0, 1).all()
