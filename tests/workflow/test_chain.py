"""The whole chain on a tiny simulated screen."""

import copy
import hashlib
import html
import json
import os
import re
import subprocess
import sys
import zipfile

import anndata
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from samsvae.evaluation.metrics import METRICS, OTHER_NUMBERS, de_metrics, read_run_metrics
from samsvae.inference.checkpoint import load_model
from samsvae.report.sections import SHOWN_FIGURES
from tests.browser import visit
from tests.conftest import ROOT
from tests.workflow.conftest import TINY_CONFIG, Project, copy_project

# tests of one file share a worker (see the Makefile), so the chain runs once for all of them
pytestmark = pytest.mark.workflow

LIBRARY = "workflow/scripts/samsvae"
FIGURES = {
    "screen", "split", "null", "hits", "knock_down", "training", "iwelbo", "iwelbo_particles", "latent_effects", "truth",
    "effects", "metrics", "similarity", "differential_expression", "enrichment", "perturbations",
    "paired_differences", "volcanoes", "de_by_strength", "combinations", "pathway_map",
    "pathway_agreement",
    "factors", "factor_enrichment", "basal", "recovery", "responders",
    "reliability", "vcc2026", "ranking",
}  # fmt: skip
OF_GENE_SETS = {"enrichment", "pathway_map", "pathway_agreement", "factor_enrichment"}
# the second experiment tests no gene sets, has several fractions, and batches and guides
OF_EXPERIMENT = {
    "random": FIGURES,
    "unseen": FIGURES - OF_GENE_SETS | {"fractions", "guides", "batches", "contexts"},
}


def test_every_promised_output_is_there(finished):
    results = finished.folder / "results"
    assert (results / "report-own.html").stat().st_size > 100_000
    assert (results / "screens/tiny/screen.h5ad").is_file()
    for experiment, split, model, seed in [
        ("random", "random-seed0", "sams", 0),
        ("unseen", "unseen_combinations-f0-seed0", "sams", 1),
        ("unseen", "unseen_combinations-f1-seed0", "sams", 0),
    ]:
        folder = results / experiment / split
        assert {"split.tsv", "observed_effects.h5ad"} <= {p.name for p in folder.iterdir()}
        run = folder / model / f"seed{seed}"
        for name in (
            "model.safetensors",
            "history.tsv",
            "iwelbo.parquet",
            "predicted_effects.h5ad",
        ):
            assert (run / name).is_file()
    for experiment in ("random", "unseen"):
        for suffix in ("svg", "pdf"):
            drawn = {p.stem for p in (results / experiment / "figures").glob(f"*.{suffix}")}
            assert drawn == OF_EXPERIMENT[experiment]


def test_files_keep_their_contract(finished):
    run = finished.folder / "results/random/random-seed0"
    screen = anndata.read_h5ad(finished.folder / "results/screens/tiny/screen.h5ad")
    observed = anndata.read_h5ad(run / "observed_effects.h5ad")
    assert {"ate", "log2fc", "pvalue", "fdr"} <= set(observed.layers)
    for model in finished.config["experiments"]["random"]["models"]:
        predicted = anndata.read_h5ad(run / model / "seed0/predicted_effects.h5ad")
        assert list(predicted.obs_names) == list(observed.obs_names)
        assert list(predicted.var_names) == list(screen.var_names)
        assert np.isfinite(predicted.X).all()
        assert predicted.uns["units"] == observed.uns["units"] == "log2(CP10k + 1)"
    bounds = pd.read_parquet(run / "sams/seed0/iwelbo.parquet")
    split = pd.read_csv(run / "split.tsv", sep="\t")
    assert set(bounds["cell"]) == set(split["cell"][split["split"].isin(["val", "test"])])
    assert np.isfinite(bounds["iwelbo"]).all()
    trained = load_model(run / "sams/seed0/model.safetensors")
    assert trained.genes == list(screen.var_names)


