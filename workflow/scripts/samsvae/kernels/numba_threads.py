"""When code that Numba compiles is used, and by how many threads."""

import numba
import torch
from torch import Tensor


def is_compiled_for(tensor: Tensor) -> bool:
    """Whether compiled code takes tensors such as this one."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def use_as_many_threads() -> None:
    """Let compiled code use as many threads as PyTorch does."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:  # they share a pool, which Numba opens at full size
        torch.set_num_threads(threads)
