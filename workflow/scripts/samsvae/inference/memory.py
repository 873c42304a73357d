"""Memory that a training process frees, kept for its next step."""

import ctypes
import sys

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
