"""Concatenate the tables of many jobs, and add columns over all of them."""

import importlib
from typing import Any

import pandas as pd

from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    runs = snakemake.params.get("runs") or [{}] * len(snakemake.input)
    tables = [
        read_table(path).assign(**run) for run, path in zip(runs, snakemake.input, strict=True)
    ]
    filled = [table for table in tables if len(table)] or tables[:1]
    table = pd.concat(filled, ignore_index=True)
    if "seed" in table:
        table["seed"] = table["seed"].astype("Int64")
    if adds := snakemake.params.get("adds"):
        module, _, function = adds.partition(":")
        table = getattr(importlib.import_module(module), function)(table)
    write_tsv(table, snakemake.output.table, first=["split", "model", "seed"])


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
