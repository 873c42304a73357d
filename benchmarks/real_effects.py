"""What a model recovers of two published screens: held-out effects, own genes, open masks.

``python -m benchmarks.real_effects papalexi2021_thp1_ko_20729x299.h5ad --batch bio_rep --settings
on_target=true --seeds 0 1 2`` prints one JSON object a line: the additive baseline and the
split-half ceiling, every training seed, then their mean. ``--settings`` and ``--training`` change
the model, for instance ``--training mask_start=half mask_kl_weight=0.02``; ``--permuted`` gives
each cell the perturbation of another cell of its batch.

- ``pearson``: correlation of predicted with observed effects of held-out cells, over all
  perturbations and genes; ``pearson_at_10000`` the same of effects predicted in cells of 10,000
  counts. Observed effects are those within batches.
- ``own_genes``: change of each measured target, log2(CP10k + 1): predicted, observed within
  batches, and observed within batches and ten bins of the library size. A perturbation whose cells
  are shallower than control cells lowers every gene beside its effect.
- ``lowest_own``: the smallest ratio of predicted to observed changes of targets that significantly
  change; ``lowest_own_at_depth`` relative to the last of these.
- ``open_of_effective``, ``open_of_ineffective``: fraction of perturbations with an open mask, of
  those with ten or more differentially expressed genes (all cells), and of those with none;
  ``factors_of``: the factors of each perturbation.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from benchmarks.truth_recovery import key_values, mean_of
from samsvae.config.experiments import Split
from samsvae.evaluation.agreement import MASK_THRESHOLD
from samsvae.evaluation.expression import log_expression
from samsvae.evaluation.observed import observed_effects, split_half
from samsvae.evaluation.predicted import (
    LIBRARY_SIZE,
    library_size_quantiles,
    predicted_effects,
    weights_of_strata,
)
from samsvae.evaluation.strata import Strata, strata_of_cells, stratified_effects
from samsvae.evaluation.stratified import gated_tests
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Covariates, Encoding
from samsvae.inference.iwelbo import iwelbo
from samsvae.inference.machine import choose_device, keep_freed_memory
from samsvae.inference.posterior import mask_probability
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import build_model
from samsvae.screen.canonical import perturbations, read_screen
from samsvae.screen.design import Design
from samsvae.screen.splits import TEST, TRAIN, VAL, held_out_cells, split_screen
from samsvae.sources.h5ad import write_h5ad_screen
from samsvae.sources.h5ad_source import H5adSource

SETTINGS: dict[str, Any] = {
    "kind": "sams_vae", "n_latent": 30, "n_hidden": 128, "mask_prior": 0.01,
    "combinations": "additive", "covariates": None, "on_target": False,
    "on_target_prior_scale": 2.0,
}  # fmt: skip
TRAINING = {"max_steps": 1500, "batch_size": 256, "learning_rate": 3e-3}
FEW, MANY = 0, 10  # differentially expressed genes
FDR = 0.05
DEPTH_BINS = 10
N_CELLS, PARTICLES = 1000, 50  # of the test bound
DRAWS = 1000


class Case:
    """A screen with a random split, and what is observed of it."""

    def __init__(self, screen: anndata.AnnData, split_seed: int = 0) -> None:
        self.screen = screen
        split = Split("random", split_seed)
        self.parts = pd.Series(split_screen(screen, split), index=screen.obs_names)
        self.names = perturbations(screen)
        self.labels = screen.obs["perturbation"].astype(str)
        self.observed = self.effects_of(np.ones(screen.n_obs, dtype=bool))
        self.held_out = _layer(self.observed, "ate_held_out")
        strata = Strata.of(self.labels, self.names, strata_of_cells(screen, by_batch=True), 10)
        expression = log_expression(screen)
        _, fdr = gated_tests(expression, strata)
        by_depth = strata_of_cells(screen, by_batch=True, depth_bins=DEPTH_BINS)
        within = Strata.of(self.labels, self.names, by_depth, 10)
        self.at_depth = stratified_effects(expression, within)[0]
        self.is_significant = np.nan_to_num(fdr, nan=1.0) < FDR
        self.n_genes = (np.nan_to_num(fdr, nan=1.0) < FDR).sum(axis=1)

    def effects_of(self, cells: np.ndarray) -> anndata.AnnData:
        """Compute the observed effects of some cells."""
        return observed_effects(self.screen, self.parts, "{}", cells)

    def reference(self) -> dict[str, float]:
        """Correlate the additive baseline and the split-half ceiling with what is observed."""
        training = self.effects_of((self.parts == TRAIN).to_numpy())
        half = split_half(self.screen, self.parts, 0, "{}")
        return {
            "additive_pearson": _pearson(_layer(training, "ate"), self.held_out),
            "split_half_pearson": _pearson(half.X, _layer(half, "ate_held_out")),
        }

    def train(
        self, settings: dict[str, Any], training: Training, seed: int, permuted: bool
    ) -> tuple[TrainedModel, Cells]:
        """Train a model; return it with its test cells."""
        screen, device = self.screen, choose_device()
        if permuted:
            screen = screen.copy()
            rng, strata = np.random.default_rng(seed), strata_of_cells(screen, by_batch=True)
            order = np.arange(screen.n_obs)
            for stratum in np.unique(strata):
                inside = np.flatnonzero(strata == stratum)
                order[inside] = rng.permutation(inside)
            screen.obsm["dosage"] = screen.obsm["dosage"][order]
        genes = list(screen.var_names)
        targets = genes if settings["on_target"] else ()
        encoding = Encoding.of(Design.of_screen(screen), settings["combinations"], targets)
        is_trained = (self.parts == TRAIN).to_numpy()
        covariates = Covariates.of(screen.obs[is_trained], settings["covariates"])
        own = encoding, device, covariates
        train, validation, test = (
            Cells.of(screen, (self.parts == part).to_numpy(), *own) for part in (TRAIN, VAL, TEST)
        )
        sizes = len(genes), len(encoding.names), len(covariates)
        [fitted] = fit(
            lambda: build_model(settings, *sizes, encoding.target_genes),
            train, validation, training, [seed],
        )  # fmt: skip
        return TrainedModel(fitted.model.eval(), settings, genes, encoding, covariates), test

    def score(self, trained: TrainedModel, test: Cells) -> dict[str, Any]:
        """Compare a model with what is observed."""
        cells = held_out_cells(self.labels, self.parts)
        weights = weights_of_strata(trained, self.screen, self.names, cells, 10)
        sizes = library_size_quantiles(self.screen.obs["library_size"][cells])

        def predict(library_sizes: list[float]) -> np.ndarray:
            return predicted_effects(
                trained, self.names, DRAWS, 0, strata_weights=weights, library_sizes=library_sizes
            )[0]

        effects = predict(sizes)
        all_cells = _layer(self.observed, "ate")
        own = {
            name: [
                round(float(values[row, trained.genes.index(name)]), 2)
                for values in (effects, all_cells, self.at_depth)
            ]
            for row, name in enumerate(self.names)
            if name in trained.genes
        }
        chosen = torch.linspace(0, len(test) - 1, min(N_CELLS, len(test))).long()
        some = Cells(
            test.counts[chosen], test.library_size[chosen], test.design, test.condition[chosen],
            tuple(values[chosen] for values in test.covariates), test.targets,
        )  # fmt: skip
        return {
            "pearson": _pearson(effects, self.held_out),
            "pearson_at_10000": _pearson(predict([LIBRARY_SIZE]), self.held_out),
            "rmse": float(np.sqrt(np.square(effects - self.held_out).mean())),
            "test_iwelbo": float(iwelbo(trained.model, some, PARTICLES, 0)[0].mean()),
            "own_genes": own,
            "lowest_own": self._lowest(own, trained.genes, 1),
            "lowest_own_at_depth": self._lowest(own, trained.genes, 2),
        } | self.open_masks(trained)

    def _lowest(self, own: dict[str, list[float]], genes: list[str], observed: int) -> float:
        """Find the smallest ratio of predicted to observed significant changes of targets."""
        ratios = [
            changes[0] / changes[observed]
            for name, changes in own.items()
            if self.is_significant[self.names.index(name), genes.index(name)]
        ]
        return round(min(ratios, default=np.nan), 3)

    def open_masks(self, trained: TrainedModel) -> dict[str, Any]:
        """Count the perturbations with an open mask."""
        probability = mask_probability(trained.model)
        if probability is None:
            return {}
        is_open = (probability > MASK_THRESHOLD).cpu().numpy()
        by_name = dict(zip(trained.encoding.names, is_open, strict=True))
        known = np.array([by_name[name].any() for name in self.names if name in by_name])
        number = self.n_genes[[name in by_name for name in self.names]]
        return {
            "factors": int(is_open.any(axis=0).sum()),
            "factors_of": {
                n: np.flatnonzero(row).tolist() for n, row in by_name.items() if row.any()
            },
            "open": float(is_open.any(axis=1).mean()),
            "open_of_effective": float(known[number >= MANY].mean())
            if (number >= MANY).any()
            else None,
            "open_of_ineffective": float(known[number <= FEW].mean())
            if (number <= FEW).any()
            else None,
        }


def _layer(effects: anndata.AnnData, name: str) -> np.ndarray:
    """Return effects within batches, where the screen has them."""
    stratified = f"{name}_stratified"
    return effects.layers[stratified if stratified in effects.layers else name]


def _pearson(one: np.ndarray, other: np.ndarray) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    return round(float(np.corrcoef(one[both], other[both])[0, 1]), 4)


def main(given: Sequence[str] | None = None) -> None:
    """Read the options, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", help="a file of ../shared/data, or a path")
    parser.add_argument("--batch", default=None, help="column of obs with the batch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--permuted", action="store_true", help="permute perturbations of cells")
    for name in ("settings", "training"):
        parser.add_argument(f"--{name}", nargs="*", default=[], metavar="key=value")
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    case = Case(read_labelled(arguments.file, arguments.batch))
    print(json.dumps(case.reference()), flush=True)
    settings = SETTINGS | key_values(arguments.settings)
    training = Training(**TRAINING | key_values(arguments.training))
    rows = []
    for seed in arguments.seeds:
        start = time.monotonic()
        trained, test = case.train(settings, training, seed, arguments.permuted)
        row = {"seed": seed, "seconds": round(time.monotonic() - start, 1)}
        row |= case.open_masks(trained) if arguments.permuted else case.score(trained, test)
        print(json.dumps(row), flush=True)
        rows.append({key: value for key, value in row.items() if isinstance(value, int | float)})
    print(json.dumps(mean_of(rows)))


def read_labelled(file: str, batch: str | None = None, guide: str | None = None) -> anndata.AnnData:
    """Read a file with perturbations in obs["condition"]."""
    path = Path(file) if Path(file).is_file() else ROOT.parent / "shared" / "data" / file
    source = H5adSource(
        path=str(path), perturbation_column="condition", control="control", batch_column=batch,
        guide_column=guide,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "screen.h5ad"
        write_h5ad_screen(source, "{}", made)
        return read_screen(made)


if __name__ == "__main__":
    main()
