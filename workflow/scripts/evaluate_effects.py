"""Compare the predictions of all runs on one split with the observed effects."""

import json
from typing import Any

import pandas as pd

from samsvae.evaluation.compared import calibrate, calibration_as_metrics
from samsvae.evaluation.effects import read_effects, read_observed
from samsvae.evaluation.metrics import NAMES, described
from samsvae.evaluation.scores import (
    context_scores,
    effect_scores,
    missed_effects,
    with_quartiles,
)
from samsvae.runtime.files import write_parquet_parts, write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    output, params = snakemake.output, snakemake.params
    observed = read_observed(snakemake.input.observed, snakemake.params.effects)
    metrics, comparisons, missed, contexts = [], [], [], []
    for run, path in zip(params.runs, snakemake.input.predicted, strict=True):
        predicted = read_effects(path)
        missed.append(missed_effects(observed, predicted).assign(**run))
        contexts.append(context_scores(observed, predicted).assign(**run))
        scores = effect_scores(observed, predicted, params.top_genes, params.fdr)
        metrics.append(scores.tidy().assign(**run))
        comparisons.append(scores.differential_expression.assign(**run))
    write_tsv(pd.concat(comparisons), output.de_comparison, ["split", "model", "seed"])
    for tables, path in ((missed, output.missed_effects), (contexts, output.context_scores)):
        known = [table for table in tables if len(table)] or tables
        write_tsv(pd.concat(known), path, ["split", "model", "seed"])
    table = with_quartiles(pd.concat(metrics, ignore_index=True))
    halves = read_effects(snakemake.input.halves)
    calibration = calibrate(halves, params.top_genes, params.fdr)
    split = {"split": params.runs[0]["split"]}
    write_tsv(calibration.assign(**split), output.calibration, ["split"])
    seed = json.loads(halves.uns["provenance"])["config"]["seed"]
    of_metrics = calibration_as_metrics(calibration).assign(**split, model="split_half", seed=seed)
    made_by = provenance({"runs": params.runs, "fdr": params.fdr}, params.code)
    parts = [described(part, params.top_genes) for part in (table, of_metrics)]
    write_parquet_parts(parts, NAMES, made_by, output.metrics)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
