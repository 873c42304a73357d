"""Compute UMAPs and clusters of perturbations."""

from typing import Any

import pandas as pd

from samsvae.biology.similarity import READ
from samsvae.biology.states import perturbation_map
from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job

SEED = 0


def main(snakemake: Any) -> None:
    """Run the rule."""
    given = snakemake.input
    latents = read_table(given.latents) if given.latents else pd.DataFrame()
    effects = pd.read_parquet(given.effects, columns=READ)
    table = perturbation_map(effects, latents, SEED)
    write_tsv(table, snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
