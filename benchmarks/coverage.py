"""Whether intervals of predicted effects cover the effects among held-out cells.

``python -m benchmarks.coverage simulated --splits 0 1`` or ``python -m benchmarks.coverage
papalexi2021_thp1_ko_20729x299.h5ad --batch bio_rep --settings on_target=true`` trains a model by
several seeds on each split, and prints one JSON object a line: each split, then their mean over
splits. Intervals are pooled over the seeds, at the library sizes of held-out cells unless
``--library-size`` is given. The screen ``simulated`` is the default one, with the models and
training of ``benchmarks.truth_recovery``; settings of real screens are those of
``benchmarks.real_effects``.

By set of genes (all that are tested; significantly changed ones): number of effects observed in
test cells, and by level the fraction inside the posterior interval (``raw``), inside the calibrated
one, and inside an interval of sampling noise alone (``noise``); beside these the scale factor, the
residual variance, and mean standard deviations in log2(CP10k + 1).
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
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from benchmarks.real_effects import FDR, SETTINGS, TRAINING, Case, read_labelled
from benchmarks.truth_recovery import default_settings, key_values
from samsvae.evaluation.intervals import EffectDraws, intervals_of
from samsvae.evaluation.observed_by_use import observed_by_use
from samsvae.evaluation.predicted import library_size_quantiles, weights_of_strata
from samsvae.inference.machine import keep_freed_memory
from samsvae.inference.step import Training
from samsvae.screen.splits import held_out_cells
from samsvae.sources.simulated import Simulation, simulate

SIMULATED = "simulated"
MIN_CONTROLS = 10
NAMES = {"coverage": "raw", "calibrated_coverage": "calibrated", "noise_coverage": "noise"}


def measure(
    case: Case,
    settings: dict[str, Any],
    training: Training,
    seeds: Sequence[int],
    draws: int,
    library_size: float | None,
) -> dict[str, Any]:
    """Train by each seed on a split, and measure the coverage of the pooled intervals."""
    screen, labels = case.screen, case.labels
    observed = observed_by_use(screen, case.parts, None, MIN_CONTROLS, FDR, "{}")
    cells = held_out_cells(labels, case.parts)
    sizes = library_size_quantiles(screen.obs["library_size"][cells])
    if library_size is not None:
        sizes = [library_size]
    models = []
    for seed in seeds:
        trained, _ = case.train(settings, training, seed, False)
        weights = weights_of_strata(trained, screen, case.names, cells, MIN_CONTROLS)
        models.append(EffectDraws(trained, draws, seed, weights, sizes))
    start = time.monotonic()
    table, coverage = intervals_of(models, observed, "{}")
    seconds = time.monotonic() - start
    tested = np.isfinite(np.asarray(observed.X))
    of_genes = {}
    for genes, rows in coverage.groupby("genes", sort=False):
        by_level = rows.set_index(rows["level"].map("{:g}".format))
        of_genes[genes] = {"n": int(rows["n"].iloc[0])} | {
            short: by_level[name].round(4).to_dict() for name, short in NAMES.items()
        }
    return {
        **of_genes,
        "scale_factor": table.uns["scale_factor"],
        "residual_variance": table.uns["residual_variance"],
        **{
            name: float(np.mean(np.asarray(table.layers[name])[tested]))
            for name in ("standard_deviation", "calibrated_standard_deviation")
        },
        "standard_error": float(np.nanmean(observed.layers["standard_error"])),
        "seconds": round(seconds, 1),
    }


def mean_of(rows: Sequence[Any]) -> Any:
    """Average numbers over splits, in whatever they are nested."""
    if isinstance(rows[0], dict):
        shared = [key for key in rows[0] if all(key in row for row in rows)]
        return {key: mean_of([row[key] for row in rows]) for key in shared}
    return round(float(np.mean(rows)), 4)


def main(given: Sequence[str] | None = None) -> None:
    """Read the options, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", help="simulated, a file of ../shared/data, or a path")
    parser.add_argument("--batch", default=None, help="column of obs with the batch")
    parser.add_argument("--splits", type=int, nargs="+", default=[0], help="seeds of the split")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training")
    parser.add_argument("--draws", type=int, default=50, help="of masks and embeddings")
    parser.add_argument("--library-size", type=float, default=None)
    parser.add_argument("--model", default="sams_vae", help="kind, for the simulated screen")
    parser.add_argument("--threads", type=int, default=1)
    for name in ("settings", "training"):
        parser.add_argument(f"--{name}", nargs="*", default=[], metavar="key=value")
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    screen, settings, training = _screen_and_settings(arguments)
    rows = []
    for split in arguments.splits:
        how = settings, training, arguments.seeds, arguments.draws, arguments.library_size
        rows.append(measure(Case(screen, split), *how))
        print(json.dumps({"split": split, **rows[-1]}), flush=True)
    print(json.dumps({"split": "mean", **mean_of(rows)}))


def _screen_and_settings(
    arguments: argparse.Namespace,
) -> tuple[anndata.AnnData, dict[str, Any], Training]:
    """Read or simulate the screen, and choose the model's settings."""
    changes = key_values(arguments.settings)
    how = key_values(arguments.training)
    if arguments.file == SIMULATED:
        of_model, of_training = default_settings("programmes", arguments.model)
        shared = {"combinations": "additive", "covariates": None, "on_target": False}
        return simulate(Simulation())[0], shared | of_model | changes, Training(**of_training | how)
    screen = read_labelled(arguments.file, arguments.batch)
    return screen, SETTINGS | changes, Training(**TRAINING | how)


if __name__ == "__main__":
    main()
