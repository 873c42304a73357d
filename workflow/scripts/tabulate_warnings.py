"""Tabulate the findings of the check of an experiment's screen."""

from typing import Any

from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    write_tsv(read_table(snakemake.input.findings), snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
