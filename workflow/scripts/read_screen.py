"""Convert a user's file to a canonical screen."""

from typing import Any

from samsvae.runtime.provenance import known_digest, provenance
from samsvae.runtime.script import run_job
from samsvae.sources.h5ad import write_h5ad_screen
from samsvae.sources.h5ad_source import H5adSource


def main(snakemake: Any) -> None:
    """Run the rule."""
    settings = snakemake.params.settings
    source = H5adSource(**{key: value for key, value in settings.items() if key != "source"})
    digests = {name: known_digest(path) for name, path in snakemake.input.items()}
    made_by = provenance(settings, snakemake.params.code, **digests)
    write_h5ad_screen(source, made_by, snakemake.output.screen)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