def test_a_screen_is_assessed_within_its_batches(finished):
    results = finished.folder / "results"
    plain, within = (
        anndata.read_h5ad(results / experiment / "screen_effects.h5ad")
        for experiment in ("random", "unseen")
    )
    assert "ate_stratified" not in plain.layers
    assert within.obs["is_stratified"].all()
    np.testing.assert_array_equal(within.X, within.layers["ate_stratified"])
    assert (
        "fdr_stratified"
        in anndata.read_h5ad(
            results / "unseen/unseen_combinations-f0-seed0/observed_effects.h5ad"
        ).layers
    )
    tables = results / "unseen/tables"
    changes = pd.read_csv(tables / "knock_down.tsv", sep="\t")
    pooled = changes[changes["guide"].isna()]
    assert pooled["as_expected"].astype(bool).mean() > 0.8
    guides = pd.read_csv(tables / "guides.tsv", sep="\t")
    singles = {name for name in within.obs_names if "+" not in name}
    assert singles <= set(guides["perturbation"])
    assert set(pd.read_csv(tables / "batches.tsv", sep="\t")["batch"]) == {"batch1", "batch2"}
    findings = (results / "findings-own.txt").read_text()
    assert findings.count("Is the screen sound?") == 2
    shown = pd.read_parquet(tables / "effects.parquet")
    own = shown[shown["model"] == "sams"].set_index(["perturbation", "gene"])["screen_effect"]
    np.testing.assert_allclose(own.to_numpy(), within.X.ravel(), rtol=1e-6)


def test_effects_are_scored_in_each_context(finished):
    folder = finished.folder / "results/unseen"
    scores = pd.read_csv(folder / "tables/context_scores.tsv", sep="\t")
    assert set(scores["context"]) == {"context1", "context2"}
    assert set(scores["model"]) == {"sams", "additive", "others"}
    first = "unseen_combinations-f0-seed0"
    predicted = anndata.read_h5ad(folder / first / "others/seed0/predicted_effects.h5ad")
    observed = anndata.read_h5ad(folder / first / "observed_effects.h5ad")
    guess = predicted.to_df("effect in context2").loc["TARGET03"]
    truth = observed.to_df("ate_held_out in context2").loc["TARGET03"]
    of_others = scores[(scores["split"] == first) & (scores["model"] == "others")]
    [row] = of_others[
        (of_others["perturbation"] == "TARGET03") & (of_others["context"] == "context2")
    ].to_dict("records")
    assert row["rmse_held_out"] == pytest.approx(np.sqrt(((guess - truth) ** 2).mean()), rel=1e-4)
    assert not anndata.read_h5ad(
        finished.folder / "results/random/random-seed0/observed_effects.h5ad"
    ).uns.get("contexts")


def test_metrics_are_tidy_and_cover_every_run(finished):
    for experiment, runs in (("random", 7), ("unseen", 2 * (2 + 1 + 1))):
        path = finished.folder / f"results/{experiment}/tables/metrics.parquet"
        table = read_run_metrics(path)
        assert not table.duplicated(["split", "model", "seed", "scope", "metric"]).any()
        assert len(table[["split", "model", "seed"]].drop_duplicates()) == runs
        assert {"pearson", "r_squared", "iwelbo", "effect_pearson", "mask_f1"} <= set(
            table["metric"]
        )
        assert {f"{m.average}_{name}" for name, m in METRICS.items()} <= set(table["metric"])
        assert {f"median_de_{name}" for name in de_metrics(10)} <= set(table["metric"])


def test_all_metrics_stand_in_one_table_that_says_what_they_are(finished):
    for experiment in TINY_CONFIG["experiments"]:
        results = finished.folder / "results" / experiment
        table = pd.read_parquet(results / "tables/metrics.parquet")
        of_splits = pd.concat(map(pd.read_parquet, results.glob("*-seed0/metrics.parquet")))
        bounds = pd.read_csv(results / "tables/iwelbo.tsv", sep="\t")
        truth = pd.read_csv(results / "tables/truth.tsv", sep="\t")
        assert list(table) == list(of_splits)
        assert len(table) == len(of_splits) + len(bounds) + len(truth)
        assert (table["scope"] == "perturbation").equals(table["perturbation"].notna())
        for scope, metric, one in (
            ("test", "iwelbo", bounds.loc[bounds["scope"] == "test", "iwelbo"]),
            ("truth", "mask_f1", truth.loc[truth["metric"] == "mask_f1", "value"]),
        ):
            chosen = table[(table["scope"] == scope) & (table["metric"] == metric)]
            assert len(chosen)
            assert sorted(chosen["value"]) == pytest.approx(sorted(one))
        unknown = table.loc[table["description"].isna(), "metric"].unique()
        assert not len(unknown), f"not in the registry: {list(unknown)}"
        no_direction = table.loc[table["direction"].isna(), "metric"].unique()
        assert all(
            name.startswith(("spread_", "drf_", "bds_")) or name in OTHER_NUMBERS
            for name in no_direction
        )
        calibration = pd.read_csv(results / "tables/calibration.tsv", sep="\t")
        found = table[table["scope"] == "calibration"].set_index(["split", "metric"])["value"]
        assert len(found) == 2 * len(calibration)
        row = calibration.dropna().iloc[0]
        assert found[row["split"], f"bds_{row['metric']}"] == pytest.approx(row["bds"])


