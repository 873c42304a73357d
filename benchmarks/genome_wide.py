"""Time and memory of every stage of the workflow, for screens of thousands of perturbations.

``python -m benchmarks.genome_wide`` prints a line of JSON for each number of perturbations. A
screen with 40 cells of each and control cells is written as an h5ad file of raw counts, and the
workflow runs on it in a temporary folder: SAMS-VAE, all baselines, every table and figure, and the
report. ``stages`` gives, for each rule, the seconds and processor seconds of all of its jobs and
the largest peak of memory of one, from the benchmark files of the jobs (processor time is sampled,
and too small for jobs below a minute); ``seconds`` is that of the whole run and includes what
Snakemake itself takes. ``--steps 0`` leaves SAMS-VAE out. ``--folder`` retains the files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import yaml
from anndata.io import write_elem
from scipy import sparse

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 4_000  # cells simulated at once
CONTROL = "non-targeting"
PROGRAMME_SIZE = 30
N_BASAL = 4  # directions in which control cells vary
INERT = 0.3  # fraction of perturbations without effect
TARGETED = 0.4  # fraction of the measured genes that are targets, at most
KNOCK_DOWN = np.log(5)
BASELINES = ("additive", "mean_effect", "no_change", "split_half")
# GNU time is not everywhere, so that the columns are those of Snakemake's benchmark files
SECONDS, PROCESSOR, PEAK = "s", "cpu_time", "max_rss"


def write_screen(path: Path, arguments: argparse.Namespace, perturbations: int) -> int:
    """Simulate a screen block by block into an h5ad file; the number of its cells.

    A perturbation moves up to three gene programmes, and lowers its own gene if that is measured.
    Cells are in random order, as in a file of several lanes.
    """
    rng = np.random.default_rng(arguments.seed)
    genes = arguments.genes
    programmes = _programmes(genes)
    log_mean = rng.normal(0, 1.2, genes)
    log_mean -= np.log(np.exp(log_mean).sum())
    effects = np.zeros((perturbations, genes), dtype=np.float32)
    for row in effects[: round((1 - INERT) * perturbations)]:
        for programme in rng.choice(len(programmes), rng.integers(1, 4), replace=False):
            row[programmes[programme]] += rng.normal(0, 0.7)
    own = np.arange(min(perturbations, round(TARGETED * genes)))
    effects[own, own] -= KNOCK_DOWN
    basal = rng.normal(0, 0.15, (N_BASAL, genes)).astype(np.float32)
    label = np.repeat(np.arange(-1, perturbations), arguments.cells_per_perturbation)
    label = label[arguments.cells_per_perturbation :]
    label = rng.permutation(np.concatenate([np.full(arguments.controls, -1), label]))

    measured = ("GENE" if number < len(own) else "UNMEASURED" for number in range(perturbations))
    names = np.array([*(f"{kind}{number + 1}" for number, kind in enumerate(measured)), CONTROL])
    obs = pd.DataFrame(
        {"perturbation": pd.Categorical.from_codes(label % len(names), names)},
        index=pd.RangeIndex(len(label)).astype(str),
    )
    with h5py.File(path, "w") as file:
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=[f"GENE{gene + 1}" for gene in range(genes)]))
        _write_counts(
            file,
            (len(label), genes),
            (
                _counts(rng, effects, basal, log_mean, label[start : start + BLOCK], arguments)
                for start in range(0, len(label), BLOCK)
            ),
        )
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    sets = (
        "\t".join([f"PROGRAMME_{number + 1}", "simulated", *(f"GENE{gene + 1}" for gene in chosen)])
        for number, chosen in enumerate(programmes)
    )
    path.with_name("programmes.gmt").write_text("\n".join(sets) + "\n")
    return len(label)


def _programmes(genes: int) -> list[np.ndarray]:
    shuffled = np.random.default_rng(1).permutation(genes)
    n_programmes = min(50, genes // (2 * PROGRAMME_SIZE))
    return np.split(shuffled[: n_programmes * PROGRAMME_SIZE], n_programmes)


def _counts(
    rng: np.random.Generator,
    effects: np.ndarray,
    basal: np.ndarray,
    log_mean: np.ndarray,
    label: np.ndarray,
    arguments: argparse.Namespace,
) -> sparse.csr_matrix:
    logits = rng.normal(size=(len(label), len(basal))).astype(np.float32) @ basal
    logits += log_mean.astype(np.float32)
    perturbed = label >= 0
    logits[perturbed] += effects[label[perturbed]]
    rate = np.exp(logits, out=logits)
    depth = rng.lognormal(np.log(arguments.depth), 0.35, len(label))
    rate *= (depth / rate.sum(axis=1))[:, None].astype(np.float32)
    return sparse.csr_matrix(rng.poisson(rate).astype(np.int32))


def _write_counts(
    file: h5py.File, shape: tuple[int, int], blocks: Iterator[sparse.csr_matrix]
) -> None:
    group = file.create_group("X")
    columns = [
        group.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(2**17,))
        for name, kind in (("data", np.float32), ("indices", np.int32))
    ]
    sizes = [np.zeros(1, dtype=np.int64)]
    for block in blocks:
        for column, values in zip(columns, (block.data, block.indices), strict=True):
            column.resize((len(column) + len(values),))
            column[len(column) - len(values) :] = values
        sizes.append(np.diff(block.indptr))
    group["indptr"] = np.concatenate(sizes).cumsum()
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array(shape)


def configuration(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the configuration of one screen, all baselines, and SAMS-VAE if there are steps."""
    model = {"n_latent": arguments.latents, "n_hidden": arguments.hidden}
    trained = {"sams_vae": {"kind": "sams_vae", "mask_prior": 0.01, **model}}
    models = (trained if arguments.steps else {}) | {name: {"kind": name} for name in BASELINES}
    return {
        "name": "genome_wide",
        "screens": {
            "genome_wide": {
                "source": "h5ad",
                "path": str(folder / "screen.h5ad"),
                "perturbation_column": "perturbation",
                "control": CONTROL,
            }
        },
        "gene_sets": {"programmes": str(folder / "programmes.gmt")},
        "models": models,
        "training": {
            "max_steps": max(arguments.steps, 1),
            "batch_size": 512,
            "validate_every": max(arguments.steps // 3, 1),
        },
        "experiments": {
            "genome_wide": {
                "screen": "genome_wide",
                "split": {"kind": "random", "seeds": [0]},
                "models": list(models),
                "seeds": [0],
            },
        },
    }


def run_workflow(folder: Path, arguments: argparse.Namespace) -> tuple[int, float]:
    """Run all rules in the folder; the exit status and the seconds."""
    file = folder / "genome_wide.yaml"
    file.write_text(yaml.safe_dump(configuration(folder, arguments)))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), "--cores", str(arguments.cores), "--nocolor"]
    command += ["--keep-going", "--rerun-triggers", "mtime", "--configfile", str(file)]
    started = time.perf_counter()
    with (folder / "snakemake.log").open("w") as log:
        done = subprocess.run(
            command, stdout=log, stderr=log, check=False, env={**os.environ, "PYTHONPATH": ""}
        )
    return done.returncode, time.perf_counter() - started


