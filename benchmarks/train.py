"""Speed and memory of a training step, against the matrix multiplications that it needs.

``python -m benchmarks.train`` prints JSON. The default is the paper's Replogle setting at two
threads; --help lists the options. ``speed_relative_to_plain`` is that with --levels or --on-target
over that without, in turn. ``fraction_of_sgemm`` is against PyTorch's own multiplication of float32
matrices, ``fraction_of_fastest`` against the faster of that and the models'.
"""

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from samsvae import kernels
from samsvae.inference.cells import Cells
from samsvae.inference.encoding import Encoding
from samsvae.inference.machine import (
    MATMUL_PRECISIONS,
    choose_device,
    keep_freed_memory,
    matmul_precision,
)
from samsvae.inference.step import Training
from samsvae.inference.trainer import Trainer
from samsvae.kernels import gamma_poisson_numba
from samsvae.kernels.linear import multiply
from samsvae.models import MODELS, build_model

N_CELLS = 8192
MEAN_COUNT = 0.7
WARM_UP = 3  # calls
SECONDS_A_TURN = 1.0


def simulate_cells(n_genes: int, n_perturbations: int, device: torch.device) -> Cells:
    """Make cells with as many conditions as perturbations, and control."""
    generator = torch.Generator().manual_seed(0)
    rate = torch.full((N_CELLS, n_genes), MEAN_COUNT)
    counts = torch.poisson(rate, generator=generator).to(torch.uint8)
    design = torch.cat([torch.zeros(1, n_perturbations), torch.eye(n_perturbations)])
    return Cells(
        counts.to(device),
        counts.sum(1).float().to(device),
        design.to(device),
        torch.randint(n_perturbations + 1, (N_CELLS,), generator=generator).to(device),
    )