def test_models_are_ranked_and_the_report_begins_with_the_verdict(finished):
    findings = (finished.folder / "results/findings-own.txt").read_text()
    for experiment, settings in TINY_CONFIG["experiments"].items():
        tables = finished.folder / "results" / experiment / "tables"
        ranking = pd.read_csv(tables / "ranking.tsv", sep="\t")
        assert set(ranking["model"]) <= set(settings["models"])
        for _, rows in ranking.groupby("fraction", dropna=False):
            assert rows["score"].is_monotonic_decreasing
            assert (rows.loc[rows["model"] == rows["reference"], "score"] == 0).all()
        for text in pd.read_csv(tables / "verdict.tsv", sep="\t")["verdict"]:
            assert text.replace(" ", "") in findings.replace("\n", "").replace(" ", "")


def test_the_report_shows_every_figure_and_asks_the_network_for_nothing(finished):
    page = (finished.folder / "results/report-own.html").read_text()
    assert page.count("<figure ") == sum(map(len, OF_EXPERIMENT.values()))
    assert page.count('src="data:image/svg+xml;base64,') == page.count("<img ")
    # BokehJS could load a formula's fonts; a visit of the page by Chromium is a test of its own
    without_scripts = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="(?:https?:)?//', without_scripts)
    assert zipfile.is_zipfile(finished.folder / "results/report-own.zip")
    assert "recovered best" in page
    assert "{{" not in page


MEASURE = """
document.getElementById("choose-experiment").value = "";
document.getElementById("choose-experiment").dispatchEvent(new Event("change"));
for (const folded of document.querySelectorAll("details")) folded.open = true;
setTimeout(() => {
  const tables = [...document.querySelectorAll("details.table")].map((box) => {
    const { scrollWidth, clientWidth } = box.querySelector(".scroll");
    return [box.id, box.querySelectorAll("tbody tr").length, scrollWidth - clientWidth];
  });
  const wide = [...document.querySelectorAll(".drawing, .headline, .scroll")].map((part) => [
    part.className.split(" ")[0], part.scrollWidth > part.clientWidth + 1, part.matches(".wide"),
  ]);
  const told = document.createElement("output");
  told.textContent = JSON.stringify([tables, wide, document.documentElement.scrollWidth, innerWidth]);
  document.body.append(told);
}, 1000);
"""


@pytest.mark.parametrize("width", [1300, 500])  # Chromium has no narrower window
def test_nothing_of_the_report_is_cut_at_the_right(finished, width):
    seen = visit(finished.folder / "results/report-own.html", MEASURE, width)
    told = json.loads(html.unescape(re.search(r"<output>(.*?)</output>", seen.html).group(1)))
    tables, wide, needed, available = told
    assert available == width
    assert needed <= available
    assert len(tables) > 20
    assert all(rows for _, rows, _ in tables)
    assert all(is_wide == says_so for _, is_wide, says_so in wide)
    if width == 1300:
        assert [name for name, _, too_wide in tables if too_wide > 1] == []
    else:  # on a telephone a figure or a table is moved under the finger
        assert {kind for kind, is_wide, _ in wide if is_wide} == {"drawing", "headline", "scroll"}


def test_a_second_run_does_nothing(finished):
    before = finished.times()
    done = finished.snakemake()
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout
    assert finished.times() == before


