"""The main job on two real screens: the known biology must be in what the models predict."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from samsvae.evaluation.expression import log_expression
from samsvae.screen.gene_sets import write_gmt
from tests.conftest import real_file

pytestmark = pytest.mark.workflow

SAMS = {"kind": "sams_vae", "n_latent": 50, "n_hidden": 200}
INTERFERON_GAMMA = ["IFNGR1", "IFNGR2", "JAK2", "STAT1"]
N_PAIRS_WITH_BOTH_SINGLES = 5
TRAINING = {"max_steps": 1500, "batch_size": 512, "learning_rate": 0.003, "validate_every": 500}


def effects(project, experiment, split, model):
    base = project.folder / "results" / experiment / split
    observed = anndata.read_h5ad(base / "observed_effects.h5ad").to_df()
    predicted = anndata.read_h5ad(base / model / "seed0" / "predicted_effects.h5ad").to_df()
    return observed, predicted


def test_papalexi_shows_the_interferon_gamma_pathway(project):
    screen = real_file("papalexi2021_thp1_ko_20729x299.h5ad")
    hallmark = real_file("hallmark_v7.0.gmt")
    groups = project.folder / "groups.gmt"
    write_gmt({"INTERFERON_GAMMA": INTERFERON_GAMMA}, groups, "known axis")
    project.config = {
        "screens": {
            "papalexi": {
                "source": "h5ad", "path": str(screen), "perturbation_column": "condition",
                "control": "control", "guide_column": "guide",
            }
        },
        "gene_sets": {"hallmark": str(hallmark)},
        "models": {"sams": SAMS},
        "training": TRAINING,
        "evaluation": {"mapped_cells": 0},
        "experiments": {
            "papalexi": {
                "screen": "papalexi", "split": {"kind": "random"}, "models": ["sams", "additive"],
                "perturbation_groups": str(groups),
            }
        },
    }  # fmt: skip
    # figures are drawn of the other screen
    tables = ("enrichment", "pathway_agreement", "group_sharing", "factor_groups", "responders")
    done = project.snakemake(*(f"results/papalexi/tables/{name}.tsv" for name in tables), cores=1)
    assert done.returncode == 0, done.stdout[-4000:]
    observed, predicted = effects(project, "papalexi", "random-seed0", "sams")
    axis = predicted.T.corr().loc["IFNGR2", ["IFNGR1", "JAK2", "STAT1"]]
    strength = predicted.std(axis=1)
    agreement = np.corrcoef(observed.to_numpy().ravel(), predicted.to_numpy().ravel())[0, 1]
    print(f"IFNGR2 with {axis.round(3).to_dict()}; all effects {agreement:.3f}")
    assert (axis >= 0.8).all()
    assert (strength[["CAV1", "ATF2"]] < strength["IFNGR2"] / 3).all()
    assert agreement >= 0.7
    table = pd.read_csv(project.folder / "results/papalexi/tables/enrichment.tsv", sep="\t")
    for model in ("observed", "sams"):
        found = table[(table["model"] == model)]
        represented = found[found["method"] == "over_representation"].sort_values("pvalue")
        first = represented.groupby("perturbation").first()
        assert (first.loc[INTERFERON_GAMMA, "set"] == "HALLMARK_INTERFERON_GAMMA_RESPONSE").all()
        assert (first.loc[INTERFERON_GAMMA, "fdr"] < 0.05).all()
        assert first.loc["SMAD4", "set"] == "HALLMARK_TGF_BETA_SIGNALING"
        ranked = found[found["method"] == "preranked"]
        largest = ranked.loc[ranked["score"].abs().groupby(ranked["perturbation"]).idxmax()]
        largest = largest.set_index("perturbation").loc[INTERFERON_GAMMA]
        assert (largest["set"] == "HALLMARK_INTERFERON_GAMMA_RESPONSE").all()
        assert (largest["score"] < 0).all()
    agreement = pd.read_csv(
        project.folder / "results/papalexi/tables/pathway_agreement.tsv", sep="\t"
    )
    of_model = (agreement["model"] == "sams") & agreement["perturbation"].isin(INTERFERON_GAMMA)
    over = agreement[of_model & (agreement["method"] == "over_representation")]
    assert (over["top_predicted"] == over["top_observed"]).all()
    assert (agreement.loc[of_model, "correlation"] > 0.3).all()
    sharing = pd.read_csv(project.folder / "results/papalexi/tables/group_sharing.tsv", sep="\t")
    print(sharing.to_string())
    [axis_sharing] = sharing.to_dict("records")
    assert axis_sharing["shared_factors"] > axis_sharing["expected_shared_factors"]
    assert axis_sharing["pvalue"] < 0.01
    gathered = pd.read_csv(project.folder / "results/papalexi/tables/factor_groups.tsv", sep="\t")
    assert gathered["fdr"].min() < 0.05
    pvalues_are_scipys(project.folder / "results", "IFNGR2")
    responders_are_those_of_hand_counts(project.folder / "results/papalexi/tables/responders.tsv")


def responders_are_those_of_hand_counts(path):
    """About half of the cells of two guides of IRF1 look like control cells, few of the others."""
    table = pd.read_csv(path, sep="\t", keep_default_na=False, na_values=[""])
    pooled = table[table["guide"].isna()].set_index("perturbation")["responders"]
    print(pooled.dropna().round(2).to_dict())
    assert pooled[["IFNGR1", "IFNGR2", "JAK2", "STAT1"]].between(0.6, 0.95).all()
    assert pooled[["ATF2", "CAV1", "CD86", "ETV7"]].isna().all()
    of_guides = table.dropna(subset="guide").set_index("guide")["responders"]
    if of_guides.notna()["IRF1g1"]:
        assert of_guides[["IRF1g1", "IRF1g2"]].between(0.3, 0.7).all()
        assert of_guides[["IRF1g3", "IRF1g4"]].between(0.65, 1).all()


def pvalues_are_scipys(results, name):
    """The rank-sum test of one perturbation on the real counts, but for its skewness."""
    cells = anndata.read_h5ad(results / "screens/papalexi/screen.h5ad")
    split = pd.read_csv(results / "papalexi/random-seed0/split.tsv", sep="\t", index_col="cell")
    logs = log_expression(cells).toarray()
    label = cells.obs["perturbation"].to_numpy()
    held_out = (label == name) & (split.loc[cells.obs_names, "split"] == "test").to_numpy()
    theirs = stats.mannwhitneyu(
        logs[held_out], logs[label == "control"], method="asymptotic"
    ).pvalue
    observed = anndata.read_h5ad(results / "papalexi/random-seed0/observed_effects.h5ad")
    ours = observed[name].layers["pvalue"][0]
    tested = np.isfinite(ours)
    expressed = (logs[label == "control"] > 0).mean(axis=0) * held_out.sum()
    np.testing.assert_array_equal(tested, expressed >= 5)
    np.testing.assert_allclose(np.log(ours[tested]), np.log(theirs[tested]), rtol=0.5, atol=0.1)


def test_norman_runs_on_unseen_combinations(project):
    screen = real_file("norman2019_k562_crispra_3375x500.h5ad")
    project.config = {
        "screens": {
            "norman": {
                "source": "h5ad", "path": str(screen), "perturbation_column": "condition",
                "control": "control",
            }
        },
        "models": {"sams": SAMS},
        "training": {**TRAINING, "max_steps": 600, "batch_size": 256},
        "evaluation": {"mapped_cells": 0},
        "experiments": {
            "norman": {
                "screen": "norman",
                "split": {
                    "kind": "unseen_combinations", "fractions": [0.5],
                    "untrained_perturbations": "keep_prior",
                },
                "models": ["sams", "additive", "no_change"],
            }
        },
    }  # fmt: skip
    # the other figures and the report are drawn of simulated screens
    figures = ("combinations", "effects", "volcanoes", "perturbations", "paired_differences")
    targets = [f"results/norman/figures/{name}.svg" for name in figures]
    done = project.snakemake(*targets, "results/norman/tables/metrics.parquet", cores=1)
    assert done.returncode == 0, done.stdout[-4000:]
    observed, predicted = effects(project, "norman", "unseen_combinations-f0.5-seed0", "sams")
    assert "KLF1+SET" in observed.index
    assert (observed.loc["KLF1", ["HBZ", "HBG2"]] > 1).all()
    assert (predicted.loc["KLF1", ["HBZ", "HBG2"]] > 0.1).all()
    pairs = pd.read_csv(project.folder / "results/norman/tables/combinations.tsv", sep="\t")
    assert set(pairs["model"]) == {"sams", "additive", "no_change"}
    assert len(pairs) == 3 * N_PAIRS_WITH_BOTH_SINGLES
    assert pairs["correlation_with_sum"].between(0.3, 1).all()
    assert (pairs.loc[pairs["model"] == "no_change", "predicted_non_additivity"] == 0).all()
    metrics = pd.read_parquet(project.folder / "results/norman/tables/metrics.parquet")
    assert {"all", "train", "val", "test"} <= set(metrics["scope"])

    # without the permission, a gene that only held-out pairs carry is refused before training
    del project.config["experiments"]["norman"]["split"]["untrained_perturbations"]
    refused = project.snakemake(cores=1)
    assert refused.returncode != 0
    assert "no training cell in this split" in refused.stdout
    assert "keep_prior" in refused.stdout
