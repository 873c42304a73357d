"""Test gene sets for the effects of perturbations, observed or predicted."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    from samsvae.biology.enrichment import Enrichment, enrich, strongest
    from samsvae.biology.gene_sets import measured_sets, read_gmt
    from samsvae.effects.table import read_effects
    from samsvae.files import write_tsv

    settings = Enrichment(**snakemake.params.settings)
    observed = read_effects(snakemake.input.observed)
    # a gene that no cell shows was not measured
    measured = observed.var_names[observed.var["n_cells"] > 0]
    effects = read_effects(snakemake.input.effects)[:, measured]
    collections = {
        name: measured_sets(
            read_gmt(path), effects.var_names, path, settings.min_size, settings.max_size
        )
        for name, path in zip(
            snakemake.params.gene_set_names, snakemake.input.gene_sets, strict=True
        )
    }
    tested = strongest(observed, settings.max_perturbations)
    table = enrich(effects, tested, collections, settings, seed=0)
    write_tsv(
        table.assign(**snakemake.params.run),
        snakemake.output.table,
        first=["split", "model", "seed"],
    )


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
