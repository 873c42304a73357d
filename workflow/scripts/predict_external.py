"""Read the effects that another tool predicted."""

from typing import Any

from samsvae.evaluation.effects import effects_table, write_effects
from samsvae.evaluation.external import PredictionFile
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen, perturbations
from samsvae.screen.splits import read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params = snakemake.input, snakemake.params
    settings = dict(params.settings)
    with open_screen(given.screen) as screen:
        made_by = provenance(
            {**settings, "content_digest": params.content},
            params.code,
            screen=digest_of_screen(screen),
        )
        parts = read_split(given.split, screen)
        effects = PredictionFile.of(given.file, settings).effects_on(screen, parts)
        names, genes = perturbations(screen), list(screen.var_names)
        table = effects_table(effects, names, genes, {}, made_by)
    write_effects(table, snakemake.output.effects)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
