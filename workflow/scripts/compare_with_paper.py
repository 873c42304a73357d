"""Compare the results of an experiment with the published ones."""

from typing import Any

import anndata
import pandas as pd

from samsvae.config.experiments import Split
from samsvae.evaluation.metrics import read_run_metrics
from samsvae.evaluation.reproduction import Experiment, overview, reproduction
from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params = snakemake.input, snakemake.params
    n_cells, n_genes = anndata.read_h5ad(given.screen, backed="r").shape
    experiment = Experiment(
        read_run_metrics(given.metrics),
        read_table(given.history),
        {name: Split(**split) for name, split in params.splits.items()},
        params.models,
        params.training,
        params.evaluation,
        n_cells,
        n_genes,
    )
    table = reproduction(pd.read_csv(given.published), experiment)
    write_tsv(table, snakemake.output.table)
    write_tsv(overview(table), snakemake.output.overview)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
