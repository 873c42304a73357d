"""Draw predictive samples of every perturbation and of control from a trained model."""

from typing import Any

import torch

from samsvae.evaluation.samples import sample_cells
from samsvae.inference.checkpoint import load_model
from samsvae.inference.machine import choose_device, explain_out_of_memory
from samsvae.runtime.files import whole_file
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, open_screen, perturbations
from samsvae.screen.labels import CONTROL


def main(snakemake: Any) -> None:
    """Run the rule."""
    torch.set_num_threads(snakemake.threads)
    device = choose_device()
    trained = load_model(snakemake.input.model, device)
    with open_screen(snakemake.input.screen) as screen:
        names, digest = perturbations(screen), digest_of_screen(screen)
        sizes = screen.obs["library_size"].to_numpy()
    params = snakemake.params
    config = {
        "model": trained.settings,
        "sampled_cells": params.cells,
        "sample_from": params.sample_from,
        "seed": params.seed,
    }
    with explain_out_of_memory(device, f"evaluation.sampled_cells (now {params.cells})"):
        cells = sample_cells(
            trained,
            [CONTROL, *names],
            params.cells,
            sizes,
            params.seed,
            params.sample_from,
            provenance(config, params.code, screen=digest),
        )
    with whole_file(snakemake.output.cells) as temporary:
        cells.write_h5ad(temporary, compression="lzf")


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
