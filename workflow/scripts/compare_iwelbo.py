"""Average the bounds of cells by run, paired with the first model, and collect their histories."""

from collections.abc import Iterator
from typing import Any

from samsvae.evaluation.scores import (
    summarise_iwelbo,
    with_differences,
    with_intervals,
    with_monte_carlo_errors,
)
from samsvae.runtime.files import read_table, read_tables, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, output, runs = snakemake.input, snakemake.output, snakemake.params.runs

    def read(paths: list[str]) -> Iterator[tuple[dict[str, Any], Any]]:
        for run, path in zip(runs, paths, strict=True):
            yield run, read_table(path)

    table = summarise_iwelbo(read(given.iwelbo))
    table = with_monte_carlo_errors(table, read(given.by_particles))
    write_tsv(with_intervals(table), output.table)
    first = ["split", "model", "seed"]
    by_particles = with_differences(read_tables(given.by_particles, runs))
    write_tsv(by_particles, output.by_particles, first)
    write_tsv(read_tables(given.history, runs), output.training, first)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
