"""Infer states, bounds and responders of all cells of a screen, by a model trained on it."""

from typing import Any

import pandas as pd
import torch

from samsvae.biology.applied import write_results
from samsvae.inference.checkpoint import load_model
from samsvae.inference.machine import choose_device, keep_freed_memory
from samsvae.runtime.files import read_table
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import read_digest


def main(snakemake: Any) -> None:
    """Run the rule."""
    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    given, params = snakemake.input, snakemake.params
    trained = load_model(given.model, choose_device())
    config = {"model": trained.settings, **params.settings, "run": params.run}
    made_by = provenance(config, params.code, screen=read_digest(given.screen))
    write_results(
        trained, given.screen, dict(snakemake.output.items()), params.settings,
        params.run["seed"], made_by, factors_of(params.run, given.factors),
    )  # fmt: skip


def factors_of(run: dict[str, Any], paths: list[str]) -> dict[str, pd.DataFrame]:
    """Read the factors of a run, their genes and their enriched sets, from tables of several runs.

    Only tables with rows of the run are returned.
    """
    found = {}
    for name, path in zip(("factors", "genes", "gene_sets"), paths, strict=False):
        table = read_table(path)
        of_run = (table[list(run)] == pd.Series(run)).all(axis=1)
        if of_run.any():
            found[name] = table[of_run].drop(columns=list(run))
    return found


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