def test_one_figure_comes_back_with_those_of_its_module_and_soon(finished):
    figure = "results/random/figures/metrics.svg"
    before = finished.times()
    drawn = (finished.folder / figure).read_bytes()
    (finished.folder / figure).unlink()
    assert finished.planned(figure) == {"draw_scores": 1}
    assert finished.snakemake(figure).returncode == 0
    assert (finished.folder / figure).read_bytes() == drawn
    after = finished.times()
    changed = {name for name in after if after[name] != before.get(name)}
    of_module = {n for n in OF_EXPERIMENT["random"] if SHOWN_FIGURES[n].module == "scores"}
    made_with_it = (
        f"{folder}random/figures/{name}.{suffix}"
        for folder, ending in (("", ""), ("provenance/", ".json"))
        for name in of_module
        for suffix in (f"svg{ending}", f"pdf{ending}")
    )
    assert changed == {
        "results/logs/draw_figures/random/scores.log",
        "results/benchmarks/draw_figures/random/scores.tsv",
        *(f"results/{name}" for name in made_with_it),
    }
    assert finished.snakemake("--touch").returncode == 0


@pytest.mark.parametrize(
    ("module", "reruns", "spares"),
    [
        ("biology/enrichment.py", {"enrich_effects", "compare_pathways"}, {"train", "evaluate_run"}),
        ("evaluation/predicted.py", {"evaluate_run", "evaluate_effects"}, {"train", "observe_effects", "split_cells"}),
        ("models/sams_vae.py", {"train", "evaluate_run"}, {"split_cells", "observe_effects", "predict_baselines"}),
        ("figures/scores.py", {"draw_scores", "write_report"}, {"train", "compare_iwelbo"}),
    ],
)  # fmt: skip
def test_an_edited_module_reruns_what_uses_it_and_nothing_else(finished, module, reruns, spares):
    path = finished.folder / LIBRARY / module
    source = path.read_text()
    path.write_text(source + "\nEDITED = 1\n")
    planned = finished.planned()
    path.write_text(source)
    assert reruns <= set(planned)
    assert not spares & set(planned)


def test_other_words_in_any_file_rerun_nothing(finished):
    """A script that was edited is newer than what it made, which the profile leaves to its digest."""
    kept = {p: p.read_text() for p in (finished.folder / "workflow").rglob("*.py")}
    for path, source in kept.items():
        path.write_text(f"# another comment\n{source}")
    planned = finished.planned()
    for path, source in kept.items():
        path.write_text(source)
    assert planned == {}


def test_an_edited_script_reruns_its_own_rule(finished):
    path = finished.folder / "workflow/scripts/enrich_effects.py"
    source = path.read_text()
    path.write_text(f"{source}\nEDITED = 1\n")
    planned = finished.planned()
    path.write_text(source)
    assert {"enrich_effects", "compare_pathways"} <= set(planned)
    assert not {"train", "evaluate_run", "predict_baselines"} & set(planned)


def test_an_edited_model_is_retrained_without_the_others(finished):
    path = finished.folder / LIBRARY / "models/svae_plus.py"
    source = path.read_text()
    path.write_text(source + "\nEDITED = 1\n")
    planned = finished.planned()
    path.write_text(source)
    assert planned["train"] == planned["evaluate_run"] == 1


def test_figures_of_an_edited_module_are_drawn_alone(finished):
    path = finished.folder / LIBRARY / "figures/scores.py"
    source = path.read_text()
    path.write_text(source + "\nEDITED = 1\n")
    planned = finished.planned()
    path.write_text(source)
    # the experiments differ in a figure of this module, and so have a rule each
    assert planned == {"draw_scores": 1, "draw_scores_2": 1, "write_report": 1}


def test_a_changed_model_is_retrained_alone(finished):
    changed = copy.deepcopy(TINY_CONFIG)
    changed["models"]["cpa"]["n_hidden"] = 17
    planned = Project(finished.folder, changed).planned()
    assert planned["train"] == planned["evaluate_run"] == 1
    assert not {"split_cells", "observe_effects", "simulate_screen", "predict_baselines"} & set(
        planned
    )


def test_a_models_added_to_an_experiment_leaves_the_others_alone(finished):
    changed = copy.deepcopy(TINY_CONFIG)
    changed["models"]["another"] = {"kind": "cpa_vae", "n_latent": 3, "n_hidden": 8}
    changed["experiments"]["random"]["models"].append("another")
    assert Project(finished.folder, changed).planned()["train"] == 1


