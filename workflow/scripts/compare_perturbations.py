"""Compute the similarity of perturbations in data, predictions and latent space."""

from typing import Any

import pandas as pd

from samsvae.biology.similarity import READ, similarity_table
from samsvae.evaluation.effects import read_effects
from samsvae.runtime.files import read_table, write_parquet
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    latents = snakemake.input.latents
    table = similarity_table(
        pd.read_parquet(snakemake.input.effects, columns=READ),
        read_table(latents) if latents else pd.DataFrame(columns=["model"]),
        read_effects(snakemake.input.screen).var["control_standard_error"],
    )
    made_by = provenance({}, snakemake.params.code)
    write_parquet(table, made_by, snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
