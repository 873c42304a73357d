"""Effects of perturbations without a training cell, predicted from features of perturbations.

``python -m benchmarks.unseen_perturbations --simulation feature_strength=1`` prints one JSON object
a line: the scores of each split, then their means with 95 % confidence intervals over splits, and
the mean differences between SAMS-VAE with features and each baseline with theirs. Each seed is
another simulation, split and training. With a file instead, each seed is another split of it and
another training:

``python -m benchmarks.unseen_perturbations --file papalexi2021_thp1_ko_20729x299.h5ad --batch
bio_rep --features expression``. Features are ``expression``, a table, or the memberships of targets
in the sets of a GMT file.

- ``pearson``: correlation of predicted with observed effects of each held-out single perturbation
  over genes, averaged over those in which both vary; ``pearson_delta``: the same after the mean
  training effect is taken off both, where the mean effect has no value.
- ``rmse``: root mean square error over held-out single perturbations and genes, log2(CP10k + 1).
- ``noiseless_pearson``, ``noiseless_rmse``: beside true effects, for simulations.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from benchmarks.real_effects import SETTINGS as OF_REAL
from benchmarks.real_effects import TRAINING as OF_REAL_TRAINING
from benchmarks.real_effects import read_labelled
from benchmarks.truth_recovery import default_settings, key_values
from samsvae.config.experiments import UNSEEN_PERTURBATIONS, Split
from samsvae.config.models import EXPRESSION
from samsvae.evaluation.baselines import BASELINES
from samsvae.evaluation.effects import as_compared
from samsvae.evaluation.observed import observed_effects, training_effects
from samsvae.evaluation.predicted import (
    library_size_quantiles,
    predicted_effects,
    weights_of_strata,
)
from samsvae.evaluation.truth import true_effects
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Covariates, Encoding, sizes_of
from samsvae.inference.machine import choose_device, keep_freed_memory
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import build_model
from samsvae.runtime.files import write_tsv
from samsvae.screen.canonical import perturbations
from samsvae.screen.design import Design
from samsvae.screen.features import PerturbationFeatures
from samsvae.screen.gene_sets import read_gmt
from samsvae.screen.labels import components
from samsvae.screen.splits import TEST, TRAIN, VAL, held_out_cells, split_screen
from samsvae.sources.simulated import Simulation, simulate

SIMULATION = {"n_features": 4, "n_perturbations": 40, "n_pairs": 0, "inert_fraction": 0.0}
MODEL = "sams_vae"
STRONG_RIDGE = 10.0  # the default is 0.1
RIDGED = f"bilinear ridge={STRONG_RIDGE:g}"
DRAWS, MIN_CONTROLS = 500, 10
LEVEL = 0.95


def score_split(
    screen: anndata.AnnData,
    features: str,
    settings: Mapping[str, Any],
    training: Training,
    fraction: float,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Train on a split, and score the predictions of each method on held-out perturbations."""
    split = Split(UNSEEN_PERTURBATIONS, seed, fraction)
    parts = pd.Series(split_screen(screen, split), index=screen.obs_names)
    names = perturbations(screen)
    train = (parts == TRAIN).to_numpy()
    tested = set(screen.obs["perturbation"].astype(str)[(parts == TEST).to_numpy()])
    rows = [at for at, name in enumerate(names) if name in tested and len(components(name)) == 1]
    table = as_compared(observed_effects(screen, parts, "{}", min_controls=MIN_CONTROLS), None)
    observed = np.asarray(table.layers["ate_held_out"])[rows]
    usable = np.isfinite(observed).all(axis=1)
    table_of = {"perturbation_features": features}
    of_baselines: dict[str, dict[str, Any]] = {
        "no_change": {},
        "mean_effect": {},
        "bilinear": {} if features == EXPRESSION else table_of,
        "nearest_feature": table_of,
    }
    of_baselines[RIDGED] = {**of_baselines["bilinear"], "ridge": STRONG_RIDGE}
    predicted = {
        name: BASELINES[name.partition(" ")[0]](screen, train, names, MIN_CONTROLS, **given)
        for name, given in of_baselines.items()
    }
    predicted[MODEL] = model_effects(screen, parts, names, features, settings, training, seed)
    every = perturbations(screen[train])
    mean = training_effects(screen, train, every, MIN_CONTROLS).mean(axis=0)
    truth = true_effects(screen, names, seed=0)[rows] if "truth" in screen.uns else None
    return {
        name: scores(effects[rows][usable], observed[usable], mean)
        | ({} if truth is None else noiseless(effects[rows][usable], truth[usable], mean))
        for name, effects in predicted.items()
    }


