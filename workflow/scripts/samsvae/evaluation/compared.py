"""Metrics of predicted against observed effects by perturbation, and their calibration on a screen.

Metrics are calibrated by two predictions. The positive control is a technical duplicate: effects
among one half of a perturbation's held-out cells predict those among the other half. The negative
control knows nothing of the perturbation: for most metrics it is the mean effect of the others.
With the best value of a metric, these give its dynamic range fraction (DRF; Miller et al. 2025) and
its bound discrimination score (BDS).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import anndata
import numpy as np
import pandas as pd

from samsvae.evaluation.agreement import mean_of_others, weights_of
from samsvae.evaluation.differential_expression import significant_effects
from samsvae.evaluation.effects import truth_of
from samsvae.evaluation.metrics import (
    CALIBRATION,
    DE,
    EXPRESSED,
    HELD_OUT,
    MEAN_OF_ALL,
    MEAN_OF_OTHERS,
    MEASURED_CONTROL,
    METRICS,
    N_EXPRESSED,
    NO_CHANGE,
    WEIGHTED_METRICS,
    WITH_TARGETS,
    Metric,
    Score,
    de_metrics,
)
from samsvae.screen.labels import components

Matrix = np.ndarray

# suffix of a metric's name, and the layer of observed effects that it uses
TRUTHS = {"": "ate", HELD_OUT: "ate_held_out"}


@dataclass(frozen=True)
class Comparison:
    """Predicted and observed effects, and the metrics to compare them by.

    Attributes
    ----------
    metrics
        Metrics by name.
    observed, predicted
        Perturbations x genes.
    known
        Boolean, the perturbations with observed effects; the others have NaN.
    weights
        Weights of genes, perturbations x genes, for metrics that take them.
    left_out
        Boolean, perturbations x genes that do not count; None for none.
    """

    metrics: Mapping[str, Metric]
    observed: Matrix
    predicted: Matrix
    known: np.ndarray
    weights: Matrix | None = None
    left_out: Matrix | None = None

    def by_perturbation(self) -> dict[str, np.ndarray]:
        """Compute every metric for each perturbation with observed effects."""
        values = {name: np.full(len(self.known), np.nan) for name in self.metrics}
        for rows, arguments in self._arguments():
            for name, metric in self.metrics.items():
                values[name][rows] = metric.function(*arguments)
        return values

    def _arguments(self) -> Iterator[tuple[np.ndarray, list[Matrix]]]:
        """Select the perturbations and genes that count, as the arguments of metrics.

        Perturbations with the same number of genes that do not count are one item each.
        """
        given = [self.observed, self.predicted]
        given += [] if self.weights is None else [self.weights]
        if self.left_out is None:
            if self.known.any():
                yield self.known, [matrix[self.known] for matrix in given]
            return
        number = self.left_out.sum(axis=1)
        for left_out in np.unique(number[self.known]):
            rows = self.known & (number == left_out)
            counted = ~self.left_out[rows]
            yield rows, [matrix[rows][counted].reshape(len(counted), -1) for matrix in given]

    def flattened(self, mask: np.ndarray) -> dict[str, float]:
        """Compute the flattened metrics over all entries of some perturbations."""
        chosen = self.known & mask
        pair = (self.observed[chosen].reshape(1, -1), self.predicted[chosen].reshape(1, -1))
        return {
            name: float(metric.function(*pair)[0])
            for name, metric in self.metrics.items()
            if metric.flattened and chosen.any()
        }


def comparisons(
    observed: anndata.AnnData, predicted: anndata.AnnData, n_top: int, fdr: float
) -> Iterator[Comparison]:
    """Pair predictions with each kind of observed effects.

    Parameters
    ----------
    observed
        Observed effects.
    predicted
        Predicted effects of the same perturbations and genes, in the same order. A prediction
        from held-out cells carries the observed effects among the other cells as layers.
    n_top
        Genes per perturbation in the metrics that end in ``_top<n>``, and k in those that end in
        ``_at_<k>``.
    fdr
        False discovery rate below which a gene is differentially expressed.

    Yields
    ------
    Comparison
        Effects among all cells, as in the paper, and among held-out cells (``_held_out``), each
        over all genes and over the ``_top<n>`` of largest observed effect; and differentially
        expressed genes (``de_``). Then the :data:`samsvae.evaluation.metrics.VARIANTS` and weighted
        metrics of held-out cells, where the observed effects have what these need. Target genes are
        left out of retrieval, discrimination and differentially expressed genes, but for
        :data:`samsvae.evaluation.metrics.WITH_TARGETS`.
    """
    guess = np.asarray(predicted.X, dtype=np.float64)
    effects = truth_of(observed, predicted)
    targets = target_genes(effects)
    others = ~targets.any(axis=0)
    for suffix, layer in TRUTHS.items():
        truth = np.asarray(effects.layers[layer], dtype=np.float64)
        known = np.isfinite(truth.sum(axis=1))
        of_all = {n + suffix: m for n, m in METRICS.items() if not m.without_targets}
        yield Comparison(of_all, truth, guess, known)
        of_others = {n + suffix: m for n, m in METRICS.items() if m.without_targets}
        yield Comparison(of_others, truth[:, others], guess[:, others], known)
        top = {f"{n}_top{n_top}{suffix}": m for n, m in METRICS.items() if m.top_genes}
        yield Comparison(top, *top_genes(truth, guess, n_top), known)
    significant = significant_effects(effects, fdr)
    every = np.ones(len(guess), dtype=bool)
    de = {DE + n: m for n, m in de_metrics(n_top).items()}
    left_out = targets if targets.any() else None
    yield Comparison(de, significant, guess, every, left_out=left_out)
    if targets.any():
        kept = {n + WITH_TARGETS: m for n, m in de.items()}
        yield Comparison(kept, significant, guess, every)
    yield from _of_held_out_cells(effects, guess, targets)


def _of_held_out_cells(
    effects: anndata.AnnData, guess: Matrix, targets: Matrix
) -> Iterator[Comparison]:
    """Pair predictions with effects among held-out cells, for all other metrics of these."""
    truth = np.asarray(effects.layers[TRUTHS[HELD_OUT]], dtype=np.float64)
    known = np.isfinite(truth.sum(axis=1))

    def chosen(variant: str, has_it: str) -> dict[str, Metric]:
        return {f"{n}{variant}{HELD_OUT}": m for n, m in METRICS.items() if getattr(m, has_it)}

    if targets.any():
        yield Comparison(chosen(WITH_TARGETS, "without_targets"), truth, guess, known)
    if "t_of_others" in effects.layers:
        weights = weights_of(np.asarray(effects.layers["t_of_others"], dtype=np.float64))
        weighted = known & np.isfinite(weights).all(axis=1)
        metrics = {n + HELD_OUT: m for n, m in WEIGHTED_METRICS.items()}
        yield Comparison(metrics, truth, guess, weighted, weights)
    if "control_mean" not in effects.var:
        return
    genes = np.argsort(-effects.var["control_mean"].to_numpy(), kind="stable")[:N_EXPRESSED]
    metrics = chosen(EXPRESSED, "expressed_genes")
    yield Comparison(metrics, truth[:, genes], guess[:, genes], known)
    of_prediction, measured = (
        effects.var[f"control_mean{cells}"].to_numpy(dtype=np.float64)
        for cells in ("_trained", HELD_OUT)
    )
    if np.isfinite(of_prediction - measured).all():
        metrics = chosen(MEASURED_CONTROL, "measured_control")
        of_all = {n: m for n, m in metrics.items() if not m.without_targets}
        of_others = {n: m for n, m in metrics.items() if m.without_targets}
        guess = guess + (of_prediction - measured)
        others = ~targets.any(axis=0)
        yield Comparison(of_all, truth, guess, known)
        yield Comparison(of_others, truth[:, others], guess[:, others], known)


def target_genes(effects: anndata.AnnData) -> np.ndarray:
    """Find the measured target genes of each perturbation.

    Returns
    -------
    ndarray of bool
        Perturbations x genes.
    """
    targets = np.zeros(effects.shape, dtype=bool)
    parts = [components(str(name)) for name in effects.obs_names]
    row = np.repeat(np.arange(len(parts)), [len(own) for own in parts])
    column = effects.var_names.get_indexer([gene for own in parts for gene in own])
    targets[row[column >= 0], column[column >= 0]] = True
    return targets


def top_genes(observed: Matrix, predicted: Matrix, n_top: int) -> tuple[Matrix, Matrix]:
    """Select each perturbation's genes of largest absolute observed effect."""
    order = np.argsort(-np.abs(observed), axis=1, kind="stable")[:, :n_top]
    return np.take_along_axis(observed, order, 1), np.take_along_axis(predicted, order, 1)


