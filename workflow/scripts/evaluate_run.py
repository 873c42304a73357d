"""Evaluate trained models: IWELBO of held-out cells, predicted effects, intervals over seeds.

The models are one, or the training seeds of one. What is computed is what the rule has as outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch

from samsvae.evaluation.effects import read_effects, write_effects
from samsvae.evaluation.intervals import check_draws, intervals_for_screen
from samsvae.evaluation.predicted import ESTIMATORS, effects_for_screen
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
    device, seeds = choose_device(), list(snakemake.params.seeds)
    files = {"model": snakemake.input.model, **dict(snakemake.output.items())}
    # each a path, or a list of one for each seed
    paths = {name: [file] if isinstance(file, str) else file for name, file in files.items()}
    if "intervals" in paths:
        check_draws(snakemake.params.interval_draws * len(seeds))  # before hours of the rest
    models = [load_model(path, device) for path in paths["model"]]
    for index, (seed, trained) in enumerate(zip(seeds, models, strict=True)):
        if "iwelbo" in paths:
            own = {name: paths[name][index] for name in ("iwelbo", "by_particles")}
            estimate_iwelbo(snakemake, trained, device, seed, own)
        if "effects" in paths:
            predict_effects(snakemake, trained, device, seed, paths["effects"][index])
    if "intervals" in paths:
        predict_intervals(snakemake, models, device, seeds)


def estimate_iwelbo(
    snakemake: Any, trained: TrainedModel, device: torch.device, seed: int, outputs: dict[str, str]
) -> None:
    """Write the IWELBO of every validation and test cell."""
    files = snakemake.input.screen, snakemake.input.split
    cells = CellStream.of(*files, (VAL, TEST), trained.encoding, device, trained.covariates)
    particles = snakemake.params.particles
    bounds = StreamedBounds(trained.model, cells, particles, seed)
    config = {"iwelbo_particles": particles, "seed": seed}
    digest = read_digest(snakemake.input.screen)
    made_by = provenance(config, snakemake.params.code, screen=digest)
    with explain_out_of_memory(device, f"evaluation.iwelbo_particles (now {particles})"):
        write_parquet_parts(bounds.tables(), (), made_by, outputs["iwelbo"])
    write_tsv(bounds.by_particles(), outputs["by_particles"])


def predict_effects(
    snakemake: Any, trained: TrainedModel, device: torch.device, seed: int, path: str
) -> None:
    """Write the predicted effect of every perturbation of the screen."""
    params = snakemake.params
    keys = ("estimator", "draws", "library_size", "min_controls_per_batch")
    settings = {**{key: params[key] for key in keys}, "seed": seed}
    settings["draws"] = params.draws or ESTIMATORS[params.estimator].draws
    config = {"model": trained.settings} | {
        key if key.startswith(("seed", "min_")) else f"effect_{key}": value
        for key, value in settings.items()
    }
    made_by = provenance(config, params.code, screen=read_digest(snakemake.input.screen))
    with (
        open_screen(snakemake.input.screen) as screen,
        explain_out_of_memory(device, f"evaluation.effect_draws (now {settings['draws']})"),
    ):
        parts = read_split(snakemake.input.split, screen)
        cells = held_out_cells(screen.obs["perturbation"].astype(str), parts)
        names = perturbations(screen)
        table = effects_for_screen(trained, screen, names, settings, made_by, cells)
    write_effects(table, path)


def predict_intervals(
    snakemake: Any, models: Sequence[TrainedModel], device: torch.device, seeds: Sequence[int]
) -> None:
    """Write the posterior intervals of effects over all seeds, and their coverage."""
    given, params, output = snakemake.input, snakemake.params, snakemake.output
    settings = {
        key: params[key] for key in ("interval_draws", "library_size", "min_controls_per_batch")
    }
    config = {
        "model": models[0].settings,
        "interval_draws": params.interval_draws,
        "effect_library_size": params.library_size,
        "min_controls_per_batch": params.min_controls_per_batch,
        "seeds": list(seeds),
    }
    made_by = provenance(config, params.code, screen=read_digest(given.screen))
    setting = f"evaluation.interval_draws (now {params.interval_draws})"
    with open_screen(given.screen) as screen, explain_out_of_memory(device, setting):
        parts = read_split(given.split, screen)
        cells = held_out_cells(screen.obs["perturbation"].astype(str), parts)
        observed = read_effects(given.observed)
        table, coverage = intervals_for_screen(
            models, seeds, screen, observed, settings, made_by, cells
        )
    write_effects(table, output.intervals)
    run = {key: snakemake.wildcards[key] for key in ("split", "model")}
    write_tsv(coverage.assign(**run), output.coverage, list(run))


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
