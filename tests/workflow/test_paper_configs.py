"""The paper's experiments: planned in full, and run in small from a server on loopback."""

import resource
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT
from tests.workflow.conftest import Project, copy_project

pytestmark = pytest.mark.workflow

MOST_PLANNING_SECONDS = 15
PAPER = {
    # splits, trained models, their seeds, baselines
    "norman": (2 * 5 * 5, 9 * 3, 1, 2),
    "replogle": (1, 12 + 2 + 6 + 2, 5, 2),
}


def configuration(name):
    return yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())


def used_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_grid_is_planned_in_full_and_soon_without_file_or_network(name, project):
    splits, trained, seeds, baselines = PAPER[name]
    project.config = configuration(name)
    before = used_seconds()
    planned = project.planned()
    seconds = used_seconds() - before
    print(f"{sum(planned.values())} jobs planned in {seconds:.1f} s")
    assert planned["split_cells"] == splits
    assert planned["train"] == planned["estimate_iwelbo"] == splits * trained * seeds
    assert planned["predict_baseline"] == splits * baselines
    assert planned["download"] == planned[f"build_{name}"] == 1
    assert seconds < MOST_PLANNING_SECONDS