def test_the_same_configuration_gives_the_same_numbers_whatever_the_cores(finished, tmp_path):
    """Two families and a baseline, whose rows are compared."""
    again = Project(copy_project(tmp_path, finished.folder), copy.deepcopy(TINY_CONFIG))
    del again.config["experiments"]["unseen"]
    models = ["sams", "svae", "additive"]
    again.config["experiments"]["random"]["models"] = models
    tables = [
        f"results/random/tables/{name}.tsv"
        for name in (
            "iwelbo", "de_comparison", "combinations", "enrichment",
            "latent_effects", "factors", "factor_enrichment", "basal", "recovery",
        )
    ]  # fmt: skip
    metrics = "results/random/tables/metrics.parquet"
    done = again.snakemake(*tables, metrics, cores=1)
    assert done.returncode == 0, done.stdout[-4000:]
    run = "results/random/random-seed0/sams/seed0"
    for name in ("model.safetensors", "history.tsv"):
        assert weights(again, run, name) == weights(finished, run, name)
    one, other = (read_run_metrics(folder / metrics) for folder in (again.folder, finished.folder))
    other = other[other["model"].isin(models)].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    for table in tables:
        rows, all_rows = (
            rows_of(folder / table, models) for folder in (again.folder, finished.folder)
        )
        assert len(rows) > 1
        assert rows == all_rows


def rows_of(table, models):
    """Lines of a table without other models, and without orders over all models."""
    head, *lines = (line.split("\t") for line in table.read_text().splitlines())
    kept = [at for at, name in enumerate(head) if name not in ("perturbation_order", "mask_order")]
    shown = {"model", *models, "observed"}
    rows = [line for line in [head, *lines] if line[head.index("model")] in shown]
    return [[line[at] for at in kept] for line in rows]


def weights(project, run, name):
    path = project.folder / run / name
    if name.endswith(".tsv"):
        return path.read_text()
    state = load_model(path).model.state_dict()
    return {key: tensor.numpy().tobytes() for key, tensor in state.items()}


def test_planning_the_default_configuration_imports_nothing_heavy(project):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "snakemake", "--dry-run", "--cores", "1"],
        cwd=project.folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "samsvae.config.configuration" in imported
    assert not {"torch", "scanpy", "pyro"} & imported


def test_the_chain_behind_a_figure_leads_back_to_the_cells(finished):
    """Every digest is that of the file as it is, and a file changed since is told."""
    figure = "results/random/figures/iwelbo"
    done = finished.snakemake(f"{figure}.provenance.txt")
    assert done.returncode == 0, done.stdout[-4000:]
    told = (finished.folder / f"{figure}.provenance.txt").read_text()
    assert told in done.stdout
    stages = re.findall(r"(?m)^(\w+): \d+ file", told)
    assert {"draw_scores", "compare_iwelbo", "evaluate_run", "train", "simulate_screen"} <= set(
        stages
    )
    screen = finished.folder / "results/screens/tiny/screen.h5ad"
    assert hashlib.sha256(screen.read_bytes()).hexdigest()[:16] in told
    assert "Changed:" not in told
    assert "Gone:" not in told
    record = json.loads(
        (finished.folder / "results/provenance/random/tables/iwelbo.tsv.json").read_text()
    )
    assert {"config_digest", "code_digest", "versions", "machine", "seed", "inputs"} <= set(record)
    table = finished.folder / "results/random/tables/iwelbo.tsv"
    before, times = table.read_bytes(), os.stat(table)
    table.write_bytes(before + b"\n")
    edited = subprocess.run(
        [sys.executable, "-c", f"from samsvae.runtime.provenance import *; print(describe_lineage('{figure}.svg'))"],
        cwd=finished.folder, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": "workflow/scripts"},
    )  # fmt: skip
    table.write_bytes(before)
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "Changed: results/random/tables/iwelbo.tsv" in edited.stdout


