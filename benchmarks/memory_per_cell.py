"""Memory that jobs take for each cell of a screen, measured on growing screens.

``python -m benchmarks.memory_per_cell`` prints JSON. Screens of several sizes are simulated with
as many counts per cell as asked for. The training cells of each are put on the CPU as a training
does, and the effects of each are observed, in processes of their own whose peaks are noted. The
slope over sizes is the cost of a cell: ``times_dense`` sets that of a training against the dense
counts of its training cells, ``times_stored`` that of observing effects against the counts that
are not 0 (8 bytes each: value and gene), ``times_file`` both against the file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from benchmarks.build_screen import peak_mib
from samsvae.evaluation.observed import observed_effects
from samsvae.inference.cells import Cells
from samsvae.inference.encoding import Encoding
from samsvae.screen.canonical import build_screen, open_screen, write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.splits import TEST, TRAIN

BYTES_STORED = 8  # of a count in CSR: value and gene, int32 each
BYTES_DENSE = 1  # of a count on the device
TRAINED_ALL_BUT_ONE_OF = 5
CONTROL_ONE_OF = 20


def write_screen(path: Path, n_cells: int, genes: int, filled: float) -> int:
    """Simulate a screen; the number of its counts that are not 0."""
    rng = np.random.default_rng(0)
    counts = sparse.random(n_cells, genes, filled, "csr", np.float32, rng)
    counts.data = 1 + rng.poisson(2.0, counts.nnz).astype(np.int32)
    counts = sparse.csr_matrix(counts + sparse.eye(n_cells, genes, format="csr", dtype=np.int32))
    labels = [
        "control" if cell % CONTROL_ONE_OF == 0 else "AB"[cell % 2] for cell in range(n_cells)
    ]
    names = pd.RangeIndex(n_cells).astype(str)
    gene_names = [f"G{gene}" for gene in range(genes)]
    screen = build_screen(counts, Design.of_labels(labels), names, gene_names)
    write_source_screen(screen, "{}", path)
    return int(screen.X.nnz)


def train(path: Path) -> None:
    """Do with a screen what a training does before its first step."""
    with open_screen(path) as screen:
        encoding = Encoding.of(Design.of_screen(screen), "additive")
        cells = Cells.of(screen, trained_cells(screen.n_obs), encoding, torch.device("cpu"))
    assert cells.counts.element_size() == BYTES_DENSE


def observe(path: Path) -> None:
    """Observe the effects of a screen."""
    with open_screen(path) as screen:
        parts = np.where(trained_cells(screen.n_obs), TRAIN, TEST)
        observed_effects(screen, pd.Series(parts, index=screen.obs_names), "{}")


def trained_cells(n_cells: int) -> np.ndarray:
    """Choose four cells of five."""
    return np.arange(n_cells) % TRAINED_ALL_BUT_ONE_OF != 0


WORK = {"train": train, "observe": observe}


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the benchmark."""
    peaks: dict[str, list[float]] = {name: [] for name in WORK}
    sizes, stored = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "screen.h5ad"
        for n_cells in arguments.cells:
            stored = write_screen(path, n_cells, arguments.genes, arguments.filled) / n_cells
            sizes.append(path.stat().st_size)
            for name in WORK:
                command = [sys.executable, "-m", "benchmarks.memory_per_cell", "--do", name]
                command += ["--screen", str(path)]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                peaks[name].append(float(done.stdout))
    slope = {n: 2**20 * np.polyfit(arguments.cells, peak, 1)[0] for n, peak in peaks.items()}
    of_file = np.polyfit(arguments.cells, sizes, 1)[0]
    trained = 1 - 1 / TRAINED_ALL_BUT_ONE_OF
    dense = BYTES_DENSE * arguments.genes * trained
    return {
        "cells": arguments.cells,
        "genes": arguments.genes,
        "counts_per_cell_that_are_not_0": round(stored),
        "peak_mib": {name: [round(peak) for peak in of_work] for name, of_work in peaks.items()},
        "bytes_per_cell": {name: round(each) for name, each in slope.items()},
        "times_dense": round(slope["train"] / dense, 2),
        "times_stored": round(slope["observe"] / (BYTES_STORED * stored), 2),
        "times_file": {name: round(each / of_file, 1) for name, each in slope.items()},
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[40_000, 80_000, 160_000])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--filled", type=float, default=0.1, help="share of counts that are not 0")
    parser.add_argument("--do", choices=list(WORK), help=argparse.SUPPRESS)
    parser.add_argument("--screen", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.do:
        WORK[arguments.do](arguments.screen)
        print(peak_mib())
    else:
        print(json.dumps(measure(arguments)))


if __name__ == "__main__":
    main()
