"""Compare what a run inferred with the truth of its simulated screen."""

from typing import Any

from samsvae.job import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    import numpy as np
    import pandas as pd

    from samsvae.effects.table import read_effects
    from samsvae.files import write_tsv
    from samsvae.inference.checkpoint import load_model
    from samsvae.metrics.truth import effect_recovery, mask_recovery, matched_masks, true_effects
    from samsvae.screen import read_screen

    screen = read_screen(snakemake.input.screen)
    values: dict[str, float] = {}
    if "predicted" in snakemake.input.keys():  # noqa: SIM118
        predicted = read_effects(snakemake.input.predicted)[:, screen.var_names]
        true = true_effects(screen, list(predicted.obs_names), seed=0)
        values |= effect_recovery(true, np.asarray(predicted.X, dtype=float))
    masks = pd.DataFrame(columns=["target", "factor", "dimension", "true_mask", "probability"])
    if "model" in snakemake.input.keys():  # noqa: SIM118
        trained = load_model(snakemake.input.model)
        probability = trained.model.mask_probability()
        targets_have_masks = set(screen.uns["truth"]["targets"]) <= set(trained.encoding.names)
        if probability is not None and targets_have_masks:
            masks = matched_masks(screen, probability.detach().numpy(), trained.encoding.names)
            values |= mask_recovery(screen, probability.detach().numpy(), trained.encoding.names)
    table = pd.DataFrame({"scope": "truth", "metric": values.keys(), "value": values.values()})
    run = snakemake.params.run
    first = ["split", "model", "seed"]
    write_tsv(table.assign(**run), snakemake.output.metrics, first=first)
    write_tsv(masks.assign(**run), snakemake.output.masks, first=first)


if "snakemake" in globals():
    run_job(main, globals()["snakemake"])
