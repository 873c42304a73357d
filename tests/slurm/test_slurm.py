"""The tiny configuration on a real Slurm, with a job cancelled and a node lost on the way."""

import copy
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from samsvae.inference.checkpoint import load_model
from tests.workflow.conftest import TINY_CONFIG, Project, copy_project

pytestmark = pytest.mark.slurm

CLUSTER = Path(__file__).with_name("cluster.sh")
RUN = "results/random/random-seed0/sams/seed0"
PATIENCE = 2400  # seconds; a busy machine takes its time
PROFILE = (
    "--workflow-profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1",
)  # fmt: skip


def small_configuration():
    """One trained model, which trains long enough to be disturbed, and a baseline."""
    config = copy.deepcopy(TINY_CONFIG)
    names = ["sams", "no_change"]
    config["models"] = {name: config["models"][name] for name in names}
    config["experiments"] = {
        "random": {"screen": "tiny", "split": {"kind": "random"}, "models": names}
    }
    config["training"] |= {"max_steps": 4000, "validate_every": 20}
    return config


@pytest.fixture(scope="module")
def cluster():
    if subprocess.run([CLUSTER, "install"], check=False).returncode:
        pytest.skip("Slurm is not there, and installing it needs root and apt-get")
    folder = tempfile.mkdtemp(prefix="slurm-")
    started = subprocess.run(
        [CLUSTER, "up", folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if "has a Slurm of its own" in started.stdout:
        pytest.skip(started.stdout)
    try:
        assert started.returncode == 0, started.stdout
        yield folder
    finally:
        subprocess.run([CLUSTER, "down", folder], check=True)
        assert not daemons_of(folder)
        shutil.rmtree(folder)


def daemons_of(folder):
    """Processes that live and have the cluster's folder in their command."""
    listed = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if folder in line and line[0] != "Z"]


def jobs(rule):
    """Numbers of the running jobs of a rule, and the node of each."""
    shown = subprocess.run(
        ["squeue", "--noheader", "--states=running", "--format=%i %N %k"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split(maxsplit=2) for line in shown.stdout.splitlines()]
    return {number: node for number, node, *comment in rows if rule in " ".join(comment)}


def up(node):
    """Whether a node takes work."""
    shown = subprocess.run(
        ["sinfo", "--noheader", f"--nodes={node}", "--format=%T"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return shown.stdout.strip() in ("idle", "mixed", "allocated")


def wait_until(condition, run, shown):
    """What the condition gives once it gives something; the run must not end before."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert run.poll() is None, shown.read_text()[-6000:]
        time.sleep(0.2)
    raise AssertionError("nothing happened")


def test_a_cancelled_job_and_a_lost_node_do_not_keep_the_whole_from_finishing(cluster, tmp_path):
    (tmp_path / "on_slurm").mkdir()
    on_slurm = Project(copy_project(tmp_path / "on_slurm"), small_configuration())
    shown = tmp_path / "shown.txt"
    with shown.open("w") as output, on_slurm.started(output, *PROFILE) as run:
        unfinished = on_slurm.folder / RUN / "unfinished_training.safetensors"
        wait_until(unfinished.exists, run, shown)
        (cancelled,) = jobs("train")
        subprocess.run(["scancel", cancelled], check=True)

        again = wait_until(
            lambda: {k: v for k, v in jobs("train").items() if k != cancelled}, run, shown
        )
        node = again.popitem()[1]
        lose = ["scontrol", "update", f"nodename={node}"]
        subprocess.run([*lose, "state=down", "reason=test"], check=True)
        wait_until(lambda: not jobs("train"), run, shown)
        # refused while the node is still cleaning up, or is back by itself
        wait_until(
            lambda: subprocess.run([*lose, "state=resume"]).returncode == 0 or up(node), run, shown
        )
        assert run.wait(PATIENCE) == 0, shown.read_text()[-6000:]

    text = shown.read_text()
    assert text.count("Trying to restart job") >= 1
    assert (on_slurm.folder / "results/report-own.html").is_file()
    assert not unfinished.exists()
    log = on_slurm.folder / "results/logs/train/random/random-seed0/sams-seed0.log"
    assert re.search(r"resuming from step \d+", log.read_text())
    assert not list((on_slurm.folder / "results").rglob(".*-????????.*"))

    (tmp_path / "alone").mkdir()
    alone = Project(copy_project(tmp_path / "alone"), small_configuration())
    assert alone.snakemake(f"{RUN}/model.safetensors").returncode == 0
    ours, theirs = (
        load_model(project.folder / RUN / "model.safetensors").model.state_dict()
        for project in (on_slurm, alone)
    )
    assert all((ours[name] == theirs[name]).all() for name in theirs)
