"""Join observed and predicted effects of all models in a tidy table."""

from typing import Any

from samsvae.evaluation.effects import long_tables, read_effects, read_observed
from samsvae.runtime.files import write_parquet_parts
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    observed = read_observed(snakemake.input.observed, snakemake.params.effects)
    runs = zip(snakemake.params.runs, snakemake.input.predicted, strict=True)
    predicted = {run["model"]: read_effects(path) for run, path in runs}
    screen = read_effects(snakemake.input.screen)
    tables = long_tables(observed, screen, predicted, snakemake.params.fdr)
    made_by = provenance({"runs": snakemake.params.runs}, snakemake.params.code)
    names = ["model", "perturbation", "gene"]
    write_parquet_parts(tables, names, made_by, snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
