"""Print the lineage of figures, and write that of a single one."""

from typing import Any

from samsvae.runtime.files import write_text
from samsvae.runtime.provenance import describe_lineage
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    text = "\n".join(describe_lineage(figure) for figure in snakemake.input)
    print(text, flush=True)
    for path in snakemake.output:
        write_text(text, path)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
