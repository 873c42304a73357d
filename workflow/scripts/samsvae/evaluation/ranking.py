"""Ranking of models by their mean normalised score over calibrated metrics, with intervals.

Every metric of perturbations that can rank models on the screen is scaled: 0 is the baseline of the
mean effect, 1 the noise ceiling or a replicate. The mean over metrics ranks the models, and a
bootstrap over perturbations and runs tells how certain the ranks are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from samsvae.evaluation.compared import LEAST_BDS
from samsvae.evaluation.metrics import (
    DE,
    HELD_OUT,
    METRICS,
    PERTURBATION,
    WEIGHTED_METRICS,
    Metric,
    de_metrics,
)

N_RESAMPLES = 1000
TAILS = (0.025, 0.975)  # of a 95 % interval
LEAST_RANGE = 0.1  # of a metric's range from the baseline to the best value, from 0 to 1 here
SAME_AS_ANOTHER = ("l2",)  # is RMSE times a constant, and would count it twice
CHANCE = "chance"
WINDOW = 6  # standard deviations of the rank of a resampled median
COLUMNS_AT_ONCE = 64
RANKING = [
    "model", "score", "low", "high", "rank", "probability_best", "difference", "difference_low",
    "difference_high", "n_metrics", "n_perturbations", "n_splits", "n_seeds", "reference",
    "metrics",
]  # fmt: skip


def metrics_of_held_out_cells(n_top: int) -> dict[str, Metric]:
    """List the metrics of held-out cells, each once: no variants of other genes or controls.

    Parameters
    ----------
    n_top
        Genes per perturbation in the metrics at n.

    Returns
    -------
    dict of Metric
        By the names of the scores of perturbations.
    """
    metrics = {
        name + HELD_OUT: metric
        for name, metric in (METRICS | WEIGHTED_METRICS).items()
        if name not in SAME_AS_ANOTHER
    }
    return metrics | {DE + name: metric for name, metric in de_metrics(n_top).items()}


def ranked_metrics(calibration: pd.DataFrame, n_top: int) -> dict[str, Metric]:
    """Choose the metrics whose mean BDS over splits is :data:`LEAST_BDS` or more.

    Parameters
    ----------
    calibration
        The table calibration.tsv: split, metric and bds.
    n_top
        As of :func:`metrics_of_held_out_cells`.
    """
    bds = calibration.groupby("metric")["bds"].mean()
    metrics = metrics_of_held_out_cells(n_top)
    return {name: m for name, m in metrics.items() if bds.get(name, np.nan) >= LEAST_BDS}


@dataclass(frozen=True)
class Panel:
    """Scores of perturbations by run.

    Attributes
    ----------
    values
        Splits x seeds x models x metrics x perturbations; NaN for missing ones. A model with one
        run on a split, as baselines have, is in the first place alone.
    splits, models
        Names, in order.
    metrics
        Metrics by name, in order.
    """

    values: np.ndarray
    splits: list[str]
    models: list[str]
    metrics: dict[str, Metric]

    @classmethod
    def of(
        cls, scores: pd.DataFrame, models: Sequence[str], metrics: Mapping[str, Metric]
    ) -> "Panel":
        """Arrange scores of perturbations.

        Parameters
        ----------
        scores
            Columns split, model, seed, perturbation, tested, metric and value; where any
            perturbation is tested, the tested ones count.
        models
            Models that compete; those without scores are left out.
        metrics
            Metrics that count.
        """
        tested = scores["tested"].fillna(False).astype(bool)
        scores = scores[tested] if tested.any() else scores
        scores = scores[scores["metric"].isin(metrics) & scores["model"].isin(models)]
        kept = [model for model in models if model in set(scores["model"])]
        of_run = scores.groupby(["split", "model"], sort=False, observed=True)["seed"]
        seed = of_run.rank("dense").astype(int) - 1
        split, splits = pd.factorize(scores["split"].astype(object), sort=True)
        unit, units = pd.factorize(scores[PERTURBATION].astype(object), sort=True)
        size = (
            len(splits),
            seed.max() + 1 if len(seed) else 0,
            len(kept),
            len(metrics),
            len(units),
        )
        values = np.full(size, np.nan)
        of_model = pd.Index(kept).get_indexer(scores["model"].astype(object))
        of_metric = pd.Index(list(metrics)).get_indexer(scores["metric"].astype(object))
        values[split, seed, of_model, of_metric, unit] = scores["value"].to_numpy(float)
        return cls(values, list(splits), kept, dict(metrics))


def resampled_weights(size: int, drawn: int, rng: np.random.Generator) -> np.ndarray:
    """Count how often each unit is in the sample, and in bootstrap samples of it.

    Parameters
    ----------
    size
        Number of units.
    drawn
        Number drawn in each bootstrap sample.
    rng
        Random numbers.

    Returns
    -------
    ndarray
        Units x (1 + :data:`N_RESAMPLES`); the first is the sample itself. That alone is repeated
        where a sample would be empty, since one unit has no spread.
    """
    if drawn < 1:
        return np.ones((size, 1 + N_RESAMPLES), dtype=np.float32)
    counts = rng.multinomial(drawn, np.full(size, 1 / size), N_RESAMPLES)
    return np.vstack([np.ones(size, dtype=int), counts]).T.astype(np.float32)


def resampled_averages(values: np.ndarray, weights: np.ndarray, average: str) -> np.ndarray:
    """Average over perturbations in the sample and in bootstrap samples.

    Parameters
    ----------
    values
        Columns x perturbations; NaN where undefined, which does not count.
    weights
        Perturbations x samples, as of :func:`resampled_weights`.
    average
        ``mean`` or ``median``, with the weights as numbers of repetitions.

    Returns
    -------
    ndarray
        Columns x samples; NaN without any value.
    """
    known = np.isfinite(values)
    number = known.astype(np.float32) @ weights
    if average == "mean":
        total = np.where(known, values, 0.0) @ weights
        return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    order = np.argsort(values, axis=1, kind="stable")  # NaN last
    n_known = known.sum(axis=1)
    # a resampled median is near the median: samples are counted one by one there alone, and below
    # by a matrix product
    half = np.ceil(WINDOW / 2 * np.sqrt(n_known)).astype(int) + 1
    first, last = np.maximum(n_known // 2 - half, 0), np.minimum(n_known // 2 + half, n_known)
    below = np.zeros(values.shape, dtype=np.float32)
    for column in range(len(values)):
        below[column, order[column, : first[column]]] = 1
    counted = below @ weights
    medians = np.full((len(values), weights.shape[1]), np.nan)
    for column in np.flatnonzero(n_known).tolist():
        near = order[column, first[column] : last[column]]
        count = 2 * (counted[column] + np.cumsum(weights[near], axis=0))
        sorted_values = values[column, near]
        ends = [
            sorted_values[np.minimum(compared(count, number[column]).sum(axis=0), len(near) - 1)]
            for compared in (np.less, np.less_equal)
        ]
        medians[column] = np.where(number[column] > 0, np.mean(ends, axis=0), np.nan)
    return medians


def averages_of_runs(panel: Panel, rng: np.random.Generator) -> np.ndarray:
    """Average every run over perturbations, in the sample and in bootstrap samples.

    The same perturbations are drawn for all splits, runs, models and metrics, so that models stay
    paired.

    Returns
    -------
    ndarray
        Splits x seeds x models x metrics x samples; a run of a model without seeds is repeated for
        all seeds.
    """
    *shape, n_units = panel.values.shape
    weights = resampled_weights(n_units, n_units if n_units > 1 else 0, rng)
    found = np.full((*shape, weights.shape[1]), np.nan)
    for position, metric in enumerate(panel.metrics.values()):
        columns = panel.values[:, :, :, position].reshape(-1, n_units)
        filled = np.flatnonzero(np.isfinite(columns).any(axis=1))
        averaged = np.full((len(columns), weights.shape[1]), np.nan)
        for start in range(0, len(filled), COLUMNS_AT_ONCE):
            some = filled[start : start + COLUMNS_AT_ONCE]
            averaged[some] = resampled_averages(columns[some], weights, metric.average)
        found[:, :, :, position] = averaged.reshape(*shape[:3], -1)
    single = ~np.isfinite(panel.values[:, 1:]).any(axis=(1, 3, 4))
    return np.where(single[:, None, :, None, None], found[:, :1], found)


def normalised_scores(
    panel: Panel, ceilings: np.ndarray, floor: str | None, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """Compute mean normalised scores, in the sample and in bootstrap samples.

    Perturbations are drawn with replacement, and so are splits, or training seeds on a single
    split. Of n splits or seeds n - 1 are drawn, since n would give a variance that is too small by
    (n - 1) / n (Rao & Wu 1988). Drawing both perturbations and runs is conservative where the two
    interact (Owen 2007); intervals over three seeds that differ much are too short, as percentiles
    are not those of Student's t.
    The range of a metric is that of the sample, a unit of measurement; the floor is resampled with
    the models.

    Parameters
    ----------
    panel
        Scores of perturbations.
    ceilings
        Splits x metrics, the scores that become 1; NaN where unknown.
    floor
        The model whose score becomes 0. Chance takes its place where it has none, and the place of
        any model without a defined value.
    seed
        Of the random numbers.

    Returns
    -------
    draws : ndarray
        Samples x models, the first for the sample itself.
    metrics : list of str
        Names of the metrics that count: on every split with a score of all models and of the
        floor, and with a ceiling that covers :data:`LEAST_RANGE` of the range from the floor to
        the best value.
    """
    rng = np.random.default_rng(seed)
    runs = averages_of_runs(panel, rng)
    n_splits, n_seeds, n_models = runs.shape[:3]
    several = n_splits > 1
    of_seeds = resampled_weights(n_seeds, 0 if several else n_seeds - 1, rng)
    of_splits = resampled_weights(n_splits, n_splits - 1, rng)
    known = np.isfinite(runs)
    weights = of_seeds[None, :, None, None] * known
    total = (np.where(known, runs, 0.0) * weights).sum(axis=1)
    number = weights.sum(axis=1)
    scores = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)

    metrics = list(panel.metrics.values())
    chance = np.array([np.nan if m.chance is None else m.chance for m in metrics])[:, None]
    sign = np.array([1 if m.direction == "higher" else -1 for m in metrics])
    best = np.array([np.nan if m.best is None else m.best for m in metrics])
    undefined = np.isnan(scores[..., :1])
    scores = np.where(undefined, chance, scores)
    by_chance = np.broadcast_to(chance, scores[:, 0].shape)
    zero = scores[:, panel.models.index(floor)] if floor in panel.models else by_chance
    reach, whole = (sign * (one - zero[..., 0]) for one in (ceilings, best))
    scored = ~undefined.all(axis=1)[..., 0] & np.isfinite(scores[..., 0]).all(axis=1)
    counts = np.flatnonzero((scored & (reach > 0) & (reach >= LEAST_RANGE * whole)).all(axis=0))
    if not len(counts):
        return np.full((1 + N_RESAMPLES, n_models), np.nan), []
    gained = sign[counts, None] * (scores[:, :, counts] - zero[:, None, counts])
    scaled = gained / reach[:, None, counts, None]
    weighted = np.einsum("kmcb,kb->mcb", scaled, of_splits / of_splits.sum(axis=0))
    # with few perturbations a sample may have none that defines a metric
    weighted[:, np.isnan(weighted).any(axis=0)] = np.nan
    defined = np.isfinite(weighted).sum(axis=1)
    mean = np.nansum(weighted, axis=1) / np.where(defined > 0, defined, np.nan)
    return mean.T, [list(panel.metrics)[position] for position in counts]


def rank_models(
    scores: pd.DataFrame,
    calibration: pd.DataFrame,
    competing: Sequence[str],
    floor: str | None,
    n_top: int,
) -> pd.DataFrame:
    """Rank models by their mean normalised score over calibrated metrics.

    Parameters
    ----------
    scores
        Scores of perturbations under one condition: split, model, seed, perturbation, tested,
        metric and value.
    calibration
        The table calibration.tsv of the same splits: split, metric, bds and replicate.
    competing
        Models to rank.
    floor
        The model whose score is 0; None for values by chance.
    n_top
        Genes per perturbation in the metrics at n.

    Returns
    -------
    DataFrame
        The columns :data:`RANKING`, best first: score with its 95 % percentile interval (NaN for
        a single perturbation); rank; probability_best, the fraction of bootstrap
        samples in which the model is the best; difference to the best model with its interval; and
        the names of the metrics. No rows where no metric counts.
    """
    metrics = ranked_metrics(calibration, n_top)
    panel = Panel.of(scores, competing, metrics)
    if not panel.models:
        return pd.DataFrame(columns=RANKING)
    replicate = calibration.pivot_table("replicate", "split", "metric", dropna=False)
    replicate = replicate.reindex(index=panel.splits, columns=list(metrics))
    ceilings = np.array(
        [
            [_ceiling(metrics[name], row[name]) for name in metrics]
            for _, row in replicate.iterrows()
        ]
    )
    draws, counted = normalised_scores(panel, ceilings, floor)
    if not counted:
        return pd.DataFrame(columns=RANKING)
    score, resampled = draws[0], draws[1:]
    resampled = resampled[np.isfinite(resampled).all(axis=1)]
    winner = int(np.argmax(score))
    is_first = resampled == resampled.max(axis=1, keepdims=True)
    low, high = _interval(resampled)
    difference_low, difference_high = _interval(resampled - resampled[:, [winner]])
    n_splits, n_seeds, *_, n_perturbations = panel.values.shape
    table = pd.DataFrame(
        {
            "model": panel.models,
            "score": score,
            "low": low,
            "high": high,
            "rank": pd.Series(-score).rank(method="min").astype(int),
            "probability_best": (is_first / is_first.sum(axis=1, keepdims=True)).mean(axis=0),
            "difference": score - score[winner],
            "difference_low": difference_low,
            "difference_high": difference_high,
            "n_metrics": len(counted),
            "n_perturbations": n_perturbations,
            "n_splits": n_splits,
            "n_seeds": n_seeds,
            "reference": floor if floor in panel.models else CHANCE,
            "metrics": ", ".join(counted),
        }
    )
    if n_perturbations == 1:  # seeds alone would make baselines look certain
        spread = ["low", "high", "difference_low", "difference_high", "probability_best"]
        table[spread] = np.nan
    return table.sort_values("rank", kind="stable", ignore_index=True)[RANKING]


def _ceiling(metric: Metric, replicate: float) -> float:
    """Give the score of noise-free effects, or that of a replicate where the former is unknown."""
    return replicate if metric.attainable is None else metric.attainable(replicate)


def _interval(draws: np.ndarray) -> np.ndarray:
    return np.asarray(np.quantile(draws, TAILS, axis=0))
