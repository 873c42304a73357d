"""Registry of metrics, with unit, direction, best value and value by chance, and their table.

A metric is a function of observed and predicted effects, perturbations x genes in log2(CP10k + 1),
that returns one value per perturbation, and an entry in :data:`METRICS`. Metrics of differentially
expressed genes are entries of :func:`de_metrics`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from samsvae.evaluation import UNITS, agreement, differential_expression
from samsvae.evaluation.agreement import correlation_with_noise_free, error_of_noise_free

FRACTION = "fraction"
SQUARED_UNITS = f"{UNITS} squared"
# predictions without knowledge of a perturbation, by which metrics are calibrated
MEAN_OF_OTHERS = "mean effect of the other perturbations"
MEAN_OF_ALL = "mean effect of all perturbations"
NO_CHANGE = "no change"


@dataclass(frozen=True)
class Quantity:
    """Description of a quantity in a table of metrics.

    Attributes
    ----------
    heading
        Its name on an axis or above a column, in a few words.
    description
        One line of text.
    unit
        Unit of its values; empty for a dimensionless quantity.
    """

    heading: str
    description: str
    unit: str


@dataclass(frozen=True)
class Score(Quantity):
    """Description of a score by which models are compared.

    Attributes
    ----------
    direction
        Whether ``higher`` or ``lower`` values are better.
    best
        Best possible value; None if unbounded.
    chance
        Expected value of predictions independent of the truth; None if it depends on the data.
    worst
        Worst possible value; None if unbounded.
    """

    direction: Literal["higher", "lower"]
    best: float | None
    chance: float | None
    worst: float | None = field(default=None, kw_only=True)

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest possible value."""
        is_higher = self.direction == "higher"
        low, high = (self.worst, self.best) if is_higher else (self.best, self.worst)
        return (-np.inf if low is None else low), (np.inf if high is None else high)


@dataclass(frozen=True)
class Metric(Score):
    """Metric of predicted effects.

    Attributes
    ----------
    function
        Maps observed and predicted effects to one value per perturbation, NaN where undefined.
    average
        Average over perturbations, ``median`` or ``mean``.
    flattened
        Whether it is also computed over all entries together.
    top_genes
        Whether it is also computed over each perturbation's genes of largest observed effect.
    scale_free
        Whether it is invariant to a positive factor of the predictions.
    attainable
        Maps the score of half of the held-out cells against the other half to the score of
        noise-free effects against all of them. None where that is unknown.
    expressed_genes
        Whether it is also computed over the genes that control cells express most.
    measured_control
        Whether it is also computed with predicted and observed profiles both compared with the
        measured control profile, as by cell-eval2 and scPertEval.
    without_targets
        Whether the target genes of all perturbations are left out, which a prediction may know
        without knowing the effect; it is also computed with them (:data:`WITH_TARGETS`). Metrics
        of differentially expressed genes leave out a perturbation's own, and likewise.
    negative
        Prediction without knowledge of the perturbation, by which it is calibrated.
    """

    function: Callable[..., np.ndarray]
    average: Literal["median", "mean"] = "median"
    flattened: bool = False
    top_genes: bool = False
    scale_free: bool = False
    attainable: Callable[[float], float] | None = None
    expressed_genes: bool = False
    measured_control: bool = False
    without_targets: bool = False
    negative: str = MEAN_OF_OTHERS


HELD_OUT = "_held_out"  # ends the name of a metric whose truth is the held-out cells alone
EXPRESSED = "_expressed"  # then of one over the genes that control cells express most
MEASURED_CONTROL = "_measured_control"  # of one with the measured control profile on both sides
WITH_TARGETS = "_with_targets"  # of one with the target genes that it otherwise leaves out
N_EXPRESSED = 1000  # genes, as in Ahlmann-Eltze et al. 2025
DE = "de_"  # begins the name of a metric of differentially expressed genes

