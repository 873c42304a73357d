"""Tabulate latent effects and latent factors of trained models."""

from typing import Any

import pandas as pd
import torch

from samsvae.biology.enrichment import Enrichment
from samsvae.biology.factors import factor_tables, read_annotation, with_orders
from samsvae.inference.checkpoint import load_model
from samsvae.runtime.files import write_parquet, write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    torch.set_num_threads(snakemake.threads)
    given, params = snakemake.input, snakemake.params
    settings = Enrichment(**params.enrichment)
    gene_sets = dict(zip(params.gene_set_names, given.gene_sets, strict=True))
    annotation = read_annotation(
        given.screen,
        given.observed or None,
        given.groups[0] if given.groups else None,
        gene_sets,
        settings,
    )
    found = [
        factor_tables(load_model(path), annotation, settings, **params.draws, seed=run["seed"])
        for run, path in zip(params.runs, given.models, strict=True)
    ]
    first = ["split", "model", "seed"]
    for name, path in snakemake.output.items():
        parts = [
            tables.tables()[name].assign(**run)
            for run, tables in zip(params.runs, found, strict=True)
        ]
        table = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
        if name == "latents":
            table = with_orders(table)
        if name == "genes":
            made_by = provenance({"runs": params.runs, "draws": params.draws}, params.code)
            repeated = table.astype(dict.fromkeys(["split", "model", "gene"], "category"))
            write_parquet(repeated, made_by, path)
        else:
            write_tsv(table, path, first)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
