"""Memory that the jobs of a screen take for each of its cells, measured on growing screens.

``python -m benchmarks.memory_per_cell`` prints JSON. Screens of several sizes are simulated with
as many counts per cell as asked for; each is read, and its training cells are put on the device,
in a process of its own whose peak is noted. The slope over sizes is the cost of a cell, and
``times_stored`` sets it against the bytes of the counts themselves: 8 for each that is not 0 (value
and gene) and ``dense_bytes`` for each gene on the device. ``times_file`` sets it against the file.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from samsvae.inference.cells import Cells
from samsvae.inference.encoding import Encoding
from samsvae.screen import build_screen, read_screen, write_source_screen

BYTES_STORED = 8  # of a count in CSR: value and gene, int32 each


def write_screen(path: Path, n_cells: int, genes: int, filled: float) -> int:
    """Simulate a screen; the number of its counts that are not 0."""
    rng = np.random.default_rng(0)
    counts = sparse.random(n_cells, genes, filled, "csr", np.float32, rng)
    counts.data = 1 + rng.poisson(2.0, counts.nnz).astype(np.int32)
    counts = sparse.csr_matrix(counts + sparse.eye(n_cells, genes, format="csr", dtype=np.int32))
    labels = [("control", "A", "B")[cell % 3] for cell in range(n_cells)]
    names = pd.RangeIndex(n_cells).astype(str)
    screen = build_screen(counts, labels, names, [f"G{gene}" for gene in range(genes)])
    write_source_screen(screen, "{}", path)
    return int(screen.X.nnz)


def load(path: Path) -> None:
    """Do with a screen what a training does before its first step, and print the peak."""
    screen: anndata.AnnData = read_screen(path)
    encoding = Encoding.of(screen.obs["perturbation"], "additive")
    train = np.arange(screen.n_obs) % 5 != 0
    cells = Cells.of(screen, train, encoding, torch.device("cpu"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "dense_bytes": cells.counts.element_size()}))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the benchmark."""
    peaks, sizes, dense, stored = [], [], 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "screen.h5ad"
        for n_cells in arguments.cells:
            stored = write_screen(path, n_cells, arguments.genes, arguments.filled) / n_cells
            command = [sys.executable, "-m", "benchmarks.memory_per_cell", "--load", str(path)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            result = json.loads(done.stdout)
            peaks.append(result["peak"])
            sizes.append(path.stat().st_size)
            dense = result["dense_bytes"]
    slope = float(np.polyfit(arguments.cells, peaks, 1)[0])
    needed = BYTES_STORED * stored + dense * arguments.genes
    return {
        "cells": arguments.cells,
        "genes": arguments.genes,
        "counts_per_cell_that_are_not_0": round(stored),
        "peak_mib": [round(peak / 2**20) for peak in peaks],
        "bytes_per_cell": round(slope),
        "dense_bytes": dense,
        "times_stored": round(slope / needed, 2),
        "times_file": round(slope / float(np.polyfit(arguments.cells, sizes, 1)[0]), 1),
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 20_000, 40_000])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--filled", type=float, default=0.1, help="share of counts that are not 0")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load)
    else:
        print(json.dumps(measure(arguments)))


if __name__ == "__main__":
    main()