def seconds_per_call(
    calls: Sequence[Callable[[], object]], seconds: float, device: torch.device
) -> list[float]:
    """Time calls by turns, so that a machine's changing speed is the same for all of them.

    Parameters
    ----------
    calls
        What to time.
    seconds
        About how long to spend on each of them.
    device
        Where they run.

    Returns
    -------
    list of float
        Mean seconds of each.
    """
    spent, done = [0.0] * len(calls), [0] * len(calls)
    for call in calls:
        for _ in range(WARM_UP):
            call()
    while min(spent) < seconds:
        for index, call in enumerate(calls):
            _wait(device)
            started = time.perf_counter()
            while time.perf_counter() - started < SECONDS_A_TURN:
                call()
                done[index] += 1
            _wait(device)
            spent[index] += time.perf_counter() - started
    return [total / count for total, count in zip(spent, done, strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def multiplication(
    batch: int,
    inner: int,
    outer: int,
    device: torch.device,
    multiply: Callable[[Tensor, Tensor], Tensor] = torch.mm,
) -> tuple[Callable[[], Tensor], float]:
    """Make a float32 matrix multiplication of the decoder's size, and count its GFLOP."""
    left, right = torch.randn(batch, inner, device=device), torch.randn(inner, outer, device=device)
    return lambda: multiply(left, right), 2e-9 * batch * inner * outer


def count_operations() -> FlopCounterMode:
    """Count the floating-point operations of multiplications, also of those that others do."""
    others: dict[Any, Callable[..., int]] = {}
    if torch.backends.mkldnn.is_available():
        others[torch.ops.mkldnn._linear_pointwise] = _operations_of_layer
    assert gamma_poisson_numba  # defines the operation
    others[torch.ops.samsvae.gamma_poisson_cpu] = _operations_of_log_prob
    if torch.cuda.is_available() and kernels.has_triton(torch.empty(0, device="cuda").device):
        from samsvae.kernels import gamma_poisson_triton

        assert gamma_poisson_triton  # defines the operation
        others[torch.ops.samsvae.gamma_poisson] = _operations_of_log_prob
    return FlopCounterMode(display=False, custom_mapping=others)


def _operations_of_log_prob(
    cell_weight: Sequence[int], counts: Sequence[int], *others: Sequence[int], **named: Any
) -> int:
    """Of a product and its two gradients, for shapes of R x P x B and R x B x G."""
    weight = others[3]
    return 6 * math.prod(cell_weight) * math.prod(weight[1:])


def _operations_of_layer(
    x: Sequence[int], weight: Sequence[int], *others: Any, **named: Any
) -> int:
    return 2 * math.prod(x) * weight[0]


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the benchmark."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    pyro.enable_validation(False)
    device = choose_device()
    cells = simulate_cells(arguments.genes, arguments.perturbations, device)
    training = Training(
        batch_size=arguments.batch,
        particles=arguments.particles,
        matmul_precision=arguments.precision,
        cuda_graph=not arguments.without_graph,
    )
    if arguments.without_triton:
        kernels.has_triton = cache(lambda device: False)
    trainer = build_trainer(arguments, training, cells, arguments.levels, arguments.on_target)
    others = []
    if arguments.levels or arguments.on_target:
        others = [build_trainer(arguments, training, cells, 0, on_target=False)]
    with matmul_precision(arguments.precision), trainer.replicates[0].stream():
        return {"model": arguments.model, **measure_steps(trainer, others, arguments, device)}


def build_trainer(
    arguments: argparse.Namespace, training: Training, cells: Cells, levels: int, on_target: bool
) -> Trainer:
    """Prepare the training of a model, with a covariate of some levels and on-target effects."""
    settings = {
        "kind": arguments.model,
        "n_latent": arguments.latents,
        "n_hidden": arguments.hidden,
        "n_layers": arguments.layers,
    }
    sizes, device = (arguments.genes, arguments.perturbations), cells.counts.device
    genes: list[int] = []
    if levels:
        level = torch.arange(len(cells), device=device) % levels
        given = torch.nn.functional.one_hot(level, levels).float()
        cells = replace(cells, covariates=(given,))
    if on_target:
        settings["on_target_prior_scale"] = 2.0
        names = tuple(map(str, range(arguments.perturbations)))
        pairs = tuple((index, index) for index in range(min(sizes)))
        encoding = Encoding(names, targets=pairs)
        cells, genes = replace(cells, targets=encoding.pairs(cells.design)), encoding.target_genes
    return Trainer(lambda: build_model(settings, *sizes, levels, genes), cells, training, seeds=[0])


def measure_steps(
    trainer: Trainer,
    others: Sequence[Trainer],
    arguments: argparse.Namespace,
    device: torch.device,
) -> dict[str, object]:
    """Time steps by turns with a matrix multiplication, and with steps of other trainings."""
    trainer.take_step()  # the first is recorded, which executes its operations twice
    with count_operations() as counter:
        trainer.take_step()
    gflop = 1e-9 * counter.get_total_flops()
    before = _peak_mib(device)
    sizes = arguments.batch * arguments.particles, arguments.hidden, arguments.genes
    by_pytorch, product_gflop = multiplication(*sizes, device)
    by_models, _ = multiplication(*sizes, device, multiply)
    steps = [each.take_step for each in (trainer, *others)]
    *of_steps, by_hand, by_us = seconds_per_call(
        [*steps, by_pytorch, by_models], arguments.seconds, device
    )
    step_seconds, product_seconds = of_steps[0], (by_hand, by_us)
    rate = gflop / step_seconds
    sgemm, fastest = (product_gflop / each for each in (product_seconds[0], min(product_seconds)))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "steps_per_second": round(1 / step_seconds, 3),
        "speed_relative_to_plain": [round(other / step_seconds, 3) for other in of_steps[1:]],
        "gflop_per_step": round(gflop, 3),
        "sgemm_gflops": round(sgemm, 1),
        "fraction_of_sgemm": round(rate / sgemm, 3),
        "fastest_gflops": round(fastest, 1),
        "fraction_of_fastest": round(rate / fastest, 3),
        "peak_mib": round(_peak_mib(device)),
        "peak_mib_after_first_step": round(before),
    }


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="sams_vae")
    for name, value in (
        ("genes", 1187),
        ("perturbations", 100),
        ("latents", 100),
        ("hidden", 400),
        ("layers", 1),
        ("batch", 512),
        ("particles", 5),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--levels", type=int, default=0, help="of a covariate, such as batches")
    parser.add_argument(
        "--on-target",
        action="store_true",
        help="with effects of perturbations on genes of their own",
    )
    parser.add_argument("--precision", choices=list(MATMUL_PRECISIONS), default="float32")
    parser.add_argument(
        "--without-graph", action="store_true", help="launch each kernel of a step by itself"
    )
    parser.add_argument(
        "--without-triton", action="store_true", help="as on a GPU where Triton has no compiler"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
