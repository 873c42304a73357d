"""Memory and time of checking a screen of two million cells that is stored sparse.

``python -m benchmarks.check_screen --cells 2000000 --genes 8248`` writes a file into a temporary
folder, checks it in a process of its own, removes it, and prints JSON: seconds, peak_mib (of the
checking process), mib_on_disk and the number of findings. --help lists the options.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

N_TARGETS, CONTROLS = 2_000, 0.04  # perturbations, and fraction of the cells that are controls
AT_ONCE = 20_000  # cells written at once


def write_file(path: Path, n_cells: int, n_genes: int, per_cell: int) -> None:
    """Write counts, barcodes and categorical labels as AnnData does, cell by cell."""
    rng = np.random.default_rng(0)
    columns = np.sort(rng.choice(n_genes, (AT_ONCE, per_cell)), axis=1).astype(np.int32)
    values = 1 + rng.poisson(3.0, columns.size).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        x.attrs["shape"] = np.array([n_cells, n_genes])
        x["indptr"] = np.arange(n_cells + 1, dtype=np.int64) * per_cell
        size = n_cells * per_cell
        data = x.create_dataset("data", (size,), np.float32, chunks=(2**17,))
        indices = x.create_dataset("indices", (size,), np.int32, chunks=(2**17,))
        for first in range(0, size, columns.size):
            n = min(columns.size, size - first)
            data[first : first + n] = values[:n]
            indices[first : first + n] = columns.ravel()[:n]
        labels = rng.integers(1, N_TARGETS + 1, n_cells).astype(np.int16)
        labels[rng.random(n_cells) < CONTROLS] = 0
        names = np.array(["control", *(f"GENE{i}" for i in range(N_TARGETS))], dtype=object)
        barcodes = np.array([f"ACGTACGTACGT{i:08d}-{i % 48 + 1}" for i in range(n_cells)], object)
        genes = np.array([f"GENE{i}" for i in range(n_genes)], object)
        for table, index in (("obs", barcodes), ("var", genes)):
            group = file.create_group(table)
            group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
            group.attrs["_index"] = "_index"
            group.attrs["column-order"] = np.array(
                ["gene"] if table == "obs" else [], h5py.string_dtype()
            )
            _write_text(group, "_index", index)
        column = file["obs"].create_group("gene")
        column.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0"})
        column.attrs["ordered"] = False
        column["codes"] = labels
        column["codes"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        _write_text(column, "categories", names)


def _write_text(group: h5py.Group, name: str, values: np.ndarray) -> None:
    made = group.create_dataset(name, data=values, dtype=h5py.string_dtype())
    made.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


def check(path: Path) -> dict[str, float]:
    """Check the file as the workflow does; tell the time and the peak of memory."""
    started = time.perf_counter()
    from samsvae.inspection.screen import inspect_screen

    found = inspect_screen({"path": str(path), "perturbation_column": "gene"}, {})
    seconds = time.perf_counter() - started
    if found.errors:
        raise RuntimeError(found.errors[0].message)
    return {"seconds": seconds, "peak_mib": peak_mib(), "findings": len(found.findings)}


def peak_mib() -> float:
    """Tell the peak of resident memory of this process, without that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=2_000_000)
    parser.add_argument("--genes", type=int, default=8_248)
    parser.add_argument("--per-cell", type=int, default=500, help="entries of a cell")
    parser.add_argument("--file", type=Path, help="check this file, in this process")
    options = parser.parse_args()
    if options.file is not None:
        print(json.dumps(check(options.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "screen.h5ad"
        write_file(path, options.cells, options.genes, options.per_cell)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.check_screen", "--file", str(path)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        size = path.stat().st_size / 2**20
    print(json.dumps({**json.loads(done.stdout), "mib_on_disk": size}, indent=2))


if __name__ == "__main__":
    main()
