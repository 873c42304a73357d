"""The paper's experiments: planned in full, and run in small from a server on loopback."""

import hashlib
from itertools import product

import anndata
import pandas as pd
import pytest
import yaml
from benchmarks.official_layouts import (
    ReplogleLayout,
    simulate_norman,
    write_norman,
    write_replogle,
)

from samsvae.config.experiments import candidates, expanded
from tests.conftest import ROOT
from tests.loopback import answer, cut_after, serving

pytestmark = pytest.mark.workflow

PAPER = {
    # splits, trained models, their seeds
    "norman": (2 * 5 * 5, 9 * 3, 1),
    "replogle": (1, 12 + 2 + 6 + 2, 5),
}


def configuration(name):
    return yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_grid_is_planned_in_full_without_file_or_network(name, project):
    splits, trained, seeds = PAPER[name]
    project.config = configuration(name)
    planned = project.planned()
    assert planned["split_cells"] == splits
    assert planned["train"] == planned["evaluate_run"] == splits * trained * seeds
    assert planned["predict_baselines"] == splits
    assert planned["download"] == planned[f"build_{name}"] == 1


def grid_of(name):
    """Models of a configuration, each with its candidates."""
    models = configuration(name)["models"]
    settings = expanded(models)
    found = {one: [settings[c] for c in candidates(one, model)] for one, model in models.items()}
    return configuration(name), found


def test_the_grid_of_norman_is_the_papers():
    """As the specification and the published table have it; a name says what a model is."""
    config, found = grid_of("norman")
    for experiment in config["experiments"].values():
        published = [f"{name}--n_layers-1" for name in found]
        assert experiment["models"] == [*published, *found, "additive", "no_change"]
    for name, tried in found.items():
        assert [model["n_layers"] for model in tried] == [1, 2, 4]
        for model in tried:
            assert (model["n_latent"], model["n_hidden"]) == (200, 400)
            unique = "_unique" in name or model["kind"] == "svae_plus"
            assert (model["combinations"] == "unique") == unique
            assert name.startswith(model["kind"])
            if model["kind"] == "sams_vae":
                assert model["embedding"] in name
                assert model["mask_prior"] == 0.01
                assert (model["embedding_n_layers"], model["embedding_n_hidden"]) == (4, 400)
            if model["kind"] in ("sams_vae", "cpa_vae"):
                assert (model["basal_encoder"], model["embedding_prior_scale"]) == ("correlated", 1)
            if model["kind"] == "svae_plus":
                assert model["beta"] == 2
    training = config["training"]
    assert (training["max_steps"], training["gradient_clip"]) == (30_000, 100)
    assert training["mask_warmup_fraction"] == training["mask_kl_weight"] == 0


def test_the_grid_of_replogle_is_the_papers():
    config, found = grid_of("replogle")
    assert config["experiments"]["replogle"]["models"][:-2] == list(found)
    grid = set()
    for name, tried in found.items():
        for model in tried:
            assert (model["n_hidden"], model["n_layers"]) == (400, 1)
            last = model.get("mask_prior", model.get("beta"))
            grid.add((name, model["n_latent"], last))
            assert name.startswith(model["kind"])
            if model["kind"] == "sams_vae":
                assert model["embedding"] in name
                assert (model["embedding_n_layers"], model["embedding_n_hidden"]) == (2, 200)
    sams = ["sams_vae_correlated", "sams_vae_mean_field"]
    assert grid == {
        *product(sams, [100, 200], [0.1, 0.01, 0.001]),
        *product(["svae_plus"], [100, 200], [2, 5, 10]),
        *product(["cpa_vae", "conditional_vae"], [100, 200], [None]),
    }
    training = config["training"]
    assert (training["max_steps"], training["gradient_clip"]) == (150_000, None)
    assert training["mask_warmup_fraction"] == training["mask_kl_weight"] == 0


def official_file(name, copy, path):
    """A small file of the layout of a published one, as bytes."""
    if name == "norman":
        write_norman(path, copy, simulate_norman(n_cells=600, n_genes=150, n_variable=60))
    else:
        layout = {"n_cells": 1500, "n_genes": 400, "n_targets": 5, "targeted": 0.6, "controls": 0.2}
        write_replogle(path, ReplogleLayout(copy, depth=2000, **layout))
    return path.read_bytes()


def assert_the_best_candidate_stands_for_its_model(experiment, split):
    """By the bounds of validation cells, everything that its training left."""
    selection = pd.read_csv(experiment / "tables/selection.tsv", sep="\t")
    assert list(selection["candidate"]) == [f"sams_vae_correlated--n_layers-{n}" for n in (1, 2)]
    means = []
    for candidate in selection["candidate"]:
        bounds = pd.read_parquet(experiment / split / candidate / "seed0/iwelbo.parquet")
        means.append(bounds["iwelbo"][bounds["split"] == "val"].mean())
    assert selection["iwelbo"].to_list() == pytest.approx(means)
    assert list(selection["chosen"]) == [mean == max(means) for mean in means]
    chosen = selection["candidate"][selection["chosen"]].item()
    for name in ("model.safetensors", "last_model.safetensors", "history.tsv", "iwelbo.parquet"):
        files = [
            experiment / split / one / "seed0" / name for one in ("sams_vae_correlated", chosen)
        ]
        assert files[0].read_bytes() == files[1].read_bytes()
    candidates = pd.read_csv(experiment / "tables/candidates.tsv", sep="\t")
    assert list(candidates["n_chosen"]) == list(selection["chosen"].astype(int))


