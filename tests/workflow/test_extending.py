"""Add a source, a baseline, a model, a metric and a figure as docs/extending.md says.

Predictions of another tool are beside them, since they need no code.
"""

import copy
import re

import anndata
import numpy as np
import pandas as pd
import pytest

from samsvae.evaluation.metrics import read_run_metrics
from tests.conftest import ROOT, TINY
from tests.workflow.conftest import SMALL_NETWORK, TINY_CONFIG, Project, copy_project

pytestmark = pytest.mark.workflow

MODELS = ["laplace", "median_effect", "additive", "no_change", "theirs"]
MAX_LINES = 30  # outside a new module
MAX_LINES_OF_MODEL = 80


def blocks(section):
    """Code of a section of the page, with the file that it belongs to."""
    page = (ROOT / "docs/extending.md").read_text()
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE).group(1)
    return re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', text, re.DOTALL)


def before(text, anchor, addition):
    """Add lines before the first line that begins so."""
    at = re.search(rf"^{re.escape(anchor)}", text, re.MULTILINE).start()
    return text[:at] + addition + text[at:]


def added(name, text, code):
    """Text of a file with the code of the page in its place."""
    lines = code.splitlines(keepends=True)
    match name:
        case "baselines.py":
            text = before(text, "from samsvae.screen.labels", lines[0])
            return before(text, "}", lines[-1])
        case "screens.py":
            return before(text, "SOURCES", code + "\n\n")
        case "models.py":
            return before(text, "def _entries", code + "\n\n")
        case "agreement.py":
            return text.rstrip() + "\n\n\n" + code
        case "metrics.py":
            return before(text, "}  # fmt: skip", code)
        case "sections.py":
            return before(text, '            Figure("metrics"', code)
    raise AssertionError(f"the page names {name}, which this test knows nothing of")


def add(project, section):
    """Do what a section says; lines of new modules, and lines added to others."""
    new, to_others = 0, 0
    for path, code in blocks(section):
        file = project.folder / path
        if file.exists():
            was = file.read_text()
            file.write_text(added(file.name, was, code))
            to_others += len(set(file.read_text().splitlines()) - set(was.splitlines()))
        else:
            file.write_text(code)
            new += len(code.splitlines())
    return new, to_others


SECTIONS = ("A source", "A baseline", "A trained model", "A metric", "A figure")


