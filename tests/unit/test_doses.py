import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from samsvae.config.experiments import Split
from samsvae.evaluation.baselines import additive
from samsvae.evaluation.observed import observed_effects
from samsvae.evaluation.predicted import predicted_effects
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.inference.posterior import BasalCells, draw_effects
from samsvae.inference.trainer import Training, fit
from samsvae.models import build_model
from samsvae.models.base import shift_of_cells, shift_of_conditions
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import build_screen, perturbations
from samsvae.screen.design import Design
from samsvae.screen.labels import (
    LabelGrammar,
    LabelSet,
    components,
    doses,
    label_of,
    split_dose,
    with_dose,
)
from samsvae.screen.splits import TEST, TRAIN, VAL, check_trained, split_cells
from samsvae.sources.h5ad import check_header
from samsvae.sources.h5ad_source import H5adSource
from tests.conftest import canonical

NAMES = st.text("ABC1-.@", min_size=1, max_size=6).filter(lambda name: split_dose(name)[0] == name)
DOSES = st.floats(2**-20, 2**20, width=32)
PARTS = st.dictionaries(NAMES, DOSES, min_size=1, max_size=4)


def read(labels, delimiter):
    grammar = LabelGrammar(LabelSet.of("ctrl", "control"), delimiter, "file")
    return [label_of(one.doses) for one in grammar.read(labels)]


@given(PARTS)
def test_a_label_says_its_doses_to_the_last_bit(parts):
    label = label_of(parts)
    assert {name: np.float32(dose) for name, dose in doses(label).items()} == parts
    assert label_of(doses(label)) == label
    assert components(label) == sorted(parts)
    design = Design.of_labels([label, "control"])
    assert design.names == sorted(parts)
    assert design.matrix.toarray().tolist() == [
        [np.float32(parts[name]) for name in sorted(parts)], [0] * len(parts)
    ]  # fmt: skip
    assert list(design.labels()) == [label, "control"]


@given(NAMES, st.floats(2**-99, 2**99, width=32))
def test_no_dose_is_written_with_what_joins_combinations(name, dose):
    assert "+" not in with_dose(name, dose)
    assert np.float32(split_dose(with_dose(name, dose))[1]) == np.float32(dose)


def test_dose_one_goes_without_saying():
    assert label_of({"B": 1.0, "A": 0.5}) == "A@0.5+B"
    assert label_of({"A": np.float32(0.1)}) == label_of({"A": 0.1}) == "A@0.1"
    assert label_of({}) == "control"
    assert doses("control") == {}
    assert doses("HOXA@+B@2") == {"HOXA@": 1.0, "B": 2.0}


@pytest.mark.parametrize(("label", "delimiter"), [("A@0.5", "+"), ("B+A@2", "+"), ("A@1", None)])
def test_a_sources_label_is_not_misread_as_a_dose(label, delimiter):
    with pytest.raises(InputError, match=r"file: the label .* read as a dose.*'dose_column'"):
        read(["ctrl", label], delimiter)


def test_a_mark_that_reads_as_no_dose_is_part_of_the_name():
    labels = ["ctrl", "HOXA@", "A@x", "@5", "A@-1"]
    assert read(labels, "+")[1:] == labels[1:]
    assert read(["ctrl", "A@5"], "@")[1] == "5+A"


def test_encodings_of_dosed_labels():
    labels = ["control", "A@0.5", "A", "B@2", "A@0.5+B", "A+B"]
    summed = Encoding.of(Design.of_labels(labels), "additive")
    assert summed.names == ("A", "B")
    assert summed.design(labels).tolist() == [[0, 0], [0.5, 0], [1, 0], [0, 2], [0.5, 1], [1, 1]]
    unique = Encoding.of(Design.of_labels(labels), "unique")
    assert unique.names == ("A", "A+B", "A@0.5+B", "B")
    assert unique.design(labels).tolist() == [
        [0, 0, 0, 0], [0.5, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2], [0, 0, 1, 0], [0, 1, 0, 0],
    ]  # fmt: skip
    with pytest.raises(KeyError):
        unique.design(["A@2+B"])


