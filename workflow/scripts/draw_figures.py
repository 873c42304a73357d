"""Draw figures, each from its table."""

import importlib
from typing import Any

from samsvae.figures import read_caption
from samsvae.figures.style import save_figure, use_style
from samsvae.runtime.files import read_table
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params, output = snakemake.input, snakemake.params, snakemake.output
    made_by = provenance(dict(params.options), params.code)
    use_style()
    for function, table, caption, *files in zip(
        params.functions, given.tables, given.captions, output.figures, output.pdfs, strict=True
    ):
        module, _, name = function.partition(":")
        drawing = importlib.import_module(module)
        columns = getattr(drawing, "COLUMNS", {}).get(name)
        of_first = name in getattr(drawing, "OF_FIRST_MODEL", ())
        model = params.options["models"][0] if of_first else None
        draw = getattr(drawing, name)
        figure = draw(read_table(table, columns=columns, model=model), **params.options)
        save_figure(figure, read_caption(caption, params.options), made_by, files)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