def predict_elsewhere(folder):
    """Predict the effects of training cells as another tool would: by numpy, in another order."""
    screen = anndata.read_h5ad(folder / "results/screens/tiny/screen.h5ad")
    parts = pd.read_csv(folder / "results/new/random-seed0/split.tsv", sep="\t")["split"]
    counts, labels = screen.X.toarray(), screen.obs["perturbation"].astype(str)
    logs = np.log2(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))
    means = pd.DataFrame(logs, columns=screen.var_names)[(parts == "train").to_numpy()]
    means = means.groupby(labels.to_numpy()[(parts == "train").to_numpy()]).mean()
    effects = means.drop("control") - means.loc["control"]
    effects = effects.rename(index=lambda name: "+".join(reversed(name.split("+"))))
    effects = effects.sample(frac=1, axis=1, random_state=0)
    path = folder / "predictions/random-seed0.h5ad"
    path.parent.mkdir()
    anndata.AnnData(effects).write_h5ad(path)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy with all that the page adds, and its run; lines added by section."""
    project = Project(copy_project(tmp_path_factory.mktemp("extended")))
    lines = {section: add(project, section) for section in SECTIONS}
    project.config = {
        **{section: TINY_CONFIG[section] for section in ("training", "evaluation", "enrichment")},
        "screens": {"tiny": {"source": "simulated", **vars(TINY)}},
        "models": {
            "laplace": {"kind": "laplace_sams_vae", **SMALL_NETWORK},
            "median_effect": {"kind": "median_effect"},
            "theirs": {"kind": "external", "path": "predictions/{split}.h5ad"},
        },
        "experiments": {
            "new": {"screen": "tiny", "split": {"kind": "random"}, "models": MODELS, "gene_sets": []},
        },
    }  # fmt: skip
    divided = project.snakemake("results/new/random-seed0/split.tsv")
    assert divided.returncode == 0, divided.stdout[-6000:]
    predict_elsewhere(project.folder)
    done = project.snakemake()
    assert done.returncode == 0, done.stdout[-6000:]
    return project, lines


def test_each_section_adds_one_file_and_one_entry(extended):
    _, lines = extended
    for section, (new, to_others) in lines.items():
        assert new <= MAX_LINES_OF_MODEL, section
        assert 0 < to_others < MAX_LINES, section
    assert all(lines[section][0] for section in ("A source", "A trained model", "A figure"))
    assert lines["A figure"][1] == 1


def test_an_added_model_and_baseline_are_in_every_table_and_figure(extended):
    project, _ = extended
    results = project.folder / "results"
    found = set()
    for path in sorted((results / "new/tables").glob("*")):
        read = pd.read_parquet if path.suffix == ".parquet" else lambda p: pd.read_csv(p, sep="\t")
        table = read(path)
        if "model" in table and len(table):
            models = set(table["model"].astype(str))
            assert models & {"laplace", "median_effect"}, path.name
            found |= {(path.name, model) for model in models}
    names = ["metrics.parquet", "summary.tsv", "effects.parquet", "de_comparison.tsv"]
    assert {(name, model) for name in names for model in MODELS} <= found
    assert {(name, "laplace") for name in ("iwelbo.tsv", "latent_effects.tsv")} <= found
    drawn = {path.stem for path in (results / "new/figures").glob("*.svg")}
    assert {"training", "iwelbo", "effects", "metrics", "factors", "truth", "basal"} <= drawn
    assert "shrinks strong effects less" in (results / "report-own.html").read_text()


def test_predictions_of_another_tool_stand_wherever_a_baseline_stands(extended):
    project, _ = extended
    results = project.folder / "results"
    number = 0
    for path in sorted((results / "new/tables").glob("*")):
        read = pd.read_parquet if path.suffix == ".parquet" else lambda p: pd.read_csv(p, sep="\t")
        table = read(path)
        models = set(table["model"].astype(str)) if "model" in table else set()
        if "median_effect" in models:
            assert "theirs" in models, path.name
            number += 1
    for path in sorted((results / "new/figures").glob("*.svg")):
        if "median effect" in (text := path.read_text()):
            assert "theirs" in text, path.name
            number += 1
    assert number >= 10
    assert "predictions of another tool" in (results / "report-own.html").read_text()
    predicted = results / "new/random-seed0/theirs/seed0/predicted_effects.h5ad"
    own = results / "new/random-seed0/additive/seed0/predicted_effects.h5ad"
    theirs, additive = anndata.read_h5ad(predicted), anndata.read_h5ad(own)
    single = ~theirs.obs_names.str.contains("+", regex=False)
    np.testing.assert_allclose(theirs.X[single], additive.X[single], atol=1e-5)


def test_an_added_metric_is_computed_and_compared(extended):
    project, _ = extended
    tables = project.folder / "results/new/tables"
    metrics = read_run_metrics(tables / "metrics.parquet")
    metrics = metrics.set_index(["metric", "scope", "model"])["value"]
    error = metrics["median_largest_error", "all"]
    assert (error > metrics["median_rmse", "all"]).all()
    compared = pd.read_csv(tables / "paired_differences.tsv", sep="\t")
    assert "median_largest_error_held_out" in set(compared["metric"])


def test_an_added_figure_is_drawn_and_redrawn_alone_when_its_file_is_edited(extended):
    project, _ = extended
    figure = "results/new/figures/retrieval.svg"
    drawn = (project.folder / figure).read_text()
    assert "Perturbation retrieval." in drawn
    assert "No model has a retrieval rank." not in drawn
    page = (project.folder / "results/report-own.html").read_text()
    assert "Perturbation retrieval." in page
    module = project.folder / "workflow/scripts/samsvae/figures/retrieval.py"
    source = module.read_text()
    module.write_text(f"{source}\nEDITED = 1\n")
    planned = project.planned()
    module.write_text(source)
    assert planned == {"draw_retrieval": 1, "write_report": 1}


def test_an_added_source_is_simulated_and_split(extended):
    project, _ = extended
    linear = Project(project.folder, copy.deepcopy(project.config))
    linear.config["screens"] = {"linear": {"source": "simulated_linear", "n_cells": 20}}
    models = ["median_effect", "additive", "no_change"]
    linear.config["experiments"] = {
        "linear": {"screen": "linear", "split": {"kind": "as_simulated"}, "models": models}
    }
    done = linear.snakemake("results/linear/tables/summary.tsv")
    assert done.returncode == 0, done.stdout[-4000:]
    screen = anndata.read_h5ad(project.folder / "results/screens/linear/screen.h5ad")
    assert screen.shape == ((10 + 1) * 3 * 20, 40)
    assert screen.obs["perturbation"].value_counts().eq(3 * 20).all()
    summary = pd.read_csv(project.folder / "results/linear/tables/summary.tsv", sep="\t")
    assert set(models) <= set(summary["model"])