def stages(folder: Path) -> dict[str, dict[str, float]]:
    """Sum the benchmark files of each rule below a folder: seconds, processor seconds, peak."""
    rows = []
    for path in sorted(folder.rglob("*.tsv")):
        table = pd.read_csv(path, sep="\t", na_values="-")
        inside = path.relative_to(folder)
        rows.append(table.iloc[-1:].assign(rule=inside.parts[0].removesuffix(".tsv").split("-")[0]))
    if not rows:
        return {}
    by_rule = pd.concat(rows).groupby("rule")
    found = pd.DataFrame(
        {
            "seconds": by_rule[SECONDS].sum().round(1),
            "cpu_seconds": by_rule[PROCESSOR].sum().round(1),
            "peak_mib": by_rule[PEAK].max().round(),
        }
    ).sort_values("cpu_seconds", ascending=False)
    return {str(rule): row.dropna().to_dict() for rule, row in found.iterrows()}


def measure(folder: Path, arguments: argparse.Namespace, perturbations: int) -> dict[str, Any]:
    """Make a screen, run the workflow on it, and say what each stage took."""
    path = folder / "screen.h5ad"
    started = time.perf_counter()
    cells = write_screen(path, arguments, perturbations)
    making = time.perf_counter() - started
    status, seconds = run_workflow(folder, arguments)
    report = next(folder.glob("results/report*.html"), None)
    found = stages(folder / "results" / "benchmarks")
    return {
        "perturbations": perturbations,
        "cells": cells,
        "genes": arguments.genes,
        "finished": status == 0,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(stage.get("cpu_seconds", 0) for stage in found.values()), 1),
        "peak_mib": max((stage.get("peak_mib", 0) for stage in found.values()), default=0),
        "seconds_making_the_screen": round(making, 1),
        "report_mib": round(report.stat().st_size / 2**20, 2) if report else None,
        "stages": found,
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--perturbations", type=int, nargs="+", default=[1000, 4000, 10_000])
    for name, value in (
        ("cells-per-perturbation", 40),
        ("controls", 10_000),
        ("genes", 2000),
        ("depth", 1000),
        ("latents", 50),
        ("hidden", 200),
        ("steps", 300),
        ("cores", 2),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, help="where to retain the files")
    arguments = parser.parse_args()
    for perturbations in arguments.perturbations:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if arguments.folder:
                folder = arguments.folder.resolve() / str(perturbations)
                folder.mkdir(parents=True, exist_ok=True)
            print(json.dumps(measure(folder, arguments, perturbations)), flush=True)


if __name__ == "__main__":
    main()
