"""Estimate the importance-weighted bound of every validation and test cell."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import torch

    from samsvae.files import write_parquet, write_tsv
    from samsvae.inference.cell_stream import CellStream
    from samsvae.inference.cells import choose_device
    from samsvae.inference.checkpoint import load_model
    from samsvae.inference.iwelbo import estimate_bounds
    from samsvae.inference.memory import keep_freed_memory, says_what_to_lower
    from samsvae.provenance import provenance
    from samsvae.screen import digest_of_screen, read_screen
    from samsvae.splits import TEST, VAL, read_split, split_table

    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    device = choose_device()
    trained = load_model(snakemake.input.model, device)
    screen = read_screen(snakemake.input.screen, counts_on_disk=True)
    parts = read_split(snakemake.input.split, screen)
    kept = parts.isin([VAL, TEST]).to_numpy()
    particles, seed = snakemake.params.particles, snakemake.params.seed
    cells = CellStream.of(screen, kept, trained.encoding, device)
    with says_what_to_lower(device, f"evaluation.iwelbo_particles (now {particles})"):
        bounds = estimate_bounds(trained.model, cells, list(parts[kept]), particles, seed)
    table = split_table(screen[kept], parts[kept])
    table["iwelbo"], table["standard_error"] = bounds.bound, bounds.standard_error
    config = {"iwelbo_particles": particles, "seed": seed}
    made_by = provenance(config, snakemake.params.code, screen=digest_of_screen(screen))
    write_parquet(table, made_by, snakemake.output.iwelbo)
    write_tsv(bounds.by_particles, snakemake.output.by_particles)


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
