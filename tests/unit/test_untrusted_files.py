"""Files of strangers: what they cannot do, and names that are escaped or refused."""

import ast
import re
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from safetensors import SafetensorError
from scipy import sparse

from samsvae.config.configuration import merge, validate
from samsvae.config.experiments import splits
from samsvae.figures.style import save_figure, use_style
from samsvae.inference.checkpoint import StateFile, load_model
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import read_table, write_tsv
from samsvae.screen.canonical import build_screen, read_screen, write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.gene_sets import read_gmt, write_gmt
from samsvae.screen.validation import MOST_CHARACTERS, text_fault
from samsvae.sources.h5ad import check_header, write_h5ad_screen
from samsvae.sources.h5ad_source import H5adSource
from tests.conftest import ROOT

DEFAULTS = yaml.safe_load((ROOT / "config.yaml").read_text())
N_CELLS, N_GENES = 30, 6

AWKWARD = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "..", "../../etc/passwd", "a/b", "-rf", "$(touch x)", "`touch x`", "a b", "a'b", 'a"b',
            "a\nb", "a\tb", "{x}", "{{x}}", "$x^2", "$\\frac$", "%s", "<script>", "&amp;", "=1+1",
            "a\0b", "\u202egnp", "é", "基因", "NaN", "NA", "null", "", " ", "1e5", "a" * 300, "\\",
        ]
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.h5ad"
    counts = 1 + np.random.default_rng(0).poisson(2.0, (N_CELLS, N_GENES)).astype(np.float32)
    labels = ["control"] * 10 + ["A"] * 10 + ["B"] * 10
    data = anndata.AnnData(
        sparse.csr_matrix(counts),
        pd.DataFrame({"label": labels}, index=[f"c{i}" for i in range(N_CELLS)]),
        pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)]),
    )
    data.write_h5ad(path)
    return path


def external_link(file, folder):
    file["elsewhere"] = h5py.ExternalLink(str(folder / "other.h5"), "/secret")


def external_counts(file, folder):
    del file["X"]
    file.create_dataset(
        "X",
        (N_CELLS, N_GENES),
        np.uint8,
        external=[(str(folder / "raw.bin"), 0, N_CELLS * N_GENES)],
    )


def virtual_counts(file, folder):
    del file["X"]
    layout = h5py.VirtualLayout((N_CELLS, N_GENES), np.float32)
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "X", (N_CELLS, N_GENES))
    file.create_virtual_dataset("X", layout)


def circle(file, _):
    file["obs/again"] = file["obs"]


def circle_of_root(file, _):
    file["uns/again"] = file["/"]


def soft_circle(file, _):
    file["obs/a"] = h5py.SoftLink("/obs/b")
    file["obs/b"] = h5py.SoftLink("/obs/a")


def huge(file, _):
    del file["X"]
    file.create_dataset("X", (10**9, 10**6), np.float32, chunks=(1000, 1000))


def huge_names(file, _):
    del file["obs/_index"]
    file.create_dataset("obs/_index", (10**11,), h5py.string_dtype(), chunks=(1000,))


def huge_sparse(file, _):
    file["X"].attrs["shape"] = np.array([2**62, 2**62])


def shorter_column(file, _):
    codes = file["obs/label/codes"][:5]
    del file["obs/label/codes"]
    file["obs/label/codes"] = codes


def matrix_column(file, _):
    del file["obs/label"]
    file["obs/label"] = np.ones((5, 8))
    file["obs/label"].attrs["encoding-type"] = "array"
    file["obs/label"].attrs["encoding-version"] = "0.2.0"


def text_counts(file, _):
    del file["X"]
    file.create_dataset("X", (N_CELLS, N_GENES), h5py.string_dtype())


def count_beyond_int32(file, _):
    file["X/data"][0] = 2.0**31  # as float32, next to the largest that int32 holds


def negative_pointer(file, _):
    file["X/indptr"][1] = -5


def codes_beyond_categories(file, _):
    file["obs/label/codes"][0] = 100


MALICIOUS = {
    external_link: "link to another file",
    external_counts: "values in another file",
    virtual_counts: "values in another file",
    circle: "several names",
    circle_of_root: "several names",
    soft_circle: "leads nowhere",
    huge: "declares 4,000,000,000,000,000 bytes",
    huge_names: "declares",
    huge_sparse: "4,611,686,018,427,387,904 values, but there are 30 cells",
    shorter_column: "damaged|5 values",
    matrix_column: "no column but a matrix",
    text_counts: "not a matrix",
    count_beyond_int32: "is above 2147483647",
    negative_pointer: "'indptr' does not fit",
    codes_beyond_categories: "cannot be read|damaged",
}


