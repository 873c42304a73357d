"""Whatever the form in which a file says which cell had what, the screen is the same."""

import logging
from collections import Counter

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import DECLARED, content_digest
from samsvae.screen.labels import CONTROL, components, doses, label_of
from samsvae.sources.h5ad import check_header
from samsvae.sources.h5ad_source import H5adSource
from tests.conftest import canonical

GENES = ["A", "B1", "HLA-C"]
DOSE = st.sampled_from([0.25, 1.0, 3.0])
# doses by gene, of each cell; the first two make sure of a control cell and a perturbed one
DESIGNS = st.lists(st.dictionaries(st.sampled_from(GENES), DOSE, max_size=3), max_size=12).map(
    lambda cells: [{}, {"A": 1.0}, *cells]
)


def cells_and_counts(n_cells, seed=0):
    counts = 1 + np.random.default_rng(seed).poisson(2.0, (n_cells, 4)).astype(np.float32)
    index = [f"cell{i}" for i in range(n_cells)]
    return anndata.AnnData(
        sparse.csr_matrix(counts),
        pd.DataFrame(index=index),
        pd.DataFrame(index=[f"GENE{i}" for i in range(4)]),
    )


def matrix_of(design, names):
    return np.array([[cell.get(name, 0) for name in names] for cell in design])


def write(path, data):
    data.write_h5ad(path)
    return str(path)


def counts_and_labels(screen):
    """Digest what two screens share of which one knows guides or batches as well."""
    bare = screen.copy()
    for key in DECLARED:
        bare.uns.pop(key, None)
    return content_digest(bare)


def same(one, other):
    assert counts_and_labels(one) == counts_and_labels(other)
    assert list(one.uns["perturbations"]) == list(other.uns["perturbations"])
    assert (one.obsm["dosage"] != other.obsm["dosage"]).nnz == 0
    shared = ["perturbation", "library_size"]
    pd.testing.assert_frame_equal(one.obs[shared], other.obs[shared], check_dtype=False)


@pytest.mark.slow
@settings(max_examples=20)
@given(DESIGNS, st.booleans())
def test_column_one_hot_columns_and_matrix_give_the_same_screen(tmp_path_factory, design, reverse):
    folder = tmp_path_factory.mktemp("forms")
    names = GENES[::-1] if reverse else GENES
    data = cells_and_counts(len(design))
    data.obs["label"] = ["|".join(cell) or "NT" for cell in design]
    data.obs["dose"] = ["|".join(map(str, cell.values())) or "" for cell in design]
    doses_of_cells = matrix_of(design, names)
    for name, values in zip(names, doses_of_cells.T, strict=True):
        data.obs[f"guide_{name}"] = values
    data.obs["guide_identity"] = "anything"
    data.obsm["dense"] = doses_of_cells
    data.obsm["sparse"] = sparse.csr_matrix(doses_of_cells)
    data.obsm["table"] = pd.DataFrame(doses_of_cells, data.obs_names, names)
    data.uns["names"] = np.array(names, dtype=object)
    path = write(folder / "a.h5ad", data)

    labelled = canonical(H5adSource(path, "label", "NT", "|", dose_column="dose"))
    assert list(labelled.obs["perturbation"]) == [label_of(cell) for cell in design]
    columns = {"prefix": "guide_", "except": ["guide_identity"], "doses": True}
    same(labelled, canonical(H5adSource(path, perturbation_columns=columns)))
    for matrix in (
        {"obsm": "dense", "names": "names"},
        {"obsm": "sparse", "names": "names"},
        {"obsm": "table"},
    ):
        dosed = {**matrix, "doses": True}
        same(labelled, canonical(H5adSource(path, perturbation_matrix=dosed)))


@pytest.mark.slow
@settings(max_examples=20)
@given(DESIGNS)
def test_a_canonical_screen_is_its_own_canonical_form(tmp_path_factory, design):
    folder = tmp_path_factory.mktemp("again")
    data = cells_and_counts(len(design))
    data.obsm["dose"] = pd.DataFrame(matrix_of(design, GENES), data.obs_names, GENES)
    path = write(folder / "a.h5ad", data)
    screen = canonical(H5adSource(path, perturbation_matrix={"obsm": "dose", "doses": True}))
    matrix = {"obsm": "dosage", "names": "perturbations"}
    same(screen, canonical(H5adSource(str(folder / "a.screen.h5ad"), perturbation_matrix=matrix)))