@pytest.mark.parametrize("kind", ["sams_vae", "sams_vae_beta_bernoulli", "cpa_vae", "svae_plus"])
def test_half_a_dose_shifts_by_half(kind):
    torch.manual_seed(0)
    model = build_model({"kind": kind, "n_latent": 4, "n_hidden": 8}, 5, 2)
    design = torch.from_numpy(Encoding(("A", "B")).design(["A", "A@0.5", "A@0.5+B"]))
    with torch.no_grad():
        effects = draw_effects(model, 3)
        shifts = shift_of_conditions(effects, design)
        basal = BasalCells.from_prior(model, torch.zeros(3, 1, 4), 1)
        shift = basal.latent_state(shifts) - basal.latent_state(torch.zeros(3, 1, 4))
    torch.testing.assert_close(shift[:, 1], shift[:, 0] / 2)
    torch.testing.assert_close(shift[:, 2], effects[:, 0] / 2 + effects[:, 1])


def screen_of(labels, counts=None):
    rng = np.random.default_rng(0)
    counts = 1 + rng.poisson(5.0, (len(labels), 4)) if counts is None else counts
    return build_screen(
        counts, Design.of_labels(labels), [f"c{i}" for i in range(len(labels))], list("wxyz")
    )


def test_each_dose_is_a_condition_of_its_own():
    screen = screen_of(["control"] * 8 + ["A"] * 4 + ["A@0.5"] * 4 + ["A@0.5+B"] * 4)
    assert list(screen.uns["perturbations"]) == ["A", "B"]
    observed = observed_effects(
        screen, pd.Series([TEST] * screen.n_obs, screen.obs_names), provenance="{}"
    )
    assert list(observed.obs_names) == ["A", "A@0.5", "A@0.5+B"]
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    cells = Cells.of(screen, np.ones(screen.n_obs, bool), encoding, torch.device("cpu"))
    batch = cells.batch(torch.tensor([0, 9, 13, 17]))
    effects = torch.tensor([[2.0], [10.0]])
    assert shift_of_cells(effects, batch).tolist() == [[0], [2], [1], [11]]
    np.testing.assert_array_equal(
        cells.design[cells.condition].numpy(), screen.obsm["dosage"].toarray()
    )


def test_splits_hold_out_combinations_at_their_doses_and_train_genes_at_any():
    pairs = ["A+B", "A@0.5+B", "A@2+B", "A+B@2"]
    labels = np.array(["control"] * 10 + ["A@3"] * 10 + ["B"] * 10 + pairs * 10, dtype=object)
    parts = split_cells(Design.of_labels(labels), Split("unseen_combinations", 0, 0.75))
    tested = set(labels[parts == TEST])
    assert len(tested) == 1
    assert tested < set(pairs)
    assert not tested & set(labels[parts == TRAIN])
    assert check_trained(Design.of_labels(labels), parts, "refuse") == []


def test_the_additive_baseline_scales_the_nearest_dose_it_has_seen():
    labels = ["control"] * 6 + ["A"] * 4 + ["A@4"] * 4 + ["B@0.5"] * 4
    screen = screen_of(labels)
    train = np.ones(screen.n_obs, bool)
    asked = ["A", "A@4", "B@0.5", "A@3", "A@0.5", "A@3+B", "C"]
    a, a4, b, a3, a05, pair, unknown = additive(screen, train, asked)
    np.testing.assert_allclose(a3, a4 * 3 / 4)
    np.testing.assert_allclose(a05, a / 2)
    np.testing.assert_allclose(pair, a3 + 2 * b)
    assert not unknown.any()
    without = additive(screen, np.array(labels, dtype=object) != "A", ["A", "A@4"])
    np.testing.assert_allclose(without[0], without[1] / 4)
    assert a.any()


def make(path, labels, given):
    rng = np.random.default_rng(0)
    cells = pd.DataFrame({"label": labels}, [f"cell{i}" for i in range(len(labels))])
    if given is not None:
        cells["dose"] = given
    counts = sparse.csr_matrix(1 + rng.poisson(2.0, (len(labels), 5)).astype(np.float32))
    genes = pd.DataFrame(index=[f"gene{i}" for i in range(5)])
    anndata.AnnData(counts, cells, genes).write_h5ad(path)
    return H5adSource(str(path), "label", "ctrl", dose_column="dose")


LABELS = ["ctrl", "ctrl", "A", "A", "A", "B+A", "A+ctrl"]
GIVEN = [None, "whatever", "0.5", "1", " 2.50 ", "3+1e-1", "4+0"]


def test_doses_come_from_their_column(tmp_path):
    source = make(tmp_path / "a.h5ad", LABELS[:-1], pd.Categorical(GIVEN[:-1]))
    check_header(source)
    screen = canonical(source)
    expected = ["control", "control", "A@0.5", "A", "A@2.5", "A@0.1+B@3"]
    assert list(screen.obs["perturbation"]) == expected
    np.testing.assert_array_equal(
        screen.obsm["dosage"].toarray(),
        np.float32([[0, 0], [0, 0], [0.5, 0], [1, 0], [2.5, 0], [0.1, 3]]),
    )


