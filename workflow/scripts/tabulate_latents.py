"""Tabulate latent effects, latent factors and what latent states tell of perturbations."""

from typing import Any

import pandas as pd
import torch

from samsvae.biology.enrichment import Enrichment
from samsvae.biology.factors import factor_tables, read_annotation, with_orders
from samsvae.biology.states import classify_basal_state
from samsvae.inference.checkpoint import load_model
from samsvae.runtime.files import write_parquet, write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import open_screen
from samsvae.screen.splits import read_split


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
    of_runs = []
    with open_screen(given.screen) as screen:
        parts = read_split(given.split, screen)
        for run, path in zip(params.runs, given.models, strict=True):
            model, seed = load_model(path), run["seed"]
            found = factor_tables(model, annotation, settings, **params.draws, seed=seed)
            basal = classify_basal_state(model, screen, parts, seed)
            of_runs.append({**found.tables(), "basal": basal})
    first = ["split", "model", "seed"]
    for name, path in snakemake.output.items():
        tables = [
            tables[name].assign(**run) for run, tables in zip(params.runs, of_runs, strict=True)
        ]
        table = pd.concat([each for each in tables if len(each)] or tables, ignore_index=True)
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
