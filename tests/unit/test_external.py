"""Predictions of other tools: read by name, refused on another scale."""

import logging

import anndata
import numpy as np
import pandas as pd
import pytest

from samsvae.config.experiments import Run, prediction_path, runs
from samsvae.evaluation.baselines import BASELINES
from samsvae.evaluation.external import PredictionFile, check_scale
from samsvae.runtime.errors import InputError
from samsvae.runtime.preflight import check_predictions
from samsvae.screen.canonical import perturbations
from samsvae.sources.simulated import Simulation, simulate

pytestmark = [
    pytest.mark.filterwarnings("ignore:Observation names:UserWarning"),
    pytest.mark.filterwarnings("ignore:Variable names:UserWarning"),
]

PARTS = np.array(["train", "train", "val", "test"])


@pytest.fixture(scope="module")
def screen():
    small = {"n_genes": 80, "n_perturbations": 10, "n_pairs": 5, "programme_size": 12}
    return simulate(Simulation(seed=2, n_controls=200, cells_per_perturbation=60, **small))[0]


@pytest.fixture(scope="module")
def parts(screen):
    return pd.Series(np.resize(PARTS, screen.n_obs), index=screen.obs_names)


@pytest.fixture(scope="module")
def means(screen):
    """Mean counts, CP10k and log2(CP10k + 1) of each condition, control last, by numpy alone."""
    counts = screen.X.toarray().astype(float)
    per_10k = 1e4 * counts / counts.sum(axis=1, keepdims=True)
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    names = [*perturbations(screen), "control"]
    return {
        scale: np.array([values[labels == name].mean(axis=0) for name in names])
        for scale, values in (
            ("counts", counts), ("CP10k", per_10k), ("log2", np.log2(1 + per_10k)),
        )
    }  # fmt: skip


@pytest.fixture(scope="module")
def effects(screen, means):
    values = means["log2"][:-1] - means["log2"][-1]
    return pd.DataFrame(values, perturbations(screen), screen.var_names)


def written(path, table, X=None):
    """A file of effects, or of any matrix with these names."""
    obs, var = pd.DataFrame(index=table.index), pd.DataFrame(index=table.columns)
    anndata.AnnData(table.to_numpy() if X is None else X, obs, var).write_h5ad(path)
    return path


def of_file(path, **settings):
    return PredictionFile.of(path, {"kind": "external", "path": str(path), **settings})


def read(path, screen, parts, **settings):
    file = of_file(path, **settings)
    file.check()
    return file.effects_on(screen, parts)


def in_another_order(effects):
    """Genes and perturbations permuted, the parts of pairs swapped, and things unknown added."""
    rng = np.random.default_rng(0)
    other = effects.rename(index=lambda name: "+".join(reversed(name.split("+"))))
    other = other.iloc[rng.permutation(len(other)), rng.permutation(other.shape[1])]
    other.insert(3, "ANOTHER_GENE", 7.0)
    other.loc["ANOTHER_TARGET"] = 0.1
    other.loc["control"] = 0.0
    return other


def test_perturbations_and_genes_are_found_by_name(tmp_path, screen, parts, effects, caplog):
    path = written(tmp_path / "a.h5ad", in_another_order(effects))
    with caplog.at_level(logging.INFO):
        found = read(path, screen, parts)
    np.testing.assert_allclose(found, effects, atol=1e-12)
    assert "ANOTHER_TARGET" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_labels_may_name_controls_and_have_another_delimiter(tmp_path, screen, parts, effects):
    names = [name.replace("+", "_") if "+" in name else f"{name}_ctrl" for name in effects.index]
    path = written(tmp_path / "a.h5ad", effects.set_axis(names))
    found = read(path, screen, parts, delimiter="_", control="ctrl")
    np.testing.assert_allclose(found, effects, atol=1e-12)


def test_what_is_missing_is_named_and_refused_or_without_change(
    tmp_path, screen, parts, effects, caplog
):
    pair, gene = next(name for name in effects.index if "+" in name), effects.columns[4]
    path = written(tmp_path / "a.h5ad", effects.drop(index=pair, columns=gene))
    said = rf"1 of 15 perturbations \({pair.replace('+', '[+]')}; 1 of them with test.*{gene}"
    with pytest.raises(InputError, match=said):
        read(path, screen, parts)
    found = pd.DataFrame(
        read(path, screen, parts, missing="no_change"), effects.index, effects.columns
    )
    expected = effects.copy()
    expected.loc[pair], expected[gene] = 0.0, 0.0
    pd.testing.assert_frame_equal(found, expected)
    assert "taken to be 0" in caplog.text


