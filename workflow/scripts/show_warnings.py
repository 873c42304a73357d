"""Print the warnings of the check of a screen, once, before training."""

import logging
from typing import Any

from samsvae.inspection.screen import format_warnings
from samsvae.runtime.files import read_table, write_text
from samsvae.runtime.script import run_job

logger = logging.getLogger(__name__)


def main(snakemake: Any) -> None:
    """Run the rule."""
    said = format_warnings(read_table(snakemake.input.findings), snakemake.wildcards.screen)
    if said:
        logger.warning("%s", said)
    write_text(said, snakemake.output.shown)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
