"""Test gene sets for enrichment among the effects of perturbations, observed and predicted."""

from typing import Any

import pandas as pd

from samsvae.biology.enrichment import OBSERVED, Enrichment, enrich, strongest, with_order
from samsvae.evaluation.effects import measured_genes, read_effects
from samsvae.runtime.files import write_tsv
from samsvae.runtime.script import run_job
from samsvae.screen.gene_sets import read_collections


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params = snakemake.input, snakemake.params
    settings = Enrichment(**params.settings)
    observed = read_effects(given.screen)
    measured = measured_genes(observed)
    paths = dict(zip(params.gene_set_names, given.gene_sets, strict=True))
    collections = read_collections(paths, measured, settings.min_size, settings.max_size)
    tested = strongest(observed, settings.max_perturbations)
    of_split = {"split": params.runs[0]["split"], "model": OBSERVED, "seed": pd.NA}
    tables = [
        enrich(read_effects(path)[:, measured], tested, collections, settings, seed=0).assign(**run)
        for run, path in zip(
            [of_split, *params.runs], [given.screen, *given.predicted], strict=True
        )
    ]
    table = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    table["seed"] = table["seed"].astype("Int64")
    write_tsv(with_order(table), snakemake.output.table, first=["split", "model", "seed"])


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
