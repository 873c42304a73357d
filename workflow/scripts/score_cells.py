"""Score the predicted cells of all runs on one split against its held-out cells."""

import logging
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

from samsvae.evaluation.effects import read_effects
from samsvae.evaluation.population import VCC_COLUMNS, HeldOutCells
from samsvae.evaluation.scores import POPULATION_COLUMNS
from samsvae.inference.checkpoint import load_model
from samsvae.inference.machine import choose_device, explain_out_of_memory
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import write_tsv
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import open_screen
from samsvae.screen.splits import read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    torch.set_num_threads(snakemake.threads)
    scores = [pd.DataFrame(columns=VCC_COLUMNS)]
    distances = [pd.DataFrame(columns=POPULATION_COLUMNS)]
    try:
        with open_screen(snakemake.input.screen) as screen:
            add_scores(snakemake, screen, scores, distances)
    except InputError as reason:
        logging.info("no scores of predicted cells: %s", reason)
    for tables, path in (
        (scores, snakemake.output.vcc2026),
        (distances, snakemake.output.population),
    ):
        write_tsv(pd.concat(tables[1:] or tables), path, ["split", "model", "seed"])


def add_scores(
    snakemake: Any,
    screen: anndata.AnnData,
    scores: list[pd.DataFrame],
    distances: list[pd.DataFrame],
) -> None:
    """Append a table of scores, and for trained models of distances, for each run."""
    given, params = snakemake.input, snakemake.params
    device = choose_device()
    fewest = None if params.effects == "plain" else params.min_controls
    held_out = HeldOutCells(screen, read_split(given.split, screen), params.cells, fewest)
    for run, path in zip(params.trained, given.models, strict=True):
        with explain_out_of_memory(device, f"evaluation.scored_cells (now {params.cells})"):
            cells = held_out.sampled(load_model(path, device), run["seed"])
        if not np.issubdtype(cells.counts.dtype, np.integer):
            logging.info("%s samples no counts, and has no scores of cells", run["model"])
            continue
        scores.append(held_out.vcc_table(held_out.vcc_scores_of(cells), run))
        distances.append(held_out.population_table(held_out.distances_of(cells), run))
    for run, path in zip(params.baselines, given.effects, strict=True):
        effects = np.asarray(read_effects(path)[held_out.names, screen.var_names].X, dtype=float)
        cells = held_out.with_effects(effects, run["seed"])
        scores.append(held_out.vcc_table(held_out.vcc_scores_of(cells), run))
    for run in params.ceilings:
        values = held_out.vcc_scores_of_half(run["seed"])
        scores.append(held_out.vcc_table(values, run))


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