def test_cells_are_sampled_on_request(finished):
    path = "results/random/random-seed0/sams/seed0/sampled_cells.h5ad"
    chosen = copy.deepcopy(TINY_CONFIG)
    chosen["evaluation"] |= {"sampled_cells": 3, "sample_from": "prior"}
    asked = Project(finished.folder, chosen)
    assert asked.planned() == {"write_report": 1}  # it shows the configuration
    assert asked.planned(path) == {"sample_cells": 1}
    done = asked.snakemake(path)
    assert done.returncode == 0, done.stdout[-4000:]
    cells = anndata.read_h5ad(finished.folder / path)
    screen = anndata.read_h5ad(finished.folder / "results/screens/tiny/screen.h5ad")
    assert set(cells.obs["perturbation"]) == set(screen.obs["perturbation"])
    assert cells.obs["perturbation"].value_counts().eq(3).all()
    assert list(cells.var_names) == list(screen.var_names)
    assert set(cells.obs["library_size"]) <= set(screen.obs["library_size"])
    assert '"sample_from": "prior"' in cells.uns["provenance"]


def test_a_model_applied_to_its_own_screen_gives_its_own_numbers(finished):
    run = "results/random/random-seed0/sams/seed0"
    paths = [f"{run}/applied/{screen}/cells.h5ad" for screen in ("tiny", "batched")]
    assert finished.planned(*paths) == {"apply_model": 2}
    done = finished.snakemake(*paths)
    assert done.returncode == 0, done.stdout[-4000:]
    folder = finished.folder / run
    own, applied = (
        anndata.read_h5ad(folder / path) for path in ("cells.h5ad", paths[0][len(run) + 1 :])
    )
    screen = anndata.read_h5ad(finished.folder / "results/screens/tiny/screen.h5ad")
    assert (own.X != screen.X).nnz == 0
    for name in ("X_basal", "X_latent", "X_shift"):
        np.testing.assert_array_equal(own.obsm[name], applied.obsm[name])
    for name in ("bound", "responder_score", "responder_probability"):
        np.testing.assert_array_equal(own.obs[name], applied.obs[name])
    assert set(own.uns["factors"]) <= {"factors", "genes", "gene_sets"}
    for name in ("responders.tsv", "responder_scores.tsv"):
        assert (folder / name).read_text() == (folder / "applied/tiny" / name).read_text()
    assert (folder / "applied/tiny/notes.txt").read_text() == ""
    # three of whose targets are measured genes, under names that the model does not know
    notes = (folder / "applied/batched/notes.txt").read_text()
    assert "8 of the model's 60 genes are not measured" in notes
    table = pd.read_csv(finished.folder / "results/random/tables/responders.tsv", sep="\t")
    assert set(table["model"]) == {"sams"}
    listed = pd.read_csv(finished.folder / "results/random/tables/perturbations.tsv", sep="\t")
    known = table.dropna(subset="responders")["perturbation"]
    told = listed.set_index("perturbation")["responders"]
    assert (told[~told.index.isin(known)] == "unknown").all()


