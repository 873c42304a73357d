"""Compilers of kernels: Numba on a CPU, Triton and CUDA graphs on a GPU."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numba
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

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


def compile_function(
    function: Callable[[], Sequence[Tensor]], options: Mapping[str, bool] | None = None
) -> Callable[[], Sequence[Tensor]]:
    """Trace a function down to its operations, derivatives included, and compile these.

    Tracing sees what is executed, whatever Python does to get there; Pyro's handlers, which
    ``torch.compile`` cannot follow, leave nothing of themselves.

    Parameters
    ----------
    function
        Computes tensors from tensors that it refers to. These may change in place between calls;
        which operations are executed may not depend on their values.
    options
        Of PyTorch's compiler Inductor.

    Returns
    -------
    Callable
        Computes what the function does, but for rounding and for the random numbers it draws.
    """
    traced = make_fx(lambda _: function())(torch.empty(0))  # which wants an argument
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
        compiled = torch._inductor.compile(traced, inputs, options=dict(options or {}))
    return lambda: compiled(*inputs)
