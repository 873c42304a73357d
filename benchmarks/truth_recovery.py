"""How well a model recovers the masks and effects of a simulation whose truth is known.

``python -m benchmarks.truth_recovery --simulator additive --model sams_vae --seeds 0 1 2`` prints
one JSON object a line: every training seed, then their mean. The settings start from the
documented defaults of the simulator; ``--simulation``, ``--settings`` and ``--training`` change
them, for instance ``--training max_steps=4000 mask_kl_weight=0``. For the simulator
``programmes``, batches and contexts (``--simulation n_batches=3 n_contexts=4``) are covariates
unless ``--settings "covariates=[]"``, ``--split`` divides the cells, and with contexts effects in
each are compared with those of held-out cells, beside the baselines'.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from samsvae.config.experiments import Split
from samsvae.evaluation.agreement import (
    MASK_THRESHOLD,
    latent_effect_scores,
    mask_scores,
    match_factors,
    match_factors_by_effects,
)
from samsvae.evaluation.baselines import additive, from_other_contexts
from samsvae.evaluation.effects import (
    CONTEXTS,
    as_compared,
    effects_in_context,
    effects_table,
    in_context,
)
from samsvae.evaluation.observed import observed_effects
from samsvae.evaluation.predicted import in_contexts, predicted_effects
from samsvae.evaluation.truth import effect_recovery, true_effects
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import NO_COVARIATES, Covariates, Encoding, sizes_of
from samsvae.inference.iwelbo import iwelbo
from samsvae.inference.machine import choose_device, keep_freed_memory
from samsvae.inference.posterior import draw_effects, mask_probability
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import MODELS, build_model
from samsvae.models.base import PerturbationModel
from samsvae.screen.canonical import CONTEXT, perturbations
from samsvae.screen.design import Design
from samsvae.screen.splits import split_screen
from samsvae.sources.simulated import (
    TEST,
    TRAIN,
    VAL,
    AdditiveSimulation,
    LatentSimulation,
    Simulation,
    SvaePlusSimulation,
    simulate,
    simulate_additive,
    simulate_svae_plus,
)

SIMULATORS = ("additive", "svae_plus", "programmes")
# the documented defaults for the simulators with Gaussian and with Poisson measurements
NETWORKS = {"n_latent": 15, "n_hidden": 128, "n_layers": 2}
OF_KIND: dict[str, dict[str, Any]] = {
    "sams_vae": {"embedding": "mean_field", "mask_prior": 0.001},
    "sams_vae_beta_bernoulli": {"embedding": "mean_field"},
}
TRAINING = {
    "max_steps": 8000,
    "batch_size": 512,
    "particles": 1,
    "learning_rate": 0.003,
    "validate_every": 500,
}
PROGRAMMES_TRAINING = {
    "max_steps": 3000,
    "batch_size": 256,
    "learning_rate": 0.003,
    "validate_every": 250,
}
EFFECT_DRAWS = 100
INTERVALS = (0.0, 0.1, 0.5, 0.9, 1.0)  # of inclusion probabilities
IWELBO_PARTICLES = 100


@dataclass(frozen=True)
class Case:
    """Cells to fit and to hold out, with the truth.

    Attributes
    ----------
    cells
        By part: train, val and test.
    encoding
        Names of the model's perturbations.
    targets
        Names of the rows of the truth.
    mask, effects
        The true ones, targets x factors.
    covariates
        Encoding of the covariates of cells.
    screen, parts
        The whole screen and the part of each cell, of the simulator ``programmes``.
    """

    cells: dict[str, Cells]
    encoding: Encoding
    targets: list[str]
    mask: np.ndarray
    effects: np.ndarray
    covariates: Covariates = NO_COVARIATES
    screen: anndata.AnnData | None = None
    parts: pd.Series | None = None

    def rows(self, values: torch.Tensor) -> np.ndarray:
        """Rows of the targets, of values of the model's perturbations."""
        chosen = [self.encoding.names.index(target) for target in self.targets]
        return values.double().cpu().numpy()[chosen]


