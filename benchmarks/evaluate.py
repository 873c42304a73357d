"""Speed, memory and noise of the evaluation of a trained model.

``python -m benchmarks.evaluate`` prints JSON. Of the importance-weighted bound: cells a second,
against the matrix multiplications of encoder and decoder that its particles need, and memory
above the model for few cells and for many, read from a file. Of predicted effects: the integrated
estimator against the sampled one, the paper's, in seconds and in distance from a truth of many
more draws. The default is the paper's Replogle setting with 100 perturbations, at two threads;
--help lists the options.
"""

import argparse
import ctypes
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyro
import torch
from scipy import sparse
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))


from benchmarks.train import MEAN_COUNT, multiplication, seconds_per_call, simulate_cells
from samsvae.evaluation.predicted import predicted_effects
from samsvae.inference.cells import Cells, CellStream
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.inference.iwelbo import ROWS_AT_A_TIME, StreamedBounds, iwelbo
from samsvae.inference.machine import choose_device, keep_freed_memory
from samsvae.models import build_model
from samsvae.models.sams_vae import SamsVae
from samsvae.runtime.files import write_parquet_parts, write_tsv
from samsvae.screen.canonical import read_screen
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TEST, split_table
from samsvae.screen.writing import write_screen_in_blocks

PARTS = ("iwelbo", "memory", "effects")
OPEN_MASKS = 0.03
LOGIT = 6.0  # of masks, for or against
KNOWN_TO = 0.1  # standard deviation of embeddings
RESPONSE = 5.0  # how many times stronger genes respond to the decoder than before training
STRENGTH = 1.5  # standard deviation of the means of embeddings
CELLS_AT_ONCE = 500  # when a screen is written
INTEGRATED_CALLS = 5


def names_of(perturbations: int) -> list[str]:
    """Name perturbations."""
    return [f"P{index:04d}" for index in range(perturbations)]


def as_after_training(arguments: argparse.Namespace) -> TrainedModel:
    """Make a model whose masks are decided and whose embeddings are known rather well."""
    pyro.set_rng_seed(0)
    settings = {
        "kind": "sams_vae",
        "n_latent": arguments.latents,
        "n_hidden": arguments.hidden,
        "n_layers": arguments.layers,
        "embedding": "correlated",
        "combinations": "additive",
    }
    model = build_model(settings, arguments.genes, arguments.perturbations).to(choose_device())
    assert isinstance(model, SamsVae)
    with torch.no_grad():
        opened = torch.rand_like(model.mask.logits) < OPEN_MASKS
        model.mask.logits.copy_(torch.where(opened, LOGIT, -LOGIT))
        head: nn.Linear = model.embedding.network.head  # type: ignore[assignment, union-attr]
        location, scale = head.weight.chunk(2)
        location.mul_(STRENGTH / location.std() / arguments.latents**0.5)
        scale.zero_()
        head.bias.chunk(2)[1].fill_(float(np.log(np.expm1(KNOWN_TO))))
        decoder: nn.Linear = model.likelihood.head
        decoder.weight.mul_(RESPONSE)
        decoder.bias.normal_()  # genes of very different abundance
    genes = [f"G{index:05d}" for index in range(arguments.genes)]
    return TrainedModel(
        model.eval(), settings, genes, Encoding(tuple(names_of(arguments.perturbations)))
    )


def gflop_per_cell(model: SamsVae, particles: int) -> float:
    """Count the multiplications of encoder and decoder that a cell needs.

    Counts meet the encoder once for all particles. What the perturbation adds there is left out,
    since it could be multiplied once for all cells of a perturbation.
    """
    counts_layer, *others = model.encoder.hidden.first
    guide = [*others, *model.embedding.modules()]
    each_particle = sum(
        layer.weight.numel()
        for layer in model.modules()
        if isinstance(layer, nn.Linear) and layer is not counts_layer and layer not in guide
    )
    weights = next(iter(counts_layer.parameters())).numel() + particles * each_particle
    return 2e-9 * weights


def measure_iwelbo(arguments: argparse.Namespace) -> dict[str, object]:
    """Time the bound by turns with a matrix multiplication."""
    keep_freed_memory()
    device = choose_device()
    model = as_after_training(arguments).model
    assert isinstance(model, SamsVae)
    all_cells = simulate_cells(arguments.genes, arguments.perturbations, device)
    chosen = slice(arguments.cells)
    cells = Cells(
        all_cells.counts[chosen],
        all_cells.library_size[chosen],
        all_cells.design,
        all_cells.condition[chosen],
    )
    model.standardise.fit(*cells.moments(model.standardise.rescale))
    multiply, gflop = multiplication(ROWS_AT_A_TIME, arguments.hidden, arguments.genes, device)
    seconds, multiply_seconds = seconds_per_call(
        [lambda: iwelbo(model, cells, arguments.particles, seed=0), multiply],
        arguments.seconds,
        device,
    )
    needed = gflop_per_cell(model, arguments.particles)
    rate, sgemm = len(cells) / seconds, gflop / multiply_seconds
    return {
        "particles": arguments.particles,
        "cells_per_second": round(rate, 1),
        "gflop_per_cell": round(needed, 4),
        "sgemm_gflops": round(sgemm, 1),
        "fraction_of_sgemm": round(rate * needed / sgemm, 3),
    }


