"""Estimate the IWELBO of held-out cells of a trained model, and predict its effects."""

from typing import Any

import torch

from samsvae.evaluation.effects import effects_table, in_context, write_effects
from samsvae.evaluation.predicted import (
    ESTIMATORS,
    in_contexts,
    library_size_quantiles,
    predicted_effects,
    weights_of_strata,
)
from samsvae.inference.cells import CellStream
from samsvae.inference.checkpoint import TrainedModel, load_model
from samsvae.inference.iwelbo import StreamedBounds
from samsvae.inference.machine import choose_device, explain_out_of_memory, keep_freed_memory
from samsvae.runtime.files import write_parquet_parts, write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import open_screen, perturbations, read_digest
from samsvae.screen.splits import TEST, VAL, held_out_cells, read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    device = choose_device()
    trained = load_model(snakemake.input.model, device)
    estimate_iwelbo(snakemake, trained, device)
    if "effects" in dict(snakemake.output.items()):
        predict_effects(snakemake, trained, device)


def estimate_iwelbo(snakemake: Any, trained: TrainedModel, device: torch.device) -> None:
    """Write the IWELBO of every validation and test cell."""
    files = snakemake.input.screen, snakemake.input.split
    cells = CellStream.of(*files, (VAL, TEST), trained.encoding, device, trained.covariates)
    particles, seed = snakemake.params.particles, snakemake.params.seed
    bounds = StreamedBounds(trained.model, cells, particles, seed)
    config = {"iwelbo_particles": particles, "seed": seed}
    digest = read_digest(snakemake.input.screen)
    made_by = provenance(config, snakemake.params.code, screen=digest)
    with explain_out_of_memory(device, f"evaluation.iwelbo_particles (now {particles})"):
        write_parquet_parts(bounds.tables(), (), made_by, snakemake.output.iwelbo)
    write_tsv(bounds.by_particles(), snakemake.output.by_particles)


def predict_effects(snakemake: Any, trained: TrainedModel, device: torch.device) -> None:
    """Write the predicted effect of every perturbation of the screen."""
    with open_screen(snakemake.input.screen) as screen:
        names = perturbations(screen)
        labels = screen.obs["perturbation"].astype(str)
        parts = read_split(snakemake.input.split, screen)
        cells = held_out_cells(labels, parts)
        min_controls = snakemake.params.min_controls_per_batch
        weights = weights_of_strata(trained, screen, names, cells, min_controls)
        sizes = library_size_quantiles(screen.obs["library_size"][cells])
    if snakemake.params.library_size is not None:
        sizes = [float(snakemake.params.library_size)]
    estimator, seed = snakemake.params.estimator, snakemake.params.seed
    draws = snakemake.params.draws or ESTIMATORS[estimator].draws
    with explain_out_of_memory(device, f"evaluation.effect_draws (now {draws})"):
        how = trained, names, draws, seed, estimator
        effects, error = predicted_effects(*how, weights, sizes)
        layers = {"standard_error": error}
        for context, own in in_contexts(trained, weights).items():
            layers[in_context("effect", context)] = predicted_effects(*how, own, sizes)[0]
    config = {
        "model": trained.settings,
        "effect_estimator": estimator,
        "effect_draws": draws,
        "effect_library_size": snakemake.params.library_size,
        "min_controls_per_batch": min_controls,
        "seed": seed,
    }
    digest = read_digest(snakemake.input.screen)
    made_by = provenance(config, snakemake.params.code, screen=digest)
    table = effects_table(effects, names, trained.genes, layers, made_by)
    write_effects(table, snakemake.output.effects)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
