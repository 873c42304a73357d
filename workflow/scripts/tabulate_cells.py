"""Count cells: by part of each split, left out by reason, and by perturbation."""

from typing import Any

from samsvae.runtime.files import read_table, write_tsv
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import has_marginal_effects, open_screen
from samsvae.screen.splits import cell_table, parts_table, screen_table


def main(snakemake: Any) -> None:
    """Run the rule."""
    paths, output = snakemake.input.splits, snakemake.output
    with open_screen(snakemake.input.screen) as screen:
        parts = {
            name: read_table(path, text=["cell"])["split"]
            for name, path in zip(snakemake.params.splits, paths, strict=True)
        }
        table = cell_table(screen, parts)
        by_perturbation = has_marginal_effects(screen)
    write_tsv(table, output.table)
    first = read_table(paths[0], text=["cell", "perturbation"])
    write_tsv(screen_table(first, by_perturbation), output.screen)
    write_tsv(parts_table(first), output.parts)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
