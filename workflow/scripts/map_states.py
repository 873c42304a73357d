"""Compute UMAPs of the latent states of held-out cells."""

from typing import Any

import torch

from samsvae.biology.states import state_map
from samsvae.inference.checkpoint import load_model
from samsvae.runtime.files import write_tsv
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import open_screen
from samsvae.screen.splits import read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    torch.set_num_threads(snakemake.threads)
    run = snakemake.params.runs[0]
    with open_screen(snakemake.input.screen) as screen:
        table = state_map(
            load_model(snakemake.input.models[0]),
            screen,
            read_split(snakemake.input.split, screen),
            snakemake.params.most_cells,
            run["seed"],
        )
    write_tsv(
        table.assign(**run),
        snakemake.output.table,
        first=["split", "model", "seed"],
    )


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