def test_from_the_column_to_effects_at_every_dose(tmp_path):
    """A model trained for a few steps predicts what the file's labels and doses ask for."""
    labels = ["ctrl"] * 60 + ["A"] * 80 + ["B"] * 40 + ["A+B"] * 40
    given = [np.nan] * 60 + ["0.5"] * 40 + ["1"] * 40 + ["2"] * 40 + ["0.5+2"] * 40
    screen = canonical(make(tmp_path / "a.h5ad", labels, given))
    assert perturbations(screen) == ["A", "A@0.5", "A@0.5+B@2", "B@2"]
    parts = split_cells(Design.of_screen(screen), Split("random", 0))
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    settings = {"kind": "sams_vae", "combinations": "additive", "n_latent": 3, "n_hidden": 8}
    cells = [
        Cells.of(screen, parts == name, encoding, torch.device("cpu")) for name in (TRAIN, VAL)
    ]
    training = Training(
        max_steps=4, batch_size=32, particles=1, validate_every=2, mask_start="half"
    )
    [fitted] = fit(lambda: build_model(settings, 5, len(encoding.names)), *cells, training, [0])
    trained = TrainedModel(fitted.model, settings, list(screen.var_names), encoding)
    effects, _ = predicted_effects(trained, [*perturbations(screen), "A@0.25+B"], 20, seed=0)
    assert np.isfinite(effects).all()
    assert len(np.unique(effects, axis=0)) == 5


@pytest.mark.parametrize("dtype", [float, np.float32, int, "category", "Int64"])
def test_a_column_of_numbers_is_as_good_as_one_of_text(tmp_path, dtype):
    given = pd.Series([1, 1, 2, 2, 1], index=[f"cell{i}" for i in range(5)]).astype(dtype)
    source = make(tmp_path / "a.h5ad", ["ctrl", "A", "A", "B", "B"], given)
    check_header(source)
    found = list(canonical(source).obs["perturbation"])
    assert found == ["control", "A", "A@2", "B@2", "B"]


def test_a_control_within_a_combination_takes_its_dose_along(tmp_path):
    source = make(
        tmp_path / "a.h5ad", ["ctrl", "A+ctrl", "ctrl+A", "A+A"], ["", "4+0", "none+2", "3+3"]
    )
    found = list(canonical(source).obs["perturbation"])
    assert found == ["control", "A@4", "A@2", "A@3"]


@pytest.mark.parametrize(
    ("label", "value", "said"),
    [
        ("A", "high", ["'high'", "not a number", "'A'", "a number above 0"]),
        ("A", "0", ["'0'", "not above 0", "control cell"]),
        ("A", "-1", ["'-1'", "not above 0"]),
        ("A", "inf", ["'inf'", "not a finite number"]),
        ("A", "nan", ["'nan'", "not a finite number"]),
        ("A", "1e40", ["'1e40'", "not a finite number"]),
        ("A", "1e-60", ["'1e-60'", "not above 0"]),
        ("A", "1+2", ["'1+2'", "not a number"]),
        ("A", None, ["a cell of 'A' has no dose", "only control cells need no dose"]),
        ("A+B", "1", ["'1' holds 1 dose(s)", "2 perturbations", "2 numbers joined by '+'"]),
        ("A+B", "1+2+3", ["holds 3 dose(s)", "2 perturbations"]),
        ("A+B", "1+", ["''", "not a number"]),
        ("A+A", "1+2", ["gives 'A' of 'A+A' two doses"]),
    ],
)
def test_doses_that_cannot_be_meant(tmp_path, label, value, said):
    source = make(
        tmp_path / "bad.h5ad", ["ctrl", "B", label], pd.Series(["1", "1", value]).tolist()
    )
    for check in (check_header, canonical):
        with pytest.raises(InputError) as error:
            check(source)
        for words in ["bad.h5ad: obs['dose']", *said]:
            assert words in str(error.value)


def test_a_missing_column_of_doses_is_named_with_what_is_there(tmp_path):
    with pytest.raises(InputError, match=r"obs has no 'dose' \(it has: label\).*'dose_column'"):
        check_header(make(tmp_path / "a.h5ad", ["ctrl", "A"], None))
