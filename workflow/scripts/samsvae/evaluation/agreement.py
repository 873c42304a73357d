"""Agreement of predicted with observed effects, of a perturbation with the others, and its ceiling.

Every function takes observed and predicted effects, perturbations x genes in log2(CP10k + 1), and
gives one number for each perturbation; of a single row, also one that holds all entries.

Both functions take observed and predicted effects, perturbations x genes, and give one number for
each perturbation. Ties count one half, so that the same prediction for all scores 0.5.

Half of the held-out cells, h1, predict the other half, h2; a model is judged by all of them. Let
the noise of the mean of all held-out cells have variance v: that of either half has 2 v, and the
difference of the halves 4 v. Control cells are halved with the others, so that this holds of
effects, which are differences of means.
"""

import math

import numpy as np
from scipy.spatial.distance import cdist

Matrix = np.ndarray


def pearson(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Pearson correlation over genes; NaN if either side is constant or of one gene."""
    o, p = _centred(observed), _centred(predicted)
    return _cosine(o, p, _varies(observed) & _varies(predicted))


def cosine(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Cosine of the angle between the effects; NaN if either is 0 throughout."""
    return _cosine(observed, predicted, _is_anything(observed) & _is_anything(predicted))


def r_squared(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Coefficient of determination over genes; NaN if the observed effect is constant."""
    total = np.sum(_centred(observed) ** 2, axis=-1)
    unexplained = np.sum((observed - predicted) ** 2, axis=-1)
    return 1 - _ratio(unexplained, total, _varies(observed))


def rmse(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Root of the mean squared error over genes, log2(CP10k + 1)."""
    return np.sqrt(np.mean((observed - predicted) ** 2, axis=-1))


def mean_absolute_error(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Mean absolute error of the mean profile over genes, log2(CP10k + 1).

    An effect is a mean profile minus that of control, which both sides share.
    """
    return np.mean(np.abs(observed - predicted), axis=-1)


def sign_accuracy(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Share of genes whose sign is right, among those of an observed effect other than 0.

    No change predicted is never right; NaN if no observed effect differs from 0.
    """
    changed = observed != 0
    right = changed & (np.sign(observed) == np.sign(predicted))
    return _ratio(right.sum(axis=-1), changed.sum(axis=-1), changed.any(axis=-1))


def pearson_from_mean(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Pearson correlation of what sets a perturbation apart from the mean perturbation.

    The mean observed effect is taken off both sides, so that a shift that all perturbations share
    earns nothing (Vinas Torne et al. 2025, Nature Biotechnology).
    """
    reference = observed.mean(axis=0)
    return pearson(observed - reference, predicted - reference)


def _centred(effects: Matrix) -> Matrix:
    return effects - effects.mean(axis=-1, keepdims=True)


def _varies(effects: Matrix) -> np.ndarray:
    return np.ptp(effects, axis=-1) > 0


def _is_anything(effects: Matrix) -> np.ndarray:
    return np.linalg.norm(effects, axis=-1) > 0


def _cosine(first: Matrix, second: Matrix, defined: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return _ratio(np.sum(first * second, axis=-1), lengths, defined)


def _ratio(part: np.ndarray, whole: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Divide where the quotient is defined, and give NaN elsewhere."""
    quotient = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=quotient, where=defined & (whole > 0))


# identical predictions differ by rounding alone
RELATIVE_TIE, ABSOLUTE_TIE = 1e-9, 1e-12


def rank_of_right(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Share of other perturbations whose prediction is nearer to the observed effect by cosine.

    0 if the right prediction is the nearest, 0.5 by chance (Wu et al. 2024, PerturBench). An
    effect that is 0 throughout is at cosine 0 from every other. NaN for a single perturbation.
    """
    return _share_nearer(1 - _directions(observed) @ _directions(predicted).T)


def discrimination_l1(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Share of other perturbations whose observed effect is farther from the prediction (L1).

    The perturbation discrimination score of the Virtual Cell Challenge (Roohani et al. 2025),
    divided by the number of others, so that chance is 0.5; targets are not left out of the genes.
    NaN for a single perturbation.
    """
    return 1 - _share_nearer(cdist(predicted, observed, "cityblock"))


def _directions(effects: Matrix) -> Matrix:
    lengths = np.linalg.norm(effects, axis=1, keepdims=True)
    return np.divide(effects, lengths, out=np.zeros_like(effects), where=lengths > 0)


def _share_nearer(distance: np.ndarray) -> np.ndarray:
    """Rank each row's diagonal entry among the row, 0 for the smallest to 1."""
    n = len(distance)
    if n < 2:
        return np.full(n, np.nan)
    right = np.diag(distance)[:, None]
    tied = np.isclose(distance, right, rtol=RELATIVE_TIE, atol=ABSOLUTE_TIE)
    nearer = (distance < right) & ~tied
    return (nearer.sum(axis=1) + (tied.sum(axis=1) - 1) / 2) / (n - 1)


def correlation_with_noise_free(between_halves: float) -> float:
    """Correlation of the noise-free effects with those among all held-out cells.

    If r is the correlation between halves, the reliability of all cells is 2 r / (1 + r)
    (Spearman 1910; Brown 1910), and the correlation with what is measured without error its root.
    NaN for r below 0, of which nothing follows.
    """
    if not between_halves >= 0:
        return math.nan
    return math.sqrt(2 * between_halves / (1 + between_halves))


def error_of_noise_free(between_halves: float) -> float:
    """Error of the noise-free effects (root mean squared or mean absolute), half of the halves'."""
    return between_halves / 2
