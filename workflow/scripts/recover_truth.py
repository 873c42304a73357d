"""Compare what a run inferred with the truth of its simulated screen."""

from typing import Any

import numpy as np
import pandas as pd

from samsvae.evaluation.effects import read_effects
from samsvae.evaluation.truth import (
    COLUMNS,
    effect_recovery,
    mask_recovery,
    mask_thresholds,
    matched_masks,
    state_recovery,
    state_scores,
    true_effects,
)
from samsvae.inference.checkpoint import load_model
from samsvae.inference.posterior import cell_states, mask_probability
from samsvae.runtime.files import write_tsv
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import read_screen
from samsvae.screen.splits import TRAIN, read_split


def main(snakemake: Any) -> None:
    """Run the rule."""
    screen = read_screen(snakemake.input.screen)
    values: dict[str, float] = {}
    if snakemake.input.predicted:
        predicted = read_effects(snakemake.input.predicted)[:, screen.var_names]
        true = true_effects(screen, list(predicted.obs_names), seed=0)
        values |= effect_recovery(true, np.asarray(predicted.X, dtype=float))
    masks = pd.DataFrame(columns=["target", "factor", "dimension", "true_mask", "probability"])
    recovered = [pd.DataFrame(columns=COLUMNS)]
    if snakemake.input.model:
        trained = load_model(snakemake.input.model)
        unseen = (read_split(snakemake.input.split, screen) != TRAIN).to_numpy()
        recovered = [state_recovery(screen, unseen, cell_states(trained, screen, unseen, seed=0))]
        values |= state_scores(recovered[0])
        probability = mask_probability(trained.model)
        targets_have_masks = set(screen.uns["truth"]["targets"]) <= set(trained.encoding.names)
        if probability is not None and targets_have_masks:
            given = screen, probability.numpy(), trained.encoding.names
            masks = matched_masks(*given)
            values |= mask_recovery(*given)
            recovered.append(mask_thresholds(*given))
    table = pd.DataFrame({"scope": "truth", "metric": values.keys(), "value": values.values()})
    run = snakemake.params.run
    first = ["split", "model", "seed"]
    write_tsv(table.assign(**run), snakemake.output.metrics, first=first)
    write_tsv(masks.assign(**run), snakemake.output.masks, first=first)
    write_tsv(pd.concat(recovered).assign(**run), snakemake.output.recovery, first=first)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
