"""Average the scores of differential expression over perturbations of like strength."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    from samsvae.files import read_table, write_tsv
    from samsvae.metrics.strength import scores_by_strength

    comparison = read_table(snakemake.input.table)
    write_tsv(scores_by_strength(comparison), snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