def test_names_of_another_kind_are_refused_even_if_missing_ones_are_allowed(
    tmp_path, screen, parts, effects
):
    other = effects.set_axis([f"ENSG{i}" for i in range(effects.shape[1])], axis=1)
    with pytest.raises(InputError, match="none is the same"):
        read(written(tmp_path / "a.h5ad", other), screen, parts, missing="no_change")


def with_value(effects, value):
    other = effects.copy()
    other.iloc[2, 5] = value
    return other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: with_value(e, np.nan), "1 value.*not finite.*nan of"),
        (lambda e: with_value(e, np.inf), "not finite.*inf of"),
        (lambda e: e.set_axis([e.columns[0], *e.columns[:-1]], axis=1), "gene name.*more than once"),
        (lambda e: pd.concat([e, e.iloc[[3]]]), "more than one row of effects"),
        (
            lambda e: pd.concat([e, e.iloc[[-1]].rename(lambda n: "+".join(n.split("+")[::-1]))]),
            "more than one row of effects",
        ),
        (lambda e: e.rename(index={e.index[0]: "A++B"}), "'A[+][+]B' has an empty part"),
    ],
)  # fmt: skip
def test_faults_of_a_file_are_found_without_the_screen(tmp_path, effects, change, said):
    with pytest.raises(InputError, match=said):
        of_file(written(tmp_path / "a.h5ad", change(effects))).check()


@pytest.mark.parametrize("baseline", ["mean_effect", "training_mean", "additive"])
def test_no_baseline_is_on_a_doubtful_scale(screen, parts, baseline, caplog):
    names, train = perturbations(screen), (parts == "train").to_numpy()
    found = BASELINES[baseline](screen, train, names)
    check_scale(found, np.arange(len(names)), screen, "a.h5ad")
    assert not caplog.records


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (lambda m: m["counts"][:-1] - m["counts"][-1], "as on CP10k|below 0|no logarithm"),
        (lambda m: m["CP10k"][:-1] - m["CP10k"][-1], "as on CP10k|below 0|no logarithm"),
        (lambda m: m["log2"][:-1], "expression, not effects"),
        (lambda m: np.log(2) * m["log2"][:-1], "slope 0.6.*expression, not effects"),
        (lambda m: m["counts"][:-1], "expression, not effects"),
        (lambda m: 6 * (m["log2"][:-1] - m["log2"][-1]), "times as large|below 0"),
    ],
)
def test_another_scale_is_refused(screen, means, of, said):
    with pytest.raises(InputError, match=said):
        check_scale(of(means), np.arange(15), screen, "a.h5ad")


def test_another_scale_is_told_by_correlation_where_sizes_are_alike(screen, means):
    values = means["CP10k"][:-1] - means["CP10k"][-1]
    size = np.abs(means["log2"][:-1] - means["log2"][-1]).mean() / np.abs(values).mean()
    with pytest.raises(InputError, match="no logarithm had been taken"):
        check_scale(0.5 * size * values, np.arange(15), screen, "a.h5ad")


@pytest.mark.parametrize(("base", "name"), [(np.e, "natural"), (10, "decimal")])
def test_another_logarithm_is_doubtful(screen, effects, base, name, caplog):
    check_scale(effects.to_numpy() / np.log2(base), np.arange(15), screen, "a.h5ad")
    assert f"{name} logarithm" in caplog.text


def test_expression_with_its_control_row_is_refused(tmp_path, screen, parts, means):
    names = [*perturbations(screen), "control"]
    table = pd.DataFrame(means["log2"], names, screen.var_names)
    with pytest.raises(InputError, match=r"row of 'control' is not 0.*Subtract this row"):
        read(written(tmp_path / "a.h5ad", table), screen, parts)


