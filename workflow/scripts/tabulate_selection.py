"""Tabulate the candidates and the selection of each split, and over splits."""

from typing import Any

import pandas as pd

from samsvae.config.experiments import Split
from samsvae.evaluation.model_selection import overview
from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    selection = pd.concat(map(read_table, snakemake.input.tables), ignore_index=True)
    selection["experiment"] = snakemake.wildcards.experiment
    first = ["experiment", "split", "model"]
    write_tsv(selection, snakemake.output.selection, first)
    splits = {name: Split(**split) for name, split in snakemake.params.splits.items()}
    write_tsv(overview(selection, splits), snakemake.output.candidates)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
