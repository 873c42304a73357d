"""Jobs killed at random, again and again: what comes out is what comes out undisturbed."""

import copy
import os
import signal
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from tests.workflow.conftest import TINY_CONFIG, Project, copy_project, session_of

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("SAMSVAE_KILLS", "50"))
LONGEST_DELAY = 1.5  # seconds from the start of a job to its death
PATIENCE = 600  # seconds for a run that nobody kills
NAMES = ["sams", "additive", "no_change"]
SPLIT = "results/random/random-seed0"

# scripts of each stage, and what to remove so that they run again
STAGES = {
    "training": (["train_model"], [f"{SPLIT}/sams/seed0/model.safetensors"]),
    "evaluation": (
        ["evaluate_run", "evaluate_effects", "compare_models", "enrich_effects"],
        [
            f"{SPLIT}/sams/seed0/iwelbo.parquet",
            f"{SPLIT}/sams/seed0/predicted_effects.h5ad",
            "results/random/tables/enrichment.tsv",
            f"{SPLIT}/metrics.parquet",
        ],
    ),
    "report": (
        ["draw_figures", "collect_tables", "write_report"],
        ["results/random/tables/training.tsv", "results/report-own.html"],
    ),
}  # fmt: skip


def configuration():
    config = copy.deepcopy(TINY_CONFIG)
    config["models"] = {name: config["models"][name] for name in NAMES}
    config["experiments"] = {
        "random": {"screen": "tiny", "split": {"kind": "random"}, "models": NAMES}
    }
    config["training"] |= {"max_steps": 300, "validate_every": 10}
    return config


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    project = Project(copy_project(tmp_path_factory.mktemp("undisturbed")), configuration())
    done = project.snakemake()
    assert done.returncode == 0, done.stdout[-4000:]
    return project.folder


def script_of(process):
    """Name of the script that a process of Snakemake's runs, if any."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return ""
    # tmp1234.train_model.py, run by Python and not by the shell around it
    if "python" in words[0] and len(words) > 1 and ".snakemake/scripts/" in words[1]:
        return Path(words[1]).name.split(".")[1]
    return ""


def wait_for_job(run, scripts):
    """The process of the first job of a stage; None if the run ends without any."""
    while run.poll() is None:
        for process in session_of(run.pid):
            if script_of(process) in scripts:
                return process
        time.sleep(0.02)
    return None


def content_of(path):
    """What a file says, whatever its bytes."""
    if path.suffix == ".h5ad":
        data = anndata.read_h5ad(path)
        return data.to_df().to_csv() + data.obs.to_csv() + data.var.to_csv()
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_csv()
    if path.suffix == ".safetensors":
        return {name: array.tobytes() for name, array in sorted(load_file(path).items())}
    return path.read_bytes()


def results_of(folder):
    """Every result of the run but what tells of its time and place."""
    results = folder / "results"
    return {
        path.relative_to(results): path
        for path in results.rglob("*")
        if path.is_file()
        and path.relative_to(results).parts[0] not in ("logs", "benchmarks", "provenance")
        and not path.name.startswith(".")
        and path.name != "unfinished_training.safetensors"
        and path.suffix not in (".html", ".zip")
    }


def test_fifty_kills_change_nothing(undisturbed, tmp_path):
    rng = np.random.default_rng(11)
    expected = {name: content_of(path) for name, path in results_of(undisturbed).items()}
    project = Project(copy_project(tmp_path), configuration())
    killed = dict.fromkeys(STAGES, 0)
    locked = 0
    with (tmp_path / "shown.txt").open("w") as output:
        while sum(killed.values()) < KILLS:
            if any((project.folder / ".snakemake").glob("locks/*")):
                locked += 1
                assert project.snakemake("--unlock").returncode == 0
            stage = min(STAGES, key=lambda name: killed[name] + rng.random())
            scripts, removed = STAGES[stage]
            if (project.folder / "results/report-own.html").exists():
                for name in removed:
                    (project.folder / name).unlink(missing_ok=True)
            with project.started(output) as run:
                process = wait_for_job(run, scripts)
                if process is None:
                    assert run.returncode == 0, (tmp_path / "shown.txt").read_text()[-4000:]
                    continue
                time.sleep(rng.uniform(0, LONGEST_DELAY))
                if rng.random() < 0.3:  # the job alone: Snakemake sees it fail, and ends
                    try:
                        os.kill(process, rng.choice([signal.SIGKILL, signal.SIGTERM]))
                    except ProcessLookupError:
                        continue
                    run.wait(PATIENCE)
                killed[stage] += 1
            for name, path in results_of(project.folder).items():
                assert content_of(path) == expected[name], f"{name} after {killed}"
        if any((project.folder / ".snakemake").glob("locks/*")):
            assert project.snakemake("--unlock").returncode == 0
    print(killed, f"{locked} times locked")
    done = project.snakemake()
    assert done.returncode == 0, done.stdout[-4000:]
    found = results_of(project.folder)
    assert set(found) == set(expected)
    for name, path in found.items():
        assert content_of(path) == expected[name]
    left = [path for path in (project.folder / "results").rglob(".*") if path.is_file()]
    assert left == []
    assert not list((project.folder / "results").rglob("unfinished_training.safetensors"))
