"""Speed and memory of a training step, against the matrix multiplications that it needs.

``python -m benchmarks.train`` prints JSON. The default is the paper's Replogle setting at two
threads; --help lists the options.
"""

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from samsvae.inference.cells import Cells, choose_device
from samsvae.inference.memory import keep_freed_memory
from samsvae.inference.step import Training
from samsvae.inference.trainer import Fitting
from samsvae.models.multiplication import multiply
from samsvae.models.registry import MODELS, build_model

N_CELLS = 8192
MEAN_COUNT = 0.7
WARM_UP = 3  # calls
SECONDS_A_TURN = 1.0


def simulate_cells(n_genes: int, n_perturbations: int, device: torch.device) -> Cells:
    """Make cells with as many conditions as perturbations, and control."""
    generator = torch.Generator().manual_seed(0)
    rate = torch.full((N_CELLS, n_genes), MEAN_COUNT)
    counts = torch.poisson(rate, generator=generator).to(torch.uint8)
    dosage = torch.cat([torch.zeros(1, n_perturbations), torch.eye(n_perturbations)])
    return Cells(
        counts.to(device),
        counts.sum(1).float().to(device),
        dosage.to(device),
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


def multiplications(
    batch: int, inner: int, outer: int, device: torch.device
) -> tuple[list[Callable[[], Tensor]], float]:
    """Make a float32 matrix multiplication of the decoder's size, and count its GFLOP.

    Returns
    -------
    list of callable
        The multiplication by PyTorch's own means, and by what the models use.
    float
        GFLOP.
    """
    left, right = torch.randn(batch, inner, device=device), torch.randn(inner, outer, device=device)
    return [lambda: left @ right, lambda: multiply(left, right)], 2e-9 * batch * inner * outer


def _linear_flop(x: Sequence[int], weight: Sequence[int], *others: Any, **named: Any) -> int:
    return 2 * math.prod(x) * weight[0]


# what FlopCounterMode does not count by itself
FLOP = (
    {torch.ops.mkldnn._linear_pointwise: _linear_flop}
    if torch.backends.mkldnn.is_available()
    else {}
)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the benchmark."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)
    device = choose_device()
    cells = simulate_cells(arguments.genes, arguments.perturbations, device)
    settings = {
        "kind": arguments.model,
        "n_latent": arguments.latents,
        "n_hidden": arguments.hidden,
        "n_layers": arguments.layers,
    }
    model = build_model(settings, arguments.genes, arguments.perturbations).to(device)
    model.standardise.fit(*cells.moments(model.standardise.rescale))
    training = Training(batch_size=arguments.batch, particles=arguments.particles)
    fitting = Fitting(model, cells, training, seed=0)
    with FlopCounterMode(display=False, custom_mapping=FLOP) as counter:
        fitting.take_step()
    gflop = 1e-9 * counter.get_total_flops()
    before = _peak_mib(device)
    products, product_gflop = multiplications(
        arguments.batch * arguments.particles, arguments.hidden, arguments.genes, device
    )
    step_seconds, *product_seconds = seconds_per_call(
        [fitting.take_step, *products], arguments.seconds, device
    )
    rate, sgemm = gflop / step_seconds, product_gflop / min(product_seconds)
    return {
        "model": arguments.model,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "steps_per_second": round(1 / step_seconds, 3),
        "gflop_per_step": round(gflop, 3),
        "sgemm_gflops": round(sgemm, 1),
        "pytorch_sgemm_gflops": round(product_gflop / product_seconds[0], 1),
        "fraction_of_sgemm": round(rate / sgemm, 3),
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
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
