"""Train one model on the training cells of a split."""

import logging
from pathlib import Path
from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import torch

    from samsvae.files import write_tsv
    from samsvae.inference.cells import Cells, choose_device
    from samsvae.inference.checkpoint import TrainedModel, save_model
    from samsvae.inference.encoding import Encoding
    from samsvae.inference.memory import keep_freed_memory, says_what_to_lower
    from samsvae.inference.resume import StateFile
    from samsvae.inference.step import Training
    from samsvae.inference.trainer import fit
    from samsvae.models.registry import build_model
    from samsvae.provenance import digest_of, provenance
    from samsvae.screen import digest_of_screen, read_screen
    from samsvae.shuffled_labels import with_shuffled_labels
    from samsvae.splits import TRAIN, VAL, read_split

    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    settings = dict(snakemake.params.settings)
    training = Training(**snakemake.params.training)
    screen = read_screen(snakemake.input.screen)
    parts = read_split(snakemake.input.split, screen)
    if settings["shuffle_labels"]:
        logging.info("labels are shuffled: this model is a negative control")
        screen = with_shuffled_labels(screen, parts, snakemake.params.seed)
    encoding = Encoding.of(screen.obs["perturbation"], settings["combinations"])
    device = choose_device()
    logging.info("%d cells, %d genes, device %s", screen.n_obs, screen.n_vars, device)
    config = {
        "model": settings,
        "training": snakemake.params.training,
        "seed": snakemake.params.seed,
    }
    made_by = provenance(config, snakemake.params.code, screen=digest_of_screen(screen))
    # beside the model, yet no output of the rule, which Snakemake would remove after a failure
    state_path = Path(snakemake.output.model).with_name("unfinished_training.safetensors")
    state_file = StateFile(state_path, digest_of([made_by, parts.tolist(), snakemake.threads]))
    lower = [
        f"training.{key} (now {getattr(training, key)})" for key in ("batch_size", "particles")
    ] + [f"the model's n_hidden (now {settings['n_hidden']})"]
    with says_what_to_lower(device, *lower):
        fitted = fit(
            lambda: build_model(settings, screen.n_vars, len(encoding.names)),
            Cells.of(screen, (parts == TRAIN).to_numpy(), encoding, device),
            Cells.of(screen, (parts == VAL).to_numpy(), encoding, device),
            training,
            snakemake.params.seed,
            state_file,
        )
    write_tsv(fitted.history, snakemake.output.history)
    trained = TrainedModel(fitted.model, settings, list(screen.var_names), encoding)
    save_model(trained, made_by, snakemake.output.model)
    trained.model.load_state_dict(fitted.last_weights)
    save_model(trained, made_by, snakemake.output.last_model)
    state_file.remove()


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
