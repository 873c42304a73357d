"""Concatenate tables of many jobs, each kind to one table, and summarise over all of them."""

import importlib
from typing import Any

import pandas as pd

from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    params = snakemake.params
    for name, output in snakemake.output.items():
        paths = snakemake.input[name]
        runs = params.runs or [{}] * len(paths)
        tables = [read_table(path).assign(**run) for run, path in zip(runs, paths, strict=True)]
        filled = [table for table in tables if len(table)] or tables[:1]
        table = pd.concat(filled, ignore_index=True)
        if "seed" in table:
            table["seed"] = table["seed"].astype("Int64")
        if name in params.adds:
            module, _, function = params.adds[name].partition(":")
            table = getattr(importlib.import_module(module), function)(table)
        write_tsv(table, output, first=["split", "model", "seed"])


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
