"""Stratify the scores of differential expression by effect strength."""

from typing import Any

from samsvae.evaluation.differential_expression import scores_by_strength
from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    comparison = read_table(snakemake.input.table)
    write_tsv(scores_by_strength(comparison), snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