METRICS: dict[str, Metric] = {
    "pearson": Metric(
        "Pearson r",
        "Pearson correlation of predicted and observed effects",
        "", "higher", 1.0, 0.0, agreement.pearson, flattened=True, top_genes=True,
        scale_free=True, attainable=correlation_with_noise_free,
        expressed_genes=True, measured_control=True, worst=-1.0,
    ),
    "r_squared": Metric(
        "R²",
        "fraction of the observed effects' variance that is explained",
        "", "higher", 1.0, None, agreement.r_squared, flattened=True, top_genes=True,
        measured_control=True,
    ),
    "rmse": Metric(
        "RMSE",
        "root mean squared error of the log fold change",
        UNITS, "lower", 0.0, None, agreement.rmse, flattened=True, top_genes=True,
        attainable=error_of_noise_free, measured_control=True,
    ),
    "l2": Metric(
        "L2 distance",
        "Euclidean distance of predicted and observed log fold change",
        UNITS, "lower", 0.0, None, agreement.l2, attainable=error_of_noise_free,
        expressed_genes=True,
    ),
    "cosine": Metric(
        "cosine",
        "cosine of predicted and observed log fold change",
        "", "higher", 1.0, 0.0, agreement.cosine, top_genes=True,
        scale_free=True, attainable=correlation_with_noise_free, measured_control=True, worst=-1.0,
    ),
    "mean_absolute_error": Metric(
        "mean absolute error",
        "mean absolute error of the mean profile",
        UNITS, "lower", 0.0, None, agreement.mean_absolute_error, attainable=error_of_noise_free,
    ),
    "sign_accuracy": Metric(
        "sign accuracy",
        "fraction of genes whose effect has the right sign",
        FRACTION, "higher", 1.0, 0.5, agreement.sign_accuracy, top_genes=True,
        scale_free=True, worst=0.0,
    ),
    "pearson_from_mean": Metric(
        "Pearson r beyond the mean effect",
        "Pearson correlation of the differences from the mean perturbed profile",
        "", "higher", 1.0, 0.0, agreement.pearson_from_mean, attainable=correlation_with_noise_free,
        negative=NO_CHANGE, worst=-1.0,
    ),
    "r_squared_from_others": Metric(
        "R² beyond the other perturbations",
        "fraction of the effects' variance around the mean of the others that is explained",
        "", "higher", 1.0, None, agreement.r_squared_from_others, negative=NO_CHANGE,
    ),
    "retrieval_rank": Metric(
        "perturbation retrieval rank",
        "fraction of other perturbations with a prediction nearer to the observed effect (cosine)",
        FRACTION, "lower", 0.0, 0.5, agreement.retrieval_rank, average="mean",
        scale_free=True, without_targets=True, negative=MEAN_OF_ALL, worst=1.0,
    ),
    "discrimination_l1": Metric(
        "L1 discrimination",
        "fraction of other perturbations whose observed effect is farther from the prediction (L1)",
        FRACTION, "higher", 1.0, 0.5, agreement.discrimination_l1, average="mean",
        measured_control=True, without_targets=True, negative=MEAN_OF_ALL, worst=0.0,
    ),
    "discrimination_l2": Metric(
        "L2 discrimination",
        "fraction of other perturbations whose observed effect is farther from the prediction (L2)",
        FRACTION, "higher", 1.0, 0.5, agreement.discrimination_l2, average="mean",
        measured_control=True, without_targets=True, negative=MEAN_OF_ALL, worst=0.0,
    ),
    "discrimination_cosine": Metric(
        "cosine discrimination",
        "fraction of other perturbations whose observed effect is less similar to the prediction",
        FRACTION, "higher", 1.0, 0.5, agreement.discrimination_cosine, average="mean",
        scale_free=True, measured_control=True, without_targets=True, negative=MEAN_OF_ALL,
        worst=0.0,
    ),
}  # fmt: skip

# metrics of held-out cells that weight genes by their difference from other perturbations; their
# functions take the weights as a third matrix
WEIGHTED_METRICS: dict[str, Metric] = {
    "weighted_mse": Metric(
        "weighted MSE",
        "squared error of the log fold change, weighted by specificity to the perturbation",
        SQUARED_UNITS, "lower", 0.0, None, agreement.weighted_mse,
    ),
    "weighted_r_squared": Metric(
        "weighted R²",
        "fraction of explained variance, weighted by specificity to the perturbation",
        "", "higher", 1.0, None, agreement.weighted_r_squared,
    ),
    "weighted_pearson": Metric(
        "weighted Pearson r",
        "Pearson correlation of effects, weighted by specificity to the perturbation",
        "", "higher", 1.0, 0.0, agreement.weighted_pearson, scale_free=True, worst=-1.0,
    ),
}  # fmt: skip


