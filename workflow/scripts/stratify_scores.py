"""Average the scores of differential expression over perturbations of like strength."""

from typing import Any

from samsvae.files import read_table, write_tsv
from samsvae.job import run_job
from samsvae.metrics.strength import scores_by_strength


def main(snakemake: Any) -> None:
    """Run the rule."""
    comparison = read_table(snakemake.input.table)
    write_tsv(scores_by_strength(comparison), snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
