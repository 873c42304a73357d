"""Predict the effect of every perturbation of a screen with a trained model."""

from typing import Any

import torch

from samsvae.evaluation.effects import effects_table, write_effects
from samsvae.evaluation.predicted import ESTIMATORS, predicted_effects
from samsvae.inference.checkpoint import load_model
from samsvae.inference.machine import choose_device, explain_out_of_memory, keep_freed_memory
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen, perturbations


def main(snakemake: Any) -> None:
    """Run the rule."""
    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    device = choose_device()
    trained = load_model(snakemake.input.model, device)
    with open_screen(snakemake.input.screen) as screen:
        names, digest = perturbations(screen), digest_of_screen(screen)
    estimator, seed = snakemake.params.estimator, snakemake.params.seed
    draws = snakemake.params.draws or ESTIMATORS[estimator].draws
    with explain_out_of_memory(device, f"evaluation.effect_draws (now {draws})"):
        effects, error = predicted_effects(trained, names, draws, seed, estimator)
    config = {
        "model": trained.settings,
        "effect_estimator": estimator,
        "effect_draws": draws,
        "seed": seed,
    }
    made_by = provenance(config, snakemake.params.code, screen=digest)
    layers = {"standard_error": error}
    table = effects_table(effects, names, trained.genes, layers, made_by)
    write_effects(table, snakemake.output.effects)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
