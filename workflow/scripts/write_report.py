"""Write the report: one HTML file with everything that it shows inside."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    from samsvae.report import write_report

    write_report(
        config=snakemake.params.config,
        experiments=snakemake.params.experiments,
        captions=snakemake.input.captions,
        template=snakemake.input.template,
        path=snakemake.output.report,
    )


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
