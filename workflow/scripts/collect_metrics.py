"""Collect all metrics of an experiment in one tidy table."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from samsvae.evaluation.metrics import NAMES, bounds_as_metrics, described
from samsvae.runtime.files import read_table, write_parquet_parts
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params = snakemake.input, snakemake.params

    def parts() -> Iterator[pd.DataFrame]:
        yield from map(read_table, given.effects)
        if given.bounds:
            yield described(bounds_as_metrics(read_table(given.bounds)), params.top_genes)
        if given.truth:
            yield described(read_table(given.truth), params.top_genes)

    made_by = provenance({"top_genes": params.top_genes}, params.code)
    write_parquet_parts(parts(), NAMES, made_by, snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
