"""Train one model on the training cells of a split."""

from pathlib import Path
from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import torch

    from samsvae.inference.cells import choose_device
    from samsvae.inference.memory import keep_freed_memory
    from samsvae.inference.task import TrainingTask
    from samsvae.inference.trainer import fit

    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    given, params, device = snakemake.input, snakemake.params, choose_device()
    task = TrainingTask.read(
        given.screen,
        given.split,
        params.settings,
        params.training,
        params.seed,
        params.code,
        device,
    )
    folder = Path(snakemake.output.model).parent
    # beside the model, yet no output of the rule, which Snakemake would remove after a failure
    state_file = task.state_file(folder / "unfinished_training.safetensors")
    with task.says_what_to_lower(device):
        fitted = fit(
            task.build, task.train, task.validation, task.training, params.seed, state_file
        )
    task.save(fitted, folder)
    state_file.remove()


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