@pytest.mark.parametrize("harm", MALICIOUS, ids=lambda harm: harm.__name__)
def test_a_file_that_leads_elsewhere_or_promises_too_much_is_refused(harm, good, tmp_path):
    (tmp_path / "raw.bin").write_bytes(bytes(1000))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"], file["X"] = np.ones(3), np.ones((N_CELLS, N_GENES), np.float32)
    path = tmp_path / "bad.h5ad"
    shutil.copy(good, path)
    with h5py.File(path, "a") as file:
        harm(file, tmp_path)
    source = H5adSource(str(path), perturbation_column="label")

    def use():
        check_header(source)
        write_h5ad_screen(source, "{}", tmp_path / "screen.h5ad")

    with pytest.raises(InputError, match=MALICIOUS[harm]) as refused:
        use()
    assert "bad.h5ad" in str(refused.value)
    assert not (tmp_path / "screen.h5ad").exists()


def test_a_good_file_passes(good, tmp_path):
    source = H5adSource(str(good), perturbation_column="label")
    assert check_header(source) == [f"G{i}" for i in range(N_GENES)]
    write_h5ad_screen(source, "{}", tmp_path / "screen.h5ad")


QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(gene=AWKWARD, label=AWKWARD)
def test_names_come_through_files_unchanged_or_are_refused(gene, label, tmp_path):
    counts = np.ones((4, 2), np.int32)
    cells = ["a", "b", "c", "d"]
    try:
        screen = build_screen(
            counts, Design.of_labels(["control", "control", "X", "X"]), cells, [gene, "G"]
        )
    except InputError:
        assert text_fault(gene) or gene == "G"
        return
    write_source_screen(screen, "{}", tmp_path / "screen.h5ad")
    assert list(read_screen(tmp_path / "screen.h5ad").var_names) == [gene, "G"]
    if text_fault(label) is None:
        table = pd.DataFrame({"gene": [gene, label], "value": [1.0, 2.0]})
        write_tsv(table, tmp_path / "table.tsv")
        read = read_table(tmp_path / "table.tsv")["gene"].astype(str)
        assert len(read) == 2


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
@QUICK
@given(name=AWKWARD)
def test_a_figure_shows_any_name_as_it_is(name, tmp_path):
    if text_fault(name):
        return
    use_style()
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.set_xticks([0], [name])
    try:
        save_figure(figure, name, "{}", [tmp_path / "figure.svg"])
    finally:
        plt.close(figure)
    drawn = (tmp_path / "figure.svg").read_text()
    assert not re.search(r"<script", drawn)


@QUICK
@given(name=AWKWARD)
def test_a_name_of_the_configuration_is_a_plain_word_or_refused(name):
    own = {"screen": "simulated", "split": {"kind": "random"}, "models": ["additive"]}
    try:
        config = validate(merge(DEFAULTS, {"experiments": {name: own}}))
    except InputError:
        return
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name)
    for split in splits(config["experiments"][name]):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", split)


@QUICK
@given(path=AWKWARD)
def test_a_path_of_the_configuration_is_text_of_one_line_or_refused(path):
    own = {"source": "h5ad", "path": path, "perturbation_column": "x"}
    try:
        validate(merge(DEFAULTS, {"screens": {"own": own}, "gene_sets": {"own": path}}))
    except InputError:
        return
    assert path.strip()
    assert not re.search(r"[\x00-\x1f\x7f{}]", path)


@QUICK
@given(name=AWKWARD, gene=AWKWARD)
def test_gene_sets_are_read_as_written_or_refused(name, gene, tmp_path):
    path = tmp_path / "sets.gmt"
    text = f"{name}\tdescription\t{gene}\tB\n"
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        sets = read_gmt(path)
    except InputError:
        return
    assert all(text_fault(key) is None for key in sets)
    write_gmt(sets, tmp_path / "again.gmt", "description")
    assert read_gmt(tmp_path / "again.gmt") == sets


def test_gene_sets_too_large_to_be_any_are_not_read(tmp_path):
    path = tmp_path / "sparse.gmt"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="more than any collection"):
        read_gmt(path)


def test_longest_names():
    assert text_fault("a" * MOST_CHARACTERS) is None
    assert "longer" in text_fault("a" * (MOST_CHARACTERS + 1))


DANGEROUS_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "pd.read_pickle", "pd.read_hdf",
}  # fmt: skip
DANGEROUS_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "subprocess",
}


@pytest.mark.parametrize("path", sorted((ROOT / "workflow").rglob("*.py")), ids=lambda p: p.stem)
def test_no_pickle_is_loaded_and_no_text_becomes_a_command(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & DANGEROUS_MODULES
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called not in DANGEROUS_CALLS
            assert not called.startswith(("os.exec", "os.spawn"))
            assert given.get("allow_pickle", "False") == "False"
            assert given.get("shell", "False") == "False"
            if called == "torch.load":
                assert given.get("weights_only") == "True"


def test_no_rule_runs_a_shell():
    for path in [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]:
        text = path.read_text()
        assert not re.search(r"(?m)^\s*(shell|run):|\bshell\(|\beval\(|\bexec\(", text)


def test_a_pickle_in_the_place_of_a_model_is_refused_and_not_run(tmp_path):
    path, owned = tmp_path / "model.safetensors", tmp_path / "owned"
    path.write_bytes(f"cos\nsystem\n(S'touch {owned}'\ntR.".encode())
    with pytest.raises(SafetensorError):
        load_model(path)
    assert StateFile(path, "fingerprint").load() is None
    assert not owned.exists()