@pytest.mark.slow
@settings(max_examples=20)
@given(DESIGNS, st.randoms(use_true_random=False))
def test_shuffled_cells_are_the_same_screen_in_another_order(tmp_path_factory, design, random):
    folder = tmp_path_factory.mktemp("shuffled")
    data = cells_and_counts(len(design))
    data.obs["batch"] = pd.Categorical([f"b{i % 3}" for i in range(len(design))])
    data.obsm["dose"] = pd.DataFrame(matrix_of(design, GENES), data.obs_names, GENES)
    order = list(range(len(design)))
    random.shuffle(order)
    chosen = {"perturbation_matrix": {"obsm": "dose", "doses": True}, "covariates": ["batch"]}
    one = canonical(H5adSource(write(folder / "a.h5ad", data), **chosen))
    other = canonical(H5adSource(write(folder / "b.h5ad", data[order].copy()), **chosen))
    same(other, one[order].copy())


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float64, "category", "Int64", str])
def test_one_hot_columns_of_any_type_that_reads_as_a_number(tmp_path, dtype):
    data = cells_and_counts(4)
    data.obs["p_A"] = pd.Series([0, 1, 0, 1], data.obs_names).astype(dtype)
    data.obs["p_B"] = pd.Series([0, 0, 1, 1], data.obs_names).astype(dtype)
    path = write(tmp_path / "a.h5ad", data)
    source = H5adSource(path, perturbation_columns={"prefix": "p_"})
    assert list(canonical(source).obs["perturbation"]) == [CONTROL, "A", "B", "A+B"]


def test_a_column_of_non_targeting_guides_marks_control_cells(tmp_path):
    data = cells_and_counts(4)
    data.obsm["guides"] = pd.DataFrame(
        [[1, 0], [0, 1], [1, 1], [0, 0]], data.obs_names, ["NT", "A"]
    )
    path = write(tmp_path / "a.h5ad", data)
    source = H5adSource(path, control="NT", perturbation_matrix={"obsm": "guides"})
    assert list(canonical(source).obs["perturbation"]) == [CONTROL, "A", "A", CONTROL]


@pytest.mark.slow
@settings(max_examples=20)
@given(DESIGNS, st.lists(st.integers(1, 3), min_size=3, max_size=3))
def test_guides_of_a_gene_become_one_perturbation(tmp_path_factory, design, guides_of_gene):
    """The same cells with genes as labels, and with guides that a table or pattern names."""
    folder = tmp_path_factory.mktemp("guides")
    data = cells_and_counts(len(design))
    numbers = dict(zip(GENES, guides_of_gene, strict=True))
    of_cell = [
        [f"{gene}_g{1 + index % numbers[gene]}" for gene in cell]
        for index, cell in enumerate(design)
    ]
    data.obs["gene"] = ["+".join(cell) or "NT" for cell in design]
    data.obs["guide"] = ["+".join(guides) or f"NT_g{i % 2}" for i, guides in enumerate(of_cell)]
    path = write(folder / "a.h5ad", data)
    table = folder / "guides.tsv"
    rows = [("guide", "gene"), ("NT_g0", "NT"), ("NT_g1", "NT")]
    rows += [(f"{gene}_g{k}", gene) for gene in GENES for k in (1, 2, 3)]
    table.write_text("\n".join("\t".join(row) for row in rows) + "\n")

    by_gene = canonical(H5adSource(path, "gene", "NT"))
    same(by_gene, canonical(H5adSource(path, "guide", "NT", guide_table=str(table))))
    same(by_gene, canonical(H5adSource(path, "guide", "NT", guide_pattern=r"^(.+)_g\d$")))
    as_they_are = canonical(H5adSource(path, "guide", "NT_g0"))
    assert set(as_they_are.uns["perturbations"]) >= {guide for cell in of_cell for guide in cell}


def test_two_guides_of_a_gene_in_a_cell_are_one_dose_of_it(tmp_path):
    data = cells_and_counts(3)
    data.obs["guide"] = ["ctrl", "A_1+A_2", "A_1+B_1"]
    data.obsm["guides"] = pd.DataFrame(
        [[0, 0, 0], [1, 1, 0], [1, 0, 1]], data.obs_names, ["A_1", "A_2", "B_1"]
    )
    path = write(tmp_path / "a.h5ad", data)
    pattern = "^(.)_"
    one = canonical(H5adSource(path, "guide", "ctrl", guide_pattern=pattern))
    assert list(one.obs["perturbation"]) == [CONTROL, "A", "A+B"]
    matrix = {"obsm": "guides"}
    same(one, canonical(H5adSource(path, guide_pattern=pattern, perturbation_matrix=matrix)))


