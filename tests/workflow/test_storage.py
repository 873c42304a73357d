"""Disks that are full, read-only or simple, and two runs in one place."""

import copy
import os
import platform
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workflow.conftest import TINY_CONFIG
from tests.workflow.test_bad_input import own_config, write

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.filterwarnings("ignore:Observation names:UserWarning"),
    pytest.mark.filterwarnings("ignore:Variable names:UserWarning"),
]

RUN = "results/random/random-seed0/sams/seed0"
MODEL = f"{RUN}/model.safetensors"
WITHOUT = Path(__file__).with_name("without_locks_and_links.py")
LONGEST = 120  # seconds


@contextmanager
def mounted(folder, *how):
    """A mount, for root where the system lets it; else the test is skipped."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *how, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def trained_for(steps):
    config = copy.deepcopy(TINY_CONFIG)
    config["training"] |= {"max_steps": steps, "validate_every": 5}
    return config


def test_a_second_run_is_refused_and_after_a_kill_the_first_goes_on(project, tmp_path):
    project.config = trained_for(100_000)
    unfinished = project.folder / RUN / "unfinished_training.safetensors"
    log = project.folder / "results/logs/train/random/random-seed0/sams-seed0.log"
    with (tmp_path / "shown.txt").open("w") as output:
        with project.started(output, MODEL) as first:
            wait_for(unfinished.exists, first)
            second = project.snakemake(MODEL)
            assert second.returncode != 0
            assert "Directory cannot be locked" in second.stdout
            assert "no other Snakemake process" in second.stdout
            assert first.poll() is None
        refused = project.snakemake(MODEL)
        assert "--unlock" in refused.stdout
        assert refused.returncode != 0
        assert project.snakemake("--unlock").returncode == 0
        with project.started(output, MODEL) as again:
            wait_for(lambda: log.exists() and "resuming from step" in log.read_text(), again)


def wait_for(condition, run):
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.faults
def test_a_full_disk_is_told_and_with_space_the_run_goes_on(project):
    """Room for the screen and the first state of a training, but not for the next beside it."""
    project.config = trained_for(20)
    results = project.folder / "results"
    with mounted(results, "-t", "tmpfs", "-o", "size=1400k", "tmpfs"):
        full = project.snakemake(MODEL)
        assert full.returncode != 0
        assert "cannot be written: No space left on device. Free some space" in full.stdout
        assert "Traceback" not in full.stdout
        assert not (project.folder / MODEL).exists()
        assert (project.folder / RUN / "unfinished_training.safetensors").exists()
        assert not [p for p in results.rglob(".*") if p.is_file()]
        grow = ["mount", "-o", "remount,size=50m", str(results)]
        subprocess.run(grow, check=True)
        done = project.snakemake(MODEL)
        assert done.returncode == 0, done.stdout[-3000:]
        assert "resuming from step 5" in done.stdout


@pytest.mark.faults
def test_data_that_cannot_be_written_to_are_read(project, tmp_path):
    (tmp_path / "cells").mkdir()
    write(tmp_path / "cells/own.h5ad")
    project.config = own_config("data/own/own.h5ad")
    with mounted(project.folder / "data/own", "--bind", "-o", "ro", str(tmp_path / "cells")):
        done = project.snakemake("results/screens/own/screen.h5ad")
        assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.faults
def test_results_that_cannot_be_written_are_told(project):
    with mounted(project.folder / "results", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs"):
        project.config = trained_for(20)
        refused = project.snakemake("results/screens/tiny/screen.h5ad")
        assert refused.returncode != 0
        assert re.search(r"Read-only file system", refused.stdout)


@pytest.mark.faults
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the filter is of Linux"
)
def test_a_file_system_without_locks_and_links_will_do(project):
    project.config = trained_for(20)
    command = [sys.executable, str(WITHOUT), *project.command(MODEL)]
    done = subprocess.run(
        command, cwd=project.folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert (project.folder / MODEL).is_file()
