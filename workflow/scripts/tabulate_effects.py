"""Join observed and predicted effects of all models, and tabulate the non-additivity of pairs."""

from typing import Any

from samsvae.evaluation.combinations import tabulate_non_additivity
from samsvae.evaluation.effects import long_tables, read_effects, read_observed
from samsvae.runtime.files import write_parquet_parts, write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params, output = snakemake.input, snakemake.params, snakemake.output
    observed = read_observed(given.observed, params.effects)
    runs = zip(params.runs, given.predicted, strict=True)
    predicted = {run["model"]: read_effects(path) for run, path in runs}
    tables = long_tables(observed, read_effects(given.screen), predicted, params.fdr)
    made_by = provenance({"runs": params.runs}, params.code)
    write_parquet_parts(tables, ["model", "perturbation", "gene"], made_by, output.table)
    predicted = {
        name: effects for name, effects in predicted.items() if name not in params.ceilings
    }
    write_tsv(tabulate_non_additivity(observed, predicted, params.fdr), output.combinations)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