def de_metrics(n_top: int) -> dict[str, Metric]:
    """List the metrics of differentially expressed genes.

    Their functions take the observed effects of :func:`significant_effects`.

    Parameters
    ----------
    n_top
        Largest number k of genes in the metrics "at k".
    """
    genes = "differentially expressed genes"
    return {
        "auroc": Metric(
            "AUROC of DE genes",
            f"area under the ROC curve of |predicted effect| for {genes}",
            "", "higher", 1.0, 0.5, differential_expression.auroc, scale_free=True, worst=0.0,
        ),
        "auprc": Metric(
            "AUPRC of DE genes",
            f"average precision of |predicted effect| for {genes}",
            "", "higher", 1.0, None, differential_expression.auprc, scale_free=True, worst=0.0,
        ),
        "precision_at_k": Metric(
            "precision at k of DE genes",
            f"fraction of {genes} among as many top predictions",
            FRACTION, "higher", 1.0, None, differential_expression.precision_at_k, scale_free=True,
            worst=0.0,
        ),
        f"precision_at_{n_top}": Metric(
            f"precision at {n_top} of DE genes",
            f"fraction of {genes} among the {n_top} top predictions",
            FRACTION, "higher", 1.0, None, partial(differential_expression.precision_at, n_top),
            scale_free=True, worst=0.0,
        ),
        f"recall_at_{n_top}": Metric(
            f"recall at {n_top} of DE genes",
            f"fraction of {genes} that are among the {n_top} top predictions",
            FRACTION, "higher", 1.0, None, partial(differential_expression.recall_at, n_top),
            scale_free=True, worst=0.0,
        ),
        f"overlap_at_{n_top}": Metric(
            f"overlap at {n_top} of DE genes",
            f"fraction of the {n_top} {genes} of largest effect among as many top predictions",
            FRACTION, "higher", 1.0, None, partial(differential_expression.overlap_at, n_top),
            scale_free=True, worst=0.0,
        ),
        "sign_agreement": Metric(
            "sign agreement of DE genes",
            f"fraction of {genes} whose predicted sign is right",
            FRACTION, "higher", 1.0, 0.5, differential_expression.sign_agreement, scale_free=True,
            worst=0.0,
        ),
        "spearman": Metric(
            "Spearman r of DE genes",
            f"Spearman correlation of the effects on {genes}",
            "", "higher", 1.0, 0.0, differential_expression.spearman, scale_free=True, worst=-1.0,
        ),
    }  # fmt: skip


# endings of the names of metrics beside HELD_OUT, in words
VARIANTS = {
    EXPRESSED: f"{N_EXPRESSED:,} most expressed genes",
    MEASURED_CONTROL: "measured control on both sides",
    WITH_TARGETS: "with target genes",
}

# scores of a run that are not computed by perturbation
RUN_SCORES: dict[str, Score] = {
    "iwelbo": Score(
        "IWELBO",
        "importance-weighted bound of the log probability of a held-out cell",
        "nats per cell", "higher", None, None,
    ),
    "iwelbo_relative": Score(
        "IWELBO minus that of the first model at the smallest fraction",
        "that bound minus the first model's at the smallest fraction, on the same seeds",
        "nats per cell", "higher", None, 0.0,
    ),
    "effect_pearson": Score(
        "Pearson r with true effects",
        "Pearson correlation of predicted and simulated noise-free effects",
        "", "higher", 1.0, 0.0, worst=-1.0,
    ),
    "effect_rmse": Score(
        "RMSE of true effects",
        "root mean squared error against the simulated noise-free effects",
        UNITS, "lower", 0.0, None,
    ),
    "mask_f1": Score(
        "F1 of the mask", "F1 of the recovered mask", "", "higher", 1.0, None, worst=0.0
    ),
    "mask_precision": Score(
        "precision of the mask",
        "fraction of inferred mask entries that are true", FRACTION, "higher", 1.0, None, worst=0.0,
    ),
    "mask_recall": Score(
        "recall of the mask",
        "fraction of true mask entries that are inferred", FRACTION, "higher", 1.0, None, worst=0.0,
    ),
    "total_correlation": Score(
        "correlation with true factors",
        "mean absolute correlation over held-out cells of true factors with the matched latent "
        "dimensions, effects included",
        "", "higher", 1.0, None, worst=0.0,
    ),
    "total_r_squared": Score(
        "R² of true factors",
        "mean fraction of the true factors' variance over held-out cells that is linear in all "
        "latent dimensions, effects included",
        "", "higher", 1.0, None,
    ),
    "basal_correlation": Score(
        "correlation with true factors, basal states",
        "the same correlation, of basal states",
        "", "higher", 1.0, None, worst=0.0,
    ),
    "basal_r_squared": Score(
        "R² of true factors, basal states",
        "the same fraction, of basal states",
        "", "higher", 1.0, None,
    ),
    "mean_correlation": Score(
        "correlation with true latent effects",
        "mean absolute correlation of matched latent effects with the true ones",
        "", "higher", 1.0, None, worst=0.0,
    ),
    "effect_r_squared": Score(
        "R² of true latent effects",
        "fraction of the true latent effects' variance that matched ones explain",
        "", "higher", 1.0, None,
    ),
}  # fmt: skip


