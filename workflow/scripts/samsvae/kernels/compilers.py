"""Where compiled code can be used: by Numba on a CPU, by Triton on a CUDA device."""

import logging
from functools import cache

import numba
import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def is_compiled_for(tensor: Tensor) -> bool:
    """Whether code that Numba compiles takes tensors such as this one."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def use_as_many_threads() -> None:
    """Let code that Numba compiles use as many threads as PyTorch does."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:  # they share a pool, which Numba opens at full size
        torch.set_num_threads(threads)


@cache
def has_triton(device: torch.device) -> bool:
    """Try whether Triton, which comes with PyTorch for CUDA, finds the compiler that it needs."""
    if device.type != "cuda":
        return False
    try:
        from samsvae.kernels.random_triton import cell_normals

        cell_normals(torch.zeros(1, dtype=torch.long, device=device), 1, 1)
    except Exception as error:  # of any kind: it has many, and none is in the way of slower steps
        logger.info("kernels run as plain operations on %s, without Triton (%s)", device, error)
        return False
    return True
