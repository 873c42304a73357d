"""Choose among the candidates of a model by the bounds of the validation cells of a split."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import logging

    from samsvae.files import write_tsv
    from samsvae.statistics.selection import select, validation_bounds

    runs = [
        (run["model"], run["seed"], validation_bounds(path))
        for run, path in zip(snakemake.params.runs, snakemake.input.iwelbo, strict=True)
    ]
    table = select(runs, snakemake.params.hyperparameters)
    split, model = snakemake.wildcards.split, snakemake.wildcards.model
    write_tsv(table.assign(split=split, model=model), snakemake.output.table, ["split", "model"])
    chosen = table[table["chosen"]].iloc[0]
    logging.info("chosen: %s, %.2f nats per cell", chosen["candidate"], chosen["mean_iwelbo"])


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