@pytest.fixture
def cells(screen):
    """The screen's own cells as if predicted, with genes in another order."""
    own = anndata.AnnData(screen.X, screen.obs[["perturbation"]].copy(), screen.var[[]].copy())
    order = np.random.default_rng(1).permutation(screen.n_vars)
    return own[:, order].copy()


def read_cells(path, cells, screen, parts, **settings):
    cells.write_h5ad(path)
    return read(path, screen, parts, content="cells", **settings)


def test_effects_of_cells_are_those_of_their_means(tmp_path, cells, screen, parts, effects):
    found = read_cells(tmp_path / "a.h5ad", cells, screen, parts)
    np.testing.assert_allclose(found, effects, atol=1e-10)


def test_without_control_cells_the_measured_ones_of_training_are_taken(
    tmp_path, cells, screen, parts, means, caplog
):
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    perturbed = cells[labels != "control"].copy()
    found = read_cells(tmp_path / "a.h5ad", perturbed, screen, parts)
    counts = screen.X.toarray()[(labels == "control") & (parts == "train").to_numpy()]
    control = np.log2(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(found, means["log2"][:-1] - control, atol=1e-10)
    assert "no cells of 'control'" in caplog.text


def test_cells_must_be_counts(tmp_path, cells, screen, parts):
    cells.X = cells.X.astype(np.float32) / 2
    with pytest.raises(InputError, match=r"\.5 of cell \d+, gene \d+.*not an integer"):
        read_cells(tmp_path / "a.h5ad", cells, screen, parts)


def test_genes_with_each_others_names_are_told_by_the_expression_of_cells(
    tmp_path, cells, screen, parts
):
    cells.var_names = list(screen.var_names)
    with pytest.raises(InputError, match="genes seem to have wrong names"):
        read_cells(tmp_path / "a.h5ad", cells, screen, parts)


def test_cells_of_another_depth_are_doubtful(tmp_path, cells, screen, parts, caplog):
    cells.X = cells.X * 3
    read_cells(tmp_path / "a.h5ad", cells, screen, parts)
    assert "3 times that of the screen" in caplog.text


def test_a_column_of_labels_must_be_there(tmp_path, cells, screen, parts):
    with pytest.raises(InputError, match=r"obs has no column 'guide'.*perturbation"):
        read_cells(tmp_path / "a.h5ad", cells, screen, parts, perturbation_column="guide")


MODELS = {
    "once": {"kind": "external", "path": "{experiment}/{split}.h5ad", "content": "effects"},
    "seeded": {"kind": "external", "path": "{split}/{seed}.h5ad", "content": "effects"},
}
EXPERIMENT = {
    "split": {"kind": "random", "seeds": [0, 5]}, "models": ["once", "seeded"], "seeds": [1, 2],
}  # fmt: skip


def test_predictions_have_the_seeds_that_their_pattern_names():
    found = runs(EXPERIMENT, MODELS)
    assert [run for run in found if run.model == "once"] == [
        Run("random-seed0", "once", 1), Run("random-seed5", "once", 1)
    ]  # fmt: skip
    assert [run.seed for run in found if run.model == "seeded"] == [1, 2, 1, 2]
    assert prediction_path(MODELS["once"], "mine", found[0]) == "mine/random-seed0.h5ad"
    assert prediction_path(MODELS["seeded"], "mine", found[2]) == "random-seed0/2.h5ad"


def test_every_missing_file_is_named_before_anything_runs(tmp_path, monkeypatch, effects):
    monkeypatch.chdir(tmp_path)
    config = {"models": MODELS, "experiments": {"mine": EXPERIMENT}}
    with pytest.raises(
        InputError, match=r"mine/random-seed0\.h5ad, random-seed0/1\.h5ad.*split\.t"
    ):
        check_predictions(config, "mine")
    for folder in ("mine", "random-seed0", "random-seed5"):
        (tmp_path / folder).mkdir()
    for split in ("random-seed0", "random-seed5"):
        written(tmp_path / f"mine/{split}.h5ad", effects)
        for seed in (1, 2):
            written(tmp_path / split / f"{seed}.h5ad", effects)
    check_predictions(config, "mine")
    (tmp_path / "random-seed5/2.h5ad").write_text("not HDF5")
    with pytest.raises(InputError, match="not an h5ad file"):
        check_predictions(config, "mine")