def test_the_notebook_explores_a_run(finished, monkeypatch, caplog):
    cells = json.loads((ROOT / "docs" / "notebooks" / "explore.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    monkeypatch.chdir(finished.folder)
    names: dict[str, object] = {}
    exec(code[0], names)
    names["RUN"] = finished.folder / "results/random"
    names["MODEL"] = finished.folder / "results/random/random-seed0/sams/seed0/model.safetensors"
    names["CELLS"] = finished.folder / "results/screens/tiny/screen.h5ad"
    for each in code[1:]:
        exec(each, names)
    plt.close("all")
    encoded, whole = names["cells"], names["whole"]
    assert encoded.n_obs == whole.n_obs
    assert encoded.n_vars == whole.n_vars - 3
    assert "3 of the model's 60 genes are not measured" in caplog.text
    hits = pd.read_csv(finished.folder / "results/random/tables/hits.tsv", sep="\t")
    assert names["strongest"] == hits["perturbation"].iloc[0]
    assert names["changes"]["fdr"].dropna().is_monotonic_increasing
    titles = [axis.get_title() for axis in names["figure"].axes]
    assert [name for name in names["chosen"] if any(name in title for title in titles)] == list(
        hits["perturbation"].head(2)
    )
    assert list(names["predicted"].index) == [names["one"], names["two"], "TARGET01+TARGET02"]
    assert names["imagined"].n_obs == 50
    assert len(names["scores"]) > 0


def test_a_perturbation_is_drawn_on_request_and_all_of_them_by_a_target(finished):
    name = "TARGET01"
    path = f"results/random/figures/perturbations/{name}.svg"
    assert finished.planned(path) == {"perturbation_figure": 1}
    assert finished.snakemake(path).returncode == 0
    assert f'"perturbation": "{name}"' in html.unescape((finished.folder / path).read_text())
    assert (finished.folder / path).with_suffix(".pdf").is_file()
    screen = anndata.read_h5ad(finished.folder / "results/screens/tiny/screen.h5ad")
    n_perturbations = screen.obs["perturbation"].nunique() - 1
    planned = finished.planned("perturbation_figures")
    assert planned.pop("perturbation_figures", 1) == 1
    assert planned == {"perturbation_figure": 2 * n_perturbations - 1}


def test_cells_for_cell_eval_are_made_on_request_of_a_negative_control_and_of_a_baseline(finished):
    changed = copy.deepcopy(TINY_CONFIG)
    changed["evaluation"]["exported_cells"] = 30
    changed["models"]["shuffled"] = {**changed["models"]["cpa"], "shuffle_labels": True}
    asked = Project(finished.folder, changed)
    run = "results/random/random-seed0/{}/seed0/cell_eval/real.h5ad"
    paths = [run.format(model) for model in ("shuffled", "additive")]
    assert asked.planned(*paths) == {"train": 1, "export_cells": 2}
    done = asked.snakemake(*paths)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "this model is a negative control" in done.stdout
    screen = anndata.read_h5ad(finished.folder / "results/screens/tiny/screen.h5ad")
    for path in paths:
        real = anndata.read_h5ad(finished.folder / path)
        predicted = anndata.read_h5ad((finished.folder / path).with_name("predicted.h5ad"))
        assert set(real.obs["target_gene"]) == set(predicted.obs["target_gene"])
        assert predicted.obs["target_gene"].value_counts().eq(30).all()
        assert list(real.var_names) == list(predicted.var_names) == list(screen.var_names)
        assert set(real.obs_names) < set(screen.obs_names)
        assert '"seed": 0' in predicted.uns["provenance"]


def test_states_are_mapped_where_this_is_not_switched_off(finished):
    figure = "results/random/figures/state_map.svg"
    chosen = copy.deepcopy(TINY_CONFIG)
    chosen["evaluation"]["mapped_cells"] = 60
    asked = Project(finished.folder, chosen)
    assert asked.planned(figure) == {"compute_maps": 1, "draw_states": 1}
    assert not finished.planned("tables")
    done = asked.snakemake(figure)
    assert done.returncode == 0, done.stdout[-4000:]
    table = pd.read_csv(finished.folder / "results/random/tables/state_map.tsv", sep="\t")
    assert table.groupby("state").size().to_dict() == {"basal": 60, "total": 60}
    assert np.isfinite(table[["x", "y"]]).all(axis=None)


def test_latent_tables_of_any_run_are_made_by_their_path(finished):
    run = "results/unseen/unseen_combinations-f1-seed0/sams/seed1"
    assert finished.planned(f"{run}/factors.tsv") == {"tabulate_latents_of_run": 1}
    assert finished.planned(f"{run}/basal.tsv") == {"tabulate_latents_of_run": 1}


def test_enrichment_of_any_run_is_tested_by_its_path(finished):
    run = "results/random/random-seed0/cpa/seed0"
    assert finished.planned(f"{run}/enrichment.tsv") == {"enrich_effects_of_run": 1}
    done = finished.snakemake(f"{run}/enrichment.tsv")
    assert done.returncode == 0, done.stdout[-4000:]
    one, all_runs = (
        pd.read_csv(finished.folder / path, sep="\t")
        for path in (f"{run}/enrichment.tsv", "results/random/tables/enrichment.tsv")
    )
    assert set(one["model"]) == {"observed", "cpa"}
    shown = all_runs[all_runs["model"].isin(["observed", "cpa"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, shown)


def test_long_work_shows_progress_in_terminal_and_log(finished):
    log = finished.folder / "results/logs/train/random/random-seed0/sams-seed0.log"
    text = log.read_text()
    assert "step 60/60 (100 %)" in text
    assert "steps/s" in text
    assert "validation" in text