# quantities that are no score
OTHER_NUMBERS: dict[str, Quantity] = {
    "mask_density": Quantity(
        "density of the mask", "fraction of inferred mask entries above one half", FRACTION
    ),
}

SPREAD = "spread_"  # begins the name of the distance between the quartiles of perturbations
CALIBRATION = "calibration"  # scope of the calibration of metrics on a split
# begin the names of the quantities that calibrate a metric
CALIBRATIONS: dict[str, Quantity] = {
    "drf_": Quantity(
        "DRF",
        "median fraction of the range, from no knowledge of the perturbation to the best value, "
        "that a replicate covers",
        "",
    ),
    "bds_": Quantity(
        "BDS",
        "fraction of perturbations whose replicate is better than a prediction that knows nothing "
        "of them",
        FRACTION,
    ),
}


def describe(name: str, n_top: int) -> Quantity | None:
    """Look up the description of a quantity in a table of metrics; None if it is unknown.

    Parameters
    ----------
    name, n_top
        As of :func:`meaning`.
    """
    if name in OTHER_NUMBERS:
        return OTHER_NUMBERS[name]
    for prefix, quantity in CALIBRATIONS.items():
        score = meaning(name.removeprefix(prefix), n_top) if name.startswith(prefix) else None
        if score is not None:
            return replace(
                quantity,
                heading=f"{quantity.heading} of {score.heading}",
                description=f"{quantity.description}: {score.description}",
            )
    if not name.startswith(SPREAD):
        return meaning(name, n_top)
    score = meaning(name.removeprefix(SPREAD), n_top)
    return score and Quantity(
        f"spread of {score.heading}",
        f"distance between the quartiles of perturbations: {score.description}",
        score.unit,
    )


def heading(name: str, n_top: int, unit: bool = False) -> str:
    """Build the heading of an axis or column: metric, genes, cells and, by option, unit.

    Parameters
    ----------
    name, n_top
        As of :func:`meaning`.
    unit
        Whether to append the unit, as in ``IWELBO (nats per cell)``.

    Returns
    -------
    str
        For instance ``Pearson r, top 20 genes, held-out cells``.

    Raises
    ------
    KeyError
        If the metric is not registered.
    """
    known = describe(name, n_top)
    if known is None:
        raise KeyError(name)
    parts = [known.heading]
    plain = name.removesuffix(HELD_OUT)
    genes = {f"_top{n_top}": f"top {n_top} genes", **VARIANTS}
    parts += [words for ending, words in genes.items() if plain.endswith(ending)]
    if name.endswith(HELD_OUT):
        parts.append("held-out cells")
    elif known in METRICS.values():
        parts.append("all cells")
    shown = f" ({known.unit})" if unit and known.unit not in ("", FRACTION) else ""
    return ", ".join(parts) + shown


def meaning(name: str, n_top: int) -> Score | None:
    """Look up the description of a score in a table of metrics.

    Parameters
    ----------
    name
        As in metrics.parquet, for instance ``median_pearson_top20_held_out``.
    n_top
        Genes per perturbation in the top-gene metrics.

    Returns
    -------
    Score
        None for a quantity by which models are not compared, such as a ``spread_``.
    """
    if name in RUN_SCORES:
        return RUN_SCORES[name]
    found = _metric_of(name, n_top)
    return found and found[1]


def of_perturbations(name: str, n_top: int) -> str | None:
    """Return the name of the scores of perturbations that a score summarises.

    Parameters
    ----------
    name, n_top
        As of :func:`meaning`.

    Returns
    -------
    str
        For instance ``rmse_held_out`` for ``median_rmse_held_out`` and for ``rmse_held_out``; None
        for a score that is not computed by perturbation.
    """
    found = None if name in RUN_SCORES else _metric_of(name, n_top)
    return found and found[0]


