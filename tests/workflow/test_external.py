"""Predictions of another tool on a split of its own: what is said before anything is trained."""

import copy

import anndata
import numpy as np
import pandas as pd
import pytest

from tests.workflow.conftest import TINY_CONFIG

pytestmark = pytest.mark.workflow

PREDICTED = "results/own/from_column-seed0/theirs/seed0/predicted_effects.h5ad"


def screen_with_its_split(path):
    """Cells of a tool that divides them itself, under words of its own."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["ctrl", "A", "B", "A+B"], [60, 40, 40, 40])
    change = {gene: np.exp(rng.normal(0, 0.7, 30)) for gene in "AB"}
    factors = [np.prod([change.get(g, np.ones(30)) for g in one.split("+")], 0) for one in labels]
    counts = rng.poisson(rng.gamma(2, 4, 30) * np.array(factors)).astype(np.float32)
    words = np.resize(["train"] * 6 + ["valid"] + ["ood"] * 3, len(labels))
    obs = pd.DataFrame({"condition": labels, "fold": words}, [f"c{i}" for i in range(len(labels))])
    data = anndata.AnnData(counts, obs, pd.DataFrame(index=[f"GENE{i}" for i in range(30)]))
    data.write_h5ad(path)
    return data


def test_a_split_and_predictions_from_elsewhere(project):
    project.config = copy.deepcopy(TINY_CONFIG)
    project.config["screens"] = {
        "own": {
            "source": "h5ad", "path": "own.h5ad", "perturbation_column": "condition",
            "control": "ctrl",
        }
    }  # fmt: skip
    project.config["models"]["theirs"] = {"kind": "external", "path": "theirs/{split}-{seed}.h5ad"}
    parts = {"valid": "val", "ood": "test"}
    split = {"kind": "from_column", "column": "fold", "parts": parts}
    project.config["experiments"] = {"own": {"screen": "own", "split": split, "models": ["theirs"]}}
    data = screen_with_its_split(project.folder / "own.h5ad")

    refused = project.snakemake(PREDICTED, "--dry-run")
    assert refused.returncode != 0
    assert "no such file: theirs/from_column-seed0-0.h5ad" in refused.stdout
    assert "Traceback" not in refused.stdout

    made = project.snakemake("results/own/from_column-seed0/split.tsv")
    assert made.returncode == 0, made.stdout[-3000:]
    table = pd.read_csv(project.folder / "results/own/from_column-seed0/split.tsv", sep="\t")
    assert list(table["split"]) == list(data.obs["fold"].replace(parts))

    log_of_10k = np.log2(1 + 1e4 * data.X / data.X.sum(axis=1, keepdims=True))
    of_label = {one: log_of_10k[data.obs["condition"] == one] for one in ("ctrl", "A", "B", "A+B")}
    effects = np.array(
        [of_label[one].mean(0) - of_label["ctrl"].mean(0) for one in ("A", "B", "A+B")]
    )
    table = anndata.AnnData(effects, pd.DataFrame(index=["A", "B", "B+A"]), data.var)
    (project.folder / "theirs").mkdir()
    path = project.folder / "theirs/from_column-seed0-0.h5ad"
    table[:, ::-1].write_h5ad(path)
    done = project.snakemake(PREDICTED)
    assert done.returncode == 0, done.stdout[-3000:]
    found = anndata.read_h5ad(project.folder / PREDICTED)
    np.testing.assert_allclose(found["A+B"].X[0], effects[2], atol=1e-6)

    table.X = 50 * effects
    table.write_h5ad(path)
    done = project.snakemake(PREDICTED)
    assert done.returncode != 0
    assert "Effects are differences of mean log2(CP10k + 1) from control cells" in done.stdout
    assert "Traceback" not in done.stdout