def make_case(
    simulator: str,
    changes: dict[str, Any],
    settings: dict[str, Any],
    split: dict[str, Any],
    device: torch.device,
) -> Case:
    """Simulate, and encode the cells for a model."""
    if simulator == "additive":
        return _latent_case(simulate_additive(AdditiveSimulation(**changes)), device)
    if simulator == "svae_plus":
        return _latent_case(simulate_svae_plus(SvaePlusSimulation(**changes)), device)
    screen, _ = simulate(Simulation(**changes))
    parts = pd.Series(split_screen(screen, Split(**split)), index=screen.obs_names)
    is_trained = (parts == TRAIN).to_numpy()
    contexts = None
    if settings.get("context_effects"):
        contexts = screen.obs[CONTEXT].astype(object).where(is_trained)
    combinations = "unique" if settings["kind"] == "svae_plus" else "additive"
    encoding = Encoding.of(Design.of_screen(screen), combinations, (), contexts)
    covariates = Covariates.of(screen.obs[is_trained], settings.get("covariates"))
    cells = {
        part: Cells.of(screen, (parts == part).to_numpy(), encoding, device, covariates)
        for part in (TRAIN, VAL, TEST)
    }
    truth = screen.uns["truth"]
    of_truth = list(truth["targets"]), truth["mask"], truth["mask"] * truth["embedding"]
    return Case(cells, encoding, *of_truth, covariates, screen, parts)


def _latent_case(simulation: LatentSimulation, device: torch.device) -> Case:
    n_perturbations = simulation.design.shape[1]
    names = [f"TARGET{index:03d}" for index in range(n_perturbations)]
    design = torch.cat([torch.zeros(1, n_perturbations), torch.eye(n_perturbations)])
    condition = torch.from_numpy(simulation.design @ np.arange(1, n_perturbations + 1)).long()
    cells = {}
    for part in (TRAIN, VAL, TEST):
        of_part = simulation.part == part
        values = torch.from_numpy(simulation.values[of_part]).to(device)
        total = values.sum(1).float()
        cells[part] = Cells(values, total, design.to(device), condition[of_part].to(device))
    return Case(cells, Encoding(tuple(names)), names, simulation.mask, simulation.effects)


def recover(case: Case, settings: dict[str, Any], training: Training, seed: int) -> dict[str, Any]:
    """Train once, and compare with the truth."""
    train, validation = case.cells[TRAIN], case.cells[VAL]
    sizes = train.counts.shape[1], *sizes_of(case.encoding, case.covariates)
    started = time.perf_counter()
    [fitted] = fit(lambda: build_model(settings, *sizes), train, validation, training, [seed])
    seconds = time.perf_counter() - started
    model = fitted.model
    bound, _ = iwelbo(model, validation, IWELBO_PARTICLES, seed=0)
    return {
        "seed": seed,
        **latent_scores(model, case),
        **expression_scores(model, settings, case),
        **scores_in_contexts(model, settings, case),
        "validation_iwelbo": float(bound.mean()),
        "steps": int(fitted.history["step"].max()),
        "seconds": seconds,
    }


@torch.no_grad()
def latent_scores(model: PerturbationModel, case: Case) -> dict[str, Any]:
    """Compare masks, matched in either way, and latent effects with the truth."""
    drawn = draw_effects(model, EFFECT_DRAWS)
    if drawn is None:
        return {}
    effects = case.rows(drawn.mean(0))
    scores = latent_effect_scores(case.effects, effects)
    probability = mask_probability(model)
    if probability is None:
        return scores
    inclusion = case.rows(probability)
    mask = (inclusion > MASK_THRESHOLD).astype(float)
    by_hits = mask_scores(case.mask, mask, match_factors(case.mask, mask))
    by_effects = mask_scores(case.mask, mask, match_factors_by_effects(case.effects, effects))
    return {
        **{f"mask_{name}": value for name, value in by_hits.items()},
        **{f"mask_{name}_matched_by_effects": value for name, value in by_effects.items()},
        **scores,
        "open": float(mask.any(axis=1).mean()),  # of the perturbations
        "reliability": reliability(case.mask, inclusion, match_factors(case.mask, mask)),
    }