LEAST_BDS = 0.8  # of a metric by which models are ranked
GUARD = 1e-6  # added to the range of a metric, as by scPertEval
COLUMNS = ["metric", "drf", "bds", "n", "replicate", "negative_control", "ranks_models"]


def dynamic_range(positive: np.ndarray, negative: np.ndarray, score: Score) -> np.ndarray:
    """Compute the dynamic range fraction of a metric for each perturbation.

    Parameters
    ----------
    positive, negative
        Scores of the two controls.
    score
        Description of the metric, with its best value.

    Returns
    -------
    ndarray
        Distance from the negative to the positive control, relative to that to the best value,
        from -1 to 1. NaN where a control is undefined, or the negative one beyond the best value.
    """
    if score.best is None:
        return np.full(len(positive), np.nan)
    sign = 1 if score.direction == "higher" else -1
    gain, whole = sign * (positive - negative), sign * (score.best - negative)
    fraction = np.clip(gain / (np.where(whole >= 0, whole, np.nan) + GUARD), -1, 1)
    return np.asarray(fraction)


def discriminates(positive: np.ndarray, negative: np.ndarray, score: Score) -> np.ndarray:
    """Tell where the positive control is better than the negative one, 1 or 0; NaN if undefined."""
    better = positive > negative if score.direction == "higher" else positive < negative
    return np.where(np.isnan(positive) | np.isnan(negative), np.nan, better)


