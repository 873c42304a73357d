import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import (
    build_screen,
    content_digest,
    open_screen,
    perturbations,
    read_screen,
    write_source_screen,
)
from samsvae.screen.design import Design
from samsvae.screen.labels import (
    CONTROL_LIKE,
    NO_GUIDE_LIKE,
    LabelGrammar,
    LabelSet,
    components,
    label_of,
)
from samsvae.screen.validation import check_names

GENES = st.text("ABCDEFGH123-.", min_size=1, max_size=6).filter(lambda s: s.strip("-."))


def read(labels, control="ctrl", delimiter="+", measured=()):
    grammar = LabelGrammar(LabelSet.of(control, "control"), delimiter, "file", frozenset(measured))
    return [label_of(one.doses) for one in grammar.read(labels)]


def small(counts=None, labels=("control", "A", "A+B"), **changes):
    given_counts = np.array([[1, 0], [2, 3], [0, 4]]) if counts is None else counts
    names = {
        "cell_names": [f"c{i}" for i in range(len(labels))],
        "gene_names": [f"g{i}" for i in range(given_counts.shape[1])],
    }
    return build_screen(given_counts, Design.of_labels(labels), **{**names, **changes})


def test_contract():
    screen = small()
    assert screen.X.dtype == np.int32
    assert screen.X.format == "csr"
    assert list(screen.obs["library_size"]) == [1, 5, 4]
    assert list(screen.uns["perturbations"]) == ["A", "B"]
    assert screen.obsm["dosage"].toarray().tolist() == [[0, 0], [1, 0], [1, 1]]
    assert perturbations(screen) == ["A", "A+B"]


@given(st.lists(GENES, min_size=2, max_size=4, unique=True), st.sampled_from("+|,;&_"))
def test_order_and_delimiter_of_a_combination_do_not_matter(genes, delimiter):
    labels = ["ctrl", *genes, delimiter.join(genes), delimiter.join(reversed(genes))]
    made = read(labels, delimiter=delimiter)
    assert made[0] == "control"
    assert made[-1] == made[-2] == "+".join(sorted(genes))
    assert components(made[-1]) == sorted(genes)


def test_a_control_within_a_combination_is_dropped():
    assert read(["ctrl", "KLF1+ctrl", "ctrl+ctrl"]) == [
        "control", "KLF1", "control",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "delimiter", "said"),
    [
        (["ctrl", "A|B"], "+", "'A|B' seems to be a combination joined by '|'"),
        (["ctrl", "A", "B", "A_B"], "+", "joined by '_'"),
        (["ctrl", "A", "B", "A+B"], "_", "joined by '+'"),
        (["ctrl", "A+"], "+", "empty part"),
        (["A", "B"], "+", "no cell has the control label 'ctrl'"),
        (["ctrl", "A+B"], None, "cannot be kept"),
    ],
)
def test_labels_that_cannot_be_meant(labels, delimiter, said):
    with pytest.raises(InputError, match="file") as error:
        read(labels, delimiter=delimiter)
    assert said in str(error.value)


def test_symbols_with_dashes_and_dots_are_no_combinations():
    labels = ["ctrl", "HLA-A", "NKX2-1", "A.1", "B_2"]
    assert read(labels, delimiter="+")[1:] == labels[1:]


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "not an integer"), (-1.0, "negative"), (np.nan, "finite"), (np.inf, "finite")],
)
def test_values_that_are_no_counts_are_found_with_their_place(value, said):
    counts = np.array([[1.0, 0], [2, 3], [1, 4]])
    counts[2, 1] = value
    with pytest.raises(InputError, match=said) as error:
        small(counts)
    assert "cell 2, gene 1" in str(error.value)


def test_empty_cells_and_missing_groups():
    with pytest.raises(InputError, match=r"1 cell\(s\) have no count"):
        small(np.array([[1, 0], [0, 0], [0, 4]]))
    with pytest.raises(InputError, match="no control cell"):
        small(labels=("A", "A", "B"))
    with pytest.raises(InputError, match="every cell is a control"):
        small(labels=("control",) * 3)


@pytest.mark.parametrize("what", ["cell", "gene"])
def test_duplicate_names(what):
    with pytest.raises(InputError, match=f"1 {what} name"):
        check_names(["a", "b", "a"], what, "file")


def test_dense_sparse_and_stored_zeros_are_the_same_screen():
    dense = np.array([[1, 0], [2, 3], [0, 4]])
    stored = sparse.csr_matrix(dense)
    stored.data = stored.data.astype(float)
    with_zero = sparse.csr_matrix(
        (np.array([1.0, 0, 2, 3, 4]), np.array([0, 1, 0, 1, 1]), np.array([0, 2, 4, 5])), (3, 2)
    )
    digests = {content_digest(small(c)) for c in (dense, stored, with_zero)}
    assert len(digests) == 1