def write_screen(arguments: argparse.Namespace, n_cells: int, path: Path) -> None:
    """Write a screen of many cells as a source does, and a split that tests them all."""
    rng = np.random.default_rng(0)
    labels = rng.choice([CONTROL, *names_of(arguments.perturbations)], n_cells)

    def blocks() -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
        for position in np.array_split(np.arange(n_cells), -(-n_cells // CELLS_AT_ONCE)):
            counts = rng.poisson(MEAN_COUNT, (len(position), arguments.genes))
            yield position, sparse.csr_matrix(counts.astype(np.int32))

    genes = [f"G{index:05d}" for index in range(arguments.genes)]
    cells = [f"cell{index}" for index in range(n_cells)]
    write_screen_in_blocks(blocks(), Design.of_labels(labels), cells, genes, "{}", path)
    write_tsv(split_table(read_screen(path), [TEST] * n_cells), split_beside(path))


def split_beside(screen: Path) -> Path:
    """Name the file of the split of a screen."""
    return screen.with_suffix(".tsv")


def mib_above_model(arguments: argparse.Namespace, path: Path) -> float:
    """Evaluate a screen in a file; the peak of resident memory, above what the model leaves."""
    torch.set_num_threads(arguments.threads)
    trained = as_after_training(arguments)
    few = simulate_cells(arguments.genes, arguments.perturbations, torch.device("cpu"))
    few = Cells(few.counts[:2].clone(), few.library_size[:2], few.design, few.condition[:2])
    iwelbo(trained.model, few, 2, seed=0)  # compiles what is to be compiled
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = _resident_kib("VmRSS")
    keep_freed_memory()
    cells = CellStream.of(path, split_beside(path), [TEST], trained.encoding, torch.device("cpu"))
    bounds = StreamedBounds(trained.model, cells, arguments.particles, seed=0)
    write_parquet_parts(bounds.tables(), (), "{}", path.with_suffix(".parquet"))
    bounds.by_particles()
    return (_resident_kib("VmHWM") - before) / 1024


def _resident_kib(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1))


def measure_memory(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure memory for each number of cells in a process of its own (Linux only)."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for n_cells in arguments.memory_cells:
            path = Path(folder) / f"{n_cells}.h5ad"
            write_screen(arguments, n_cells, path)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as process:
                peak = process.submit(mib_above_model, arguments, path).result()
            found[str(n_cells)] = round(peak, 1)
    return {"mib_above_model_by_cells": found}


def measure_effects(arguments: argparse.Namespace) -> dict[str, object]:
    """Time both estimators beside each other, and compare them with a truth."""
    keep_freed_memory()
    trained, names = as_after_training(arguments), names_of(arguments.perturbations)
    truth, _ = predicted_effects(trained, names, arguments.truth_draws, seed=1)
    found: dict[str, object] = {"effect_deviation": round(float(truth.std()), 4)}
    seconds, variance = {}, {}
    for estimator, draws, calls in (
        ("integrated", arguments.draws, INTEGRATED_CALLS),
        ("sampled", arguments.sampled_draws, 1),
    ):
        predicted_effects(trained, names, 2, seed=0, estimator=estimator)  # compiles
        started = time.perf_counter()
        for _ in range(calls):
            effects, error = predicted_effects(trained, names, draws, seed=2, estimator=estimator)
        seconds[estimator] = (time.perf_counter() - started) / calls
        variance[estimator] = draws * float(np.mean(error**2))
        found[estimator] = {
            "draws": draws,
            "seconds": round(seconds[estimator], 4),
            "rmse": round(float(np.sqrt(np.mean((effects - truth) ** 2))), 5),
            "standard_error": round(float(np.sqrt(np.mean(error**2))), 5),
            "correlation": round(float(np.corrcoef(effects.ravel(), truth.ravel())[0, 1]), 4),
        }
    return found | {
        "times_as_fast": round(seconds["sampled"] / seconds["integrated"], 1),
        "variance_of_a_draw_cut_by": round(variance["sampled"] / variance["integrated"], 1),
    }


MEASURE = dict(zip(PARTS, (measure_iwelbo, measure_memory, measure_effects), strict=True))


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    for name, value, what in (
        ("genes", 1187, ""),
        ("perturbations", 100, ""),
        ("latents", 100, ""),
        ("hidden", 400, ""),
        ("layers", 1, ""),
        ("threads", 2, ""),
        ("particles", 100, "of the bound"),
        ("cells", 1000, "cells of a timed bound, 8192 at most"),
        ("draws", 100, "of the integrated estimator"),
        ("sampled-draws", 2500, "of the sampled estimator"),
        ("truth-draws", 8000, "of the integrated estimator that serves as truth"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=what)
    parser.add_argument(
        "--memory-cells", nargs="+", type=int, default=[2000, 20_000], help="numbers of cells"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to time the bound")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {part: MEASURE[part](arguments) for part in arguments.parts}
    machine = {"device": str(choose_device()), "threads": arguments.threads}
    print(json.dumps(machine | found, indent=2))


if __name__ == "__main__":
    main()
