"""Compare the gene sets enriched in predicted effects with those of observed effects."""

from typing import Any

from samsvae.biology.enrichment import pathway_agreement
from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    enrichment = read_table(snakemake.input.table)
    write_tsv(pathway_agreement(enrichment, snakemake.params.fdr), snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
