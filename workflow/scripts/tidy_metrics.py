"""Write all metrics of an experiment to a tidy table."""

from typing import Any

from samsvae.evaluation.scores import NAMES, tidy_metrics
from samsvae.runtime.files import read_table, write_parquet_parts
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params = snakemake.input, snakemake.params
    perturbations = (read_table(path) for path in given.perturbations)
    parts = tidy_metrics(read_table(given.metrics), perturbations, params.top_genes)
    made_by = provenance({"top_genes": params.top_genes}, params.code)
    write_parquet_parts(parts, NAMES, made_by, snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
