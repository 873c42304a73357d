"""Compute UMAPs and clusters of the latent states of held-out cells, and of perturbations."""

from typing import Any

import pandas as pd

from samsvae.biology.similarity import READ
from samsvae.biology.states import perturbation_map, state_map
from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import open_screen
from samsvae.screen.splits import read_split

SEED = 0


def main(snakemake: Any) -> None:
    """Run the rule: one map or both, as the outputs say."""
    given, output = snakemake.input, dict(snakemake.output.items())
    if "states" in output:
        table = _of_cells(given, snakemake.params, snakemake.threads)
        write_tsv(table, output["states"], first=["split", "model", "seed"])
    if "perturbations" in output:
        latents = read_table(given.latents) if given.get("latents") else pd.DataFrame()
        effects = pd.read_parquet(given.effects, columns=READ)
        write_tsv(perturbation_map(effects, latents, SEED), output["perturbations"])


def _of_cells(given: Any, params: Any, threads: int) -> pd.DataFrame:
    import torch  # seconds, which a map of perturbations alone does without

    from samsvae.inference.checkpoint import load_model

    torch.set_num_threads(threads)
    run, model = params.runs[0], load_model(given.models[0])
    with open_screen(given.screen) as screen:
        parts = read_split(given.split, screen)
        table = state_map(model, screen, parts, params.most_cells, run["seed"])
    return table.assign(**run)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
