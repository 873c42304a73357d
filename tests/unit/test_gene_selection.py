"""Which genes of a file a screen keeps."""

import logging
import re

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import content_digest
from samsvae.sources.h5ad import check_header
from samsvae.sources.h5ad_source import H5adSource
from tests.conftest import canonical


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(5)
    mean = rng.lognormal(-1.5, 1.5, 200)
    rate = mean * rng.gamma(2.0, 0.5, (300, 200)) * rng.lognormal(0, 0.4, (300, 1))
    drawn = rng.poisson(rate).astype(np.float32)
    drawn[:, 17] = 0
    drawn[:, 23] = 2  # never varies
    return drawn


@pytest.fixture
def data(counts):
    labels = np.array(["control", "A", "B"])[np.arange(len(counts)) % 3]
    cells = pd.DataFrame({"label": labels}, [f"cell{i}" for i in range(len(counts))])
    genes = pd.DataFrame(index=[f"GENE{i}" for i in range(counts.shape[1])])
    return anndata.AnnData(sparse.csr_matrix(counts), cells, genes)


def read(data, tmp_path, **settings):
    data.write_h5ad(tmp_path / "a.h5ad")
    return canonical(H5adSource(str(tmp_path / "a.h5ad"), "label", **settings))


@pytest.mark.parametrize("number", [1, 25, 120])
@pytest.mark.parametrize("dense", [False, True])
def test_highly_variable_genes_are_scanpys(tmp_path, data, number, dense):
    if dense:
        data.X = data.X.toarray()
    scanpy.pp.highly_variable_genes(data, flavor="seurat_v3", n_top_genes=number)
    screen = read(data, tmp_path, highly_variable=number)
    assert list(screen.var_names) == list(data.var_names[data.var["highly_variable"]])
    assert list(screen.obs["library_size"]) == list(screen.X.sum(axis=1).A1)


def test_highly_variable_genes_are_those_of_the_cells_that_stay(tmp_path, data):
    data.obs["label"] = ["rare"] * 20 + ["control"] * 140 + ["A"] * 140
    stay = data[20:].copy()
    scanpy.pp.highly_variable_genes(stay, flavor="seurat_v3", n_top_genes=30)
    screen = read(data, tmp_path, highly_variable=30, min_cells=21)
    assert list(screen.var_names) == list(stay.var_names[stay.var["highly_variable"]])


def test_filters_are_taken_one_after_another(tmp_path, data, counts):
    listed = [f"GENE{i}" for i in range(0, 200, 2)]
    (tmp_path / "genes.txt").write_text("\n".join([*listed[::-1], "ABSENT", ""]))
    genes = str(tmp_path / "genes.txt")
    screen = read(data, tmp_path, genes=genes)
    assert list(screen.var_names) == listed
    assert check_header(H5adSource(str(tmp_path / "a.h5ad"), "label", genes=genes)) == listed
    abundant = [g for g in listed if counts[:, int(g[4:])].mean() >= 0.5]
    screen = read(data, tmp_path, genes=genes, min_mean=0.5)
    assert list(screen.var_names) == abundant
    subset = data[:, abundant].copy()
    scanpy.pp.highly_variable_genes(subset, flavor="seurat_v3", n_top_genes=12)
    screen = read(data, tmp_path, genes=genes, min_mean=0.5, highly_variable=12)
    assert list(screen.var_names) == list(abundant_of(subset))


def abundant_of(subset):
    return subset.var_names[subset.var["highly_variable"]]


def test_a_filter_that_keeps_every_gene_changes_nothing(tmp_path, data, counts):
    plain = content_digest(read(data, tmp_path))
    assert content_digest(read(data, tmp_path, highly_variable=counts.shape[1])) == plain
    (tmp_path / "genes.txt").write_text("\n".join(data.var_names))
    assert content_digest(read(data, tmp_path, genes=str(tmp_path / "genes.txt"))) == plain


def test_cells_without_a_count_in_the_genes_kept_are_left_out(tmp_path, data, caplog):
    data.obs["label"] = ["control"] * 100 + ["A"] * 100 + ["B"] * 100
    kept = data.X.toarray()
    kept[:, 3:5] = 1
    kept[[0, 1, 200], 3:5] = 0
    data.X = sparse.csr_matrix(kept)
    (tmp_path / "genes.txt").write_text("GENE3\nGENE4\n")
    genes = str(tmp_path / "genes.txt")
    with caplog.at_level(logging.INFO):
        screen = read(data, tmp_path, genes=genes)
    assert re.search(r"\b3 of 300 cells\b.*\b2 retained genes", caplog.text)
    assert dict(screen.obs["perturbation"].value_counts()) == {"A": 100, "B": 99, "control": 98}


def test_genes_are_listed_by_symbol_by_identifier_and_without_its_version(tmp_path, data):
    data.var["symbol"] = ["TWICE", "TWICE", *[f"S{i}" for i in range(2, 200)]]
    data.var_names = [f"ENSG{i:011d}.3" for i in range(200)]
    (tmp_path / "genes.txt").write_text("TWICE\nS7\nENSG00000000009\nENSG00000000011.3\nS11\n")
    settings = {"gene_symbol_column": "symbol", "genes": str(tmp_path / "genes.txt")}
    assert list(read(data, tmp_path, **settings).var_names) == [
        "TWICE_ENSG00000000000.3", "TWICE_ENSG00000000001.3", "S7", "S9", "S11",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"genes": "absent.txt"}, ["absent.txt: no such file", "'genes'"]),
        ({"genes": "other.txt"}, ["other.txt: none of its 2 genes", "'ENSG1'", "'GENE0'"]),
        ({"min_mean": 1e6}, ["no gene has a mean of 1e+06", "'min_mean'"]),
        ({"highly_variable": 500}, ["asks for 500 genes", "there are 200", "Lower it"]),
        (
            {"genes": "one.txt", "highly_variable": 1},
            ["1 genes with a variance are too few", "'highly_variable'"],
        ),
    ],
)
def test_filters_that_leave_nothing(tmp_path, data, settings, said):
    (tmp_path / "other.txt").write_text("ENSG1\nENSG2\n")
    (tmp_path / "one.txt").write_text("GENE5\n")
    if "genes" in settings:
        settings = {**settings, "genes": str(tmp_path / settings["genes"])}
    with pytest.raises(InputError) as error:
        read(data, tmp_path, **settings)
    for words in said:
        assert words in str(error.value)


def test_covariates_are_kept_as_they_are(tmp_path, data):
    data.obs["batch"] = pd.Categorical([f"lane{i % 4}" for i in range(data.n_obs)])
    data.obs["mito"] = np.linspace(0, 1, data.n_obs)
    data.obs["other"] = 3
    screen = read(data, tmp_path, covariates=["mito", "batch"])
    assert list(screen.obs.columns) == ["perturbation", "library_size", "mito", "batch"]
    pd.testing.assert_series_equal(screen.obs["mito"], data.obs["mito"], check_names=False)
    assert list(screen.obs["batch"]) == list(data.obs["batch"])
    plain = read(data, tmp_path)
    assert content_digest(plain) == content_digest(screen)
