"""Write the report: an HTML file, an archive, and its findings as text."""

from typing import Any

from samsvae.report.page import write_archive, write_report
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    write_report(
        config=snakemake.params.config,
        experiments=snakemake.params.experiments,
        captions=snakemake.input.captions,
        template=snakemake.input.template,
        path=snakemake.output.report,
        findings=snakemake.output.findings,
    )
    write_archive(snakemake.params.experiments, snakemake.output.report, snakemake.output.archive)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
