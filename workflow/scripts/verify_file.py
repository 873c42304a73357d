"""Verify a user's copy of a published file by the published checksums."""

from typing import Any

from samsvae.runtime.script import run_job
from samsvae.sources.verification import PublishedFile, verify, write_receipt


def main(snakemake: Any) -> None:
    """Run the rule."""
    published = PublishedFile.of({**snakemake.params.content, "urls": ()})
    verify(snakemake.input.file, published)
    write_receipt(snakemake.input.file, published, snakemake.output.receipt)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
