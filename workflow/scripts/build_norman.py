"""Build the canonical screen of Norman et al. 2019, in bounded memory."""

from typing import Any

from samsvae.runtime.provenance import known_digest, provenance
from samsvae.runtime.script import run_job
from samsvae.sources import own_settings
from samsvae.sources.norman import NormanSource, write_norman_screen
from samsvae.sources.verification import read_receipt


def main(snakemake: Any) -> None:
    """Run the rule."""
    path, published = read_receipt(snakemake.input.receipt)
    source = NormanSource(path=path, **own_settings(snakemake.params.settings, "path"))
    # a copy that marks its genes has no list of them
    lists = {n: known_digest(p) for n, p in snakemake.input.items() if p and n != "receipt"}
    digests = {**published.checksums, **lists}
    made_by = provenance(snakemake.params.settings, snakemake.params.code, **digests)
    write_norman_screen(source, made_by, snakemake.output.screen)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
