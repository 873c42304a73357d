"""List perturbations with their differentially expressed genes and figures."""

from typing import Any

from samsvae.evaluation.effects import list_perturbations, read_effects
from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    screen = read_effects(snakemake.input.effects)
    responders = snakemake.input.get("responders")
    known = read_table(responders) if responders else None
    table = list_perturbations(screen, snakemake.params.fdr, known)
    write_tsv(table, snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
