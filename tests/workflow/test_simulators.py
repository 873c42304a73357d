"""Simulators of latent shifts, from the configuration to the table of recovered truth.

Seeds are trained together on the way, as one program: two of one model, and the only one of another.
"""

import copy
import re

import anndata
import pandas as pd
import pytest
import torch

from samsvae.evaluation.metrics import read_run_metrics
from samsvae.inference.checkpoint import load_model
from tests.workflow.conftest import SMALL_NETWORK, TINY_CONFIG, Project

pytestmark = pytest.mark.workflow

FEW = {"n_latent": 3, "n_perturbations": 8, "n_genes": 20, "n_train": 30, "n_validation": 10, "n_test": 10}  # fmt: skip
SCREENS = {
    "gaussian": ("simulated_additive", "normal", [0, 2], {"iwelbo", "mask_f1"}),
    "poisson": ("simulated_svae_plus", "negative_binomial", [2], {"iwelbo", "mask_f1", "pearson"}),
}


def test_truth_is_compared_with_what_a_model_recovers(project):
    project.config = {
        "screens": {name: {"source": source, **FEW} for name, (source, *_) in SCREENS.items()},
        "models": {
            f"sams_{name}": {"kind": "sams_vae", "likelihood": likelihood, **SMALL_NETWORK}
            for name, (_, likelihood, *_) in SCREENS.items()
        },
        "training": {**TINY_CONFIG["training"], "seeds_together": True},
        "evaluation": TINY_CONFIG["evaluation"],
        "experiments": {
            name: {
                "screen": name,
                "split": {"kind": "as_simulated"},
                "models": [f"sams_{name}"],
                "seeds": seeds,
            }
            for name, (_, _, seeds, _) in SCREENS.items()
        },
    }
    done = project.snakemake(*(f"results/{name}/tables/metrics.parquet" for name in SCREENS))
    assert done.returncode == 0, done.stdout[-4000:]
    for name, (_, _, seeds, expected) in SCREENS.items():
        results = project.folder / "results" / name
        table = read_run_metrics(results / "tables/metrics.parquet")
        assert expected <= set(table["metric"])
        assert table.loc[table["metric"] == "mask_recall", "value"].between(0, 1).all()
        parts = pd.read_csv(results / "as_simulated-seed0" / "split.tsv", sep="\t")["split"]
        assert parts.value_counts().to_dict() == {"train": 270, "val": 90, "test": 90}
        runs = results / "as_simulated-seed0" / f"sams_{name}"
        trained = [load_model(runs / f"seed{seed}" / "model.safetensors") for seed in seeds]
        masks = torch.stack([one.model.mask.logits for one in trained])
        assert len(masks.unique(dim=0)) == len(seeds)
        assert not (runs / "unfinished_training.safetensors").exists()
    assert "rule train:" not in done.stdout
    # effects on expression have no meaning where there are no counts
    planned = project.snakemake("figures", "--dry-run").stdout
    gaussian, poisson = (
        set(re.findall(rf"results/{name}/figures/(\w+)\.svg", planned)) for name in SCREENS
    )
    assert {"training", "iwelbo", "truth", "metrics"} <= gaussian < poisson
    assert {"screen", "effects", "differential_expression"} <= poisson - gaussian
    other = "results/gaussian/as_simulated-seed0/sams_gaussian/seed1/history.tsv"
    refused = project.snakemake(other, "--dry-run")
    assert refused.returncode != 0
    assert "trained together, and 1 is none of them (0, 2). Add it" in refused.stdout


def test_cells_with_several_perturbations_have_effects_of_single_ones(project):
    screen = {
        "source": "simulated", "n_perturbations": 8, "n_pairs": 0, "n_controls": 60, "n_genes": 60,
        "n_factors": 3, "programme_size": 10, "cells_per_perturbation": 90, "guides_per_cell": 3,
        "unit": "perturbation",
    }  # fmt: skip
    project.config = {
        "screens": {"several": screen},
        "models": {
            "sams": {"kind": "sams_vae", **SMALL_NETWORK},
            "additive": {"kind": "additive"},
            "ceiling": {"kind": "split_half"},
        },
        "training": TINY_CONFIG["training"],
        "evaluation": TINY_CONFIG["evaluation"],
        "experiments": {
            "several": {
                "screen": "several",
                "split": {"kind": "random"},
                "models": ["sams", "additive", "ceiling"],
                "gene_sets": [],
            }
        },
    }
    tables = [f"results/several/tables/{name}" for name in ("metrics.parquet", "screen.tsv")]
    done = project.snakemake(*tables, "results/several/figures/hits.svg")
    assert done.returncode == 0, done.stdout[-4000:]
    results = project.folder / "results"
    names = [f"TARGET{number}" for number in ("01", "02", "03", "04", "05", "06", "07", "08")]
    for model in ("sams", "additive", "ceiling"):
        run = results / f"several/random-seed0/{model}/seed0"
        assert list(anndata.read_h5ad(run / "predicted_effects.h5ad").obs_names) == names
    hits = pd.read_csv(results / "several/tables/hits.tsv", sep="\t")
    cells = pd.read_csv(results / "several/tables/screen.tsv", sep="\t")
    number = cells[cells["measure"] == "cells"].set_index("perturbation")["value"]
    assert hits.set_index("perturbation")["n_cells"].to_dict() == number[names].to_dict()
    assert (
        number.sum()
        > 1.5 * pd.read_csv(results / "several/random-seed0/split.tsv", sep="\t").shape[0]
    )
    metrics = pd.read_parquet(results / "several/tables/metrics.parquet")
    assert set(metrics["perturbation"].dropna()) <= set(names)
    assert "other cells" in (results / "several/figures/hits.svg").read_text()
    unique = copy.deepcopy(project.config)
    unique["models"]["sams"]["combinations"] = "unique"
    refused = Project(project.folder, unique).snakemake("--dry-run")
    assert refused.returncode != 0
    assert "screens.several.unit" in refused.stdout
