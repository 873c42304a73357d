"""Compiled kernels: linear layers, the Gamma-Poisson log-density, random numbers.

Numba compiles them on a CPU; Triton and CUDA graphs run them on a GPU.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache

import numba
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

logger = logging.getLogger(__name__)

SMALLEST_MEAN = 1e-4  # added to the means of counts

Program = Callable[[], Sequence[Tensor]]


def is_compiled_for(tensor: Tensor) -> bool:
    """Whether kernels compiled by Numba apply to a tensor (CPU, float32)."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def match_numba_threads() -> None:
    """Set Numba's number of threads to that of PyTorch."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:  # both use one pool, which Numba opens at full size
        torch.set_num_threads(threads)


@cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton, which comes with PyTorch for CUDA, finds the compiler that it needs."""
    if device.type != "cuda":
        return False
    try:
        from samsvae.kernels.random_triton import cell_normals

        cell_normals(torch.zeros(1, dtype=torch.long, device=device), 1, 1)
    except Exception as error:  # of any kind: operations of PyTorch are slower, but right
        logger.info("Triton is not available on %s: using PyTorch's operations (%s)", device, error)
        return False
    return True


def _trace(function: Program) -> torch.fx.GraphModule:
    return make_fx(lambda _: function())(torch.empty(0))  # make_fx requires an argument


def record_function(function: Program) -> Program:
    """Record the operations of a function, derivatives included, and repeat them.

    The results are those of the function to the bit. What Python takes for modules, Pyro's
    handlers, ``vmap`` and automatic differentiation is spared.

    Parameters
    ----------
    function
        As for :func:`compile_function`.

    Returns
    -------
    Callable
        Executes the recorded operations.
    """
    recorded, unused = _trace(function), torch.empty(0)

    def repeat() -> Sequence[Tensor]:
        with torch.no_grad():
            found: Sequence[Tensor] = recorded(unused)
            return found

    return repeat


def compile_function(function: Program) -> Program:
    """Trace a function to its operations, derivatives included, and compile them.

    Tracing records the executed operations alone, so that Pyro's handlers, which
    ``torch.compile`` cannot follow, leave no trace.

    Parameters
    ----------
    function
        Computes tensors from tensors that it refers to. These may change in place between calls,
        but the executed operations may not depend on their values.

    Returns
    -------
    Callable
        The compiled function. Its results may differ by rounding and by the random numbers drawn.
    """
    traced = _trace(function)
    [unused] = traced.graph.find_nodes(op="placeholder")
    placeholders: dict[str, torch.fx.Node] = {}
    for node in traced.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if name not in placeholders:
            with traced.graph.inserting_before(unused):
                placeholders[name] = traced.graph.placeholder(name)
        node.replace_all_uses_with(placeholders[name])
        traced.graph.erase_node(node)
    traced.graph.erase_node(unused)
    inputs = [getattr(traced, name).detach() for name in placeholders]
    traced.recompile()
    with torch.no_grad():
        compiled = torch._inductor.compile(traced, inputs)
    return lambda: compiled(*inputs)
