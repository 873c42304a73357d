"""Training on cells that are streamed from the file, against training on cells in memory.

``python -m benchmarks.train_streamed`` prints one JSON object a line; --help lists the options.

For each number of cells a screen of random sparse counts is written, sorted by perturbation. Each
training runs in a process of its own, by turns streamed and with its cells in memory, with a pass
over all training cells after the warm-up of masks: ``cells``; ``peak_mib``, the largest resident
memory; ``steps_per_second`` and ``processor_seconds_per_step``, all threads together, over whole
buffers and without that pass; ``seconds_to_prepare``, from the file to the first step;
``file_mib``. ``relative_speed`` is the steps per second of streamed over those of cells in memory.
``peak_of_most_over_fewest`` compares the peaks of streamed trainings on the largest and the
smallest screen, with buffers of one size.

Then models are trained for equal steps in both ways, on a simulated screen that is sorted by
perturbation, the worst case for shuffling by blocks, and on a screen of a file (--file):
``blocks_in_buffer`` and ``buffers_per_epoch`` of the streamed one; by way ``elbo``, the mean over
seeds of the last validation bound in nats per cell, and ``std_of_seeds``; ``difference``,
streamed less in memory, and ``standard_error`` of it. A smaller buffer than the default is used,
since the default holds all cells of these screens and shuffles them fully.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyro
import torch
from scipy import sparse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from benchmarks.build_screen import peak_mib
from samsvae.config.experiments import Split
from samsvae.config.models import KINDS
from samsvae.inference.machine import keep_freed_memory
from samsvae.inference.streamed import BufferPlan, StreamedCells, default_buffer
from samsvae.inference.task import TrainingTask
from samsvae.inference.trainer import Trainer, fit
from samsvae.runtime.files import write_tsv
from samsvae.screen.canonical import read_screen, write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.splits import split_cells, split_table
from samsvae.screen.writing import write_screen_in_blocks
from samsvae.sources.h5ad import write_h5ad_screen
from samsvae.sources.h5ad_source import H5adSource
from samsvae.sources.simulated import Simulation, simulate

MODEL = {"n_latent": 20, "n_hidden": 128}
CPU = torch.device("cpu")
WAYS = ("device", "stream")
CELLS_OF_BLOCK = 20_000  # while a screen is written
PARTS = ["train", "train", "train", "train", "val"]


def write_files(folder: Path, n_cells: int, options: argparse.Namespace) -> tuple[Path, Path]:
    """Write a screen of random counts, sorted by perturbation, and a split."""
    rng = np.random.default_rng(0)
    per_cell = round(options.filled * options.genes)
    names = pd.Index([f"cell{number}" for number in range(n_cells)])
    code = np.sort(rng.integers(options.perturbations + 1, size=n_cells))
    conditions = [{}, *({f"P{number:04d}": 1.0} for number in range(options.perturbations))]
    screen, split = folder / "screen.h5ad", folder / "split.tsv"
    write_screen_in_blocks(
        _blocks(n_cells, options.genes, per_cell, rng),
        Design.of_conditions(conditions, code),
        names,
        [f"G{gene}" for gene in range(options.genes)],
        "{}",
        screen,
    )
    label = np.array(["control", *(f"P{number:04d}" for number in range(options.perturbations))])
    part = np.array(PARTS)[np.arange(n_cells) % len(PARTS)]
    write_tsv(pd.DataFrame({"cell": names, "perturbation": label[code], "split": part}), split)
    return screen, split


def _blocks(
    n_cells: int, n_genes: int, per_cell: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
    """Make counts of one random gene of each of some groups of consecutive genes."""
    spacing = n_genes // per_cell
    for first in range(0, n_cells, CELLS_OF_BLOCK):
        size = min(CELLS_OF_BLOCK, n_cells - first)
        genes = rng.integers(spacing, size=(size, per_cell)) + spacing * np.arange(per_cell)
        values = rng.geometric(0.5, genes.size).astype(np.int32)
        edges = np.arange(0, genes.size + 1, per_cell)
        counts = sparse.csr_matrix(
            (values, genes.ravel().astype(np.int32), edges), shape=(size, n_genes)
        )
        yield np.arange(first, first + size), counts


def read_task(
    files: tuple[Path, Path], way: str, seeds: Sequence[int], **training: object
) -> TrainingTask:
    """Prepare a training of SAMS-VAE."""
    settings = {**KINDS["sams_vae"]().model_dump(), "kind": "sams_vae", **MODEL}
    settings["embedding"] = "mean_field"
    return TrainingTask.read(
        *files, settings, {**training, "cells": way}, seeds=list(seeds), code="", device=CPU
    )


def train_alone(options: argparse.Namespace) -> dict[str, float]:
    """Train on the files of the options in this process; measure memory and speed."""
    started = time.perf_counter()
    [n_cells] = options.cells
    plan = _plan(n_cells, options)
    size = plan.buffer_size
    untimed, timed = (
        2 * plan.batches_of_buffer + 1,
        options.buffers * plan.batches_of_buffer,
    )
    every = 10 * (untimed + timed)  # so that no pass over all cells is timed
    task = read_task(
        tuple(options.files),
        options.child,
        [0],
        batch_size=options.batch,
        stream_buffer=size,
        max_steps=every,
        mask_warmup_fraction=(untimed // 2) / every,
    )
    trainer = Trainer(task.build, task.train, task.training, [0])
    prepared = time.perf_counter() - started
    with trainer.replicates[0].stream():
        for _ in range(untimed):
            trainer.take_step()
        before, spent = time.perf_counter(), time.process_time()
        for _ in range(timed):
            trainer.take_step()
        seconds, processor = time.perf_counter() - before, time.process_time() - spent
    trainer.evaluate(task.validation.select(np.arange(min(len(task.validation), options.batch))))
    return {
        "peak_mib": peak_mib(),
        "steps_per_second": timed / seconds,
        "processor_seconds_per_step": processor / timed,
        "seconds_to_prepare": prepared,
    }


def _plan(n_cells: int, options: argparse.Namespace) -> BufferPlan:
    """Plan the order of the training cells of a screen."""
    size = options.buffer or default_buffer(options.genes, torch.uint8)
    return BufferPlan(round(n_cells * PARTS.count("train") / len(PARTS)), options.batch, size)


def compare_sizes(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Measure trainings on screens of all sizes, each in a process of its own."""
    if not options.cells:
        return
    # buffers of an epoch are about equal: those of the smallest screen are of the same size for all
    smallest = _plan(min(options.cells), options)
    options.buffer = smallest.batches_of_buffer * options.batch
    peaks = []
    for n_cells in options.cells:
        with tempfile.TemporaryDirectory() as name:
            files = write_files(Path(name), n_cells, options)
            size = files[0].stat().st_size / 2**20
            turns: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(options.turns):
                for way in WAYS:
                    turns[way].append(_in_a_process(way, files, n_cells, options))
        # the time of all turns, not the mean of their speeds
        speed = {
            way: len(each) / sum(1 / turn["steps_per_second"] for turn in each)
            for way, each in turns.items()
        }
        for way, each in turns.items():
            means = pd.DataFrame(each).mean()
            yield {
                "cells": n_cells,
                "genes": options.genes,
                "way": way,
                "peak_mib": round(max(turn["peak_mib"] for turn in each)),
                "steps_per_second": round(speed[way], 2),
                "processor_seconds_per_step": round(means["processor_seconds_per_step"], 4),
                "seconds_to_prepare": round(means["seconds_to_prepare"], 1),
                "file_mib": round(size),
            }
        peaks.append(max(turn["peak_mib"] for turn in turns["stream"]))
        yield {"cells": n_cells, "relative_speed": round(speed["stream"] / speed["device"], 3)}
    if len(peaks) > 1:
        yield {"peak_of_most_over_fewest": round(peaks[-1] / peaks[0], 3)}


