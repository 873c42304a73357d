"""How closely predicted effects agree with observed ones, gene by gene.

Every function takes observed and predicted effects, perturbations x genes in log2(CP10k + 1), and
gives one number for each perturbation; of a single row, also one that holds all entries.
"""

import numpy as np

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
