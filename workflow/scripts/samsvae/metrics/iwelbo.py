"""Importance-weighted bounds of runs, and their differences paired by cell."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd


def summarise_iwelbo(runs: Iterable[tuple[Mapping[str, Any], pd.DataFrame]]) -> pd.DataFrame:
    """Average the cells' bounds by run.

    Parameters
    ----------
    runs
        Each with split, model and seed, and its table of cells: cell, split and iwelbo (nats).
        Taken one by one, so that thousands need not be in memory.

    Returns
    -------
    DataFrame
        One row per run and scope (``val`` or ``test`` cells): n_cells, iwelbo with its standard
        error over cells, and the difference to the first model of the same split and seed,
        paired by cell, with its standard error. The error of a difference is far smaller than
        that of a bound, since cells differ more than models do.
    """
    reference: dict[tuple[Any, Any], pd.Series] = {}
    rows = []
    for run, cells in runs:
        bound = cells.set_index("cell")["iwelbo"]
        first = reference.setdefault((run["split"], run["seed"]), bound)
        difference = bound - first.reindex(bound.index)
        for scope, members in cells.groupby("split", observed=True)["cell"]:
            rows.append(
                {
                    **run,
                    "scope": scope,
                    "n_cells": len(members),
                    **_mean_and_error(bound[members], "iwelbo"),
                    **_mean_and_error(difference[members], "difference"),
                }
            )
    return pd.DataFrame(rows)


def with_monte_carlo_errors(
    table: pd.DataFrame, runs: Iterable[tuple[Mapping[str, Any], pd.DataFrame]]
) -> pd.DataFrame:
    """Put the Monte-Carlo errors of mean bounds beside them.

    Parameters
    ----------
    table
        As of :func:`summarise_iwelbo`.
    runs
        Each with split, model and seed, and its bounds by scope and number of particles.

    Returns
    -------
    DataFrame
        With the columns particles, the largest number of them, and iwelbo_monte_carlo_error,
        nats per cell: how far the mean over these very cells would move with other draws.
    """
    errors = pd.concat(
        bounds.loc[bounds.groupby("scope")["particles"].idxmax()].assign(**run)
        for run, bounds in runs
    ).rename(columns={"standard_error": "iwelbo_monte_carlo_error"})
    keys = ["split", "model", "seed", "scope"]
    added = errors[[*keys, "particles", "iwelbo_monte_carlo_error"]]
    return table.merge(added, on=keys, how="left", validate="one_to_one")


def _mean_and_error(values: pd.Series, name: str) -> dict[str, float]:
    error = values.std() / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return {name: float(values.mean()), f"{name}_standard_error": float(error)}