def reliability(
    true_mask: np.ndarray, inclusion: np.ndarray, matched: tuple[np.ndarray, np.ndarray]
) -> list[list[float]]:
    """Count the entries of a mask by inclusion probability.

    Returns
    -------
    list of list of float
        For each interval of :data:`INTERVALS`: entries, the sum of their probabilities, and those
        that are true; none is in a dimension that matches no factor.
    """
    truth = np.zeros_like(inclusion)
    factor, dimension = matched
    truth[:, dimension] = true_mask[:, factor]
    interval = np.digitize(inclusion, INTERVALS[1:-1])
    chosen = [interval == number for number in range(len(INTERVALS) - 1)]
    return [
        [float(own.sum()), float(inclusion[own].sum()), float(truth[own].sum())] for own in chosen
    ]


def expression_scores(
    model: PerturbationModel, settings: dict[str, Any], case: Case
) -> dict[str, float]:
    """Compare predicted with true effects on expression, for the simulator ``programmes``."""
    if case.screen is None:
        return {}
    trained = trained_model(model, settings, case)
    names = perturbations(case.screen)
    predicted, _ = predicted_effects(trained, names, EFFECT_DRAWS, seed=0)
    return effect_recovery(true_effects(case.screen, names, seed=0), predicted)


def trained_model(model: PerturbationModel, settings: dict[str, Any], case: Case) -> TrainedModel:
    """Join a model with what its screen tells."""
    genes = list(case.screen.var_names) if case.screen is not None else []
    return TrainedModel(model, settings, genes, case.encoding, case.covariates)


def scores_in_contexts(
    model: PerturbationModel, settings: dict[str, Any], case: Case
) -> dict[str, float]:
    """Compare effects in each context with those of held-out cells, and with baselines'.

    Root mean squares of errors over genes and pairs of a perturbation and a context, in
    log2(CP10k + 1), the sampling noise of the observed effects taken off. Pairs with training cells
    are ``seen``, others ``unseen``; perturbations that act in one context alone are ``specific``,
    others ``shared``.
    """
    screen, parts = case.screen, case.parts
    if screen is None or parts is None or CONTEXT not in screen.obs:
        return {}
    names = perturbations(screen)
    observed = as_compared(observed_effects(screen, parts, "{}"), None)
    trained = trained_model(model, settings, case)
    train = (parts == TRAIN).to_numpy()
    weights = np.tile(case.covariates.frequency, (len(names), 1))
    of_model = {
        in_context("effect", context): predicted_effects(
            trained, names, EFFECT_DRAWS, 0, strata_weights=own
        )[0]
        for context, own in in_contexts(trained, weights).items()
    }
    of_others = {
        in_context("effect", context): own
        for context, own in from_other_contexts(screen, train, names, 10).items()
    }
    no_effect = np.zeros((len(names), screen.n_vars))
    pooled = {"model": no_effect, "other_contexts": no_effect}
    if not of_model:  # the same prediction in all contexts
        pooled["model"] = predicted_effects(trained, names, EFFECT_DRAWS, 0)[0]
    pooled["additive"] = additive(screen, train, names, 10)
    layers = {"model": of_model, "other_contexts": of_others, "additive": {}}
    genes = list(screen.var_names)
    tables = {
        name: effects_table(effects, names, genes, layers[name], "{}")
        for name, effects in pooled.items()
    }
    return errors_in_contexts(observed, tables, specific_targets(screen))


def specific_targets(screen: anndata.AnnData) -> set[str]:
    """Name the targets without any response in the second context."""
    design, names = screen.obsm["dosage"], list(screen.uns["perturbations"])
    response = np.asarray(screen.obsm.get("true_response", design.toarray()))
    second = (screen.obs[CONTEXT] == "context2").to_numpy()
    return {name for name, own in zip(names, response[second].T, strict=True) if not own.any()}


