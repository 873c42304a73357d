"""Compare the inference of the runs of an experiment with the truth of its simulated screen."""

from typing import Any

import numpy as np
import pandas as pd

from samsvae.evaluation.agreement import with_means
from samsvae.evaluation.effects import read_effects
from samsvae.evaluation.truth import COLUMNS, MASK_COLUMNS, Recovery, recovery, true_effects
from samsvae.inference.checkpoint import load_model
from samsvae.runtime.files import write_tsv
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import read_screen
from samsvae.screen.splits import TRAIN, read_split

SCORES = ["scope", "metric", "value"]


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, params, output = snakemake.input, snakemake.params, snakemake.output
    screen = read_screen(given.screen)
    unseen = {
        split: (read_split(path, screen) != TRAIN).to_numpy()
        for split, path in zip(params.splits, given.splits, strict=True)
    }
    predicted = dict(zip(map(_key, params.runs), given.predicted, strict=False))
    models = dict(zip(map(_key, params.trained), given.models, strict=True))
    true: dict[tuple[str, ...], np.ndarray] = {}
    scores, masks, curves = [], [], []
    for run in params.runs:
        effects = None
        if _key(run) in predicted:
            of_run = read_effects(predicted[_key(run)])[:, screen.var_names]
            names = tuple(of_run.obs_names)
            if names not in true:
                true[names] = true_effects(screen, list(names), seed=0)
            effects = true[names], np.asarray(of_run.X, dtype=float)
        trained = load_model(models[_key(run)]) if _key(run) in models else None
        found = recovery(screen, effects, trained, unseen[run["split"]])
        scores.append(_scores(found).assign(**run))
        if trained is not None:
            curves.append(found.curves.assign(**run))
            if run in params.shown:
                masks.append(found.masks.assign(**run))
    write_tsv(_stack(scores, SCORES), output.metrics)
    write_tsv(_stack(masks, MASK_COLUMNS), output.masks)
    write_tsv(with_means(_stack(curves, COLUMNS)), output.recovery)


def _key(run: dict[str, Any]) -> tuple[str, str, int]:
    return run["split"], run["model"], run["seed"]


def _scores(found: Recovery) -> pd.DataFrame:
    rows = [("truth", metric, value) for metric, value in found.scores.items()]
    return pd.DataFrame(rows, columns=SCORES)


def _stack(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Concatenate tables of runs; empty ones would change the types of columns."""
    ordered = ["split", "model", "seed", *columns]
    filled = [table for table in tables if len(table)]
    return (
        pd.concat(filled, ignore_index=True)[ordered] if filled else pd.DataFrame(columns=ordered)
    )


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
