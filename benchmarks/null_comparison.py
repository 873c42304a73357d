"""How often the paired tests tell apart what is the same: seeds of one model under two names.

``python -m benchmarks.null_comparison`` trains one model from many seeds on a small simulated
screen, then repeatedly deals some of these seeds to "first" and as many to "second" and compares
the two as an experiment's models are compared. It prints JSON: the share of repeats in which a
test over seeds called one better at 5 %, by metric and over all, and, for what it is worth, the
share for a test over the perturbations of a single run each, which says nothing of training
again. Two hundred repeats leave a rate of 5 % uncertain by 1.5 points, and all repeats deal from
the same seeds, so that the rates of single metrics scatter.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from samsvae.config.experiments import Split
from samsvae.evaluation.comparison import (
    NOT_SIGNIFICANT,
    Rules,
    differences_of_runs,
    differences_within_runs,
    perturbation_scores,
)
from samsvae.evaluation.effects import effects_table
from samsvae.evaluation.metrics import PERTURBATION, meaning
from samsvae.evaluation.observed import observed_effects
from samsvae.evaluation.predicted import predicted_effects
from samsvae.evaluation.scores import effect_scores
from samsvae.evaluation.summary import headlines
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.inference.iwelbo import iwelbo
from samsvae.inference.machine import choose_device, keep_freed_memory
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import build_model
from samsvae.screen.canonical import perturbations
from samsvae.screen.design import Design
from samsvae.screen.splits import TEST, TRAIN, VAL, split_cells
from samsvae.sources.simulated import Simulation, simulate

SCREEN = Simulation(
    seed=0, n_genes=120, n_factors=4, n_perturbations=16, n_pairs=0, n_controls=200,
    cells_per_perturbation=60, programme_size=15, median_library_size=800,
)  # fmt: skip
SETTINGS = {"kind": "sams_vae", "n_latent": 8, "n_hidden": 32, "embedding": "mean_field"}
N_TOP, FDR, LEVEL = 20, 0.05, 0.05
NAMES = ["first", "second"]


def train_replicates(n_seeds: int, steps: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train from many seeds and score every run.

    Returns
    -------
    scores, by_perturbation : DataFrame
        Tables of runs and of perturbations as in metrics.parquet, without the model.
    """
    screen, _ = simulate(SCREEN)
    design = Design.of_screen(screen)
    parts = pd.Series(split_cells(design, Split("random", 0)), index=screen.obs_names)
    observed = observed_effects(screen, parts, "{}")
    encoding, device = Encoding.of(design, "additive"), choose_device()
    cells = {
        part: Cells.of(screen, (parts == part).to_numpy(), encoding, device)
        for part in (TRAIN, VAL, TEST)
    }
    training = Training(
        max_steps=steps, batch_size=128, learning_rate=0.003, validate_every=max(steps // 4, 1)
    )
    names, sizes = perturbations(screen), (screen.n_vars, len(encoding.names))
    scores, by_perturbation = [], []
    for seed in range(n_seeds):
        [fitted] = fit(
            lambda: build_model(SETTINGS, *sizes), cells[TRAIN], cells[VAL], training, [seed]
        )
        trained = TrainedModel(fitted.model, SETTINGS, list(screen.var_names), encoding)
        effects, _ = predicted_effects(trained, names, 100, seed)
        predicted = effects_table(effects, names, trained.genes, {}, "{}")
        found = effect_scores(observed, predicted, N_TOP, FDR)
        table = found.tidy()
        single = table["scope"] == PERTURBATION
        bound, _ = iwelbo(fitted.model, cells[TEST], 100, seed)
        of_cells = pd.DataFrame([{"scope": "test", "metric": "iwelbo", "value": bound.mean()}])
        scores.append(pd.concat([table[~single], of_cells]).assign(split="s", seed=seed))
        by_perturbation.append(table[single].assign(split="s", seed=seed))
        print(f"seed {seed + 1}/{n_seeds}", file=sys.stderr)
    return pd.concat(scores), pd.concat(by_perturbation)


def dealt(table: pd.DataFrame, seeds: np.ndarray) -> pd.DataFrame:
    """Give half of some seeds to each name, and number them anew."""
    half = len(seeds) // 2
    owner = pd.DataFrame(
        {"seed": seeds, "model": np.repeat(NAMES, half), "number": np.tile(np.arange(half), 2)}
    )
    merged = table.merge(owner, on="seed")
    return merged.drop(columns="seed").rename(columns={"number": "seed"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the rates as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pool", type=int, default=40, help="seeds trained")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each name in a repeat")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(1)
    scores, by_perturbation = train_replicates(given.pool, given.steps)
    rules = Rules(NAMES, partial(meaning, n_top=N_TOP), "holm", LEVEL)
    wanted = {metric for scope, metric in headlines(N_TOP, "test") if scope == "test"}
    scores = scores[(scores["scope"] == "test") & scores["metric"].isin(wanted)]
    rng = np.random.default_rng(0)
    over_seeds, within = [], []
    for _ in range(given.repeats):
        seeds = rng.permutation(given.pool)[: 2 * given.seeds]
        over_seeds.append(differences_of_runs(dealt(scores, seeds), rules))
        single = perturbation_scores(dealt(by_perturbation, seeds[:2]), rules)
        single = single[single["metric"].isin(wanted)]
        within.append(differences_within_runs(single, "test", "perturbations", rules))
    print(
        json.dumps(
            {
                "pool": given.pool,
                "seeds": given.seeds,
                "repeats": given.repeats,
                "rate_over_seeds": rate(pd.concat(over_seeds)),
                "by_metric": rates(pd.concat(over_seeds)),
                "rate_over_perturbations_of_single_runs": rate(pd.concat(within)),
            },
            indent=2,
        )
    )


def rate(table: pd.DataFrame) -> float:
    """Share of tests that called one of the two better."""
    return round(float((table["better"] != NOT_SIGNIFICANT).mean()), 4)


def rates(table: pd.DataFrame) -> dict[str, float]:
    """Compute that share by metric."""
    return {str(metric): rate(tests) for metric, tests in table.groupby("metric", sort=False)}


if __name__ == "__main__":
    main()
