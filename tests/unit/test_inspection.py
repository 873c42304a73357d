"""The check finds what is planted, and nothing in a sound screen."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from samsvae.inspection.evidence import ERROR, WARNING
from samsvae.inspection.screen import inspect_screen, to_table, to_text
from samsvae.sources.h5ad_source import H5adSource
from tests.conftest import canonical, real_file

pytestmark = [
    pytest.mark.filterwarnings("ignore:Observation names:UserWarning"),
    pytest.mark.filterwarnings("ignore:Variable names:UserWarning"),
]
CANONICAL = {"perturbation_matrix": {"obsm": "dosage", "names": "perturbations"}}
TARGETS = ["KLF1", "CEBPA", "MAPK1", "SEPT1", "BAK1", "JUN"]
GENES = [*TARGETS, *(f"GENE{i}" for i in range(60))]
N_CONTROLS, N_EACH = 300, 40


def sound_screen(seed=0):
    """A screen of single genes and pairs, with batches, that nothing is wrong with."""
    rng = np.random.default_rng(seed)
    labels = ["control"] * N_CONTROLS
    for label in [*TARGETS, "KLF1+CEBPA", "BAK1+JUN"]:
        labels += [label] * N_EACH
    mean = rng.lognormal(np.log(25), 0.5, len(GENES)) * rng.lognormal(0, 0.3, (len(labels), 1))
    cells = pd.DataFrame({"label": labels}, index=[f"cell{i}" for i in range(len(labels))])
    cells["batch"] = pd.Categorical(rng.choice(["one", "two", "three"], len(labels)))
    counts = sparse.csr_matrix(rng.poisson(mean).astype(np.float32))
    return anndata.AnnData(counts, cells, pd.DataFrame(index=GENES))


def checked(data, path, gene_sets=None, **settings):
    data.write_h5ad(path)
    chosen = {"perturbation_column": "label", "covariates": ["batch"], **settings}
    return inspect_screen({"path": str(path), **chosen}, gene_sets or {})


@pytest.mark.parametrize("seed", range(3))
def test_a_sound_screen_passes_without_a_word(tmp_path, seed):
    check = checked(sound_screen(seed), tmp_path / "a.h5ad")
    assert check.findings == []
    assert check.facts["cells"] == "620"
    assert check.facts["perturbations"] == "8: 6 single genes, 2 pairs"
    assert check.facts["control cells"] == "300 (48.4 %)"
    assert check.facts["batches by obs['batch']"].startswith("3, of ")
    said = to_text(check, "mine", "a.h5ad")
    assert "Errors: none\nWarnings: none" in said


def test_a_screen_with_no_column_but_labels_passes(tmp_path):
    data = sound_screen()
    del data.obs["batch"]
    assert checked(data, tmp_path / "a.h5ad", covariates=[]).findings == []


FAULTS = []


def fault(severity, name, *said, **settings):
    """Register a function that plants a fault in a sound screen."""

    def register(plant):
        FAULTS.append(pytest.param(plant, severity, name, said, settings, id=plant.__name__))
        return plant

    return register


def relabel(data, old, new, share=1.0):
    labels = data.obs["label"].astype(str).to_numpy()
    cells = np.flatnonzero(labels == old)
    labels[cells[: int(share * len(cells))]] = new
    data.obs["label"] = labels


def put(data, change):
    dense = data.X.toarray()
    change(dense)
    data.X = sparse.csr_matrix(dense)


@fault(
    ERROR, "not an integer", "X", "they seem to be log-normalised", "set 'counts_layer' to 'raw'"
)
def log_normalised(data):
    data.layers["raw"] = data.X.copy()
    total = data.X.sum(axis=1).A1
    data.X = sparse.csr_matrix(np.log1p(1e4 * data.X.toarray() / total[:, None]).astype(np.float32))


@fault(ERROR, "not an integer", "they seem to be normalised")
def counts_per_ten_million(data):
    total = data.X.sum(axis=1).A1
    data.X = sparse.csr_matrix(1e7 * data.X.toarray() / total[:, None])


@fault(ERROR, "negative", "X are negative", "counting from 0")
def scaled(data):
    put(data, lambda x: np.subtract(x, x.mean(axis=0), out=x))


@fault(ERROR, "not a finite number", "1 value(s)", "the first nan in cell 5, gene 7")
def not_a_number(data):
    put(data, lambda x: x.__setitem__((5, 7), np.nan))


@fault(ERROR, "cells without a count", "2 cell(s)", "the first at position 9")
def empty_cells(data):
    put(data, lambda x: x.__setitem__([9, 30], 0))


@fault(WARNING, "duplicate cell names", "1 cell(s)", "cell1", "a number each")
def duplicate_cell_names(data):
    data.obs_names = ["cell1", *data.obs_names[1:]]


@fault(WARNING, "duplicate gene names", "1 gene name(s)", "JUN, JUN-1")
def duplicate_gene_names(data):
    data.var_names = [*GENES[:-1], "JUN"]


@fault(ERROR, "cannot be used", "obs has no 'guide'", "label", perturbation_column="guide")
def missing_column(data):
    pass


@fault(ERROR, "cannot be used", "no cell has the control label 'NTC'", "KLF1", control="NTC")
def missing_control(data):
    pass


@fault(ERROR, "no perturbation", "every cell is a control cell")
def only_controls(data):
    data.obs["label"] = "control"


@fault(ERROR, "cannot be used", "layers has no 'counts'", counts_layer="counts")
def missing_layer(data):
    pass


@fault(ERROR, "cannot be used", "obs has no 'donor'", covariates=["batch", "donor"])
def missing_covariate(data):
    pass


@fault(ERROR, "cannot be used", "40 cell(s) have no label")
def cells_without_a_label(data):
    relabel(data, "JUN", None)
    data.obs["label"] = data.obs["label"].replace("None", None)


@fault(ERROR, "cannot be used", "'KLF1|JUN'", "'delimiter'")
def another_delimiter(data):
    relabel(data, "JUN", "KLF1|JUN", 0.5)


@fault(WARNING, "constant library size", "about 2,000 in every cell")
def down_sampled(data):
    rng = np.random.default_rng(1)
    share = data.X.toarray().astype(float)
    share /= share.sum(axis=1, keepdims=True)
    data.X = sparse.csr_matrix(np.array([rng.multinomial(2000, p) for p in share], np.float32))


@fault(WARNING, "binary counts", "no value is larger than 1")
def binary(data):
    put(data, lambda x: np.minimum(x, np.random.default_rng(2).integers(0, 2, x.shape), out=x))


@fault(WARNING, "genes without a count", "3 of 66", "GENE10, GENE11, GENE12", "'min_mean'")
def silent_genes(data):
    put(data, lambda x: x.__setitem__((slice(None), slice(16, 19)), 0))


@fault(WARNING, "low counts per cell", "the median cell has")
def shallow(data):
    put(data, lambda x: np.copyto(x, np.random.default_rng(3).binomial(x.astype(int), 0.1)))


@fault(WARNING, "sparse counts", "% of the entries are not 0")
def sparse_counts(data):
    def thin(x):
        kept = np.random.default_rng(4).random(x.shape) < 0.03
        kept[:, 6] = True
        x *= kept

    put(data, thin)


@fault(WARNING, "dominant gene", "the gene GENE0 alone has")
def dominant_gene(data):
    put(data, lambda x: x.__setitem__((slice(None), 6), 60 * x[:, 6]))


@fault(WARNING, "cells with extreme counts", "1 cell(s)", "cell100")
def doublet(data):
    put(data, lambda x: x.__setitem__(100, 40 * x[100]))


@fault(WARNING, "duplicated cells", "2 cells", "cell3", "cell4")
def copied_cell(data):
    put(data, lambda x: x.__setitem__(4, x[3]))


@fault(WARNING, "duplicated genes", "2 genes", "GENE4", "GENE5")
def copied_gene(data):
    put(data, lambda x: x.__setitem__((slice(None), 11), x[:, 10]))


@fault(WARNING, "different depth of control cells", "the median control cell has")
def deeper_controls(data):
    put(data, lambda x: x.__setitem__(slice(N_CONTROLS), 3 * x[:N_CONTROLS]))


@fault(WARNING, "part of the genes", "obs['total_counts']", "The library size")
def part_of_the_genes(data):
    data.obs["total_counts"] = 10.0 * data.X.sum(axis=1).A1


@fault(WARNING, "few control cells", "30 control cells")
def few_controls(data):
    data._inplace_subset_obs(np.arange(N_CONTROLS - 30, data.n_obs))
    data.obs_names = [f"cell{i}" for i in range(data.n_obs)]


@fault(WARNING, "perturbations with few cells", "1 of 8", "JUN 10", "'min_cells'")
def few_cells(data):
    relabel(data, "JUN", "control", 0.75)


@fault(WARNING, "unequal cells per perturbation", "3 cells (JUN)", "77 (BAK1)")
def unequal_cells(data):
    relabel(data, "JUN", "BAK1", 37 / 40)


@fault(WARNING, "pairs without their single genes", "1 of 2 combinations", "BAK1+JUN")
def pair_without_singles(data):
    relabel(data, "JUN", "control")


@fault(WARNING, "pairs in two orders", "CEBPA+KLF1 = KLF1+CEBPA", "one perturbation")
def two_orders(data):
    relabel(data, "KLF1+CEBPA", "CEBPA+KLF1", 0.5)


@fault(WARNING, "look-alike labels", "'KLF1' ~ 'klf1'")
def another_case(data):
    relabel(data, "KLF1", "klf1", 0.5)


@fault(WARNING, "labels that are dates", "1-Sep", "spreadsheet")
def dates_for_labels(data):
    relabel(data, "SEPT1", "1-Sep")


@fault(WARNING, "genes that are dates", "2-Mar")
def dates_for_genes(data):
    data.var_names = [*GENES[:-1], "2-Mar"]


@fault(WARNING, "labels that are no perturbation", "unassigned", "exclude: [unassigned]")
def unassigned_cells(data):
    relabel(data, "control", "unassigned", 0.1)


@fault(WARNING, "several labels of control", "non-targeting_2", "'control'")
def several_controls(data):
    relabel(data, "control", "non-targeting_2", 0.1)


@fault(WARNING, "labels of guides", "BAK1_1", "'guide_pattern'")
def labels_of_guides(data):
    for target in TARGETS:
        relabel(data, target, f"{target}_1", 0.5)
        relabel(data, target, f"{target}_2")


@fault(WARNING, "targets that are not measured", "1 of 6", "KLF1")
def unmeasured_target(data):
    data.var_names = ["GENE60", *GENES[1:]]


@fault(WARNING, "genes named by identifiers", "ENSG00000000000", "'gene_symbol_column'")
def identifiers_for_symbols(data):
    data.var_names = [f"ENSG{i:011d}" for i in range(data.n_vars)]


@fault(WARNING, "batches without control cells", "obs['batch']", "1 of 3 batches", "two")
def batch_without_controls(data):
    controls = (data.obs["label"] == "control").to_numpy()
    data.obs.loc[controls & (data.obs["batch"] == "two").to_numpy(), "batch"] = "one"


@fault(WARNING, "perturbations confined to batches", "1 of 8", "JUN in three")
def confined_perturbation(data):
    data.obs.loc[data.obs["label"] == "JUN", "batch"] = "three"


@fault(WARNING, "perturbations confined to batches", "suffix of barcodes", "JUN in 2")
def confined_to_a_lane(data):
    lane = 1 + np.arange(data.n_obs) % 3
    lane[(data.obs["label"] == "JUN").to_numpy()] = 2
    data.obs_names = [f"ACGT{i}-{n}" for i, n in enumerate(lane)]


@fault(ERROR, "cannot be used", "as if they were UMI counts", "threshold: 5", "doses: true",
       perturbation_column=None, perturbation_matrix={"obsm": "guides"})  # fmt: skip
def counts_of_guides(data):
    found = data.obs["label"].to_numpy()[:, None] == np.array(TARGETS)
    umis = 1 + np.random.default_rng(5).poisson(30, found.shape)
    data.obsm["guides"] = pd.DataFrame(found * umis, data.obs_names, TARGETS)


@fault(WARNING, "doses that look like counts", "KLF1", "write 1", perturbation_column=None,
       perturbation_matrix={"obsm": "guides", "doses": True})  # fmt: skip
def counts_declared_as_doses(data):
    counts_of_guides(data)


@fault(ERROR, "above 2147483647", "1 value(s)", "cell 5, gene 7")
def count_beyond_int32(data):
    data.X = data.X.astype(np.float64)
    put(data, lambda x: x.__setitem__((5, 7), 2.0**31))


@fault(ERROR, "not an integer", "corrected for ambient RNA", "or get the file with raw counts")
def ambient_corrected(data):
    data.layers["spliced"] = data.X.copy()
    profile = data.X.sum(axis=0).A1 / data.X.sum()
    corrected = data.X.toarray() - 0.1 * data.X.sum(axis=1).A1[:, None] * profile
    data.X = sparse.csr_matrix(np.maximum(corrected, 0) * (data.X.toarray() > 0))


@fault(ERROR, "cannot be used", "cell name", "longer than 200 characters")
def very_long_name(data):
    data.obs_names = ["x" * 300, *data.obs_names[1:]]


@fault(ERROR, "cannot be used", "gene name", "control character")
def tab_in_a_gene(data):
    data.var_names = [*GENES[:-1], "GENE\t59"]


@fault(ERROR, "cannot be used", "label", "control character")
def zero_width_character_in_a_label(data):
    relabel(data, "JUN", "JUN\u200b")


@fault(WARNING, "many cells left out", "80 of 620 cells (13 %)", "80 excluded", exclude=["JUN"])
def many_lost(data):
    pass


@fault(WARNING, "many guides per cell", "median 3", "unit: perturbation", delimiter="+")
def high_moi(data):
    rng = np.random.default_rng(7)
    data.obs["label"] = ["control"] * N_CONTROLS + [
        "+".join(rng.choice(GENES, 3, replace=False)) for _ in range(data.n_obs - N_CONTROLS)
    ]


def test_a_screen_of_marginal_effects_is_judged_by_single_perturbations(tmp_path):
    data = sound_screen()
    high_moi(data)
    said = {}
    for unit in ("combination", "perturbation"):
        check = checked(data, tmp_path / f"{unit}.h5ad", unit=unit)
        said[unit] = {finding.name for finding in check.findings}
    assert "many guides per cell" in said["combination"]
    assert said["perturbation"] == {"pairs in two orders", "perturbations with few cells"}
    n_cells = data.n_obs - N_CONTROLS
    number = np.median(
        [sum(gene in label.split("+") for label in data.obs["label"]) for gene in GENES]
    )
    mean = 3 * n_cells / data.n_obs
    assert check.facts["perturbations"] == f"{len(GENES)}: in cells with {mean:.1f} on average"
    assert check.facts["cells per perturbation"].startswith(f"median {number:.0f}")


def test_perturbations_that_cannot_be_told_apart_are_named(tmp_path):
    data = sound_screen()
    data.obs["label"] = ["control"] * N_CONTROLS + [
        "+".join(["BAK1", "JUN"] if at % 3 else ["KLF1", "CEBPA"][: 1 + at % 2])
        for at in range(data.n_obs - N_CONTROLS)
    ]
    data.obs["batch"] = pd.Categorical(
        ["one" if "KLF1" in label else "two" for label in data.obs["label"]]
    )
    check = checked(data, tmp_path / "a.h5ad", unit="perturbation")
    said = {finding.name: finding.message for finding in check.findings}
    assert "BAK1 = JUN" in said["perturbations with the same cells"]
    assert "KLF1 in one" in said["perturbations confined to batches"]


@fault(
    WARNING, "labels that look like combinations", "KLF1_CEBPA", "delimiter: '_'", delimiter=None
)
def joined_by_another_sign(data):
    data.obs["label"] = [label.replace("+", "_") for label in data.obs["label"]]


@fault(WARNING, "delimiter within names", "'-'", "HLA-A", delimiter="-")
def delimiter_in_a_symbol(data):
    data.var_names = [*GENES[:-1], "HLA-A"]
    data.obs["label"] = [
        label.replace("+", "-").replace("JUN", "HLA-A") for label in data.obs["label"]
    ]


def test_there_are_twenty_faults_and_more():
    assert len(FAULTS) >= 40


@pytest.mark.parametrize(("plant", "severity", "name", "said", "settings"), FAULTS)
def test_each_planted_fault_is_found(tmp_path, plant, severity, name, said, settings):
    data = sound_screen()
    plant(data)
    check = checked(data, tmp_path / "bad.h5ad", **settings)
    found = [finding for finding in check.findings if finding.name == name]
    assert found, check.findings
    assert {finding.severity for finding in found} == {severity}
    messages = " ".join(finding.message for finding in found)
    for words in said:
        assert words in messages
    assert bool(check.errors) == (severity == ERROR)
    assert "bad.h5ad" in to_text(check, "mine", "bad.h5ad")


def test_all_faults_are_told_at_once_errors_first(tmp_path):
    data = sound_screen()
    for plant in (two_orders, very_long_name, not_a_number, few_cells, silent_genes):
        plant(data)
    check = checked(data, tmp_path / "bad.h5ad", covariates=["donor"], genes="absent.txt")
    names = [finding.name for finding in check.findings]
    assert {
        "cannot be used", "not a finite number", "pairs in two orders",
        "perturbations with few cells", "genes without a count",
    } <= set(names)  # fmt: skip
    said = " ".join(finding.message for finding in check.errors)
    assert "obs has no 'donor'" in said
    assert "absent.txt: no such file" in said
    severities = [finding.severity for finding in check.findings]
    assert severities == sorted(severities)
    assert list(to_table(check)["name"]) == names


def test_gene_sets_that_do_not_fit_are_an_error(tmp_path):
    (tmp_path / "ids.gmt").write_text("SET\tids\tENSG1\tENSG2\n")
    check = checked(
        sound_screen(), tmp_path / "a.h5ad", {"ids": str(tmp_path / "ids.gmt"), "no": "no.gmt"}
    )
    said = " ".join(finding.message for finding in check.errors)
    assert "ids.gmt: none of its gene sets shares a gene" in said
    assert "no.gmt: no such file" in said


@pytest.mark.parametrize("content", [None, b"cell,gene\n", b"\x89HDF\r\n\x1a\n"])
def test_what_is_no_h5ad_is_one_error(tmp_path, content):
    if content is not None:
        (tmp_path / "a.h5ad").write_bytes(content)
    settings = {"path": str(tmp_path / "a.h5ad"), "perturbation_column": "label"}
    check = inspect_screen(settings, {})
    assert [finding.severity for finding in check.findings] == [ERROR]
    assert "a.h5ad" in check.findings[0].message


def test_settings_that_contradict_one_another_are_one_error(tmp_path):
    check = checked(sound_screen(), tmp_path / "a.h5ad", perturbation_matrix={"obsm": "m"})
    assert ["exactly one of" in finding.message for finding in check.findings] == [True]


def test_what_filters_leave_out_is_not_held_against_the_screen(tmp_path):
    data = sound_screen()
    silent_genes(data)
    few_cells(data)
    check = checked(data, tmp_path / "a.h5ad", min_cells=20, min_mean=0.1)
    assert [finding.name for finding in check.findings] == ["pairs without their single genes"]
    assert check.facts["cells"] == "610 of 620 in the file"
    assert check.facts["genes"] == "63 of 66 in the file"


def test_a_canonical_screen_is_checked_like_the_file_it_came_from(tmp_path):
    data = sound_screen()
    silent_genes(data)
    own = checked(data, tmp_path / "a.h5ad")
    settings = {"perturbation_column": "label", "covariates": ["batch"]}
    canonical(H5adSource(str(tmp_path / "a.h5ad"), **settings))
    again = inspect_screen({"path": str(tmp_path / "a.screen.h5ad"), **CANONICAL}, {})
    assert again.findings == own.findings
    assert {k: v for k, v in again.facts.items() if k != "covariates"} == {
        k: v for k, v in own.facts.items() if k != "covariates"
    }


def test_norman_passes_with_its_peculiarities_named():
    path = real_file("norman2019_k562_crispra_3375x500.h5ad")
    check = inspect_screen({"path": str(path), "perturbation_column": "condition"}, {})
    assert not check.errors
    said = {finding.name: finding.message for finding in check.findings}
    assert "126 counts" in said["low counts per cell"]
    assert "3.0 %" in said["sparse counts"]
    assert "250 of 500" in said["genes without a count"]
    assert "100 control cells" in said["few control cells"]
    assert "obs['ncounts']" in said["part of the genes"]
    assert "10 of 15 combinations" in said["pairs without their single genes"]
    assert "30 of 31" in said["targets that are not measured"]
    assert "bilinear" not in said["targets that are not measured"]
    assert len(said) == 7
    assert check.facts["batches by the suffix of barcodes"].startswith("8, ")


def test_papalexi_passes_with_its_peculiarities_named():
    path = real_file("papalexi2021_thp1_ko_20729x299.h5ad")
    check = inspect_screen({"path": str(path), "perturbation_column": "condition"}, {})
    assert not check.errors
    said = {finding.name: finding.message for finding in check.findings}
    assert "48 cells (SPI1) and 1,341 (IFNGR1)" in said["unequal cells per perturbation"]
    assert "299 genes" in said["part of the genes"]
    assert "186 counts" in said["low counts per cell"]
    assert len(said) == 4
    assert check.facts["genes"] == "299"
    assert check.facts["batches by obs['bio_rep']"].startswith("3, ")


def test_guides_of_papalexi_are_recognised_and_joined():
    path = real_file("papalexi2021_thp1_ko_20729x299.h5ad")
    settings = {"path": str(path), "perturbation_column": "guide", "control": "NTg1"}
    said = {finding.name: finding.message for finding in inspect_screen(settings, {}).findings}
    assert "labels of guides" in said
    joined = {**settings, "control": "NT", "guide_pattern": r"^(.+)g\d+$"}
    check = inspect_screen(joined, {})
    assert check.facts["perturbations"] == "25: 25 single genes, 0 pairs"
