"""Concatenate tables of many jobs, each kind to one table, and summarise over all of them."""

import importlib
from typing import Any

from samsvae.runtime.files import read_tables, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    params = snakemake.params
    for name, output in snakemake.output.items():
        table = read_tables(snakemake.input[name], params.runs)
        if name in params.adds:
            module, _, function = params.adds[name].partition(":")
            table = getattr(importlib.import_module(module), function)(table)
        write_tsv(table, output, first=["split", "model", "seed"])


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
