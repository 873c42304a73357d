"""Whether a prediction is told from those of other perturbations.

Both functions take observed and predicted effects, perturbations x genes, and give one number for
each perturbation. Ties count one half, so that the same prediction for all scores 0.5.
"""

import numpy as np
from scipy.spatial.distance import cdist

Matrix = np.ndarray

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
