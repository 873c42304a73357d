"""Estimate the importance-weighted bound of every validation and test cell."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import torch

    from samsvae.files import write_parquet
    from samsvae.inference.cells import Cells, choose_device
    from samsvae.inference.checkpoint import load_model
    from samsvae.inference.iwelbo import iwelbo
    from samsvae.inference.memory import says_what_to_lower
    from samsvae.provenance import provenance
    from samsvae.screen import digest_of_screen, read_screen
    from samsvae.splits import TEST, VAL, read_split, split_table

    torch.set_num_threads(snakemake.threads)
    device = choose_device()
    trained = load_model(snakemake.input.model, device)
    screen = read_screen(snakemake.input.screen)
    parts = read_split(snakemake.input.split, screen)
    kept = parts.isin([VAL, TEST]).to_numpy()
    particles = snakemake.params.particles
    with says_what_to_lower(device, f"evaluation.iwelbo_particles (now {particles})"):
        cells = Cells.of(screen, kept, trained.encoding, device)
        bound, error = iwelbo(trained.model, cells, particles, snakemake.params.seed)
    table = split_table(screen[kept], parts[kept])
    table["iwelbo"], table["standard_error"] = bound, error
    config = {"iwelbo_particles": particles, "seed": snakemake.params.seed}
    made_by = provenance(config, snakemake.params.code, screen=digest_of_screen(screen))
    write_parquet(table, made_by, snakemake.output.iwelbo)


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
