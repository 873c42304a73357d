"""Train all seeds of a model on the training cells of a split, as one batched program."""

from pathlib import Path
from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import tempfile
    import zipfile

    import torch

    from samsvae.files import whole_file
    from samsvae.inference.cells import choose_device
    from samsvae.inference.memory import keep_freed_memory
    from samsvae.inference.task import TrainingTask
    from samsvae.inference.together import fit_together

    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    params, device = snakemake.params, choose_device()
    cells, seeds = (snakemake.input.screen, snakemake.input.split), list(params.seeds)
    task = TrainingTask.read(*cells, params.settings, params.training, seeds, params.code, device)
    archive = Path(snakemake.output.seeds)
    # beside the archive, yet no output of the rule, which Snakemake would remove after a failure
    state_file = task.state_file(archive.with_name("unfinished_training.safetensors"))
    with task.says_what_to_lower(device):
        all_fitted = fit_together(
            task.build, task.train, task.validation, task.training, seeds, state_file
        )
    with tempfile.TemporaryDirectory() as folder, whole_file(archive) as temporary:
        for seed, fitted in zip(seeds, all_fitted, strict=True):
            task.save(fitted, Path(folder) / str(seed))
        with zipfile.ZipFile(temporary, "w") as file:
            for path in sorted(Path(folder).rglob("*.*")):
                file.write(path, path.relative_to(folder))
    state_file.remove()


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