@settings(max_examples=20)
@given(DESIGNS, st.integers(0, 4))
def test_min_cells_leaves_out_what_has_fewer_and_nothing_else(tmp_path_factory, design, least):
    folder = tmp_path_factory.mktemp("min")
    labels = [label_of(cell) for cell in design]
    numbers = Counter(labels)
    kept = [name for name in numbers if name == CONTROL or numbers[name] >= least]
    data = cells_and_counts(len(design))
    data.obsm["dose"] = pd.DataFrame(matrix_of(design, GENES), data.obs_names, GENES)
    path = write(folder / "a.h5ad", data)
    source = H5adSource(path, min_cells=least, perturbation_matrix={"obsm": "dose", "doses": True})
    if kept == [CONTROL]:
        for check in (check_header, canonical):
            with pytest.raises(InputError, match=r"no perturbation has .* Lower 'min_cells'"):
                check(source)
        return
    screen = canonical(source)
    expected = [i for i, label in enumerate(labels) if label in kept]
    assert list(screen.obs_names) == [f"cell{i}" for i in expected]
    assert list(screen.obs["perturbation"]) == [labels[i] for i in expected]
    assert set(screen.uns["perturbations"]) == {c for name in kept for c in components(name)}


def test_a_pair_stays_though_its_single_genes_go(tmp_path, caplog):
    data = cells_and_counts(8)
    data.obs["label"] = ["control", "control", "A", "B", "B", "A+B", "A+B", "A+B"]
    path = write(tmp_path / "a.h5ad", data)
    with caplog.at_level(logging.INFO):
        screen = canonical(H5adSource(path, "label", min_cells=3))
    assert list(screen.obs["perturbation"]) == ["control"] * 2 + ["A+B"] * 3
    assert "left out 2 of 3 perturbations with 3 cells in all: A 1, B 2" in caplog.text


def test_min_cells_of_marginal_effects_counts_all_cells_of_a_perturbation(tmp_path):
    data = cells_and_counts(6)
    data.obs["label"] = ["control", "A", "A+B", "A+B", "B+C", "B"]
    path = write(tmp_path / "a.h5ad", data)
    source = H5adSource(path, "label", min_cells=2, unit="perturbation", compared_with="complement")
    screen = canonical(source)
    # the one cell of C has B as well, and stays
    assert list(screen.obs["perturbation"]) == ["control", "A", "A+B", "A+B", "B", "B"]
    assert list(screen.uns["perturbations"]) == ["A", "B"]
    data.obs["label"] = ["A", "A", "A+B", "B", "B+C", "C"]
    none = write(tmp_path / "none.h5ad", data)
    with pytest.raises(InputError, match="control"):
        canonical(H5adSource(none, "label"))
    frequent = canonical(H5adSource(none, "label", min_cells=3, unit="perturbation"))
    assert list(frequent.obs["perturbation"]) == ["A", "A", "A+B", "B", "B"]
    assert (screen.uns["unit"], screen.uns["compared_with"]) == ("perturbation", "complement")
    plain = canonical(H5adSource(path, "label"))
    assert "unit" not in plain.uns
    every = canonical(H5adSource(path, "label", unit="perturbation"))
    assert content_digest(every) != content_digest(plain)


@given(st.dictionaries(st.sampled_from(GENES), DOSE))
def test_labels_of_doses_are_read_back(cell):
    assert doses(label_of(cell)) == cell


