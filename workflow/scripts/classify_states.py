"""Classify the perturbation of held-out cells from their latent states."""

from typing import Any

import pandas as pd
import torch

from samsvae.biology.states import classify_basal_state
from samsvae.inference.checkpoint import load_model
from samsvae.runtime.files import write_tsv
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import open_screen
from samsvae.screen.splits import read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    torch.set_num_threads(snakemake.threads)
    with open_screen(snakemake.input.screen) as screen:
        parts = read_split(snakemake.input.split, screen)
        tables = [
            classify_basal_state(load_model(path), screen, parts, run["seed"]).assign(**run)
            for run, path in zip(snakemake.params.runs, snakemake.input.models, strict=True)
        ]
    table = pd.concat([table for table in tables if len(table)] or tables)
    write_tsv(table, snakemake.output.table, first=["split", "model", "seed"])


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
