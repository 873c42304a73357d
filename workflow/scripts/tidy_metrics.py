"""Write all metrics of an experiment into one tidy table."""

from typing import Any

from samsvae.files import read_table, write_parquet_parts
from samsvae.job import run_job
from samsvae.metrics.tidy import NAMES, tidy_metrics
from samsvae.provenance import provenance


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params = snakemake.input, snakemake.params
    perturbations = (read_table(path) for path in given.perturbations)
    parts = tidy_metrics(read_table(given.metrics), perturbations, params.top_genes)
    made_by = provenance({"top_genes": params.top_genes}, params.code)
    write_parquet_parts(parts, NAMES, made_by, snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
