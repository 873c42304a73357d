"""Simulators of latent shifts, from the configuration to the table of recovered truth.

Seeds are trained together on the way, as one program: two of one model, and the only one of another.
"""

import re

import pandas as pd
import pytest
import torch

from samsvae.evaluation.metrics import read_run_metrics
from samsvae.inference.checkpoint import load_model
from tests.workflow.conftest import SMALL_NETWORK, TINY_CONFIG

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
