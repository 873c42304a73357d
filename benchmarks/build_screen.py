"""Memory and time of building the Replogle screen, against reading the same rows.

``python -m benchmarks.build_screen --cells 200000 --layout dense`` writes a file of the official
layout, builds its screen in a process of its own, reads the same rows with h5py and does nothing
with them in another, and prints JSON: peak_mib (of the building process), seconds,
seconds_reading_only and their ratio. --help lists the options.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from samsvae.sources.h5ad_file import counts_of, open_h5ad
from samsvae.sources.replogle import ReplogleSource, select, write_replogle_screen

COPIES = {"dense": "original", "sparse": "scperturb"}
CHUNK_ROWS = 128
CONTROLS = 2_000 / 1_989_578  # as many of the cells are kept as controls


def source_of(path: Path, layout: str, cells: int) -> ReplogleSource:
    """Say what is kept of the file."""
    return ReplogleSource(
        str(path),
        COPIES[layout],
        n_controls=max(round(CONTROLS * cells), 1),
        expected_cells=None,
        expected_genes=None,
        expected_guide_pairs=None,
    )


def build(source: ReplogleSource) -> dict[str, float]:
    """Build the screen; tell the time and the process's peak of memory."""
    screen = Path(source.path).with_name("screen.h5ad")
    started = time.perf_counter()
    write_replogle_screen(source, "{}", screen)
    seconds = time.perf_counter() - started
    size = screen.stat().st_size
    screen.unlink()
    return {"seconds": seconds, "peak_mib": peak_mib(), "screen_mib": size / 2**20}


def peak_mib() -> float:
    """Tell the peak of resident memory of this process, without that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def read_only(source: ReplogleSource) -> dict[str, float]:
    """Read the rows that the building reads, into a buffer, and do nothing with them."""
    with open_h5ad(source.path) as file:
        cells = select(file, source).cells
        counts = counts_of(file)
        reads: list[Any] = counts.reads(cells)
        started = time.perf_counter()
        if counts.layout == "dense":
            pieces = [(file["X"], rows) for rows in reads]
        else:
            starts = file["X/indptr"][:]
            edges = [(starts[rows.start], starts[rows.stop]) for rows in reads]
            spans = [slice(int(first), int(last)) for first, last in edges]
            pieces = [(file["X"][name], span) for span in spans for name in ("data", "indices")]
        buffers: dict[str, np.ndarray] = {}
        for dataset, place in pieces:
            n = place.stop - place.start if isinstance(place, slice) else len(place)
            buffer = buffers.get(dataset.name, np.empty(0))
            if len(buffer) < n:
                buffer = buffers[dataset.name] = np.empty((n, *dataset.shape[1:]), dataset.dtype)
            dataset.read_direct(buffer[:n], np.s_[place])
        return {"seconds_reading_only": time.perf_counter() - started}


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_own_process(part: str, path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Run a part of the benchmark in a fresh process."""
    if arguments.cache == "cold":
        forget(path)
    command = [
        sys.executable, "-m", "benchmarks.build_screen", f"--cells={arguments.cells}",
        f"--layout={arguments.layout}", f"--part={part}", f"--path={path}",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def write_file(path: Path, arguments: argparse.Namespace) -> None:
    """Write the file, in a process of its own so that this one stays small."""
    from benchmarks.official_layouts import TARGETED_SHARE, ReplogleLayout, write_replogle

    layout = ReplogleLayout(
        COPIES[arguments.layout],
        arguments.cells,
        arguments.genes,
        targeted=TARGETED_SHARE if arguments.targeted is None else arguments.targeted,
        chunks=(CHUNK_ROWS, arguments.genes) if arguments.chunked else None,
        compression=arguments.compression,
    )
    write_replogle(path, layout)


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "official.h5ad"
        write_file(path, arguments)
        if arguments.cache == "warm":
            in_own_process("read", path, arguments)
        reading = in_own_process("read", path, arguments)
        building = in_own_process("build", path, arguments)
        size = path.stat().st_size
    numbers = {**building, **reading}
    return {
        "cells": arguments.cells,
        "layout": arguments.layout,
        "cache": arguments.cache,
        "file_mib": round(size / 2**20),
        **{name: round(number, 2) for name, number in numbers.items()},
        "ratio": round(numbers["seconds"] / numbers["seconds_reading_only"], 2),
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=8_248)
    parser.add_argument("--layout", choices=list(COPIES), default="dense")
    parser.add_argument("--chunked", action="store_true", help="chunk the dense matrix")
    parser.add_argument("--compression", choices=["gzip", "lzf"], default="gzip")
    parser.add_argument("--targeted", type=float, help="share of the cells that are kept")
    parser.add_argument("--cache", choices=["cold", "warm"], default="cold")
    parser.add_argument("--folder", help="where to write the file")
    parser.add_argument("--part", choices=["build", "read"], help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is None:
        print(json.dumps(measure(arguments), indent=1))
        return
    source = source_of(arguments.path, arguments.layout, arguments.cells)
    print(json.dumps((build if arguments.part == "build" else read_only)(source)))


if __name__ == "__main__":
    main()
