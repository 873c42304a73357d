"""How near to its floor a GPU is driven: steps, kernels, importance weights, seeds together.

``python -m benchmarks.gpu`` prints a line of JSON for each figure, with its floor beside it: the
time that multiplications take at the rate of a large product, plus the time that the fewest bytes
take at the rate of a large copy. Without a GPU the same figures are of the CPU, at sizes that it
can bear. --help lists the options.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from benchmarks.train import count_operations, simulate_cells
from samsvae.inference.cells import Cells
from samsvae.inference.iwelbo import iwelbo
from samsvae.inference.machine import (
    MATMUL_PRECISIONS,
    choose_device,
    keep_freed_memory,
    matmul_precision,
)
from samsvae.inference.step import STEPS_WORTH_COMPILING, Training
from samsvae.inference.trainer import Trainer
from samsvae.models import build_model

PARTS = ("ceilings", "step", "kernels", "together", "iwelbo")
# genes, perturbations, latent dimensions, hidden units
SIZES = {
    "norman": (5000, 105, 200, 400),
    "replogle": (1187, 681, 100, 400),
    "small": (300, 24, 20, 128),
}
BATCH, PARTICLES = 512, 5
LOGIT_PASSES = 4  # a product writes them, gradients take their place, two products read these
ADAM_PASSES = 9  # reads of gradient, weight and both moments, writes of these; the norm; clipping
STEPS_COUNTED = 5


def seconds_per_call(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Time a call: the median of five turns, after a warm-up."""
    for _ in range(8):
        call()
    turns = []
    for _ in range(5):
        _wait(device)
        started, calls = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / 5:
            call()
            calls += 1
            if calls % 50 == 0:
                _wait(device)
        _wait(device)
        turns.append((time.perf_counter() - started) / calls)
    return sorted(turns)[2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Ceilings:
    """Rates of a large matrix product at each precision, and of a large copy.

    Parameters
    ----------
    device
        Where.
    seconds
        How long to time each.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        side = 8192 if device.type == "cuda" else 1024
        self.flops: dict[str, float] = {}
        for precision in MATMUL_PRECISIONS:
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
            with matmul_precision(precision):
                taken = seconds_per_call(partial(torch.mm, left, right), device, seconds)
            self.flops[precision] = 2 * side**3 / taken
        source = torch.randn(16 * side * side // 4, device=device)
        target = torch.empty_like(source)
        taken = seconds_per_call(lambda: target.copy_(source), device, seconds)
        self.bytes = 2 * source.nbytes / taken

    def milliseconds(self, flop: float, moved: float, precision: str) -> float:
        """Compute the least time of operations and bytes, one after the other."""
        return 1e3 * (flop / self.flops[precision] + moved / self.bytes)


def build_trainer(size: str, training: Training, device: torch.device, n_seeds: int = 1) -> Trainer:
    """Make a training of SAMS-VAE on simulated cells."""
    genes, perturbations, latents, hidden = SIZES[size]
    settings = {"kind": "sams_vae", "n_latent": latents, "n_hidden": hidden}
    cells = simulate_cells(genes, perturbations, device)
    return Trainer(
        lambda: build_model(settings, genes, perturbations), cells, training, range(n_seeds)
    )


def count_work(size: str, device: torch.device) -> tuple[float, int]:
    """Count the operations of a step's multiplications, and its weights."""
    training = Training(batch_size=BATCH, particles=PARTICLES)
    trainer = build_trainer(size, training, device)
    trainer.take_step()  # the first is recorded on a CPU, which executes its operations twice
    with count_operations() as counter:
        trainer.take_step()
    weights = trainer.training_step.weights.values()
    return counter.get_total_flops(), sum(weight.numel() for weight in weights)


def measure_steps(
    sizes: list[str], ceilings: Ceilings, device: torch.device, seconds: float, is_counted: bool
) -> Iterator[dict[str, Any]]:
    """Time steps at each size and precision, replayed as a graph and compiled where possible."""
    for size in sizes:
        flop, n_weights = count_work(size, device)
        logits = BATCH * PARTICLES * SIZES[size][0]
        for precision in MATMUL_PRECISIONS:
            width = 2 if precision == "bfloat16" else 4
            moved = width * LOGIT_PASSES * logits + 4 * ADAM_PASSES * n_weights
            floor = ceilings.milliseconds(flop, moved, precision)
            for compiled in (False, True) if device.type == "cuda" else (False,):
                training = Training(
                    max_steps=STEPS_WORTH_COMPILING - (not compiled),
                    batch_size=BATCH,
                    particles=PARTICLES,
                    matmul_precision=precision,
                )
                trainer = build_trainer(size, training, device)
                with matmul_precision(precision), trainer.replicates[0].stream():
                    taken = seconds_per_call(trainer.take_step, device, seconds)
                    kernels = count_kernels(trainer, device) if is_counted else {}
                yield {
                    "figure": "step",
                    "size": size,
                    "precision": precision,
                    "compiled": compiled,
                    "milliseconds": round(1e3 * taken, 4),
                    "floor_milliseconds": round(floor, 4),
                    "times_the_floor": round(1e3 * taken / floor, 2),
                    "steps_per_second": round(1 / taken, 1),
                    "gflop": round(1e-9 * flop, 2),
                    **kernels,
                }


def count_kernels(trainer: Trainer, device: torch.device, shown: int = 12) -> dict[str, Any]:
    """Count a step's kernels, and name those that take longest."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(STEPS_COUNTED):
            trainer.take_step()
        _wait(device)
    calls: Counter[str] = Counter()
    micros: Counter[str] = Counter()
    for event in profiler.key_averages():
        taken = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if taken > 0:
            calls[event.key] += event.count
            micros[event.key] += taken
    return {
        "kernels": sum(calls.values()) / STEPS_COUNTED,
        "busy_microseconds": round(sum(micros.values()) / STEPS_COUNTED, 1),
        "longest": {
            name[:70]: [calls[name] / STEPS_COUNTED, round(taken / STEPS_COUNTED, 1)]
            for name, taken in micros.most_common(shown)
        },
    }


def measure_together(seeds: int, device: torch.device, seconds: float) -> Iterator[dict[str, Any]]:
    """Time steps of several small models against those of one."""
    training = Training(batch_size=256, particles=PARTICLES)
    taken = []
    for number in (1, seeds):
        trainer = build_trainer("small", training, device, number)
        taken.append(seconds_per_call(trainer.take_step, device, seconds))
    yield {
        "figure": "seeds together",
        "seeds": seeds,
        "milliseconds_alone": round(1e3 * taken[0], 4),
        "milliseconds_together": round(1e3 * taken[1], 4),
        "times_of_one": round(taken[1] / taken[0], 2),
        "goal_times_of_one": 2.0,
    }


def measure_iwelbo(
    ceilings: Ceilings, device: torch.device, seconds: float, n_cells: int, particles: int
) -> Iterator[dict[str, Any]]:
    """Count the cells whose importance-weighted bound is estimated a second."""
    genes, perturbations, latents, hidden = SIZES["replogle"]
    every = simulate_cells(genes, perturbations, device)
    cells = Cells(
        every.counts[:n_cells],
        every.library_size[:n_cells],
        every.design,
        every.condition[:n_cells],
    )
    settings = {"kind": "sams_vae", "n_latent": latents, "n_hidden": hidden}
    model = build_model(settings, genes, perturbations).to(device).eval()
    model.standardise.fit(*cells.moments(model.standardise.rescale))
    with count_operations() as counter:
        iwelbo(model, cells, particles, seed=0)
    taken = seconds_per_call(lambda: iwelbo(model, cells, particles, seed=0), device, seconds)
    moved = 8.0 * n_cells * particles * genes  # logits, written and read
    floor = ceilings.milliseconds(counter.get_total_flops(), moved, "float32")
    yield {
        "figure": "iwelbo",
        "particles": particles,
        "cells": n_cells,
        "cells_per_second": round(n_cells / taken, 1),
        "floor_cells_per_second": round(1e3 * n_cells / floor, 1),
        "goal_cells_per_second": 50_000,
    }


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Go through the figures."""
    device = choose_device()
    on_gpu = device.type == "cuda"
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    pyro.enable_validation(False)
    name = torch.cuda.get_device_name(device) if on_gpu else str(device)
    ceilings = Ceilings(device, arguments.seconds / 4)
    yield {
        "figure": "ceilings",
        "device": name,
        "tflops": {key: round(1e-12 * rate, 3) for key, rate in ceilings.flops.items()},
        "terabytes_per_second": round(1e-12 * ceilings.bytes, 3),
    }
    sizes = arguments.sizes or (["norman", "replogle"] if on_gpu else ["small"])
    if "step" in arguments.parts:
        counted = "kernels" in arguments.parts
        yield from measure_steps(sizes, ceilings, device, arguments.seconds, counted)
    if "together" in arguments.parts:
        yield from measure_together(arguments.seeds, device, arguments.seconds)
    if "iwelbo" in arguments.parts:
        n_cells = arguments.cells or (8192 if on_gpu else 40)
        yield from measure_iwelbo(ceilings, device, arguments.seconds, n_cells, arguments.particles)


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), help="of the models")
    parser.add_argument("--seeds", type=int, default=10, help="trained together")
    parser.add_argument("--cells", type=int, help="of the importance-weighted bound")
    parser.add_argument("--particles", type=int, default=100, help="of the bound")
    parser.add_argument("--threads", type=int, default=2, help="of a CPU")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to time each")
    for found in measure(parser.parse_args()):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