GUIDES = {"A_1": [0, 1, 0], "B_1": [0, 0, 1]}


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({}, {}, ["exactly one of 'perturbation_column', 'perturbation_columns'", "none is set"]),
        ({}, {"perturbation_column": "label", "perturbation_matrix": {"obsm": "m"}}, ["exactly one of", "'perturbation_column' and 'perturbation_matrix' is set"]),
        ({}, {"perturbation_columns": {"prefix": "p_"}, "dose_column": "dose"}, ["'dose_column' goes with 'perturbation_column' alone"]),
        ({}, {"perturbation_columns": {"prefix": "p_"}, "guide_column": "dose"}, ["'guide_column' goes with 'perturbation_column' alone"]),
        ({}, {"perturbation_columns": {"prefix": "p_", "threshold": 2, "doses": True}}, ["'threshold' and 'doses'", "Set one"]),
        ({}, {"perturbation_column": "label", "control": {"pattern": "("}}, ["'control'", "not a regular expression"]),
        ({}, {"perturbation_column": "label", "guide_table": "a", "guide_pattern": "b"}, ["'guide_table' and 'guide_pattern'"]),
        ({}, {"perturbation_column": "label", "covariates": ["library_size"]}, ["the covariate 'library_size'", "Rename"]),
        ({}, {"perturbation_column": "label", "covariates": ["lane"]}, ["obs has no 'lane'", "it has: label", "'covariates'"]),
        ({}, {"perturbation_columns": {"prefix": "p_"}}, ["no column of obs begins with 'p_'", "it has: label"]),
        ({}, {"perturbation_columns": {"prefix": "p_", "except": ["id"]}}, ["obs has no 'id'", "'perturbation_columns.except'"]),
        ({"p_A": ["yes", "no", "no"]}, {"perturbation_columns": {"prefix": "p_"}}, ["the column 'p_A' does not hold numbers", "'except'"]),
        ({"p_A": [0, -1, 0]}, {"perturbation_columns": {"prefix": "p_"}}, ["the value -1 of cell 1", "'p_A' is negative"]),
        ({"p_A": [0, np.nan, 0]}, {"perturbation_columns": {"prefix": "p_"}}, ["cell 1", "'p_A'", "is not a finite number"]),
        ({"p_A": [1, 1, 1]}, {"perturbation_columns": {"prefix": "p_"}}, ["there is no control cell", "Set 'control'"]),
        ({"p_A+B": [0, 1, 1]}, {"perturbation_columns": {"prefix": "p_"}}, ["'A+B' cannot be kept as it is"]),
        ({"p_": [0, 1, 1]}, {"perturbation_columns": {"prefix": "p_"}}, ["no name but the prefix"]),
        ({}, {"perturbation_matrix": {"obsm": "none"}}, ["obsm has no 'none'", "it has: counts", "'perturbation_matrix.obsm'"]),
        ({}, {"perturbation_matrix": {"obsm": "counts"}}, ["a matrix without names", "'perturbation_matrix.names'"]),
        ({}, {"perturbation_matrix": {"obsm": "counts", "names": "three"}}, ["has 2 columns, but uns['three'] 3 names"]),
        ({}, {"perturbation_matrix": {"obsm": "counts", "names": "four"}}, ["uns has no 'four'", "three"]),
        (GUIDES, {"perturbation_columns": {"prefix": ""}, "guide_pattern": "^(A)_"}, ["1 guide(s) have no gene by 'guide_pattern'", "B_1"]),
        (GUIDES, {"perturbation_columns": {"prefix": ""}, "guide_pattern": "A_"}, ["has 0 groups, but needs one"]),
        (GUIDES, {"perturbation_columns": {"prefix": ""}, "guide_pattern": "("}, ["not a regular expression"]),
        (GUIDES, {"perturbation_columns": {"prefix": ""}, "guide_table": "absent.tsv"}, ["absent.tsv: no such file", "'guide_table'"]),
        ({"A_1": [0, 1, 0], "A_2": [0, 2, 1]}, {"perturbation_columns": {"prefix": "", "doses": True}, "guide_pattern": "^(A)_"}, ["cell 1", "two guides of 'A' at the doses 1 and 2"]),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_used(tmp_path, columns, settings, said):
    data = cells_and_counts(3)
    if columns:
        data.obs = pd.DataFrame(columns, data.obs_names)
    else:
        data.obs["label"] = ["control", "A", "B"]
    data.obsm["counts"] = np.array([[0, 0], [1, 0], [0, 1]])
    data.uns["three"] = np.array(["A", "B", "C"], dtype=object)
    path = write(tmp_path / "bad.h5ad", data)
    with pytest.raises(InputError) as error:
        check_header(H5adSource(path, **settings))
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A_1\n", ["line 1 is not a guide and its gene"]),
        ("A_1\tA\n\nA_1\tB\n", ["line 3 gives the guide 'A_1' the gene 'B'", "'A'"]),
        ("B_1\tB\n", ["1 guide(s) have no gene by 'guide_table'", "A_1", "Add a line"]),
    ],
)
def test_guide_tables_that_cannot_be_used(tmp_path, text, said):
    data = cells_and_counts(2)
    data.obs["label"] = ["control", "A_1"]
    (tmp_path / "guides.tsv").write_text(text)
    path = write(tmp_path / "a.h5ad", data)
    with pytest.raises(InputError) as error:
        check_header(H5adSource(path, "label", guide_table=str(tmp_path / "guides.tsv")))
    for words in ["guides.tsv", *said]:
        assert words in str(error.value)
