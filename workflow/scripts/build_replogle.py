"""Build the canonical screen of Replogle et al. 2022, in bounded memory."""

from typing import Any

from samsvae.runtime.provenance import known_digest, provenance
from samsvae.runtime.script import run_job
from samsvae.sources import own_settings
from samsvae.sources.replogle import ReplogleSource, write_replogle_screen
from samsvae.sources.verification import read_receipt


def main(snakemake: Any) -> None:
    """Run the rule."""
    path, published = read_receipt(snakemake.input.receipt)
    source = ReplogleSource(
        path=path,
        perturbations=snakemake.input.perturbations,
        response_genes=snakemake.input.response_genes,
        **own_settings(snakemake.params.settings, "path"),
    )
    lists = {n: known_digest(path) for n, path in snakemake.input.items() if n != "receipt"}
    digests = {**published.checksums, **lists}
    made_by = provenance(snakemake.params.settings, snakemake.params.code, **digests)
    write_replogle_screen(source, made_by, snakemake.output.screen)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
