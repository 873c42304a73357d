"""Compare models: confidence intervals, paired tests, a summary, a ranking and a verdict."""

from functools import partial
from typing import Any

from samsvae.config.experiments import Split
from samsvae.evaluation.comparison import Rules
from samsvae.evaluation.metrics import meaning
from samsvae.evaluation.summary import ComparedModels, compare_models
from samsvae.report.verdict import verdicts
from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params, output = snakemake.input, snakemake.params, snakemake.output
    settings = params.settings
    rules = Rules(
        params.models,
        partial(meaning, n_top=settings["top_genes"]),
        settings["correction"],
        settings["significance"],
    )
    splits = {name: Split(**split) for name, split in params.splits.items()}
    tables = compare_models(
        given.metrics,
        dict(zip(params.cells, given.iwelbo, strict=False)),
        splits,
        rules,
        ComparedModels.of(params.kinds),
        settings["top_genes"],
        read_table(given.calibration) if given.calibration else None,
    )
    write_tsv(tables.intervals, output.intervals)
    write_tsv(tables.differences, output.differences)
    write_tsv(tables.summary, output.summary)
    write_tsv(tables.ranking, output.ranking)
    write_tsv(
        verdicts(tables, settings["top_genes"], rules.correction, rules.level), output.verdict
    )


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
