"""Apply a trained model to another screen: states, bounds, responders and effects."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from samsvae.biology.applied import known_perturbations, write_results
from samsvae.evaluation.effects import write_effects
from samsvae.evaluation.predicted import effects_for_screen
from samsvae.inference.checkpoint import TrainedModel, load_model, restrict_genes
from samsvae.inference.machine import choose_device, keep_freed_memory
from samsvae.runtime.files import write_text
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import open_screen, read_digest
from samsvae.sources.h5ad import write_h5ad_screen
from samsvae.sources.h5ad_source import H5adSource


def main(snakemake: Any) -> None:
    """Run the rule."""
    keep_freed_memory()
    torch.set_num_threads(snakemake.threads)
    params, output = snakemake.params, dict(snakemake.output.items())
    trained = load_model(snakemake.input.model, choose_device())
    config = {"model": trained.settings, **params.settings, "screen": params.screen}
    with tempfile.TemporaryDirectory() as folder:
        screen = screen_with_genes(trained, snakemake.input.screen, params.screen, Path(folder))
        made_by = provenance(config, params.code, screen=read_digest(screen))
        effects, notes = output.pop("effects"), output.pop("notes")
        found = write_results(trained, screen, output, params.settings, params.seed, made_by)
        write_text("".join(f"{note}\n" for note in found), notes)
        with open_screen(screen) as opened:
            names = known_perturbations(trained, opened)
            restricted = restrict_genes(trained, set(opened.var_names))
            table = effects_for_screen(restricted, opened, names, params.settings, made_by)
        write_effects(table, effects)


def screen_with_genes(
    trained: TrainedModel, path: str, settings: dict[str, Any], folder: Path
) -> str:
    """Return the canonical screen of a file; of a user's file with all genes of the model."""
    if settings["source"] != "h5ad":
        return path
    listed, screen = folder / "genes.txt", folder / "screen.h5ad"
    listed.write_text("\n".join(trained.genes), encoding="utf-8")
    selection = {"genes": str(listed), "min_mean": 0, "highly_variable": None}
    given = {key: value for key, value in settings.items() if key != "source"}
    write_h5ad_screen(H5adSource(**given | selection), "{}", screen)
    return str(screen)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
