"""All metrics of an experiment in one tidy table, each with what it says."""

from collections.abc import Iterable, Iterator

import pandas as pd

from samsvae.metrics.registry import Score, describe

PERTURBATION = "perturbation"
NAMES = [
    "split", "model", "scope", PERTURBATION, "metric", "unit", "direction", "description",
]  # fmt: skip
COLUMNS = [
    "split", "model", "seed", "scope", PERTURBATION, "tested", "metric", "value",
    "unit", "direction", "best", "chance", "description",
]  # fmt: skip


def tidy_metrics(
    metrics: pd.DataFrame, perturbations: Iterable[pd.DataFrame], n_top: int
) -> Iterator[pd.DataFrame]:
    """Put metrics of runs and those of their perturbations into the same columns.

    Parameters
    ----------
    metrics
        The table metrics.tsv.
    perturbations
        Tables perturbation_metrics.parquet, one by one.
    n_top
        Genes per perturbation in the top-gene metrics.

    Yields
    ------
    DataFrame
        Parts of the table. One row is a number: of a run over a scope, or, with the scope
        ``perturbation``, of one perturbation, and whether that is ``tested``. Beside it stand
        its unit, the direction in which it is better (none for a spread), its best value and its
        value by chance where there are such, and what it says.
    """
    yield _described(metrics.assign(perturbation=None, tested=None), n_top)
    for table in perturbations:
        yield _described(table.assign(scope=PERTURBATION), n_top)


def _described(table: pd.DataFrame, n_top: int) -> pd.DataFrame:
    says = {name: describe(name, n_top) for name in table["metric"].unique()}
    scores = {name: one for name, one in says.items() if isinstance(one, Score)}
    metric = table["metric"].astype(object)
    return table.assign(
        seed=table["seed"].astype("int64"),
        tested=table["tested"].astype("boolean"),
        unit=metric.map({name: one.unit for name, one in says.items() if one}),
        description=metric.map({name: one.description for name, one in says.items() if one}),
        direction=metric.map({name: one.direction for name, one in scores.items()}),
        best=metric.map({name: one.best for name, one in scores.items()}).astype(float),
        chance=metric.map({name: one.chance for name, one in scores.items()}).astype(float),
    )[COLUMNS]