def assert_it_is_said_not_to_be_at_full_scale(tables):
    """What was run in small reproduces nothing, and what was not run has no number."""
    reproduction = pd.read_csv(tables / "reproduction.tsv", sep="\t")
    assert set(reproduction["task"]) == {"norman_ood"}
    assert len(reproduction) == 45 * 5
    was_run = reproduction["our_mean"].notna()
    assert set(reproduction["our_model"][was_run]) == {"sams_vae_correlated--n_layers-1"}
    # of five quantities all but the bound relative to fraction 0, which this experiment lacks
    assert was_run.sum() == 4
    assert set(reproduction["verdict"][was_run]) == {"not at full scale"}
    for scale in reproduction["scale"][was_run]:
        assert scale == (
            "not at full scale: cells 600 (paper: 111,255); genes 60 (paper: 5,000); "
            "training steps 60 (paper: 30,000); split seeds 1 (paper: 5)"
        )
    assert (
        reproduction["settings"][was_run].str.contains("n_latent 8 (paper: 200)", regex=False).all()
    )
    assert reproduction[["difference", "in_prediction_interval"]].isna().all(axis=None)
    assert (reproduction["verdict"][~was_run] == "not run").all()
    overview = pd.read_csv(tables / "reproduction_overview.tsv", sep="\t")
    assert overview["scale"].str.startswith(("not at full scale", "not run")).all()


COPIES = ("original", "scperturb")
SMOKE = {
    # experiment whose tables are made, its split, models and tables
    "norman": (
        "unseen_combinations",
        "unseen_combinations-f0.5-seed0",
        ["sams_vae_correlated--n_layers-1", "sams_vae_correlated"],
        ["iwelbo", "selection", "reproduction"],
    ),
    "replogle": ("replogle", "random-seed0", ["sams_vae_correlated"], ["iwelbo"]),
}


@pytest.mark.parametrize("name", SMOKE)
def test_the_smoke_variant_goes_from_the_first_byte_to_a_table(name, project):
    experiment, split, models, tables = SMOKE[name]
    config = project.config = configuration(f"{name}_smoke")
    files = {copy: official_file(name, copy, project.folder / f"{copy}.h5ad") for copy in COPIES}
    with serving(**files) as server:
        config["downloads"] = {
            f"{name}_{copy}": {
                "urls": [server.url("/gone"), server.url(f"/{copy}")],
                "size": len(content),
                "md5": hashlib.md5(content).hexdigest(),
                "sha256": None,
            }
            for copy, content in files.items()
        }
        server.behaviours["/original"] = [cut_after(150_000), answer(503)]
        copied = {**config["screens"][name], "copy": "scperturb"}
        if name == "norman":
            copied["genes"] = str(project.folder / "original.h5ad")
        config["screens"]["copied"] = copied
        planned = project.planned()
        assert planned["download"] == 1
        assert planned["train"] > 4

        config["experiments"][experiment] |= {"models": models, "seeds": [0]}
        table = f"results/{experiment}/tables/iwelbo.tsv"
        asked_for = [f"results/{experiment}/tables/{one}.tsv" for one in tables]
        done = project.snakemake(*asked_for, "results/screens/copied/screen.h5ad")
    assert done.returncode == 0, done.stdout[-6000:]
    results = project.folder / "results"
    bounds = pd.read_csv(project.folder / table, sep="\t")
    assert bounds["iwelbo"].lt(0).all()
    assert set(bounds["scope"]) == {"val", "test"}
    assert (results / experiment / split / "split.json").is_file()
    if name == "norman":
        assert_the_best_candidate_stands_for_its_model(results / experiment, split)
        assert_it_is_said_not_to_be_at_full_scale(results / experiment / "tables")
    asked = [path for path, _ in server.requests]
    assert asked.count("/original") == 3

    original, copied = (
        anndata.read_h5ad(results / "screens" / one / "screen.h5ad") for one in (name, "copied")
    )
    shared = original.obs_names.intersection(copied.obs_names)
    assert len(shared) > 500
    assert original.obs.loc[shared, "perturbation"].equals(copied.obs.loc[shared, "perturbation"])
    assert (original[shared].X != copied[shared].X).nnz == 0
    provenance = original.uns["provenance"]
    assert hashlib.md5(files["original"]).hexdigest() in provenance

    # other addresses of the same file change nothing, another file does
    entry = config["downloads"][f"{name}_original"]
    entry["urls"].append("http://127.0.0.1:9/another")
    assert project.planned(table) == {}
    entry["md5"] = "0" * 32
    assert project.planned(table)[f"build_{name}"] == 1
