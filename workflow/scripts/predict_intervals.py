"""Compute posterior intervals of the effects of a model over its training seeds."""

from typing import Any

import torch

from samsvae.evaluation.effects import read_effects, write_effects
from samsvae.evaluation.intervals import EffectDraws, intervals_of
from samsvae.evaluation.predicted import library_size_quantiles, weights_of_strata
from samsvae.inference.checkpoint import load_model
from samsvae.inference.machine import choose_device, explain_out_of_memory, keep_freed_memory
from samsvae.runtime.files import write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import open_screen, perturbations, read_digest
from samsvae.screen.splits import held_out_cells, read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    device, params = choose_device(), snakemake.params
    trained = [load_model(path, device) for path in snakemake.input.models]
    with open_screen(snakemake.input.screen) as screen:
        names = perturbations(screen)
        labels = screen.obs["perturbation"].astype(str)
        cells = held_out_cells(labels, read_split(snakemake.input.split, screen))
        min_controls = params.min_controls_per_batch
        weights = weights_of_strata(trained[0], screen, names, cells, min_controls)
        sizes = library_size_quantiles(screen.obs["library_size"][cells])
    if params.library_size is not None:
        sizes = [float(params.library_size)]
    config = {
        "model": trained[0].settings,
        "interval_draws": params.draws,
        "effect_library_size": params.library_size,
        "min_controls_per_batch": min_controls,
        "seeds": params.seeds,
    }
    made_by = provenance(config, params.code, screen=read_digest(snakemake.input.screen))
    with explain_out_of_memory(device, f"evaluation.interval_draws (now {params.draws})"):
        models = [
            EffectDraws(each, params.draws, seed, weights, sizes)
            for seed, each in zip(params.seeds, trained, strict=True)
        ]
        table, coverage = intervals_of(models, read_effects(snakemake.input.observed), made_by)
    write_effects(table, snakemake.output.intervals)
    write_tsv(coverage.assign(**params.run), snakemake.output.coverage, ["split", "model"])


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
