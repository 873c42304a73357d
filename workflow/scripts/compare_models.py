"""Collect all metrics, and compare models by confidence intervals, paired tests and a ranking."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from samsvae.config.experiments import Split
from samsvae.evaluation.comparison import Rules
from samsvae.evaluation.metrics import NAMES, bounds_as_metrics, described, meaning
from samsvae.evaluation.summary import ComparedModels, compare_models
from samsvae.report.verdict import verdicts
from samsvae.runtime.files import read_table, write_parquet_parts, write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params, output = snakemake.input, snakemake.params, snakemake.output
    settings = params.settings
    n_top = settings["top_genes"]
    made_by = provenance({"top_genes": n_top}, params.code)
    write_parquet_parts(_metrics(given, n_top), NAMES, made_by, output.metrics)
    rules = Rules(
        params.models,
        partial(meaning, n_top=n_top),
        settings["correction"],
        settings["significance"],
    )
    splits = {name: Split(**split) for name, split in params.splits.items()}
    tables = compare_models(
        output.metrics,
        dict(zip(params.cells, given.iwelbo, strict=False)),
        splits,
        rules,
        ComparedModels.of(params.kinds),
        n_top,
        read_table(given.calibration) if given.calibration else None,
    )
    write_tsv(tables.intervals, output.intervals)
    write_tsv(tables.differences, output.differences)
    write_tsv(tables.summary, output.summary)
    write_tsv(tables.ranking, output.ranking)
    write_tsv(verdicts(tables, n_top, rules.correction, rules.level), output.verdict)


def _metrics(given: Any, n_top: int) -> Iterator[pd.DataFrame]:
    """Iterate over tidy tables of effects, bounds and recovery of the truth."""
    yield from map(read_table, given.effects)
    if given.bounds:
        yield described(bounds_as_metrics(read_table(given.bounds)), n_top)
    if given.truth:
        yield described(read_table(given.truth), n_top)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
