"""Train a model on the training cells of a split, with one seed or with several as replicates."""

import os
from pathlib import Path
from typing import Any

import torch

from samsvae.inference.machine import choose_device, keep_freed_memory
from samsvae.inference.task import TrainingTask
from samsvae.inference.trainer import fit
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    given, params, device = snakemake.input, snakemake.params, choose_device()
    seeds = list(params.seeds)
    task = TrainingTask.read(
        given.screen, given.split, params.settings, params.training, seeds, params.code, device
    )
    models = snakemake.output.model  # a path, or a list of them
    folders = [Path(model).parent for model in ([models] if isinstance(models, str) else models)]
    # beside the results, yet no output of the rule, which Snakemake would remove after a failure
    common = Path(os.path.commonpath(folders))
    state_file = task.state_file(common / "unfinished_training.safetensors")
    with task.explain_out_of_memory(device):
        fitted = fit(task.build, task.train, task.validation, task.training, seeds, state_file)
    for folder, seed, one in zip(folders, seeds, fitted, strict=True):
        task.save(one, seed, folder)
    state_file.remove()


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
