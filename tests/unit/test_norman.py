import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
from benchmarks.official_layouts import NormanCells, simulate_norman, write_norman

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import read_screen
from samsvae.sources.counts import CountMatrix
from samsvae.sources.genes import highly_variable_genes
from samsvae.sources.norman import NormanSource, write_norman_screen

CELLS = simulate_norman(n_cells=130, n_genes=90, n_variable=30, seed=1)


def anything(path, copy, **changes):
    sizes = dict.fromkeys(("expected_cells", "expected_genes", "expected_target_genes"))
    return NormanSource(str(path), copy, **{**sizes, **changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("norman")
    # the authors left out some of the cells
    kept = np.flatnonzero(np.arange(130) % 10)
    fewer = NormanCells(
        CELLS.counts[kept],
        [CELLS.labels[i] for i in kept],
        [CELLS.barcodes[i] for i in kept],
        CELLS.symbols,
        CELLS.variable,
    )
    write_norman(folder / "original.h5ad", "original", fewer)
    write_norman(folder / "scperturb.h5ad", "scperturb", CELLS)
    return folder


def read(source, folder):
    write_norman_screen(source, "{}", folder / "screen.h5ad")
    return read_screen(folder / "screen.h5ad")


def test_both_files_give_the_same_screen_where_they_share_cells(files, tmp_path):
    original = read(anything(files / "original.h5ad", "original"), tmp_path)
    genes = str(files / "original.h5ad")
    copy = read(anything(files / "scperturb.h5ad", "scperturb", genes=genes), tmp_path)
    assert (original.shape, copy.shape) == ((117, 30), (130, 30))
    assert list(original.var_names) == list(copy.var_names)
    shared = copy[original.obs_names]
    assert list(shared.obs["perturbation"]) == list(original.obs["perturbation"])
    assert (shared.X != original.X).nnz == 0
    assert (shared.obsm["dosage"] != original.obsm["dosage"]).nnz == 0
    assert list(copy.uns["perturbations"]) == list(original.uns["perturbations"])


def test_the_screen_is_what_the_cells_are(files, tmp_path):
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(CELLS.symbols[i] for i in CELLS.variable) + "\n")
    source = anything(files / "scperturb.h5ad", "scperturb", genes=str(genes))
    screen = read(source, tmp_path)
    assert list(screen.obs_names) == CELLS.barcodes
    assert list(screen.obs["perturbation"]) == CELLS.labels
    assert (CELLS.counts[:, CELLS.variable].astype(np.int32) != screen.X).nnz == 0
    assert list(screen.var_names) == [CELLS.symbols[i] for i in CELLS.variable]


def test_a_pair_is_one_perturbation_however_it_is_written(tmp_path):
    labels = ["control", "A", "B", "A+B", "B+A", "A_B", "B_A", "A_control"]
    counts = np.ones((8, 3), np.float32)
    anndata.AnnData(counts, pd.DataFrame({"perturbation": labels}, list("abcdefgh"))).write_h5ad(
        tmp_path / "f.h5ad"
    )
    genes = tmp_path / "g.txt"
    genes.write_text("0\n1\n2\n")
    screen = read(anything(tmp_path / "f.h5ad", "scperturb", genes=str(genes)), tmp_path)
    assert list(screen.obs["perturbation"]) == ["control", "A", "B", *["A+B"] * 4, "A"]


def test_the_guide_identity_is_kept(files, tmp_path):
    obs = read(anything(files / "original.h5ad", "original"), tmp_path).obs
    pair = obs[obs["perturbation"] == "TARGET000+TARGET001"]
    assert set(pair["guide_identity"]) == {"TARGET000_TARGET001__TARGET000_TARGET001"}


def test_published_sizes_are_expected_unless_told_otherwise(files, tmp_path):
    path = str(files / "original.h5ad")
    with pytest.raises(InputError) as error:
        write_norman_screen(NormanSource(path), "{}", tmp_path / "s.h5ad")
    said = "117 cells instead of 111,255; 30 genes instead of 5,000; 6 target genes instead of 105"
    assert said in str(error.value)
    assert "expected_cells, expected_genes, expected_target_genes" in str(error.value)
    assert not (tmp_path / "s.h5ad").exists()
    source = NormanSource(path, expected_cells=117, expected_genes=30, expected_target_genes=6)
    write_norman_screen(source, "{}", tmp_path / "s.h5ad")


def altered(files, tmp_path, copy, alter):
    path = tmp_path / f"{copy}.h5ad"
    path.write_bytes((files / path.name).read_bytes())
    with h5py.File(path, "r+") as file:
        alter(file)
    return path


def rename(old, new):
    return lambda file: file.move(old, new)


def put(name, place, value):
    def alter(file):
        values = file[name][:]
        values[place] = value
        file[name][...] = values

    return alter


@pytest.mark.parametrize(
    ("copy", "alter", "said"),
    [
        ("original", rename("layers/counts", "layers/raw"), ["layers has no 'counts'", "raw"]),
        ("original", rename("var/highly_variable", "var/hv"), ["'highly_variable'", "hv"]),
        ("scperturb", rename("obs/perturbation", "obs/pert"), ["'perturbation'", "nperts, pert"]),
        ("original", put("obs/guide_TARGET001", 3, 2), ["guide_TARGET001", "other than 0 and 1"]),
        ("scperturb", put("X/data", 5, 0.5), ["not an integer"]),
    ],
)
def test_what_is_absent_or_wrong_is_named(files, tmp_path, copy, alter, said):
    path = altered(files, tmp_path, copy, alter)
    source = anything(path, copy, **({"n_genes": 90} if copy == "scperturb" else {}))
    with pytest.raises(InputError) as error:
        write_norman_screen(source, "{}", tmp_path / "s.h5ad")
    for words in said:
        assert words in str(error.value)


def test_a_file_without_one_hot_columns_lists_what_it_has(files, tmp_path):
    with pytest.raises(InputError, match=r"guide_<GENE>.*perturbation"):
        write_norman_screen(anything(files / "scperturb.h5ad", "original"), "{}", tmp_path / "s")


def test_genes_of_the_list_that_are_absent_are_named(files, tmp_path):
    genes = tmp_path / "genes.txt"
    genes.write_text("GENE00001\nNOGENE\n")
    with pytest.raises(InputError, match=r"1 of 2 genes are not in .*NOGENE"):
        read(anything(files / "scperturb.h5ad", "scperturb", genes=str(genes)), tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read(anything(files / "scperturb.h5ad", "scperturb", genes="absent.txt"), tmp_path)
    with pytest.raises(InputError, match="marks its genes"):
        NormanSource("x.h5ad", "original", genes=str(genes))


def test_without_a_list_the_most_variable_genes_are_chosen_and_said(files, tmp_path, caplog):
    caplog.set_level("INFO")
    source = anything(files / "scperturb.h5ad", "scperturb", n_genes=40)
    assert read(source, tmp_path).n_vars == 40
    assert "does not say which genes the authors kept" in caplog.text


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.filterwarnings("ignore")
def test_the_most_variable_genes_are_those_of_scanpy(seed, tmp_path):
    cells = simulate_norman(n_cells=500, n_genes=400, n_variable=1, seed=seed)
    screen = anndata.AnnData(cells.counts)
    expected = scanpy.pp.highly_variable_genes(
        screen, flavor="seurat_v3", n_top_genes=100, inplace=False
    )
    with h5py.File(tmp_path / "m.h5", "w") as file:
        anndata.io.write_elem(file, "X", cells.counts)
        found = highly_variable_genes(CountMatrix(file["X"], "test", 2**16), 100)
    assert list(found) == list(np.flatnonzero(expected["highly_variable"]))


def test_a_few_genes_whose_variance_follows_no_mean_are_refused(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["X"] = np.array([[1.0, 0, 2], [0, 3, 1]])
        with pytest.raises(InputError, match="Name the genes to keep"):
            highly_variable_genes(CountMatrix(file["X"], "f: X"), 2)
        with pytest.raises(InputError, match="4 genes are wanted, but it has 3"):
            highly_variable_genes(CountMatrix(file["X"], "f: X"), 4)
