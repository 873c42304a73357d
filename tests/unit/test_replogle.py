import dataclasses

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from benchmarks.official_layouts import ReplogleLayout, write_replogle

from samsvae.runtime.errors import InputError
from samsvae.runtime.files import read_table
from samsvae.screen.canonical import content_digest, perturbations, read_screen
from samsvae.screen.labels import CONTROL, components
from samsvae.sources.replogle import ReplogleSource, write_replogle_screen

LAYOUT = ReplogleLayout(
    n_cells=700, n_genes=120, n_targets=12, targeted=0.5, controls=0.2, depth=900
)


def anything(path, copy="original", **changes):
    sizes = dict.fromkeys(("expected_cells", "expected_genes", "expected_guide_pairs"))
    return ReplogleSource(str(path), copy, **{**sizes, "n_controls": 40, **changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replogle")
    forms = {
        "original": LAYOUT,
        "chunked": dataclasses.replace(LAYOUT, chunks=(64, 50)),
        "scperturb": dataclasses.replace(LAYOUT, copy="scperturb"),
    }
    for name, layout in forms.items():
        write_replogle(folder / f"{name}.h5ad", layout)
    return folder


def read(source, folder):
    write_replogle_screen(source, "{}", folder / "screen.h5ad")
    return read_screen(folder / "screen.h5ad")


@pytest.fixture(scope="module")
def screen(files, tmp_path_factory):
    return read(anything(files / "original.h5ad"), tmp_path_factory.mktemp("screen"))


def test_the_screen_is_the_chosen_part_of_the_file(files, screen):
    source = anything(files / "original.h5ad")
    whole = anndata.read_h5ad(source.path)
    targets = read_table(source.perturbations)["gene"]
    kept = whole[screen.obs_names]
    assert (kept.obs["gene"].to_numpy() == screen.obs["gene"].to_numpy()).all()
    assert set(screen.obs_names) >= set(whole.obs_names[whole.obs["gene"].isin(targets)])
    assert set(screen.obs["gene"]) - {"non-targeting"} <= set(targets)
    assert (screen.obs["gene"] == "non-targeting").sum() == 40
    response = whole.var["gene_name"].isin(read_table(source.response_genes)["gene"]).to_numpy()
    np.testing.assert_array_equal(screen.X.toarray(), kept[:, response].X)
    assert list(screen.obs_names) == [n for n in whole.obs_names if n in set(screen.obs_names)]


def test_a_perturbation_is_a_pair_of_guides_under_a_name_of_its_own(screen):
    obs = screen.obs
    control = obs["guide"].astype(str).str.contains("non-targeting", regex=False)
    assert ((obs["perturbation"] == CONTROL) == control).all()
    assert ((obs["gene"] == "non-targeting") == control).all()
    names = obs[~control].groupby("guide", observed=True)["perturbation"].unique()
    assert (names.str.len() == 1).all()
    assert names.str[0].nunique() == len(names) == len(perturbations(screen)) > 12
    for guide, (name,) in names.items():
        assert components(name) == [name]
        assert name.replace("plus", "+").replace("_and_", "|") == guide


def test_a_symbol_of_two_genes_gives_two_names(screen):
    symbol = read_table(anything("x").response_genes)["gene"][0]
    names = [name for name in screen.var_names if name.startswith(symbol)]
    assert len(names) == 2
    assert all(name.startswith(f"{symbol}_ENSG") for name in names)


def test_all_forms_of_the_file_give_the_same_screen(files, screen, tmp_path):
    chunked = read(anything(files / "chunked.h5ad"), tmp_path)
    assert content_digest(chunked) == content_digest(screen)
    sparse = read(anything(files / "scperturb.h5ad", "scperturb"), tmp_path)
    assert list(sparse.obs_names) == list(screen.obs_names)
    assert list(sparse.obs["perturbation"]) == list(screen.obs["perturbation"])
    assert list(sparse.obs["gem_group"]) == list(screen.obs["gem_group"])
    assert (sparse.X != screen.X).nnz == 0


def test_controls_are_drawn_by_seed_whatever_the_order_of_cells(files, screen, tmp_path):
    def controls(source):
        found = read(source, tmp_path)
        return set(found.obs_names[found.obs["perturbation"] == CONTROL])

    path = files / "original.h5ad"
    first = controls(anything(path))
    assert first == set(screen.obs_names[screen.obs["perturbation"] == CONTROL])
    assert controls(anything(path, seed=1)) != first
    whole = anndata.read_h5ad(path)
    whole[np.random.default_rng(0).permutation(whole.n_obs)].copy().write_h5ad(
        tmp_path / "moved.h5ad"
    )
    assert controls(anything(tmp_path / "moved.h5ad")) == first


def test_cells_without_a_count_left_are_dropped_and_said(files, tmp_path, caplog):
    whole = anndata.read_h5ad(files / "original.h5ad")
    target = np.flatnonzero(whole.obs["gene"] == "DCAF11")[0]
    whole.X[target] = 0
    whole.write_h5ad(tmp_path / "empty.h5ad")
    found = read(anything(tmp_path / "empty.h5ad"), tmp_path)
    assert whole.obs_names[target] not in found.obs_names
    assert "1 of 372" in caplog.text


def test_published_sizes_are_expected_unless_told_otherwise(files, screen, tmp_path):
    source = ReplogleSource(str(files / "original.h5ad"), n_controls=40)
    with pytest.raises(InputError) as error:
        write_replogle_screen(source, "{}", tmp_path / "s.h5ad")
    n_pairs = len(perturbations(screen))
    for words in (
        f"{screen.n_obs} cells instead of 118,641",
        f"{screen.n_vars} genes instead of 1,187",
        f"{n_pairs} guide pairs instead of 722",
        "expected_guide_pairs",
    ):
        assert words in str(error.value)
    told = dataclasses.replace(
        source,
        expected_cells=screen.n_obs,
        expected_genes=screen.n_vars,
        expected_guide_pairs=n_pairs,
    )
    write_replogle_screen(told, "{}", tmp_path / "s.h5ad")


@pytest.mark.parametrize(
    ("copy", "old", "said"),
    [
        ("original", "obs/sgID_AB", ["'sgID_AB'", "gem_group, gene, gene_id"]),
        ("original", "obs/gene", ["'gene'", "gem_group"]),
        (
            "scperturb",
            "obs/guide_id",
            ["'guide_id' or 'sgID_AB'", "batch", "gene, gene_id", "perturbation"],
        ),
    ],
)
def test_absent_columns_are_named_with_those_there_are(files, tmp_path, copy, old, said):
    path = tmp_path / f"{copy}.h5ad"
    path.write_bytes((files / path.name).read_bytes())
    with h5py.File(path, "r+") as file:
        del file[old]
    with pytest.raises(InputError) as error:
        write_replogle_screen(anything(path, copy), "{}", tmp_path / "s.h5ad")
    for words in said:
        assert words in str(error.value)


def test_a_value_that_is_no_count_is_named_by_its_place_in_the_file(files, tmp_path):
    whole = anndata.read_h5ad(files / "original.h5ad")
    cell = int(np.flatnonzero(whole.obs["gene"] == "DCAF11")[-1])
    response = read_table(anything("x").response_genes)["gene"]
    gene = int(np.flatnonzero(whole.var["gene_name"].isin(response))[-1])
    whole.X[cell, gene] = 1.5
    whole.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(InputError, match=f"cell {cell}, gene {gene} .*is not an integer"):
        read(anything(tmp_path / "bad.h5ad"), tmp_path)


def test_too_few_controls(files, tmp_path):
    with pytest.raises(InputError, match=r"n_controls is 5000, but there are 1\d\d"):
        read(anything(files / "original.h5ad", n_controls=5000), tmp_path)


def test_columns_of_former_anndata_are_read(files, screen, tmp_path):
    path = tmp_path / "old.h5ad"
    path.write_bytes((files / "original.h5ad").read_bytes())
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        for name in ("gene", "sgID_AB"):
            codes, categories = obs[name]["codes"][:], obs[name]["categories"][:]
            del obs[name]
            obs[f"__categories/{name}"] = categories
            obs[name] = codes
            obs[name].attrs["categories"] = obs[f"__categories/{name}"].ref
    found = read(anything(path), tmp_path)
    assert content_digest(found) == content_digest(screen)
    pd.testing.assert_series_equal(found.obs["gene"], screen.obs["gene"])
