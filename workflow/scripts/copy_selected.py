"""Put what the training of the chosen candidate left under the name of its model."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import shutil

    from samsvae.files import read_table, whole_file

    selection = read_table(snakemake.input.selection)
    chosen = selection["candidate"][selection["chosen"]].iloc[0]
    place = snakemake.params.candidates.index(chosen)
    for name, path in snakemake.output.items():
        with whole_file(path) as temporary:
            shutil.copyfile(snakemake.input[name][place], temporary)


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