def _metric_of(name: str, n_top: int) -> tuple[str, Metric] | None:
    """Find a metric by the name of a summary, and its name without the kind of average."""
    de = {DE + base: metric for base, metric in de_metrics(n_top).items()}
    known = METRICS | WEIGHTED_METRICS | de
    # in this order, since the name of a metric may itself begin with "median_" or "mean_"
    for prefix in ("", "median_", "mean_"):
        single = name.removeprefix(prefix)
        plain = single.removesuffix(HELD_OUT)
        for ending in (f"_top{n_top}", *VARIANTS):
            plain = plain.removesuffix(ending)
        if plain in known:
            return single, known[plain]
    return None


PERTURBATION = "perturbation"
# columns of the scores of perturbations over the runs of a model, for figures
OVER_SEEDS = ["mean_over_seeds", "lower_quartile", "median", "upper_quartile"]
# columns of metrics.parquet, and those of names
COLUMNS = [
    "split", "model", "seed", "scope", PERTURBATION, "tested", "metric", "value", *OVER_SEEDS,
    "unit", "direction", "best", "chance", "description",
]  # fmt: skip
NAMES = [
    "split", "model", "scope", PERTURBATION, "metric", "unit", "direction", "description",
]  # fmt: skip

RUN_COLUMNS = ["split", "model", "seed", "scope", "metric", "value"]


def described(table: pd.DataFrame, n_top: int) -> pd.DataFrame:
    """Add the descriptions of metrics, and order the columns of a tidy table.

    Parameters
    ----------
    table
        Columns split, model, seed, scope, metric and value; perturbation, tested and those of
        :data:`OVER_SEEDS` where there are any.
    n_top
        Genes per perturbation in the top-gene metrics.

    Returns
    -------
    DataFrame
        The columns :data:`COLUMNS` of metrics.parquet. A row is a value of a run over a scope or,
        with the scope ``perturbation``, of one perturbation, which may be ``tested``. Further
        columns are its unit, direction (none for a spread), best value, value by chance, and
        description.
    """
    says = {name: describe(name, n_top) for name in table["metric"].unique()}
    scores = {name: one for name, one in says.items() if isinstance(one, Score)}
    metric = table["metric"].astype(object)
    table = table.reindex(columns=[*table, *(name for name in COLUMNS if name not in table)])
    return table.assign(
        seed=table["seed"].astype("int64"),
        tested=table["tested"].astype("boolean"),
        unit=metric.map({name: one.unit for name, one in says.items() if one}),
        description=metric.map({name: one.description for name, one in says.items() if one}),
        direction=metric.map({name: one.direction for name, one in scores.items()}),
        best=metric.map({name: one.best for name, one in scores.items()}).astype(float),
        chance=metric.map({name: one.chance for name, one in scores.items()}).astype(float),
        **{name: table[name].astype(float) for name in ("value", *OVER_SEEDS)},
    )[COLUMNS]


def bounds_as_metrics(bounds: pd.DataFrame) -> pd.DataFrame:
    """Select the mean bounds of runs from iwelbo.tsv, as rows of the metric ``iwelbo``."""
    table = bounds.rename(columns={"iwelbo": "value"}).assign(metric="iwelbo")
    return table[RUN_COLUMNS]


def read_run_metrics(path: str | Path) -> pd.DataFrame:
    """Read the metrics of runs over scopes from metrics.parquet, without their calibration.

    Returns
    -------
    DataFrame
        Columns split, model, seed, scope, metric and value.
    """
    return _read(path, RUN_COLUMNS, ("scope", "not in", [PERTURBATION, CALIBRATION]))


def read_perturbation_metrics(path: str | Path, splits: Collection[str]) -> pd.DataFrame:
    """Read the metrics of the perturbations on some splits from metrics.parquet.

    Returns
    -------
    DataFrame
        Columns split, model, seed, perturbation, tested, metric and value.
    """
    columns = ["split", "model", "seed", PERTURBATION, "tested", "metric", "value"]
    return _read(path, columns, ("scope", "==", PERTURBATION), ("split", "in", list(splits)))


def _read(path: str | Path, columns: list[str], *chosen: tuple[str, str, Any]) -> pd.DataFrame:
    """Read the rows that fulfil all conditions: column, relation and value."""
    table = pd.read_parquet(path, columns=columns, filters=list(chosen))
    return table.astype({name: object for name in columns if name in NAMES})
