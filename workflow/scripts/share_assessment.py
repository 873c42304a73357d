"""Copy the assessment of a screen to an experiment on it."""

import shutil
from typing import Any

from samsvae.runtime.files import whole_file
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule: each output is a copy of the input of the same name."""
    for name, assessed in snakemake.input.items():
        with whole_file(snakemake.output[name]) as path:
            shutil.copyfile(assessed, path)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