def errors_in_contexts(
    observed: anndata.AnnData, predicted: dict[str, anndata.AnnData], specific: set[str]
) -> dict[str, float]:
    """Compute errors without sampling noise, by kind of pair and prediction."""
    squares: dict[str, list[float]] = {}
    for context in observed.uns[CONTEXTS]:
        own = effects_in_context(observed, context)
        truth, error = own.layers["ate_held_out"], own.layers["standard_error_held_out"]
        for name, table in predicted.items():
            guess = np.asarray(effects_in_context(table, context).X)
            square = np.mean((truth - guess) ** 2 - error**2, axis=1)
            for row in np.flatnonzero(np.isfinite(square)):
                seen = "seen" if own.obs["n_train"].iloc[row] > 0 else "unseen"
                kind = "specific" if own.obs_names[row] in specific else "shared"
                squares.setdefault(f"error_{seen}_{kind}_{name}", []).append(float(square[row]))
    means = {name: max(float(np.mean(of)), 0.0) for name, of in sorted(squares.items())}
    return {name: math.sqrt(mean) for name, mean in means.items()}


def default_settings(simulator: str, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the documented settings of a model and of its training."""
    if simulator == "programmes":
        config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
        of_kind = [model for model in config["models"].values() if model["kind"] == kind]
        shared = {"kind": kind, "n_latent": 20, "n_hidden": 32}
        return (of_kind or [shared])[0], PROGRAMMES_TRAINING
    likelihood = "normal" if simulator == "additive" else "negative_binomial"
    settings = {"kind": kind, "likelihood": likelihood, **NETWORKS}
    return settings | OF_KIND.get(kind, {}), TRAINING


def key_values(entries: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value``, the value as YAML."""
    pairs = (entry.split("=", 1) for entry in entries)
    return {key: yaml.safe_load(value) for key, value in pairs}


def mean_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average over seeds; reliability is of the entries of all seeds."""
    numbers = [name for name in rows[0] if name != "reliability"]
    means: dict[str, Any] = {key: float(np.mean([row[key] for row in rows])) for key in numbers}
    if "reliability" in rows[0]:
        total = np.sum([row["reliability"] for row in rows], axis=0)
        means["reliability"] = [
            {
                "from": low,
                "to": high,
                "entries": number,
                "mean_probability": inclusion / max(number, 1),
                "fraction_true": true / max(number, 1),
            }
            for low, high, (number, inclusion, true) in zip(
                INTERVALS, INTERVALS[1:], total.tolist(), strict=False
            )
        ]
    return {**means, "seed": "mean"}


def main() -> None:
    """Read the options, train, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulator", choices=SIMULATORS, default="additive")
    parser.add_argument("--model", choices=list(MODELS), default="sams_vae")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--simulations", action="store_true", help="another one for each seed")
    parser.add_argument("--split", nargs="*", default=[], metavar="key=value", help="kind, ...")
    for name, what in (
        ("simulation", "the simulator's sizes"),
        ("settings", "the model's hyperparameters"),
        ("training", "how to fit"),
    ):
        parser.add_argument(f"--{name}", nargs="*", default=[], metavar="key=value", help=what)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    settings, how_to_fit = default_settings(arguments.simulator, arguments.model)
    settings = settings | key_values(arguments.settings)
    training = Training(**how_to_fit | key_values(arguments.training))
    split = {"kind": "random", "seed": 0, **key_values(arguments.split)}
    changes = key_values(arguments.simulation)
    case = make_case(arguments.simulator, changes, settings, split, choose_device())
    rows = []
    for seed in arguments.seeds:
        if arguments.simulations:  # another simulation for each seed
            of_seed = {**changes, "seed": seed}
            case = make_case(arguments.simulator, of_seed, settings, split, choose_device())
        rows.append(recover(case, settings, training, seed))
        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(mean_of(rows)), flush=True)


if __name__ == "__main__":
    main()
