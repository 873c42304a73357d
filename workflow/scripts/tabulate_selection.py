"""Tabulate what was tried and chosen on each split, and over all of them."""

from typing import Any

import pandas as pd

from samsvae.experiments import Split
from samsvae.files import read_table, write_tsv
from samsvae.job import run_job
from samsvae.statistics.selection import overview


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
