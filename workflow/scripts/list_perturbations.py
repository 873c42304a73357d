"""List perturbations with their differentially expressed genes and figures."""

from typing import Any

from samsvae.evaluation.effects import list_perturbations, read_effects
from samsvae.runtime.files import write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    screen = read_effects(snakemake.input.effects)
    write_tsv(list_perturbations(screen, snakemake.params.fdr), snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
