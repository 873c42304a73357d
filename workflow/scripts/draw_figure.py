"""Draw one figure from its table."""

import importlib
from typing import Any

from samsvae.figures.style import save_figure, use_style
from samsvae.figures.text import read_caption
from samsvae.runtime.files import read_table
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    module, _, function = snakemake.params.function.partition(":")
    draw = getattr(importlib.import_module(module), function)
    use_style()
    drawn = draw(read_table(snakemake.input.table), **snakemake.params.options)
    made_by = provenance(dict(snakemake.params.options), snakemake.params.code)
    save_figure(drawn, read_caption(snakemake.input.caption), made_by, list(snakemake.output))


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
