"""A training killed without warning, again and again, ends as one that nobody disturbed."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from samsvae.config.experiments import Split
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import StateFile
from samsvae.inference.encoding import Encoding
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import build_model
from samsvae.runtime.files import whole_file, write_tsv
from samsvae.screen.design import Design
from samsvae.screen.splits import split_cells
from samsvae.sources.simulated import simulate
from tests.conftest import TINY

SETTINGS = {"kind": "sams_vae", "n_latent": 8, "n_hidden": 128}
# an epoch has 7 steps, so most states are of the middle of one
TRAINING = Training(max_steps=300, batch_size=50, particles=2, learning_rate=3e-3, validate_every=4)
TIMED_KILLS, KILLS_WHILE_WRITING = 3, 2
LONGEST = 40.0  # seconds, after which a busy machine is spared further kills

# processes with SIGKILL; each starts as a fork of a server that has the slow imports behind it
processes = multiprocessing.get_context("forkserver")
SLOW_IMPORTS = ["torch", "torch._dynamo", "pyro", "anndata", "scipy.stats", "pyarrow.parquet"]
processes.set_forkserver_preload(SLOW_IMPORTS)


def state_of(folder):
    return StateFile(folder / "state.safetensors", "this training")


def train(folder):
    """Train in a process of its own, as the front door does."""
    torch.set_num_threads(1)
    screen = simulate(TINY)[0]
    parts = split_cells(Design.of_screen(screen), Split("random", 0))
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    cells = [Cells.of(screen, parts == n, encoding, torch.device("cpu")) for n in ("train", "val")]
    (folder / "started").touch()
    [fitted] = fit(
        lambda: build_model(SETTINGS, screen.n_vars, len(encoding.names)),
        *cells,
        TRAINING,
        seeds=[0],
        state_file=state_of(folder),
    )
    write_tsv(fitted.history, folder / "history.tsv")
    with whole_file(folder / "weights.safetensors") as temporary:
        save_file(fitted.model.state_dict(), temporary)
    state_of(folder).remove()


def started(folder):
    (folder / "started").unlink(missing_ok=True)
    process = processes.Process(target=train, args=(folder,), daemon=True)
    process.start()
    while not (folder / "started").exists() and process.is_alive():
        time.sleep(0.002)
    return process


def unfinished_writes(folder):
    """Temporary files that are being written, or were when their writer was killed."""
    return {name for name in os.listdir(folder) if name.startswith(".state-")}


def wait_for_writes(process, folder, number):
    """Return while a state is being written, so many states later."""
    seen, before = set(), unfinished_writes(folder)
    while process.is_alive() and len(seen) < number:
        time.sleep(1e-4)  # a write takes some milliseconds
        seen |= unfinished_writes(folder) - before


def killed(process):
    """Kill; whether there was still something to kill."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Folder of a training that nobody killed, and how long it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = started(folder)
    beginning = time.monotonic()
    process.join(LONGEST)
    assert process.exitcode == 0
    return folder, time.monotonic() - beginning


@pytest.mark.slow
def test_a_training_killed_at_any_moment_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    """To the last bit: weights and history; and what a kill leaves is always a whole state."""
    whole, duration = undisturbed
    rng, deadline = np.random.default_rng(3), time.monotonic() + LONGEST
    timed, writing, steps = 0, 0, [0]
    for attempt in range(100):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        while not (folder / "weights.safetensors").exists():
            process = started(folder)
            if timed < TIMED_KILLS:
                time.sleep(rng.uniform(0, duration))
                timed += killed(process)
            elif writing < KILLS_WHILE_WRITING and time.monotonic() < deadline:
                wait_for_writes(process, folder, rng.integers(2, 9))
                killed(process)
                writing += bool(unfinished_writes(folder))
            else:
                process.join(LONGEST)
            if process.exitcode != 0:
                assert process.exitcode == -signal.SIGKILL
                steps.append(step_kept(folder))
        assert_same(folder, whole)
        assert not unfinished_writes(folder)
        enough = timed >= TIMED_KILLS and writing >= KILLS_WHILE_WRITING and max(steps) > 0
        if enough or time.monotonic() > deadline:
            break
    assert timed >= TIMED_KILLS
    assert writing >= 1
    assert max(steps) > 0


def step_kept(folder):
    """The step that a killed training goes on from; 0 if it never came to keep one."""
    kept = state_of(folder).load()
    assert (kept is not None) == (folder / "state.safetensors").exists()
    return 0 if kept is None else kept[1]["step"]


def assert_same(folder, other):
    for name in ("weights.safetensors", "history.tsv"):
        assert (Path(folder) / name).read_bytes() == (Path(other) / name).read_bytes()
