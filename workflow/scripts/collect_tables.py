"""Stack the tables of many jobs into one."""

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
    table = pd.concat(filled)
    if "seed" in table:
        table["seed"] = table["seed"].astype("Int64")
    write_tsv(table, snakemake.output.table, first=["split", "model", "seed"])


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