def model_effects(
    screen: anndata.AnnData,
    parts: pd.Series,
    names: Sequence[str],
    features: str,
    settings: Mapping[str, Any],
    training: Training,
    seed: int,
) -> np.ndarray:
    """Train SAMS-VAE with features on a split, and predict the effects of perturbations."""
    device = choose_device()
    train = (parts == TRAIN).to_numpy()
    encoding = Encoding.of(Design.of_screen(screen), settings["combinations"])
    covariates = Covariates.of(screen.obs[train], settings["covariates"])
    cells, validation = (
        Cells.of(screen, (parts == part).to_numpy(), encoding, device, covariates)
        for part in (TRAIN, VAL)
    )
    given = PerturbationFeatures.of_screen(
        features, screen, train, encoding.names, settings["feature_components"]
    )
    sizes = screen.n_vars, *sizes_of(encoding, covariates)
    [fitted] = fit(
        lambda: build_model(settings, *sizes, features=given), cells, validation, training, [seed]
    )
    genes = list(screen.var_names)
    trained = TrainedModel(fitted.model, dict(settings), genes, encoding, covariates)
    held_out = held_out_cells(screen.obs["perturbation"].astype(str), parts)
    weights = weights_of_strata(trained, screen, names, held_out, MIN_CONTROLS)
    sizes_of_cells = library_size_quantiles(screen.obs["library_size"][held_out])
    return predicted_effects(
        trained, names, DRAWS, 0, strata_weights=weights, library_sizes=sizes_of_cells
    )[0]


def scores(predicted: np.ndarray, observed: np.ndarray, mean: np.ndarray) -> dict[str, float]:
    """Compare predicted with observed effects, perturbations x genes."""
    return {
        "pearson": mean_correlation(predicted, observed),
        "pearson_delta": mean_correlation(predicted - mean, observed - mean),
        "rmse": float(np.sqrt(np.square(predicted - observed).mean())),
    }


def noiseless(predicted: np.ndarray, truth: np.ndarray, mean: np.ndarray) -> dict[str, float]:
    """Compare predicted with true effects."""
    return {f"noiseless_{name}": value for name, value in scores(predicted, truth, mean).items()}


def mean_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Average the correlations of rows in which both vary; 0 if there are none."""
    varies = (one.std(axis=1) > 1e-9) & (other.std(axis=1) > 1e-9)
    pairs = zip(one[varies], other[varies], strict=True)
    found = [float(np.corrcoef(a, b)[0, 1]) for a, b in pairs]
    return float(np.mean(found)) if found else 0.0


def summary(found: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Average scores, and differences of the model from each baseline, with intervals."""
    methods, metrics = list(found[0]), list(found[0][MODEL])
    means: dict[str, Any] = {}
    for method in methods:
        means[method] = {m: interval([one[method][m] for one in found]) for m in metrics}
    for method in methods:
        if method != MODEL:
            means[f"{MODEL} - {method}"] = {
                m: interval([one[MODEL][m] - one[method][m] for one in found]) for m in metrics
            }
    return {"seed": "mean", "splits": len(found), **means}


def interval(values: Sequence[float]) -> list[float]:
    """Return the mean and its confidence interval by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return [round(mean, 4)]
    half = stats.sem(values) * stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)
    return [round(float(v), 4) for v in (mean, mean - half, mean + half)]


def memberships(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """Tabulate in which gene sets, of two targets or more, each target is."""
    sets = {name: set(genes) & set(names) for name, genes in read_gmt(path).items()}
    chosen = {name: genes for name, genes in sets.items() if len(genes) >= 2}
    rows = {name: [float(name in genes) for genes in chosen.values()] for name in names}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(chosen))


def features_file(features: str, names: Sequence[str], folder: Path) -> str:
    """Return the path of the table of features, made of a GMT file if that is given."""
    if not features.endswith(".gmt"):
        return features
    given = Path(features) if Path(features).is_file() else DATA / features
    path = folder / "features.tsv"
    write_tsv(memberships(given, names).rename_axis("perturbation").reset_index(), path)
    return str(path)


def simulated(changes: Mapping[str, Any], seed: int, folder: Path) -> tuple[anndata.AnnData, str]:
    """Simulate a screen, and write the features of its targets."""
    screen, _ = simulate(Simulation(**{**SIMULATION, **changes, "seed": seed}))
    truth = screen.uns["truth"]
    columns = [f"feature{number + 1}" for number in range(truth["features"].shape[1])]
    table = pd.DataFrame(truth["features"], truth["targets"], columns)
    path = folder / f"features{seed}.tsv"
    write_tsv(table.rename_axis("perturbation").reset_index(), path)
    return screen, str(path)


def main(given: Sequence[str] | None = None) -> None:
    """Read the options, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", help="an h5ad file, in place of simulations")
    parser.add_argument("--batch", help="its column of batches")
    parser.add_argument("--features", default=EXPRESSION, help="of the file's perturbations")
    parser.add_argument("--fraction", type=float, default=0.75, help="of perturbations trained on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    for name in ("simulation", "settings", "training"):
        parser.add_argument(f"--{name}", nargs="*", default=[], metavar="key=value")
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    settings, how_to_fit = default_settings("programmes", "sams_vae")
    settings = {"combinations": "additive", "covariates": None, **settings}
    if options.file:
        settings, how_to_fit = OF_REAL, OF_REAL_TRAINING
    settings = {"feature_components": 20, **settings, **key_values(options.settings)}
    training = Training(**how_to_fit | key_values(options.training))
    screen, found = None, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.file:
            screen = read_labelled(options.file, options.batch)
            features = features_file(options.features, Design.of_screen(screen).names, folder)
        for seed in options.seeds:
            if not options.file:
                screen, features = simulated(key_values(options.simulation), seed, folder)
            found.append(score_split(screen, features, settings, training, options.fraction, seed))
            print(json.dumps({"seed": seed, **found[-1]}), flush=True)
    print(json.dumps(summary(found)), flush=True)


if __name__ == "__main__":
    main()