def calibrate(halves: anndata.AnnData, n_top: int, fdr: float) -> pd.DataFrame:
    """Calibrate every metric on a split of a screen.

    Parameters
    ----------
    halves
        Effects of two halves of the held-out cells, as of
        :func:`samsvae.evaluation.observed.split_half`.
    n_top, fdr
        As of :func:`comparisons`.

    Returns
    -------
    DataFrame
        One row per metric: ``drf``, median over the perturbations with test cells (or all, without
        any), and ``bds``, the fraction of these whose positive control is better; ``n``, their
        number; ``replicate``, the score of the positive control, averaged over perturbations as
        the metric is; ``negative_control``; and ``ranks_models``, whether the BDS is
        :data:`LEAST_BDS` or more. NaN and False where no perturbation has both controls.
    """
    halved = np.isfinite(np.asarray(halves.layers["ate_held_out"])).all(axis=1)
    tested = halves.obs["n_test"].to_numpy() > 0
    shown = halved & tested if tested.any() else halved
    negatives = {name: _predicting(halves, name, halved) for name in NEGATIVE_CONTROLS}
    return calibrate_by(halves, negatives, shown, n_top, fdr)


def calibrate_by(
    halves: anndata.AnnData,
    controls: Mapping[str, anndata.AnnData],
    shown: np.ndarray,
    n_top: int,
    fdr: float,
) -> pd.DataFrame:
    """Calibrate every metric by given negative controls.

    Parameters
    ----------
    halves, n_top, fdr
        As of :func:`calibrate`.
    controls
        Predictions of each negative control, with the layers of `halves`.
    shown
        Boolean, the perturbations to summarise.

    Returns
    -------
    DataFrame
        As of :func:`calibrate`.
    """
    predictions = (halves, *controls.values())
    rows = []
    for positive, *negatives in zip(
        *(comparisons(halves, predicted, n_top, fdr) for predicted in predictions), strict=True
    ):
        scores = positive.by_perturbation()
        for control, negative in zip(controls, negatives, strict=True):
            own = {n: m for n, m in negative.metrics.items() if m.negative == control}
            for name, values in replace(negative, metrics=own).by_perturbation().items():
                rows.append(_calibration(name, own[name], scores[name][shown], values[shown]))
    return pd.DataFrame(rows, columns=COLUMNS)


NEGATIVE_CONTROLS = (MEAN_OF_OTHERS, MEAN_OF_ALL, NO_CHANGE)


def _predicting(halves: anndata.AnnData, control: str, halved: np.ndarray) -> anndata.AnnData:
    """Replace the predictions by those of a negative control."""
    effects = np.asarray(halves.X, dtype=np.float64)
    guess = np.zeros_like(effects)
    if control == MEAN_OF_OTHERS and halved.sum() > 1:
        guess[halved] = mean_of_others(effects[halved])
    elif control == MEAN_OF_ALL and halved.any():
        guess[:] = effects[halved].mean(axis=0)
    return anndata.AnnData(guess, obs=halves.obs, var=halves.var, layers=dict(halves.layers))


def _calibration(
    name: str, metric: Metric, positive: np.ndarray, negative: np.ndarray
) -> dict[str, object]:
    better = discriminates(positive, negative, metric)
    known = np.isfinite(better)
    drf = dynamic_range(positive, negative, metric)
    drf = drf[np.isfinite(drf)]
    bds = float(better[known].mean()) if known.any() else np.nan
    average = np.median if metric.average == "median" else np.mean
    return {
        "metric": name,
        "drf": float(np.median(drf)) if len(drf) else np.nan,
        "bds": bds,
        "n": int(known.sum()),
        "replicate": float(average(positive[known])) if known.any() else np.nan,
        "negative_control": metric.negative,
        "ranks_models": bds >= LEAST_BDS,
    }


def calibration_as_metrics(calibration: pd.DataFrame) -> pd.DataFrame:
    """Arrange the DRF and BDS of metrics as rows of metrics.parquet.

    Parameters
    ----------
    calibration
        As of :func:`calibrate`.

    Returns
    -------
    DataFrame
        Columns scope, metric and value; ``drf_`` and ``bds_`` begin the names.
    """
    values = calibration.set_index("metric")[["drf", "bds"]].add_suffix("_")
    table = values.melt(var_name="quantity", ignore_index=False).reset_index()
    names = table["quantity"] + table["metric"]
    return pd.DataFrame({"scope": CALIBRATION, "metric": names, "value": table["value"]})
