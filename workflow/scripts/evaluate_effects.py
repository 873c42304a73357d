"""Compare the predictions of all runs on one split with the observed effects."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import pandas as pd

    from samsvae.effects.table import read_effects
    from samsvae.files import write_tsv
    from samsvae.metrics.de_comparison import compare_with_de
    from samsvae.metrics.effects import effect_metrics

    observed = read_effects(snakemake.input.observed)
    metrics, comparisons = [], []
    for run, path in zip(snakemake.params.runs, snakemake.input.predicted, strict=True):
        predicted = read_effects(path)
        metrics.append(
            effect_metrics(observed, predicted, snakemake.params.top_genes).assign(**run)
        )
        comparisons.append(compare_with_de(observed, predicted, snakemake.params.fdr).assign(**run))
    write_tsv(pd.concat(metrics), snakemake.output.metrics, first=["split", "model", "seed"])
    write_tsv(
        pd.concat(comparisons), snakemake.output.de_comparison, first=["split", "model", "seed"]
    )


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