@settings(max_examples=25)
@given(st.permutations(range(3)))
def test_order_of_cells_moves_rows_and_nothing_else(order):
    counts, labels = np.array([[1, 0], [2, 3], [0, 4]]), ["control", "A", "A+B"]
    whole = small()
    moved = build_screen(
        counts[order], Design.of_labels(labels)[order], [f"c{i}" for i in order], ["g0", "g1"]
    )
    assert (moved[whole.obs_names].X != whole.X).nnz == 0
    assert (moved[whole.obs_names].obsm["dosage"] != whole.obsm["dosage"]).nnz == 0


MEASURED = ["KLF1", "MAP2K6", "CEBPA", "HLA-A", "NKX2-5", "HLA-DRA"]


@pytest.mark.parametrize(
    ("labels", "delimiter", "expected"),
    [
        (["HLA-A", "NKX2-5", "KLF1-MAP2K6"], "-", ["HLA-A", "NKX2-5", "KLF1+MAP2K6"]),
        (["HLA-A-KLF1", "NKX2-5-HLA-DRA"], "-", ["HLA-A+KLF1", "HLA-DRA+NKX2-5"]),
        (["HLA-A-ctrl", "ctrl-ctrl", "ctrl-KLF1"], "-", ["HLA-A", "control", "KLF1"]),
        (["UNKNOWN-KLF1"], "-", ["KLF1+UNKNOWN"]),
        ([" KLF1 + MAP2K6 ", "KLF1+ctrl "], "+", ["KLF1+MAP2K6", "KLF1"]),
    ],
)
def test_a_delimiter_within_a_measured_gene_leaves_the_gene_whole(labels, delimiter, expected):
    assert read(["ctrl", *labels], delimiter=delimiter, measured=MEASURED)[1:] == expected


@pytest.mark.parametrize(
    ("labels", "delimiter", "found"),
    [
        (["KLF1_MAP2K6", "CEBPA_KLF1"], "+", "'_'"),
        (["KLF1_ctrl", "MAP2K6_ctrl"], "+", "'_'"),
        (["KLF1:MAP2K6"], "+", "':'"),
        (["KLF1 || MAP2K6"], "+", "'||'"),
        (["KLF1;MAP2K6"], "_", "';'"),
    ],
)
def test_measured_genes_tell_another_delimiter(labels, delimiter, found):
    with pytest.raises(InputError, match="seems to be a combination") as refused:
        read(["ctrl", *labels], delimiter=delimiter, measured=MEASURED)
    assert f"Set 'delimiter' to {found}" in str(refused.value)


def test_one_name_that_reads_as_two_genes_is_no_combination():
    labels = ["ctrl", "HLA-A", "HLA-B", "NKX2-1", "KLF1-CEBPA"]
    assert read(labels, measured=MEASURED)[1:] == labels[1:]


@pytest.mark.parametrize(
    ("control", "labels"),
    [
        ("NegCtrl0", ["NegCtrl0_NegCtrl0", "NegCtrl0_KLF1"]),
        (["NT1", "safe"], ["safe_NT1", "NT1_KLF1"]),
        ({"pattern": "^NT"}, ["NT12_NT7", "KLF1_NT3"]),
        (" NT ", [" NT", "KLF1"]),
    ],
)
def test_controls_written_as_combinations_are_control(control, labels):
    assert read(labels, control, "_") == ["control", "KLF1"]


def test_cells_called_control_are_not_merged_with_the_controls():
    for labels in (["NT", "control"], ["NT", "KLF1+control"], ["NT", "control+control"]):
        with pytest.raises(InputError, match=r"exclude: \[control\]"):
            read(labels, "NT")
    assert read(["NT", "control"], ["NT", "control"]) == ["control", "control"]


CONTROLS = [
    "NT1", "NT_1", "NTC1", "sgNT", "non-targeting_00023", "INTERGENIC216151", "safe-targeting",
    "AAVS1", "ROSA26", "GFP", "LacZ", "CTRL0001", "empty vector", "neg", "NegCtrl0", "NTg1",
    "non-targeting", "control", "ctrl", "sgAAVS1_2", "NO-TARGET", "Scrambled", "negative control",
]  # fmt: skip
NO_GUIDES = [
    "multi", "no_sgRNA", "NoGuide", "-", "", "negative", "nan", "unassigned", "*", "Multiplet",
    "None", "blank", "no guide", "doublet", "multiple", "NA", "undetected",
]  # fmt: skip
SYMBOLS = [
    "KLF1", "NTN1", "NT5E", "NTF3", "WT1", "LUC7L", "NEGR1", "SAFB", "SAFB2",
    "NANOG", "NONO", "NAT1", "NOG", "GFPT1", "EMP1", "MOCS1", "NTRK1", "DMSO1",
]  # fmt: skip


