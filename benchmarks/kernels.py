"""Speed of the implementations of the kernels, side by side, and what each earns over the next.

``python -m benchmarks.kernels`` prints a line of JSON for each function: milliseconds of its
definition in plain operations, of that compiled by ``torch.compile``, and of the fused one. The
default is the paper's Replogle setting at one thread; --help lists the options.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from benchmarks.train import MEAN_COUNT, seconds_per_call
from samsvae.inference.machine import choose_device, keep_freed_memory
from samsvae.kernels.gamma_poisson import log_prob, reference_log_prob
from samsvae.kernels.linear import multiply

Function = Callable[..., Tensor]


def simulate_inputs(arguments: argparse.Namespace, device: torch.device) -> list[Tensor]:
    """Make counts, library sizes, concentrations, a hidden layer, weights and biases."""
    generator = torch.Generator().manual_seed(0)
    cells, genes, hidden = arguments.batch, arguments.genes, arguments.hidden
    counts = torch.poisson(torch.full((cells, genes), MEAN_COUNT), generator=generator)
    inputs = [
        counts,
        counts.sum(1),
        0.5 + torch.rand(genes, generator=generator),
        torch.randn(arguments.particles, cells, hidden, generator=generator),
        torch.randn(genes, hidden, generator=generator) / hidden**0.5,
        torch.randn(genes, generator=generator),
    ]
    return [each.to(device) for each in inputs]


def value(function: Function, inputs: list[Tensor]) -> Callable[[], Tensor]:
    """Evaluate a log-probability."""

    def call() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    return call


def gradient(function: Function, inputs: list[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Evaluate a log-probability and its gradients."""
    parameters = [each.clone().requires_grad_() for each in inputs[2:]]
    return lambda: torch.autograd.grad(function(*inputs[:2], *parameters).sum(), parameters)


def functions(
    inputs: list[Tensor], is_compiled: bool
) -> Iterator[tuple[str, Mapping[str, Callable[[], object]]]]:
    """Go through functions, each with its implementations."""
    implementations: dict[str, Function] = {"definition": reference_log_prob, "fused": log_prob}
    if is_compiled:
        implementations["torch_compile"] = torch.compile(reference_log_prob, dynamic=False)
    for name, of in (("log_prob", value), ("log_prob and gradients", gradient)):
        yield name, {each: of(function, inputs) for each, function in implementations.items()}
    hidden, weight = inputs[3].reshape(-1, inputs[3].shape[-1]), inputs[4]
    products: dict[str, Function] = {"definition": torch.mm, "fused": multiply}
    by_logits = torch.randn(len(hidden), len(weight), device=hidden.device)
    for name, left, right in (
        ("product of the hidden layer and the weights", hidden, weight.T),
        ("gradient by the weights", by_logits.T, hidden),
        ("gradient by the hidden layer", by_logits, weight),
    ):
        yield name, {each: partial(by, left, right) for each, by in products.items()}


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("genes", 1187),
        ("hidden", 400),
        ("batch", 512),
        ("particles", 5),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--without-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure each")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    device = choose_device()
    inputs = simulate_inputs(arguments, device)
    for name, calls in functions(inputs, not arguments.without_compile):
        seconds = seconds_per_call(list(calls.values()), arguments.seconds, device)
        milliseconds = dict(zip(calls, (round(1e3 * each, 3) for each in seconds), strict=True))
        others = [taken for each, taken in milliseconds.items() if each != "fused"]
        found = {
            "function": name,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "genes": arguments.genes,
            "milliseconds": milliseconds,
            "times_as_fast": round(min(others) / milliseconds["fused"], 2),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
