"""Lay out where a trained model sees each perturbation in latent space."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import torch

    from samsvae.biology.latent_effects import latent_effects
    from samsvae.files import write_tsv
    from samsvae.inference.checkpoint import load_model

    torch.set_num_threads(snakemake.threads)
    trained = load_model(snakemake.input.model)
    table = latent_effects(trained, snakemake.params.draws, snakemake.params.seed)
    write_tsv(
        table.assign(**snakemake.params.run),
        snakemake.output.table,
        first=["split", "model", "seed"],
    )


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