def test_usual_names_are_known_and_genes_are_none_of_them():
    assert [name for name in CONTROLS if not CONTROL_LIKE.fullmatch(name)] == []
    assert [name for name in NO_GUIDES if not NO_GUIDE_LIKE.fullmatch(name)] == []
    assert [name for name in SYMBOLS if CONTROL_LIKE.fullmatch(name)] == []
    assert [name for name in SYMBOLS if NO_GUIDE_LIKE.fullmatch(name)] == []


CONDITIONS = st.lists(
    st.dictionaries(GENES, st.floats(2**-20, 2**20, width=32), max_size=3), min_size=1, max_size=8
)


@given(CONDITIONS, st.integers(0, 999))
def test_labels_and_conditions_are_the_distinct_rows_of_the_design(conditions, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(len(conditions), size=20)
    of_cell = [conditions[code] for code in codes]
    design = Design.of_conditions(conditions, codes)
    assert design.names == sorted({name for cell in of_cell for name in cell})
    assert list(design.n_perturbations) == list(map(len, of_cell))
    labels, doses = design.conditions()
    assert list(labels) == [label_of(cell) for cell in of_cell]
    assert list(labels.categories) == sorted(set(labels))
    assert [doses[code] for code in labels.codes] == of_cell
    # from its labels, and from columns in any order, with a zero stored and a column of no cell
    order = rng.permutation(len(design.names))
    columns = np.column_stack([design.matrix.toarray()[:, order], np.zeros(20)])
    n_columns = columns.shape[1]
    indices, indptr = np.tile(np.arange(n_columns), 20), np.arange(21) * n_columns
    stored = sparse.csr_matrix((columns.ravel(), indices, indptr), columns.shape)
    shuffled = Design.of(stored, [*np.array(design.names, dtype=object)[order], "unused"])
    for same in (Design.of_labels(list(labels)), shuffled):
        assert same.names == design.names
        for part in ("data", "indices", "indptr"):
            one, other = getattr(same.matrix, part), getattr(design.matrix, part)
            np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("name", ["control", "A+B", "A@0.5"])
def test_a_perturbation_that_a_label_cannot_name_is_refused(name):
    design = Design.of(np.array([[0, 0], [1, 0], [0, 1]]), ["C", name])
    with pytest.raises(InputError, match="file") as error:
        build_screen(np.ones((3, 1)), design, list("abc"), ["g"], "file")
    assert repr(name) in str(error.value)


def test_labels_that_are_not_those_of_the_design_are_refused_on_reading(tmp_path):
    path = tmp_path / "s.h5ad"
    screen = small(labels=("control", "A", "A+B@0.5"))
    write_source_screen(screen, "{}", path)
    assert list(read_screen(path).obs["perturbation"]) == ["control", "A", "A+B@0.5"]
    screen.obs["perturbation"] = ["control", "A", "A+B"]
    write_source_screen(screen, "{}", path)
    with pytest.raises(InputError) as error:
        read_screen(path)
    for said in (str(path), "'c2'", "'A+B'", "'A+B@0.5'", "1 cells"):
        assert said in str(error.value)
    for names in (True, False):
        with pytest.raises(InputError, match="row 2"), open_screen(path, names):
            pass


def test_a_screen_opens_without_the_names_of_cells(tmp_path):
    path = tmp_path / "s.h5ad"
    screen = small()
    screen.obs["batch"] = pd.Categorical(["x", "y", "x"])
    screen.obs["dose"] = [0.5, 1, np.nan]
    write_source_screen(screen, "{}", path)
    with open_screen(path) as named, open_screen(path, names=False) as nameless:
        assert list(named.obs_names) == ["c0", "c1", "c2"]
        assert list(nameless.obs_names) == ["", "", ""]
        pd.testing.assert_frame_equal(
            nameless.obs.reset_index(drop=True), named.obs.reset_index(drop=True)
        )
        pd.testing.assert_frame_equal(nameless.var, named.var)
        assert (nameless.obsm["dosage"] != named.obsm["dosage"]).nnz == 0
        assert nameless.uns.keys() == named.uns.keys()
        for cells in (slice(0, 2), slice(2, 3)):
            assert (nameless.X[cells] != named.X[cells]).nnz == 0
