"""Memory and time of writing cells.h5ad, for screens of several sizes.

``python -m benchmarks.infer_cells`` prints JSON: the peak of resident memory of a process that
infers the states, bounds and responders of all cells of a simulated screen by an untrained model,
and its seconds per 1,000 cells, as a ratio of reading the counts of the same cells.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from benchmarks.build_screen import peak_mib
from benchmarks.memory_per_cell import write_screen
from samsvae.biology.applied import write_results
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.inference.machine import keep_freed_memory
from samsvae.models import build_model
from samsvae.screen.canonical import counts_in_blocks, open_screen
from samsvae.screen.design import Design

SETTINGS = {"kind": "sams_vae", "combinations": "additive", "n_latent": 50, "n_hidden": 200}


def infer(path: Path, particles: int) -> dict[str, float]:
    """Write the cells of a screen; measure time and memory."""
    keep_freed_memory()
    torch.set_num_threads(1)
    start = time.monotonic()
    with open_screen(path, names=False) as screen:
        for _ in counts_in_blocks(screen, None, 4_000_000):
            pass
        reading = time.monotonic() - start
        encoding = Encoding.of(Design.of_screen(screen), "additive")
        genes, n_cells = list(screen.var_names), screen.n_obs
    model = build_model(SETTINGS, len(genes), len(encoding.names)).eval()
    trained = TrainedModel(model, SETTINGS, genes, encoding)
    files = {
        "cells": path.with_name("cells.h5ad"),
        "responders": path.with_name("responders.tsv"),
        "scores": path.with_name("scores.tsv"),
        "responder_effects": path.with_name("effects.h5ad"),
    }
    start = time.monotonic()
    settings = {"cell_particles": particles, "min_cells_guide": 20}
    write_results(trained, path, files, settings, 0, "{}")
    seconds = time.monotonic() - start
    return {
        "cells": n_cells,
        "peak_mib": round(peak_mib()),
        "seconds_per_1000_cells": round(1000 * seconds / n_cells, 3),
        "times_reading": round(seconds / reading, 1),
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--filled", type=float, default=0.1, help="fraction of counts above 0")
    parser.add_argument("--particles", type=int, default=5)
    parser.add_argument("--screen", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.screen:
        print(json.dumps(infer(arguments.screen, arguments.particles)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "screen.h5ad"
        for n_cells in arguments.cells:
            write_screen(path, n_cells, arguments.genes, arguments.filled)
            command = [sys.executable, "-m", "benchmarks.infer_cells", "--screen", str(path)]
            command += ["--particles", str(arguments.particles)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            print(done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
