"""Memory of a process: freed blocks kept for the next step, and plain words when it runs out."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from samsvae.errors import InputError

# parameters of mallopt(3) in glibc
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1
PAD = 2**28


def keep_freed_memory() -> bool:
    """Ask the C library to reuse large blocks rather than to return them to the system.

    A training step frees and allocates tensors of many megabytes; by default each comes fresh from
    the system, page by page, which can cost more than the arithmetic.

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


@contextmanager
def says_what_to_lower(device: torch.device, *settings: str) -> Iterator[None]:
    """Tell the user what to change when the memory of the device does not suffice.

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
        Naming the device, how much it has, and the settings.
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
