"""Which candidate of a grid stands for its model, by the bounds of validation cells alone.

The choice is made anew on each split, from the validation cells of that split. It is no choice of
one split's for the others: their validation cells are test cells elsewhere. So what varies over
splits includes the choice, as it should, being a part of how the model is made. All training seeds
of a split share the choice; seeds show how far training scatters, not which of it was lucky.
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
    """Read the bounds of validation cells, by cell; those of test cells stay unread.

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
    """Choose the candidate whose validation cells have the highest bound.

    Parameters
    ----------
    runs
        Candidate, seed of training, and the bounds (nats) of the same validation cells.
    hyperparameters
        Of each candidate, in the grid's order. Of candidates with the same bound the first is
        chosen.

    Returns
    -------
    DataFrame
        One row per candidate and seed: ``iwelbo`` (nats per cell) with ``low`` and ``high``
        (95 %, over cells); ``mean_iwelbo`` over seeds, by which is chosen; how far that is
        ``behind`` the chosen candidate's with ``behind_low`` and ``behind_high`` (95 %, paired by
        cell), which is narrower, since cells differ more than models do; and whether it was
        ``chosen``. A candidate without a finite bound never is.

    Raises
    ------
    InputError
        If no candidate has a bound that is a number.
    """
    bounds = pd.DataFrame({(candidate, seed): values for candidate, seed, values in runs})
    seeds = sorted(bounds.columns.unique(1))
    runs_in_order = pd.MultiIndex.from_product([hyperparameters, seeds])
    values = bounds[runs_in_order].to_numpy(dtype=float).reshape(len(bounds), -1, len(seeds))
    over_seeds = values.mean(axis=2)
    means = over_seeds.mean(axis=0)
    if not np.isfinite(means).any():
        raise InputError(
            f"None of the candidates {', '.join(hyperparameters)} has a bound of the validation "
            "cells that is a finite number, so that none can be chosen. Train them otherwise, for "
            "instance at a smaller learning rate."
        )
    best = int(np.argmax(np.where(np.isfinite(means), means, -np.inf)))
    of_run = mean_and_interval(values.reshape(len(values), -1))
    behind = mean_and_interval(over_seeds[:, [best]] - over_seeds)
    repeated = np.repeat(np.arange(len(hyperparameters)), len(seeds))
    return pd.DataFrame(
        {
            "candidate": runs_in_order.get_level_values(0),
            "hyperparameters": [in_words(hyperparameters[name]) for name, _ in runs_in_order],
            "seed": runs_in_order.get_level_values(1),
            "n_cells": len(values),
            **dict(zip(["iwelbo", "low", "high"], of_run, strict=True)),
            "mean_iwelbo": means[repeated],
            **{
                name: limit[repeated]
                for name, limit in zip(["behind", "behind_low", "behind_high"], behind, strict=True)
            },
            "chosen": repeated == best,
        }
    )


def in_words(hyperparameters: Mapping[str, Any]) -> str:
    """Write hyperparameters as a person would, for instance ``mask_prior 0.1, n_latent 100``."""
    return ", ".join(f"{name} {value}" for name, value in hyperparameters.items())


def overview(selection: pd.DataFrame, splits: Mapping[str, Split]) -> pd.DataFrame:
    """Average over the splits that differ by their seed alone what was tried on each.

    Parameters
    ----------
    selection
        The table selection.tsv.
    splits
        The experiment's, by name.

    Returns
    -------
    DataFrame
        One row per fraction, model and candidate: hyperparameters, ``validation_iwelbo`` (nats per
        cell), how far that is ``behind`` the chosen candidate's with ``behind_low`` and
        ``behind_high`` (95 %, over splits; of a single split, over its cells), ``n_splits``, and
        ``n_chosen``, on how many of them it was chosen.
    """
    of_candidates = selection.drop_duplicates(["split", "model", "candidate"])
    rows = []
    for fraction, names in conditions(splits).items():
        alike = of_candidates[of_candidates["split"].isin(names)]
        for (model, candidate), group in alike.groupby(["model", "candidate"], sort=False):
            behind, low, high = mean_and_interval(group[["behind"]].to_numpy())
            if len(group) == 1:
                low, high = group["behind_low"].to_numpy(), group["behind_high"].to_numpy()
            rows.append(
                {
                    "fraction": fraction,
                    "model": model,
                    "candidate": candidate,
                    "hyperparameters": group["hyperparameters"].iloc[0],
                    "validation_iwelbo": group["mean_iwelbo"].mean(),
                    "behind": behind[0],
                    "behind_low": low[0],
                    "behind_high": high[0],
                    "n_splits": len(group),
                    "n_chosen": int(group["chosen"].sum()),
                }
            )
    return pd.DataFrame(rows)
