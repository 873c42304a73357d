"""Compare the predictions of all runs on one split with the observed effects."""

from typing import Any

import pandas as pd

from samsvae.evaluation.effects import read_effects
from samsvae.evaluation.scores import effect_scores, with_quartiles
from samsvae.runtime.files import write_parquet, write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    output, params = snakemake.output, snakemake.params
    observed = read_effects(snakemake.input.observed)
    summaries, comparisons, perturbations = [], [], []
    for run, path in zip(params.runs, snakemake.input.predicted, strict=True):
        scores = effect_scores(observed, read_effects(path), params.top_genes, params.fdr)
        summaries.append(scores.summary.assign(**run))
        comparisons.append(scores.differential_expression.assign(**run))
        perturbations.append(scores.long_table().assign(**run))
    first = ["split", "model", "seed"]
    write_tsv(pd.concat(summaries), output.metrics, first)
    write_tsv(pd.concat(comparisons), output.de_comparison, first)
    made_by = provenance({"runs": params.runs, "fdr": params.fdr}, params.code)
    table = with_quartiles(pd.concat(perturbations, ignore_index=True))
    repeated = ["split", "model", "perturbation", "metric"]
    write_parquet(table.astype(dict.fromkeys(repeated, "category")), made_by, output.perturbations)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
