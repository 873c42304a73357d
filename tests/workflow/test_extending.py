"""What docs/extending.md says of a new baseline and a new metric, done as it stands there."""

import re

import pandas as pd
import pytest

from tests.conftest import ROOT, TINY

pytestmark = pytest.mark.workflow

MODELS = ["median_effect", "additive", "no_change"]
MOST_LINES = 30  # outside a new module


def blocks():
    """Code of the page, by the file that it belongs to."""
    page = (ROOT / "docs/extending.md").read_text()
    return re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', page, re.DOTALL)


def before(text, anchor, addition):
    """Add lines before the first line that begins so."""
    at = re.search(rf"^{re.escape(anchor)}", text, re.MULTILINE).start()
    return text[:at] + addition + text[at:]


def add_baseline(name, text, code):
    lines = code.splitlines(keepends=True)
    match name:
        case "baselines.py":
            text = before(text, "from samsvae.labels", lines[0])
            return before(text, "}", lines[-1])
        case "experiments.py":
            return re.sub(r"^BASELINES = .*\n", code, text, flags=re.MULTILINE)
        case "config.schema.yaml":
            text = text.replace("additive, mean_effect,", "additive, median_effect, mean_effect,")
            text = before(
                text, "      - if: {properties: {kind: {const: split_half}}}", "".join(lines[:2])
            )
            return before(text, "  split_half:", "".join(lines[2:]))
        case "agreement.py":
            return text.rstrip() + "\n\n\n" + code
        case "registry.py":
            return before(text, "}  # fmt: skip", code)
    raise AssertionError(f"the page names {name}, which this test knows nothing of")


def test_a_baseline_and_a_metric_are_added_as_the_page_says(project):
    added = 0
    for path, code in blocks():
        file = project.folder / path
        if file.exists():
            was = file.read_text()
            file.write_text(add_baseline(file.name, was, code))
            added += len(set(file.read_text().splitlines()) - set(was.splitlines()))
        else:
            file.write_text(code)
    assert 0 < added < MOST_LINES
    project.config = {
        "screens": {"tiny": {"source": "simulated", **vars(TINY)}},
        "models": {"median_effect": {"kind": "median_effect"}},
        "experiments": {"new": {"screen": "tiny", "split": {"kind": "random"}, "models": MODELS}},
    }
    tables = project.folder / "results/new/tables"
    done = project.snakemake("results/new/tables/summary.tsv", "results/new/tables/effects.parquet")
    assert done.returncode == 0, done.stdout[-4000:]
    for table in (
        pd.read_csv(tables / "summary.tsv", sep="\t"),
        pd.read_parquet(tables / "effects.parquet"),
    ):
        assert set(MODELS) <= set(table["model"])
    metrics = pd.read_csv(tables / "metrics.tsv", sep="\t").set_index(["metric", "scope", "model"])[
        "value"
    ]
    error = metrics["median_largest_error", "all"]
    assert (error > metrics["median_rmse", "all"]).all()
    compared = pd.read_csv(tables / "paired_differences.tsv", sep="\t")
    assert "median_largest_error_held_out" in set(compared["metric"])
