"""The metrics of predicted effects, each with what a reader needs to know of it.

A metric is one function of two matrices, perturbations x genes in log2(CP10k + 1), observed and
predicted, that gives one number for each perturbation; and one entry in :data:`METRICS`. Those
of differentially expressed genes are entries of :func:`de_metrics`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from samsvae.effects.table import UNITS
from samsvae.metrics import agreement, de_comparison, discrimination

SHARE = "share"


@dataclass(frozen=True)
class Metric:
    """A metric of predicted effects.

    Attributes
    ----------
    function
        Takes observed and predicted effects; gives one number for each perturbation, NaN where
        undefined.
    description
        What it says, in one line.
    unit
        Of its values; empty for a number without unit.
    direction
        Whether ``higher`` or ``lower`` values are better.
    best
        Its best value.
    chance
        Its mean for predictions unrelated to the truth; None if that depends on the data.
    average
        How perturbations are averaged, ``median`` or ``mean``.
    flattened
        Whether it is also taken over all entries at once.
    top_genes
        Whether it is also taken over each perturbation's genes of largest observed effect.
    """

    function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    description: str
    unit: str
    direction: Literal["higher", "lower"]
    best: float
    chance: float | None
    average: Literal["median", "mean"] = "median"
    flattened: bool = False
    top_genes: bool = False


METRICS: dict[str, Metric] = {
    "pearson": Metric(
        agreement.pearson, "Pearson correlation of predicted and observed effects",
        "", "higher", 1.0, 0.0, flattened=True, top_genes=True,
    ),
    "r_squared": Metric(
        agreement.r_squared, "share of the observed effects' variance that is explained",
        "", "higher", 1.0, None, flattened=True, top_genes=True,
    ),
    "rmse": Metric(
        agreement.rmse, "root mean squared error of the log fold change",
        UNITS, "lower", 0.0, None, flattened=True, top_genes=True,
    ),
    "cosine": Metric(
        agreement.cosine, "cosine of predicted and observed log fold change",
        "", "higher", 1.0, 0.0, top_genes=True,
    ),
    "mean_absolute_error": Metric(
        agreement.mean_absolute_error, "mean absolute error of the mean profile",
        UNITS, "lower", 0.0, None,
    ),
    "sign_accuracy": Metric(
        agreement.sign_accuracy, "share of genes whose effect has the right sign",
        SHARE, "higher", 1.0, 0.5, top_genes=True,
    ),
    "pearson_from_mean": Metric(
        agreement.pearson_from_mean,
        "Pearson correlation of the differences from the mean perturbed profile",
        "", "higher", 1.0, 0.0,
    ),
    "rank_of_right": Metric(
        discrimination.rank_of_right,
        "share of other perturbations whose prediction is nearer to the observed effect (cosine)",
        SHARE, "lower", 0.0, 0.5, average="mean",
    ),
    "discrimination_l1": Metric(
        discrimination.discrimination_l1,
        "share of other perturbations whose observed effect is farther from the prediction (L1)",
        SHARE, "higher", 1.0, 0.5, average="mean",
    ),
}  # fmt: skip


def de_metrics(n_top: int) -> dict[str, Metric]:
    """List the metrics of differentially expressed genes.

    Their functions take as observed effects those that :func:`significant_effects` leaves.

    Parameters
    ----------
    n_top
        Largest number k of genes in the metrics "at k".
    """
    genes = "differentially expressed genes"
    return {
        "auroc": Metric(
            de_comparison.auroc, f"area under the ROC curve of |predicted effect| for {genes}",
            "", "higher", 1.0, 0.5,
        ),
        "auprc": Metric(
            de_comparison.auprc, f"average precision of |predicted effect| for {genes}",
            "", "higher", 1.0, None,
        ),
        "precision_at_k": Metric(
            de_comparison.precision_at_k, f"share of {genes} among as many top predictions",
            SHARE, "higher", 1.0, None,
        ),
        f"precision_at_{n_top}": Metric(
            partial(de_comparison.precision_at, n_top),
            f"share of {genes} among the {n_top} top predictions",
            SHARE, "higher", 1.0, None,
        ),
        f"recall_at_{n_top}": Metric(
            partial(de_comparison.recall_at, n_top),
            f"share of {genes} that are among the {n_top} top predictions",
            SHARE, "higher", 1.0, None,
        ),
        f"overlap_at_{n_top}": Metric(
            partial(de_comparison.overlap_at, n_top),
            f"share of the {n_top} {genes} of largest effect among as many top predictions",
            SHARE, "higher", 1.0, None,
        ),
        "sign_agreement": Metric(
            de_comparison.sign_agreement, f"share of {genes} whose predicted sign is right",
            SHARE, "higher", 1.0, 0.5,
        ),
        "spearman": Metric(
            de_comparison.spearman, f"Spearman correlation of the effects on {genes}",
            "", "higher", 1.0, 0.0,
        ),
    }  # fmt: skip
