"""Tabulate the observed and predicted non-additivity of combinations."""

from typing import Any

from samsvae.evaluation.combinations import tabulate_non_additivity
from samsvae.evaluation.effects import read_effects, read_observed
from samsvae.runtime.files import write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    observed = read_observed(snakemake.input.observed, snakemake.params.effects)
    runs = zip(snakemake.params.runs, snakemake.input.predicted, strict=True)
    predicted = {run["model"]: read_effects(path) for run, path in runs}
    write_tsv(
        tabulate_non_additivity(observed, predicted, snakemake.params.fdr), snakemake.output.table
    )


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
