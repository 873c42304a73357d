"""A function traced once and compiled, so that chains of small operations become few kernels."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx


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
