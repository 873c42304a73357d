"""Take out what the joint training of several seeds gave for one of them."""

from pathlib import Path
from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import zipfile

    from samsvae.files import whole_file

    seed = snakemake.wildcards.seed
    with zipfile.ZipFile(snakemake.input.seeds) as archive:
        for path in snakemake.output:
            content = archive.read(f"{seed}/{Path(path).name}")
            with whole_file(path) as temporary:
                temporary.write_bytes(content)


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
