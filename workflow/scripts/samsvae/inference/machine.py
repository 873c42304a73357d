"""The machine that a job runs on: its device, its memory, and signals that ask it to end."""

import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from samsvae.runtime.errors import InputError

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_TRIES = 1.0

# parameters of mallopt(3) in glibc
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1
PAD = 2**28

# Slurm sends the first some seconds before it kills; a user's Ctrl-C is the second
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# what PyTorch calls the ways to multiply float32 matrices
MATMUL_PRECISIONS = {"float32": "highest", "tf32": "high", "bfloat16": "medium"}


@cache  # a process that asked again would wait for the GPU that it holds itself
def choose_device() -> torch.device:
    """Choose a CUDA device that no other job has, else the CPU.

    Apple's MPS is left out: it has no 64-bit floats, in which effects and bounds are accumulated.
    """
    if torch.cuda.is_available():
        number = torch.cuda.device_count()
        gpus = [str(torch.cuda.get_device_properties(n).uuid) for n in range(number)]
        torch.cuda.set_device(acquire_gpu(gpus))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


_held: list[FileLock] = []  # a lock that nothing refers to is released


def acquire_gpu(identities: Sequence[str], folder: str | Path | None = None) -> int:
    """Acquire a GPU until this process ends, and wait while all are in use.

    An acquired GPU is a locked file. The system unlocks it whenever the process ends.
    With Snakemake's ``--resources gpu=N`` no job has to wait.

    Parameters
    ----------
    identities
        What names each GPU that this process may use, alike for all processes of the machine.
    folder
        Where the files are; the machine's temporary folder by default.

    Returns
    -------
    int
        Position of the GPU in `identities`; where files cannot be locked, the first.
    """
    prefix = Path(folder or tempfile.gettempdir()) / "samsvae-gpu-"
    # other users lock the same files; a soft lock would outlive a process that is killed
    locks = [
        FileLock(f"{prefix}{identity}.lock", mode=0o666, fallback_to_soft=False)
        for identity in identities
    ]
    waited = False
    while True:
        for position, lock in enumerate(locks):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            except OSError as error:
                logger.info("GPUs cannot be locked (%s): using the first one", error)
                return 0
            _held.append(lock)
            return position
        if not waited:
            logger.info("waiting for a GPU: all %d are held by other jobs", len(identities))
            waited = True
        time.sleep(SECONDS_BETWEEN_TRIES)


def keep_freed_memory() -> bool:
    """Ask the C library to reuse large blocks rather than to return them to the system.

    A training step frees and allocates tensors of many megabytes; by default each comes fresh from
    the system, page by page, which can cost more than the arithmetic.

    The environment variables ``MALLOC_*`` of glibc say the same, but to all jobs alike: they are
    read when a process starts, and Snakemake starts every script with one environment. Jobs that
    read a screen in blocks would then keep what each block took.

    Returns
    -------
    bool
        Whether the C library could be asked (glibc on Linux).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    asked = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, PAD))
    return sum(mallopt(parameter, value) for parameter, value in asked) == len(asked)


def available_memory(device: torch.device) -> int:
    """Return the bytes that a job may still take: of a GPU, or else of the machine.

    On Linux the latter is at most the limit of the job's control group, which Slurm and containers
    set; elsewhere it is all of the machine's memory.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([free * 2**10, *_limits_of_group()])


def _limits_of_group(groups: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Read the memory limits of the process's control group and the groups around it."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rsplit("::", 1)[-1].strip()
    except OSError:
        return
    group = groups / own.lstrip("/")
    for folder in (group, *group.parents):
        if folder == groups.parent:
            return
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            yield int((folder / "memory.max").read_text(encoding="ascii"))


@contextmanager
def explain_out_of_memory(device: torch.device, *settings: str) -> Iterator[None]:
    """Raise an error that names the settings to lower when the device runs out of memory.

    Parameters
    ----------
    device
        Where tensors are.
    *settings
        Keys of the configuration that memory grows with, each with its value, those first that
        cost the results least.

    Raises
    ------
    InputError
        Naming the device, its memory and the settings.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_of_memory(error):
            raise
        raise InputError(
            f"The memory of {_named(device)} does not suffice. Lower {', or '.join(settings)}; or "
            f"use a device with more. ({str(error).splitlines()[0] if str(error) else 'no memory'})"
        ) from error


def _is_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"the GPU ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
    return "this machine" if device.type == "cpu" else f"the device {device.type!r}"


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Multiply float32 matrices with another precision for a while.

    Parameters
    ----------
    name
        A key of :data:`MATMUL_PRECISIONS`. The effect depends on the device: one that cannot
        multiply faster at less precision computes as in ``float32``.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(MATMUL_PRECISIONS[name])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def note_ending_signals() -> Iterator[Sequence[signal.Signals]]:
    """Record signals that ask the process to end, instead of ending immediately.

    The second signal of a kind has its former effect, so that a hanging process can be ended.

    Yields
    ------
    sequence of Signals
        Signals received so far, empty at first. Outside the main thread, where Python receives
        no signal, it stays empty.
    """
    came: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, _: Any) -> None:
        asking = signal.Signals(number)
        came.append(asking)
        signal.signal(asking, before[asking])

    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number in ENDING_SIGNALS:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number in ENDING_SIGNALS:
            signal.signal(number, before[number])
