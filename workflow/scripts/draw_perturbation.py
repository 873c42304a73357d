"""Draw the effects of one perturbation."""

from typing import Any

from samsvae.evaluation.effects import rows_of_perturbation
from samsvae.figures import read_caption
from samsvae.figures.effects import draw_perturbation
from samsvae.figures.style import save_figure, use_style
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.labels import perturbation_of


def main(snakemake: Any) -> None:
    """Run the rule."""
    params = snakemake.params
    name = perturbation_of(snakemake.wildcards.perturbation)
    use_style()
    drawn = draw_perturbation(rows_of_perturbation(snakemake.input.table, name), **params.options)
    made_by = provenance({**params.options, "perturbation": name}, params.code)
    caption = read_caption(snakemake.input.caption, params.options)
    save_figure(drawn, caption, made_by, list(snakemake.output))


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
