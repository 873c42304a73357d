"""Average the bounds of cells by run, paired with the first model."""

from collections.abc import Iterator
from typing import Any

from samsvae.evaluation.scores import (
    summarise_iwelbo,
    with_intervals,
    with_monte_carlo_errors,
)
from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""

    def read(paths: list[str]) -> Iterator[tuple[dict[str, Any], Any]]:
        for run, path in zip(snakemake.params.runs, paths, strict=True):
            yield run, read_table(path)

    table = summarise_iwelbo(read(snakemake.input.iwelbo))
    table = with_monte_carlo_errors(table, read(snakemake.input.by_particles))
    table = with_intervals(table)
    write_tsv(table, snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
