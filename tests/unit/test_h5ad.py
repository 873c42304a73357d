import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import content_digest
from samsvae.sources.h5ad import check_header
from samsvae.sources.h5ad_source import H5adSource
from tests.conftest import canonical


def make(path, *, labels=None, counts=None, cells=None, genes=None, **layers):
    rng = np.random.default_rng(0)
    labels = ["ctrl"] * 6 + ["A"] * 3 + ["B"] * 3 + ["A+B"] * 3 if labels is None else labels
    counts = 1 + rng.poisson(2.0, (len(labels), 5)).astype(np.float32) if counts is None else counts
    cells = cells or [f"cell{i}" for i in range(len(labels))]
    genes = genes or [f"gene{i}" for i in range(5)]
    data = anndata.AnnData(
        sparse.csr_matrix(counts), pd.DataFrame({"label": labels}, cells), pd.DataFrame(index=genes)
    )
    data.var["symbol"] = [f"S{i}" for i in range(5)]
    for name, layer in layers.items():
        data.layers[name] = sparse.csr_matrix(layer)
    data.write_h5ad(path)
    return path


def source(path, **changes):
    return H5adSource(
        **{"path": str(path), "perturbation_column": "label", "control": "ctrl", **changes}
    )


def test_reads_counts_labels_and_symbols(tmp_path):
    path = make(tmp_path / "a.h5ad")
    screen = canonical(source(path, gene_symbol_column="symbol"))
    assert list(screen.var_names) == [f"S{i}" for i in range(5)]
    assert dict(screen.obs["perturbation"].value_counts()) == {
        "control": 6,
        "A": 3,
        "B": 3,
        "A+B": 3,
    }
    assert (screen.X != anndata.read_h5ad(path).X).nnz == 0


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_the_layout_of_the_counts_makes_no_difference(tmp_path, layout):
    expected = content_digest(canonical(source(make(tmp_path / "a.h5ad"))))
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    data.X = layout(data.X.toarray())
    data.write_h5ad(tmp_path / "b.h5ad", compression="gzip")
    assert content_digest(canonical(source(tmp_path / "b.h5ad"))) == expected


def test_a_layer_of_counts_is_used_instead_of_x(tmp_path):
    logs = np.full((15, 5), 0.7, dtype=np.float32)
    path = make(tmp_path / "a.h5ad", counts=logs, raw=np.full((15, 5), 2))
    with pytest.raises(InputError, match="not an integer") as error:
        canonical(source(path))
    assert "counts_layer" in str(error.value)
    assert canonical(source(path, counts_layer="raw")).X.sum() == 150


@pytest.mark.filterwarnings("ignore:Observation names:UserWarning")
@pytest.mark.filterwarnings("ignore:Variable names:UserWarning")
@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({}, {"perturbation_column": "guide"}, ["obs has no 'guide'", "label", "'perturbation_column'"]),
        ({}, {"counts_layer": "raw"}, ["layers has no 'raw'"]),
        ({}, {"gene_symbol_column": "name"}, ["var has no 'name'", "symbol"]),
        ({}, {"control": "NT"}, ["no cell has the control label 'NT'", "ctrl"]),
        ({"labels": ["ctrl", "A|B", "A"]}, {}, ["'A|B'", "'delimiter'"]),
        ({"labels": ["ctrl", "A", None]}, {}, ["1 cell(s) have no label"]),
    ],
)  # fmt: skip
def test_faults_name_file_place_and_remedy(tmp_path, changes, settings, said):
    path = make(tmp_path / "bad.h5ad", **changes)
    with pytest.raises(InputError) as error:
        canonical(source(path, **settings))
    for words in ["bad.h5ad", *said]:
        assert words in str(error.value)


@pytest.mark.filterwarnings("ignore:Observation names:UserWarning")
@pytest.mark.filterwarnings("ignore:Variable names:UserWarning")
def test_names_that_stand_twice_are_made_unique(tmp_path, caplog):
    cells, genes = ["a-1", "a-1", "a-1-1", *"bcdefghijklm"], ["X", "Y", "X", "Z", "X-1"]
    screen = canonical(source(make(tmp_path / "a.h5ad", cells=cells, genes=genes)))
    assert list(screen.obs_names) == ["a-1", "a-1-2", "a-1-1", *"bcdefghijklm"]
    assert list(screen.var_names) == ["X", "Y", "X-2", "Z", "X-1"]
    assert "1 cell(s) have the name of another (a-1)" in caplog.text
    assert "1 gene name(s) occur more than once (X)" in caplog.text


def test_files_that_are_no_h5ad(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        check_header(source(tmp_path / "absent.h5ad"))
    text = tmp_path / "text.h5ad"
    text.write_text("cell,gene\n")
    with pytest.raises(InputError, match="not an h5ad file"):
        check_header(source(text))
    short = make(tmp_path / "short.h5ad")
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 2])
    with pytest.raises(InputError, match="short"):
        canonical(source(short))


