"""GPU locks: one job per GPU, which is released when the job ends."""

import errno
import os
import subprocess
import sys
from multiprocessing.connection import wait

import pytest

from samsvae.inference.machine import acquire_gpu
from tests.conftest import ROOT

HOLD = """
import sys, time
from samsvae.inference.machine import acquire_gpu
print(acquire_gpu(["a", "b"], sys.argv[1]), flush=True)
time.sleep(60)
"""


def holding(folder):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": str(ROOT / "workflow/scripts")},
    )  # fmt: skip


def test_each_job_has_its_own_gpu_until_it_is_killed(tmp_path):
    jobs = {job.stdout: job for job in (holding(tmp_path) for _ in range(3))}
    try:
        taken = {}
        while len(taken) < 2:
            for output in wait(set(jobs) - set(taken), timeout=60):
                taken[output] = int(output.readline())
        assert sorted(taken.values()) == [0, 1]
        killed, gpu = taken.popitem()
        jobs[killed].kill()
        (waiting,) = set(jobs) - {killed} - set(taken)
        assert int(waiting.readline()) == gpu
    finally:
        for output, job in jobs.items():
            job.kill()
            job.wait()
            output.close()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_files_cannot_be_locked_the_first_gpu_is_used(code, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert acquire_gpu(["a", "b"], tmp_path) == 0


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    (tmp_path / "samsvae-gpu-a.lock").symlink_to(victim)
    assert acquire_gpu(["a"], tmp_path) == 0
    assert not victim.exists()


@pytest.mark.parametrize("identity", ["GPU-5d0a", "11111111-2222"])
def test_a_free_gpu_is_acquired_immediately(identity, tmp_path):
    assert acquire_gpu([identity], tmp_path) == 0
    (lock,) = tmp_path.iterdir()
    assert lock.name == f"samsvae-gpu-{identity}.lock"
    assert lock.stat().st_mode & 0o777 == 0o666  # whatever the umask: other users lock it, too
