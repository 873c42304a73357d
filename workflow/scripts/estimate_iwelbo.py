"""Estimate the importance-weighted bound of every validation and test cell."""

from typing import Any

import torch

from samsvae.inference.cells import CellStream
from samsvae.inference.checkpoint import load_model
from samsvae.inference.iwelbo import StreamedBounds
from samsvae.inference.machine import choose_device, explain_out_of_memory, keep_freed_memory
from samsvae.runtime.files import write_parquet_parts, write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import read_digest
from samsvae.screen.splits import TEST, VAL


def main(snakemake: Any) -> None:
    """Run the rule."""
    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    device = choose_device()
    trained = load_model(snakemake.input.model, device)
    files = snakemake.input.screen, snakemake.input.split
    cells = CellStream.of(*files, (VAL, TEST), trained.encoding, device)
    particles, seed = snakemake.params.particles, snakemake.params.seed
    bounds = StreamedBounds(trained.model, cells, particles, seed)
    config = {"iwelbo_particles": particles, "seed": seed}
    digest = read_digest(snakemake.input.screen)
    made_by = provenance(config, snakemake.params.code, screen=digest)
    with explain_out_of_memory(device, f"evaluation.iwelbo_particles (now {particles})"):
        write_parquet_parts(bounds.tables(), (), made_by, snakemake.output.iwelbo)
    write_tsv(bounds.by_particles(), snakemake.output.by_particles)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
