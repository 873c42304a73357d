"""Average the bounds of cells by run, paired with the first model."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    from samsvae.files import read_table, write_tsv
    from samsvae.metrics.iwelbo import summarise_iwelbo

    runs = zip(snakemake.params.runs, snakemake.input.iwelbo, strict=True)
    table = summarise_iwelbo((run, read_table(path)) for run, path in runs)
    write_tsv(table, snakemake.output.table)
    metrics = table.rename(columns={"iwelbo": "value"}).assign(metric="iwelbo")
    columns = ["split", "model", "seed", "scope", "metric", "value"]
    write_tsv(metrics[columns], snakemake.output.metrics)


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
