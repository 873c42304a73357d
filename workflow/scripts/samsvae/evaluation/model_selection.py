"""Selection of hyperparameters from a grid by the bounds of validation cells.

Each split selects by its own validation cells, since these may be test cells of other splits. The
variance over splits thus includes that of the selection. All training seeds of a split use the
same selection, so that seeds show the variance of training, not its best outcome.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samsvae.config.experiments import Split, conditions
from samsvae.evaluation.comparison import mean_and_interval
from samsvae.runtime.errors import InputError
from samsvae.screen.splits import VAL


def validation_bounds(path: str | Path) -> "pd.Series[float]":
    """Read the bounds of validation cells, and no others, by cell.

    Parameters
    ----------
    path
        A file iwelbo.parquet.
    """
    table = pd.read_parquet(path, columns=["cell", "iwelbo"], filters=[("split", "==", VAL)])
    return table.set_index("cell")["iwelbo"]


def select(
    runs: Iterable[tuple[str, int, "pd.Series[float]"]],
    hyperparameters: Mapping[str, Mapping[str, Any]],
) -> pd.DataFrame:
    """Select the candidate with the highest mean bound of validation cells.

    Parameters
    ----------
    runs
        Candidate, seed of training, and the bounds (nats) of the same validation cells.
    hyperparameters
        Hyperparameters of each candidate, in the grid's order. Among candidates with the same
        bound the first is selected.

    Returns
    -------
    DataFrame
        One row per candidate and seed: ``iwelbo`` (nats per cell) with ``low`` and ``high``
        (95 %, over cells); ``mean_iwelbo`` over seeds, the criterion; ``difference``, that of the
        selected candidate minus its own, with ``difference_low`` and ``difference_high`` (95 %,
        paired by cell and therefore narrower); and whether the candidate was ``chosen``. Candidates
        with non-finite bounds are not selected.

    Raises
    ------
    InputError
        If no candidate has a finite bound.
    """
    bounds = pd.DataFrame({(candidate, seed): values for candidate, seed, values in runs})
    seeds = sorted(bounds.columns.unique(1))
    runs_in_order = pd.MultiIndex.from_product([hyperparameters, seeds])
    values = bounds[runs_in_order].to_numpy(dtype=float).reshape(len(bounds), -1, len(seeds))
    over_seeds = values.mean(axis=2)
    means = over_seeds.mean(axis=0)
    if not np.isfinite(means).any():
        raise InputError(
            f"The validation bounds of all candidates ({', '.join(hyperparameters)}) are not "
            "finite, so that none can be selected. Change the grid or lower "
            "training.learning_rate."
        )
    best = int(np.argmax(np.where(np.isfinite(means), means, -np.inf)))
    of_run = mean_and_interval(values.reshape(len(values), -1))
    difference = mean_and_interval(over_seeds[:, [best]] - over_seeds)
    repeated = np.repeat(np.arange(len(hyperparameters)), len(seeds))
    return pd.DataFrame(
        {
            "candidate": runs_in_order.get_level_values(0),
            "hyperparameters": [
                format_hyperparameters(hyperparameters[name]) for name, _ in runs_in_order
            ],
            "seed": runs_in_order.get_level_values(1),
            "n_cells": len(values),
            **dict(zip(["iwelbo", "low", "high"], of_run, strict=True)),
            "mean_iwelbo": means[repeated],
            **{
                name: limit[repeated]
                for name, limit in zip(
                    ["difference", "difference_low", "difference_high"], difference, strict=True
                )
            },
            "chosen": repeated == best,
        }
    )


def format_hyperparameters(hyperparameters: Mapping[str, Any]) -> str:
    """Format hyperparameters as text, for instance ``mask_prior 0.1, n_latent 100``."""
    return ", ".join(f"{name} {value}" for name, value in hyperparameters.items())


def overview(selection: pd.DataFrame, splits: Mapping[str, Split]) -> pd.DataFrame:
    """Average the selection over splits that differ by their seed alone.

    Parameters
    ----------
    selection
        The table selection.tsv.
    splits
        Splits of the experiment, by name.

    Returns
    -------
    DataFrame
        One row per fraction, model and candidate: hyperparameters, ``validation_iwelbo`` (nats per
        cell), ``difference``, that of the selected candidate minus its own, with ``difference_low``
        and ``difference_high`` (95 %, over splits; for a single split, over its cells),
        ``n_splits``, and ``n_chosen``, the number of splits that selected it.
    """
    of_candidates = selection.drop_duplicates(["split", "model", "candidate"])
    rows = []
    for fraction, names in conditions(splits).items():
        alike = of_candidates[of_candidates["split"].isin(names)]
        for (model, candidate), group in alike.groupby(["model", "candidate"], sort=False):
            difference, low, high = mean_and_interval(group[["difference"]].to_numpy())
            if len(group) == 1:
                low, high = group["difference_low"].to_numpy(), group["difference_high"].to_numpy()
            rows.append(
                {
                    "fraction": fraction,
                    "model": model,
                    "candidate": candidate,
                    "hyperparameters": group["hyperparameters"].iloc[0],
                    "validation_iwelbo": group["mean_iwelbo"].mean(),
                    "difference": difference[0],
                    "difference_low": low[0],
                    "difference_high": high[0],
                    "n_splits": len(group),
                    "n_chosen": int(group["chosen"].sum()),
                }
            )
    return pd.DataFrame(rows)
