"""What all trainings of a configuration cost, in arithmetic that is counted and not guessed.

``python -m benchmarks.paper_cost --configfile config/norman.yaml`` prints JSON: trainings, steps,
floating-point operations of all of them, and the hours that they take at each TFLOP/s that a
device sustains. One step of every distinct model is taken, on few cells, to count its operations.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyro
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from benchmarks.train import count_operations, simulate_cells
from samsvae.config import merge, read_schema, validate
from samsvae.experiments import is_trained, runs
from samsvae.inference.step import Training
from samsvae.inference.trainer import Fitting
from samsvae.models.registry import build_model

COUNTED_CELLS = 32
SECONDS_AN_HOUR = 3600


def trainings_of(config: dict[str, Any]) -> Counter[str]:
    """How often each model is trained, by name."""
    return Counter(
        run.model
        for experiment in config["experiments"].values()
        for run in runs(experiment, config["models"])
        if is_trained(config["models"][run.model])
    )


def gflop_per_step(
    settings: dict[str, Any], training: Training, genes: int, perturbations: int
) -> float:
    """Count the operations of one step: of two small batches, and from these of the real one."""
    small, twice = (
        _count(settings, training, genes, perturbations, size)
        for size in (COUNTED_CELLS, 2 * COUNTED_CELLS)
    )
    per_cell = (twice - small) / COUNTED_CELLS
    return 1e-9 * (small + per_cell * (training.batch_size - COUNTED_CELLS))


def _count(
    settings: dict[str, Any], training: Training, genes: int, perturbations: int, size: int
) -> float:
    pyro.set_rng_seed(0)
    cells = simulate_cells(genes, perturbations, torch.device("cpu"))
    how = Training(batch_size=size, particles=training.particles)
    model = build_model(settings, genes, perturbations)
    model.standardise.fit(*cells.moments(model.standardise.rescale))
    fitting = Fitting(model, cells, how, seed=0)
    with count_operations() as counter:
        fitting.take_step()
    return float(counter.get_total_flops())


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Count."""
    pyro.enable_validation(False)
    defaults = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    user = yaml.safe_load(arguments.configfile.read_text(encoding="utf-8"))
    schema = read_schema(ROOT / "workflow/schemas/config.schema.yaml")
    config = validate(merge(defaults, user), schema)
    training = Training(**config["training"])
    counts = trainings_of(config)
    gflop = {
        name: gflop_per_step(
            config["models"][name], training, arguments.genes, arguments.perturbations
        )
        for name in counts
    }
    total = sum(counts[name] * training.max_steps * gflop[name] for name in counts)
    return {
        "trainings": counts.total(),
        "steps": counts.total() * training.max_steps,
        "cells_in_steps": counts.total() * training.max_steps * training.batch_size,
        "gflop_per_step": {
            "smallest": round(min(gflop.values()), 2),
            "mean": round(sum(counts[n] * gflop[n] for n in counts) / counts.total(), 2),
            "largest": round(max(gflop.values()), 2),
        },
        "exaflop": round(1e-9 * total, 2),
        "hours_at_one_tflops": round(1e-3 * total / SECONDS_AN_HOUR, 1),
    }


def main() -> None:
    """Read the options, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configfile", type=Path, default=ROOT / "config/norman.yaml")
    parser.add_argument("--genes", type=int, default=5000)
    parser.add_argument("--perturbations", type=int, default=105)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
