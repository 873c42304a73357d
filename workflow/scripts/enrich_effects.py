"""Test gene sets for the effects of perturbations, observed or predicted."""

from typing import Any

from samsvae.biology.enrichment import Enrichment, enrich, strongest
from samsvae.biology.gene_sets import read_collections
from samsvae.evaluation.effects import measured_genes, read_effects
from samsvae.runtime.files import write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params = snakemake.input, snakemake.params
    settings = Enrichment(**params.settings)
    observed = read_effects(given.observed)
    measured = measured_genes(observed)
    effects = read_effects(given.effects)[:, measured]
    paths = dict(zip(params.gene_set_names, given.gene_sets, strict=True))
    collections = read_collections(paths, measured, settings.min_size, settings.max_size)
    tested = strongest(observed, settings.max_perturbations)
    table = enrich(effects, tested, collections, settings, seed=0)
    write_tsv(
        table.assign(**params.run),
        snakemake.output.table,
        first=["split", "model", "seed"],
    )


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
