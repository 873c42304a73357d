"""How well a model tells responders from cells that a perturbation did not reach.

``python -m benchmarks.responders --seeds 0 1 2`` simulates screens in which a part of the cells
escapes (``--escapers``), trains SAMS-VAE and prints one JSON object a line: every seed, then their
mean. ``--file papalexi2021_thp1_ko_20729x299.h5ad --batch bio_rep --guide guide --classes
classes.tsv`` does the same with a real screen, and compares non-responders (a probability below
one half) with the class NP of a table of :mod:`benchmarks.mixscape`.

- ``area``: area under the ROC curve of the score, responders against the other cells of a
  perturbation; the mean and the lowest of perturbations whose fraction is known. Those that begin
  with ``strong`` are of perturbations that shift the latent state by two basal standard deviations
  or more.
- ``error``: estimated minus true fraction of responders; the mean, the largest absolute one, and
  how often the interval of 95 % holds the truth.
- ``unknown``: fraction of perturbations whose fraction is unknown, of those without a true effect,
  and of the others.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import cohen_kappa_score, roc_auc_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from benchmarks.real_effects import SETTINGS, TRAINING, Case, read_labelled
from benchmarks.truth_recovery import key_values, mean_of
from samsvae.biology.applied import CellPass
from samsvae.biology.responders import Responders
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.machine import keep_freed_memory
from samsvae.inference.step import Training
from samsvae.sources.simulated import Simulation, simulate

PARTICLES = 25
SIMULATION = {"n_pairs": 0, "cells_per_perturbation": 200, "n_controls": 1000}
HALF = 0.5
TENTH = 0.1
STRONG = 2.0  # basal standard deviations


def responders_of(trained: TrainedModel, screen: anndata.AnnData, seed: int) -> Responders:
    """Score all cells of a screen."""
    cells = CellPass(trained, screen, PARTICLES, seed)
    for _ in cells.blocks():
        pass
    return cells.responders()


def of_simulation(screen: anndata.AnnData, found: Responders) -> dict[str, Any]:
    """Compare responders with the truth."""
    truth = screen.uns["truth"]
    shift = np.linalg.norm(truth["mask"] * truth["embedding"], axis=1)
    strength = pd.Series(shift, truth["targets"])
    reached = screen.obsm["true_response"].any(axis=1)
    rows = []
    unknown: dict[bool, list[float]] = {True: [], False: []}
    for group, name in enumerate(found.groups.names):
        pairs = found.groups.cells_of(group)
        true = reached[found.groups.cell[pairs]]
        fraction, low, high = found.fraction[group]
        unknown[bool(strength[name] > 0)].append(float(np.isnan(fraction)))
        if strength[name] > 0 and np.isfinite(fraction):
            rows.append(
                {
                    "area": roc_auc_score(true, found.score[pairs]),
                    "error": fraction - true.mean(),
                    "inside": low <= true.mean() <= high,
                    "strong": strength[name] >= STRONG,
                }
            )
    table = pd.DataFrame(rows)
    strong = table[table["strong"]]
    return {
        "perturbations": len(table),
        "area": float(table["area"].mean()),
        "lowest_area": float(table["area"].min()),
        "error": float(table["error"].mean()),
        "largest_error": float(table["error"].abs().max()),
        "interval_holds": float(table["inside"].mean()),
        "strong": len(strong),
        "strong_area": float(strong["area"].mean()),
        "strong_lowest_area": float(strong["area"].min()),
        "strong_error": float(strong["error"].abs().mean()),
        "strong_largest_error": float(strong["error"].abs().max()),
        "strong_within_tenth": float((strong["error"].abs() <= TENTH).mean()),
        "unknown_without_effect": float(np.mean(unknown[False] or [np.nan])),
        "unknown_with_effect": float(np.mean(unknown[True])),
    }


def of_classes(
    screen: anndata.AnnData, found: Responders, classes: pd.DataFrame
) -> dict[str, dict[str, float]]:
    """Compare non-responders with Mixscape's class, for perturbations with a known fraction."""
    of_cell = classes.set_index("cell")["class"].reindex(screen.obs_names).to_numpy()
    compared = {}
    for group, name in enumerate(found.groups.names):
        pairs = found.groups.cells_of(group)
        fraction = found.fraction[group, 0]
        theirs = of_cell[found.groups.cell[pairs]] == "KO"
        if np.isnan(fraction):
            continue
        ours = found.probability[pairs] >= HALF
        known = {"responders": float(fraction), "mixscape": float(theirs.mean())}
        if 0 < theirs.mean() < 1:
            known["kappa"] = float(cohen_kappa_score(ours, theirs))
            known["only_ours"] = float((ours & ~theirs).mean())
            known["only_mixscape"] = float((~ours & theirs).mean())
            known["area"] = float(roc_auc_score(theirs, found.score[pairs]))
        compared[name] = {key: round(value, 3) for key, value in known.items()}
    return compared


def of_guides(screen: anndata.AnnData, found: Responders) -> dict[str, list[float]]:
    """List the fraction of responders of each guide, where that of its perturbation is known."""
    table = found.table(screen, 10)
    known = table[(table["guide"] != "") & table["responders"].notna()]
    columns = known[["guide", "responders", "low", "high"]]
    return {guide: [round(v, 3) for v in values] for guide, *values in columns.to_numpy()}


def main(given: Sequence[str] | None = None) -> None:
    """Read the options, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--file", default=None, help="a file of ../shared/data, or a path")
    parser.add_argument("--batch", default=None, help="column of obs with the batch")
    parser.add_argument("--guide", default=None, help="column of obs with the guide")
    parser.add_argument("--classes", default=None, help="table of benchmarks.mixscape")
    parser.add_argument("--escapers", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    for name in ("settings", "training", "simulation"):
        parser.add_argument(f"--{name}", nargs="*", default=[], metavar="key=value")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    keep_freed_memory()
    on_target = arguments.file is not None
    settings = SETTINGS | {"on_target": on_target} | key_values(arguments.settings)
    training = Training(**TRAINING | key_values(arguments.training))
    rows = []
    for seed in arguments.seeds:
        start = time.monotonic()
        if arguments.file:
            case = Case(read_labelled(arguments.file, arguments.batch, arguments.guide))
        else:
            simulated = Simulation(
                **{"seed": seed, "escapers": arguments.escapers}
                | SIMULATION
                | key_values(arguments.simulation)
            )
            case = Case(simulate(simulated)[0])
        trained, _ = case.train(settings, training, seed, permuted=False)
        found = responders_of(trained, case.screen, seed)
        row: dict[str, Any] = {"seed": seed}
        if arguments.file is None:
            row |= of_simulation(case.screen, found)
        else:
            row["guides"] = of_guides(case.screen, found)
            row["unknown"] = [
                name
                for name, fraction in zip(found.groups.names, found.fraction[:, 0], strict=True)
                if np.isnan(fraction)
            ]
        if arguments.classes:
            classes = pd.read_table(arguments.classes)
            row["mixscape"] = of_classes(case.screen, found, classes)
        row["seconds"] = round(time.monotonic() - start, 1)
        print(json.dumps(row), flush=True)
        rows.append({key: value for key, value in row.items() if isinstance(value, int | float)})
    print(json.dumps(mean_of(rows)))


if __name__ == "__main__":
    main()
