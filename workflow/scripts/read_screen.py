"""Read a user's h5ad file into the canonical form of a screen."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    from samsvae.provenance import provenance
    from samsvae.screen import write_source_screen
    from samsvae.sources.h5ad import H5adSource, read_h5ad_screen

    settings = snakemake.params.settings
    screen = read_h5ad_screen(
        H5adSource(**{key: value for key, value in settings.items() if key != "source"})
    )
    made_by = provenance(settings, snakemake.params.code)
    write_source_screen(screen, made_by, snakemake.output.screen)


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