def test_header_check_reads_gene_symbols_only(tmp_path):
    path = make(tmp_path / "a.h5ad")
    assert check_header(source(path)) == [f"gene{i}" for i in range(5)]
    assert check_header(source(path, gene_symbol_column="symbol")) == [f"S{i}" for i in range(5)]


FILES = {
    "a.h5ad.gz": (b"\x1f\x8b0000", "compressed with gzip. Unpack it"),
    "a.zip": (b"PK\x03\x04", "a zip archive"),
    "folder": (None, "a folder, and not a zarr store"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_is_instead_is_told(tmp_path, name):
    content, said = FILES[name]
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        check_header(source(path))


def test_other_formats_of_hdf5_are_told_with_what_to_do(tmp_path):
    def refused(name, said, **groups):
        with h5py.File(tmp_path / name, "w") as file:
            for group, members in groups.items():
                for member in members:
                    file[f"{group}/{member}"] = [1]
        with pytest.raises(InputError, match=said) as error:
            check_header(source(tmp_path / name))
        assert name in str(error.value)

    refused("tenx.h5", "Cell Ranger.*read_10x_h5", matrix=["barcodes", "data"])
    refused("a.loom", "loom file.*read_loom", row_attrs=["Gene"], col_attrs=["CellID"])
    refused("two.h5mu", r"several modalities \(a, b\).*'modality'", mod=["a/x", "b/x"])
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["obs"] = np.zeros(2, dtype=[("index", "S3"), ("label", "i4")])
    with pytest.raises(InputError, match=r"a table of anndata before 0\.7"):
        check_header(source(tmp_path / "old.h5ad"))


def test_a_filter_that_is_missing_is_named(tmp_path, monkeypatch):
    path = make(tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        codes = file["obs/label"][()] if "codes" not in file["obs/label"] else None
        file.create_dataset("uns/extra", data=np.arange(100), chunks=(10,), compression="lzf")
        assert codes is None or len(codes) == 15
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    with pytest.raises(InputError, match=r"filter lzf.*hdf5plugin"):
        check_header(source(path))


def test_a_store_with_pickles_or_links_is_refused(tmp_path):
    data = anndata.read_h5ad(make(tmp_path / "a.h5ad"))
    for harm in ("pickle", "link"):
        folder = tmp_path / f"{harm}.zarr"
        data.write_zarr(folder)
        if harm == "pickle":
            (folder / "x").mkdir()
            text = '{"zarr_format": 2, "filters": [{"id": "pickle"}], "shape": [1]}'
            (folder / "x" / ".zarray").write_text(text)
        else:
            (folder / "x").symlink_to(tmp_path / "a.h5ad")
        with pytest.raises(InputError, match=r"pickled objects|link to another file"):
            check_header(source(folder))


def test_a_missing_file_is_told_with_where_it_was_sought(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"absent.h5ad: no such file .sought in {tmp_path}"):
        check_header(source("absent.h5ad"))


@pytest.mark.parametrize("types", [["Gene Expression", "CRISPR Guide Capture"], ["rna", "ADT"]])
def test_features_that_are_no_genes_are_left_out_and_said(tmp_path, types, caplog):
    data = anndata.read_h5ad(make(tmp_path / "a.h5ad"))
    data.var["feature_types"] = [types[0]] * 3 + [types[1], types[0]]
    data.write_h5ad(tmp_path / "b.h5ad")
    screen = canonical(source(tmp_path / "b.h5ad"))
    assert list(screen.var_names) == ["gene0", "gene1", "gene2", "gene4"]
    assert list(screen.obs["library_size"]) == list(screen.X.sum(axis=1).A1)
    assert f"1 of {types[1]}" in caplog.text
    assert check_header(source(tmp_path / "b.h5ad")) == list(screen.var_names)
    data.var["feature_types"] = "Antibody Capture"  # all of a kind: somebody chose them
    data.write_h5ad(tmp_path / "c.h5ad")
    assert canonical(source(tmp_path / "c.h5ad")).n_vars == 5


def test_a_gene_without_a_symbol_keeps_its_identifier(tmp_path, caplog):
    data = anndata.read_h5ad(make(tmp_path / "a.h5ad"))
    data.var["symbol"] = ["S0", np.nan, "", "TWICE", "TWICE"]
    data.write_h5ad(tmp_path / "b.h5ad")
    screen = canonical(source(tmp_path / "b.h5ad", gene_symbol_column="symbol"))
    assert list(screen.var_names) == ["S0", "gene1", "gene2", "TWICE_gene3", "TWICE_gene4"]
    assert "2 of 5 genes have no symbol" in caplog.text