def _in_a_process(
    way: str, files: Sequence[Path], n_cells: int, options: argparse.Namespace
) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.train_streamed", "--child", way]
    for name in ("genes", "batch", "buffer", "buffers"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--cells", str(n_cells)]
    command += ["--files", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def sorted_simulation(cells: int) -> anndata.AnnData:
    """Simulate a screen, and sort its cells by perturbation."""
    screen = simulate(Simulation(n_genes=200, n_controls=2 * cells, cells_per_perturbation=cells))[
        0
    ]
    order = np.argsort(screen.obs["perturbation"].to_numpy(dtype=str), kind="stable")
    return screen[order].copy()


def screen_of(path: Path, folder: Path) -> anndata.AnnData:
    """Read a screen with the columns of Papalexi's."""
    source = H5adSource(path=str(path), perturbation_column="condition", batch_column="bio_rep")
    write_h5ad_screen(source, "{}", folder / "canonical.h5ad")
    return read_screen(folder / "canonical.h5ad")


def compare_bounds(
    name: str, screen: anndata.AnnData, folder: Path, options: argparse.Namespace
) -> dict[str, object]:
    """Train for equal steps in both ways, and compare the bounds of the validation cells."""
    files = folder / "screen.h5ad", folder / "split.tsv"
    write_source_screen(screen, "{}", files[0])
    parts = split_cells(Design.of_screen(screen), Split("random", 0))
    write_tsv(split_table(screen, parts), files[1])
    bounds, line = {}, {"screen": name, "cells": screen.n_obs, "steps": options.steps}
    for way in WAYS:
        task = read_task(
            files,
            way,
            options.seeds,
            batch_size=options.batch,
            stream_buffer=options.small_buffer,
            max_steps=options.steps,
            validate_every=options.steps // 5,
        )
        fitted = fit(task.build, task.train, task.validation, task.training, options.seeds)
        histories = [one.history for one in fitted]
        bounds[way] = np.array(
            [each.loc[each["cells"] == "val", "elbo"].iloc[-1] for each in histories]
        )
        if isinstance(task.train, StreamedCells):
            plan = task.train.plan
            blocks = round(plan.size(0) / plan.block_size)
            line |= {"blocks_in_buffer": blocks, "buffers_per_epoch": plan.n_buffers}
    for way, each in bounds.items():
        spread = round(float(each.std(ddof=1)), 3)
        line[way] = {"elbo": round(float(each.mean()), 3), "std_of_seeds": spread}
    variances = [each.var(ddof=1) / len(each) for each in bounds.values()]
    difference = bounds["stream"].mean() - bounds["device"].mean()
    return {
        **line,
        "difference": round(float(difference), 3),
        "standard_error": round(float(np.sqrt(sum(variances))), 3),
    }


def read_options(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs="*", default=[200_000, 2_000_000])
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--perturbations", type=int, default=100)
    parser.add_argument(
        "--filled", type=float, default=0.1, help="fraction of counts that are not 0"
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--buffer", type=int, default=0, help="cells in memory; 0: default")
    parser.add_argument("--buffers", type=int, default=2, help="buffers whose steps are timed")
    parser.add_argument("--turns", type=int, default=2, help="processes of each way")
    parser.add_argument("--file", type=Path, nargs="*", default=[], help="Papalexi's screen")
    parser.add_argument("--simulated", type=int, default=600, help="cells per perturbation; or 0")
    parser.add_argument("--small-buffer", type=int, default=4096, help="where bounds are compared")
    parser.add_argument("--steps", type=int, default=1500, help="where bounds are compared")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Read the options, measure, print."""
    options = read_options(given)
    torch.set_num_threads(1)
    keep_freed_memory()
    pyro.enable_validation(False)
    if options.child:
        print(json.dumps(train_alone(options)))
        return
    for line in compare_sizes(options):
        print(json.dumps(line), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.simulated:
            screen = sorted_simulation(options.simulated)
            line = compare_bounds("simulated, sorted", screen, folder, options)
            print(json.dumps(line), flush=True)
        for path in options.file:
            line = compare_bounds(path.name, screen_of(path, folder), folder, options)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
