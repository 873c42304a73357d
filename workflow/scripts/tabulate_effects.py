"""Join observed and predicted effects of all models in a tidy table."""

from typing import Any

from samsvae.evaluation.effects import long_table, read_effects, read_observed
from samsvae.runtime.files import write_parquet
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    observed = read_observed(snakemake.input.observed, snakemake.params.effects)
    runs = zip(snakemake.params.runs, snakemake.input.predicted, strict=True)
    predicted = {run["model"]: read_effects(path) for run, path in runs}
    screen = read_effects(snakemake.input.screen)
    table = long_table(observed, screen, predicted, snakemake.params.fdr)
    made_by = provenance({"runs": snakemake.params.runs}, snakemake.params.code)
    write_parquet(table, made_by, snakemake.output.table)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
