"""Download a published file, and write its receipt."""

from pathlib import Path
from typing import Any

from samsvae.runtime.script import run_job
from samsvae.sources.download import download
from samsvae.sources.verification import PublishedFile, write_receipt


def main(snakemake: Any) -> None:
    """Run the rule."""
    urls = snakemake.config["downloads"][snakemake.wildcards.download]["urls"]
    published = PublishedFile.of({**snakemake.params.content, "urls": urls})
    path = Path(snakemake.params.folder) / published.file
    download(published, path)
    write_receipt(path, published, snakemake.output.receipt)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
