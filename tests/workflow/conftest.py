"""A copy of the project in a temporary folder, and Snakemake running in it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import yaml

from samsvae.evaluation.predicted import predicted_effects
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.inference.iwelbo import iwelbo
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import build_model
from tests.conftest import ROOT, TINY

COPIED = ("Snakefile", "config.yaml", "workflow", "envs", "profiles", "data/reference")
SMALL_NETWORK = {"n_latent": 4, "n_hidden": 16}
TINY_CONFIG: dict[str, Any] = {
    "screens": {
        "tiny": {"source": "simulated", **vars(TINY)},
        "batched": {
            "source": "simulated",
            **vars(TINY),
            "n_batches": 2,
            "n_contexts": 2,
            "guides_per_target": 3,
            "dead_guides": 0.1,
            "knock_down": 1.5,
        },
    },
    "models": {
        "sams": {"kind": "sams_vae", **SMALL_NETWORK},
        "cpa": {"kind": "cpa_vae", **SMALL_NETWORK},
        "svae": {"kind": "svae_plus", **SMALL_NETWORK},
        "additive": {"kind": "additive"},
        "others": {"kind": "other_contexts"},
        "no_change": {"kind": "no_change"},
        "mean_effect": {"kind": "mean_effect"},
        "ceiling": {"kind": "split_half"},
    },
    "training": {"max_steps": 60, "batch_size": 64, "validate_every": 20, "learning_rate": 0.003},
    # UMAP takes a quarter of a minute to import, so one test alone draws its figure
    "evaluation": {
        "iwelbo_particles": 10,
        "top_genes": 10,
        "mapped_cells": 0,
        "min_cells_guide": 5,
        "interval_draws": 5,
        "cell_particles": 5,
    },
    "enrichment": {"top_genes": 12, "max_perturbations": 5, "permutations": 50},
    "experiments": {
        "random": {
            "screen": "tiny",
            "split": {"kind": "random"},
            "models": [
                "sams",
                "cpa",
                "svae",
                "additive",
                "no_change",
                "mean_effect",
                "ceiling",
            ],
        },
        "unseen": {
            "screen": "batched",
            "split": {"kind": "unseen_combinations", "fractions": [0, 1], "seeds": [0]},
            "models": ["sams", "additive", "others"],
            "seeds": [0, 1],
            "gene_sets": [],
        },
    },
}


@dataclass
class Project:
    """A working copy of the project."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        """Write the configuration down, and give the command that runs Snakemake on it."""
        (self.folder / "own.yaml").write_text(yaml.safe_dump(self.config))
        # targets first, since --configfile takes whatever follows it
        command = [sys.executable, "-m", "snakemake", *arguments, "--cores", str(cores)]
        return [*command, "--nocolor", "--configfile", "own.yaml"]

    def snakemake(self, *arguments: str, cores: int = 2) -> subprocess.CompletedProcess[str]:
        """Run Snakemake; stdout and stderr come back as one text."""
        return subprocess.run(
            self.command(*arguments, cores=cores),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": ""},
            timeout=1200,
            check=False,
        )

    @contextmanager
    def started(self, output: IO[Any], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start Snakemake in a session of its own, which is killed if it is still there after."""
        run = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": ""},
            start_new_session=True,
        )
        try:
            yield run
        finally:
            kill_session(run.pid)
            run.wait()

    def planned(self, *arguments: str) -> dict[str, int]:
        """Count the jobs that a dry run plans, by rule."""
        shown = self.snakemake(*arguments, "--dry-run")
        assert shown.returncode == 0, shown.stdout
        table = re.search(r"Job stats:\njob +count\n[- ]+\n(.*?)\n\n", shown.stdout, re.DOTALL)
        if table is None:
            return {}
        jobs = dict(line.split() for line in table.group(1).splitlines())
        return {rule: int(n) for rule, n in jobs.items() if rule not in ("all", "total")}

    def times(self) -> dict[str, float]:
        """When each result was last written."""
        files = (self.folder / "results").rglob("*")
        return {str(f.relative_to(self.folder)): f.stat().st_mtime for f in files if f.is_file()}


def session_of(leader: int) -> list[int]:
    """Processes of a session, whatever their groups."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            # the command's name is in brackets, and the session is the fourth field after it
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found.append(int(entry.name))
    return found


def kill_session(leader: int) -> None:
    """Kill a session's processes without warning, until none is left to start another."""
    while living := [process for process in session_of(leader) if not is_dead(process)]:
        for process in living:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def is_dead(process: int) -> bool:
    """Whether a process has ended, though its parent may not have asked yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def copy_project(folder: Path, original: Path = ROOT) -> Path:
    """Copy what a run needs, with what has been compiled of the library."""
    for name in COPIED:
        source = original / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="session", autouse=True)
def compiled_library() -> None:
    """Compile the kernels beside their sources, from where each copy takes them."""
    design = torch.eye(3)
    cells = Cells(torch.ones(6, 4), torch.full((6,), 4.0), design, torch.arange(6) % 3)
    settings = {"kind": "sams_vae", **SMALL_NETWORK}
    [fitted] = fit(lambda: build_model(settings, 4, 3), cells, cells, Training(max_steps=1), [0])
    iwelbo(fitted.model, cells, particles=2, seed=0)
    trained = TrainedModel(fitted.model, settings, list("ABCD"), Encoding(tuple("PQR")))
    predicted_effects(trained, ["P"], draws=2, seed=0)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh copy without any result."""
    return Project(copy_project(tmp_path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which the tiny configuration has run through."""
    made = Project(copy_project(tmp_path_factory.mktemp("project")), TINY_CONFIG)
    done = made.snakemake()
    assert done.returncode == 0, done.stdout[-6000:]
    time.sleep(1.1)  # so that whatever is written from now on is newer
    return made
