"""Add a source, a baseline, a model, a metric and a figure as docs/extending.md says."""

import re

import anndata
import pandas as pd
import pytest

from samsvae.evaluation.scores import read_run_metrics
from tests.conftest import ROOT, TINY
from tests.workflow.conftest import SMALL_NETWORK, TINY_CONFIG

pytestmark = pytest.mark.workflow

MODELS = ["median_effect", "additive", "no_change"]
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


def test_a_source_a_baseline_and_a_metric_are_added_as_the_page_says(project):
    for section in ("A source", "A baseline", "A metric"):
        new, to_others = add(project, section)
        assert new <= MAX_LINES_OF_MODEL
        assert 0 < to_others < MAX_LINES
    project.config = {
        "screens": {
            "tiny": {"source": "simulated", **vars(TINY)},
            "linear": {"source": "simulated_linear", "n_cells": 20},
        },
        "models": {"median_effect": {"kind": "median_effect"}},
        "experiments": {
            "new": {"screen": "tiny", "split": {"kind": "random"}, "models": MODELS},
            "linear": {"screen": "linear", "split": {"kind": "as_simulated"}, "models": MODELS},
        },
    }
    tables = project.folder / "results/new/tables"
    targets = ("new/tables/summary.tsv", "new/tables/effects.parquet", "linear/tables/summary.tsv")
    done = project.snakemake(*(f"results/{target}" for target in targets))
    assert done.returncode == 0, done.stdout[-4000:]
    for table in (
        pd.read_csv(tables / "summary.tsv", sep="\t"),
        pd.read_parquet(tables / "effects.parquet"),
    ):
        assert set(MODELS) <= set(table["model"])
    metrics = read_run_metrics(tables / "metrics.parquet")
    metrics = metrics.set_index(["metric", "scope", "model"])["value"]
    error = metrics["median_largest_error", "all"]
    assert (error > metrics["median_rmse", "all"]).all()
    compared = pd.read_csv(tables / "paired_differences.tsv", sep="\t")
    assert "median_largest_error_held_out" in set(compared["metric"])
    screen = anndata.read_h5ad(project.folder / "results/screens/linear/screen.h5ad")
    assert screen.shape == ((10 + 1) * 3 * 20, 40)
    assert screen.obs["perturbation"].value_counts().eq(3 * 20).all()
    of_linear = pd.read_csv(project.folder / "results/linear/tables/summary.tsv", sep="\t")
    assert set(MODELS) <= set(of_linear["model"])


def test_a_trained_model_is_added_as_the_page_says(project):
    """One module and one entry; it is then in every table and figure of a run."""
    new, to_catalogue = add(project, "A trained model")
    assert 0 < new <= MAX_LINES_OF_MODEL
    assert 0 < to_catalogue < MAX_LINES
    project.config = {
        **{section: TINY_CONFIG[section] for section in ("training", "evaluation", "enrichment")},
        "screens": {"tiny": {"source": "simulated", **vars(TINY)}},
        "models": {"laplace": {"kind": "laplace_sams_vae", **SMALL_NETWORK}},
        "experiments": {
            "new": {
                "screen": "tiny",
                "split": {"kind": "random"},
                "models": ["laplace", "additive", "no_change"],
            }
        },
    }
    done = project.snakemake()
    assert done.returncode == 0, done.stdout[-6000:]
    results = project.folder / "results"
    found = set()
    for path in sorted((results / "new/tables").glob("*")):
        read = pd.read_parquet if path.suffix == ".parquet" else lambda p: pd.read_csv(p, sep="\t")
        table = read(path)
        if "model" in table and len(table):
            assert "laplace" in set(table["model"].astype(str)), path.name
            found.add(path.name)
    assert {"metrics.parquet", "summary.tsv", "iwelbo.tsv", "latent_effects.tsv"} <= found
    drawn = {path.stem for path in (results / "new/figures").glob("*.svg")}
    assert {"training", "iwelbo", "effects", "metrics", "factors", "truth", "basal"} <= drawn
    assert "shrinks strong effects less" in (results / "report-own.html").read_text()


def test_a_figure_is_added_as_the_page_says(project):
    """One module, one entry and a caption; it is drawn, and redrawn alone when its file is edited."""
    new, to_others = add(project, "A figure")
    assert 0 < new <= MAX_LINES_OF_MODEL
    assert to_others == 1
    project.config = {
        "screens": {"tiny": {"source": "simulated", **vars(TINY)}},
        "experiments": {
            "new": {"screen": "tiny", "split": {"kind": "random"}, "models": MODELS[1:]}
        },
    }
    figures = [f"results/new/figures/{name}.svg" for name in ("retrieval", "metrics")]
    done = project.snakemake(*figures)
    assert done.returncode == 0, done.stdout[-4000:]
    drawn = (project.folder / figures[0]).read_text()
    assert "Perturbation retrieval." in drawn
    assert "No model has a retrieval rank." not in drawn
    assert figures[0] in project.snakemake("figures", "--dry-run").stdout
    module = project.folder / "workflow/scripts/samsvae/figures/retrieval.py"
    module.write_text(module.read_text() + "\nEDITED = 1\n")
    assert project.planned(*figures) == {"figure": 1}
