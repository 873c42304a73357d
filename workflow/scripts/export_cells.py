"""Export held-out and predicted cells of a run for cell-eval."""

from typing import Any

import numpy as np
import torch

from samsvae.evaluation import samples
from samsvae.evaluation.effects import read_effects
from samsvae.inference.checkpoint import load_model
from samsvae.inference.machine import choose_device
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TRAIN, read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    torch.set_num_threads(snakemake.threads)
    given, params = snakemake.input, snakemake.params
    seed = params.run["seed"]
    with open_screen(given.screen) as screen:
        parts = read_split(given.split, screen)
        compared = samples.compared_cells(screen, parts)
        labels = screen.obs["perturbation"].astype(str)
        names = sorted(set(labels[compared]) - {CONTROL})
        if given.model:
            trained = load_model(given.model, choose_device())
            sizes = screen.obs["library_size"].to_numpy()
            predicted = samples.cells_of_model(trained, names, params.cells, sizes, seed)
        elif given.effects:
            effects = read_effects(given.effects)
            control = screen.X[np.flatnonzero((labels == CONTROL) & (parts == TRAIN))]
            predicted = samples.cells_of_effects(effects, control, names, params.cells, seed)
        else:
            half, compared = samples.halves(screen, parts, compared, seed)
            predicted = samples.measured_cells(screen, half)
        real = samples.measured_cells(screen, compared)
        config = {"run": params.run, "exported_cells": params.cells}
        made_by = provenance(config, params.code, screen=digest_of_screen(screen))
        samples.write_cells(real, made_by, snakemake.output.real)
        samples.write_cells(predicted, made_by, snakemake.output.predicted)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
