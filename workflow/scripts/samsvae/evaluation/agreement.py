"""Agreement of predicted with observed effects, of inferred with true masks and factors.

Metrics take observed and predicted effects, perturbations x genes in log2(CP10k + 1), and return
one value per perturbation. Retrieval metrics count ties one half, so that a prediction that is the
same for all perturbations scores 0.5.

For the noise ceiling, half of the held-out cells predicts the other half, while a model is compared
with all held-out cells. If the mean of all held-out cells has noise of variance v, that of either
half has 2 v, and the difference of the halves 4 v. Control cells are halved, too, so that this
applies to effects, which are differences of means.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

Matrix = np.ndarray


def pearson(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the Pearson correlation over genes; NaN if either side is constant or one gene."""
    o, p = _centred(observed), _centred(predicted)
    return _cosine(o, p, _varies(observed) & _varies(predicted))


def cosine(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the cosine similarity of the effects; NaN if either is 0 for all genes."""
    return _cosine(observed, predicted, _is_nonzero(observed) & _is_nonzero(predicted))


def r_squared(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the coefficient of determination over genes; NaN for a constant observed effect."""
    total = np.sum(_centred(observed) ** 2, axis=-1)
    unexplained = np.sum((observed - predicted) ** 2, axis=-1)
    return 1 - _ratio(unexplained, total, _varies(observed))


def rmse(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the root mean squared error over genes, log2(CP10k + 1)."""
    return np.sqrt(np.mean((observed - predicted) ** 2, axis=-1))


def l2(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the Euclidean distance over genes, log2(CP10k + 1)."""
    return np.linalg.norm(observed - predicted, axis=-1)


def mean_absolute_error(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the mean absolute error over genes, log2(CP10k + 1).

    It is also the error of the mean profile: effects are differences to the same control profile.
    """
    return np.mean(np.abs(observed - predicted), axis=-1)


def sign_accuracy(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the fraction of genes with the right sign, among observed effects other than 0.

    A prediction of 0 is never right; NaN if all observed effects are 0.
    """
    changed = observed != 0
    right = changed & (np.sign(observed) == np.sign(predicted))
    return _ratio(right.sum(axis=-1), changed.sum(axis=-1), changed.any(axis=-1))


def pearson_from_mean(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the Pearson correlation of differences from the mean observed effect.

    The mean observed effect is subtracted from both sides, so that a shift common to all
    perturbations does not raise the score (Vinas Torne et al. 2025, Nature Biotechnology).
    """
    reference = observed.mean(axis=0)
    return pearson(observed - reference, predicted - reference)


def r_squared_from_others(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the coefficient of determination beyond the mean effect of the other perturbations.

    The mean observed effect of all others is subtracted from both sides. NaN for a single
    perturbation.
    """
    if len(observed) < 2:
        return np.full(len(observed), np.nan)
    reference = mean_of_others(observed)
    return r_squared(observed - reference, predicted - reference)


def mean_of_others(effects: Matrix) -> Matrix:
    """Average the effects of all other perturbations, for each of two or more perturbations."""
    return (effects.sum(axis=0) - effects) / (len(effects) - 1)


def weights_of(statistic: Matrix) -> Matrix:
    """Compute weights of genes from the statistics of a test (Mejia et al. 2025).

    Parameters
    ----------
    statistic
        Perturbations x genes, for instance t; NaN where untested.

    Returns
    -------
    ndarray
        The absolute statistic, scaled to 0 for the smallest and 1 for the largest of a
        perturbation, squared, and divided by the sum over genes. Equal weights if all statistics
        are equal; NaN for a perturbation without any.
    """
    strength = np.abs(statistic)
    known = np.isfinite(strength)
    tested = known.any(axis=-1)
    low = np.min(strength, axis=-1, keepdims=True, where=known, initial=np.inf)
    high = np.max(strength, axis=-1, keepdims=True, where=known, initial=-np.inf)
    scaled = np.zeros_like(strength)
    np.divide(strength - low, high - low, out=scaled, where=known & (high > low))
    total = np.sum(scaled**2, axis=-1, keepdims=True)
    weights = np.full_like(strength, 1 / strength.shape[-1])
    np.divide(scaled**2, total, out=weights, where=total > 0)
    weights[~tested] = np.nan
    return weights


def weighted_mse(observed: Matrix, predicted: Matrix, weights: Matrix) -> np.ndarray:
    """Compute the weighted mean squared error over genes; weights sum to 1."""
    return np.sum(weights * (observed - predicted) ** 2, axis=-1)


def weighted_r_squared(observed: Matrix, predicted: Matrix, weights: Matrix) -> np.ndarray:
    """Compute the weighted coefficient of determination; NaN for a constant observed effect."""
    total = np.sum(weights * _weighted_centred(observed, weights) ** 2, axis=-1)
    unexplained = weighted_mse(observed, predicted, weights)
    return 1 - _ratio(unexplained, total, _varies(observed))


def weighted_pearson(observed: Matrix, predicted: Matrix, weights: Matrix) -> np.ndarray:
    """Compute the weighted Pearson correlation over genes; NaN if either side is constant."""
    root = np.sqrt(weights)
    o, p = (root * _weighted_centred(effects, weights) for effects in (observed, predicted))
    return _cosine(o, p, _varies(observed) & _varies(predicted))


def _weighted_centred(effects: Matrix, weights: Matrix) -> Matrix:
    return effects - np.sum(weights * effects, axis=-1, keepdims=True)


def _centred(effects: Matrix) -> Matrix:
    return effects - effects.mean(axis=-1, keepdims=True)


def _varies(effects: Matrix) -> np.ndarray:
    return np.ptp(effects, axis=-1) > 0


def _is_nonzero(effects: Matrix) -> np.ndarray:
    return np.linalg.norm(effects, axis=-1) > 0


def _cosine(first: Matrix, second: Matrix, defined: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return _ratio(np.sum(first * second, axis=-1), lengths, defined)


def _ratio(part: np.ndarray, whole: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Divide where the quotient is defined; NaN elsewhere."""
    quotient = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=quotient, where=defined & (whole > 0))


# identical predictions differ by rounding alone
RELATIVE_TIE, ABSOLUTE_TIE = 1e-9, 1e-12


LARGEST_BLOCK = 2**24  # distances at a time
FEWEST_COMPILED = 2**30  # differences from which on compiling the distance takes less time
ROWS_IN_CACHE = 8
MOST_OTHERS = 1000  # perturbations among which one is ranked, since pairs grow with the square
PAIRED = 64  # rows at a time whose distances are computed for the sake of the diagonal


def retrieval_rank(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the perturbation retrieval rank by cosine similarity (Wu et al. 2024, PerturBench).

    The rank is the fraction of other perturbations whose prediction is nearer to the observed
    effect: 0 if the right prediction is the nearest, 0.5 by chance. An effect of 0 for all genes
    has cosine similarity 0 with any other. NaN for a single perturbation. Among more than 1,000
    perturbations the fraction is that of 1,000 random ones, as for discrimination.
    """
    return _rank_of_right(_directions(observed), _directions(predicted), _angular)


def discrimination_l1(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the perturbation discrimination score by L1 distance.

    The score is the fraction of other perturbations whose observed effect is farther from the
    prediction, as in the Virtual Cell Challenge (Roohani et al. 2025), but normalised so that
    chance is 0.5, and over all genes, target genes included. NaN for a single perturbation.
    """
    return 1 - _rank_of_right(predicted, observed, _city_block)


def discrimination_l2(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the perturbation discrimination score by Euclidean distance.

    It is the normalised inverse rank of Miller et al. (2025). NaN for a single perturbation.
    """
    return 1 - _rank_of_right(predicted, observed, _squared_euclidean)


def discrimination_cosine(observed: Matrix, predicted: Matrix) -> np.ndarray:
    """Compute the perturbation discrimination score by cosine similarity.

    An effect of 0 for all genes has cosine similarity 0 with any other. NaN for a single
    perturbation.
    """
    return 1 - _rank_of_right(_directions(predicted), _directions(observed), _angular)


def _directions(effects: Matrix) -> Matrix:
    lengths = np.linalg.norm(effects, axis=1, keepdims=True)
    return np.divide(effects, lengths, out=np.zeros_like(effects), where=lengths > 0)


def _angular(first: Matrix, second: Matrix) -> Matrix:
    """Compute 1 minus the cosine similarity of directions."""
    return 1 - first @ second.T


def _squared_euclidean(first: Matrix, second: Matrix) -> Matrix:
    lengths = np.sum(first**2, axis=1)[:, None] + np.sum(second**2, axis=1)
    return lengths - 2 * (first @ second.T)


def _city_block(first: Matrix, second: Matrix) -> Matrix:
    if len(first) * second.size < FEWEST_COMPILED:
        return cdist(first, second, "cityblock")
    distance = np.zeros((len(first), len(second)))
    _compiled_city_block()(np.ascontiguousarray(first), np.ascontiguousarray(second), distance)
    return distance


@cache
def _compiled_city_block() -> Callable[[Matrix, Matrix, Matrix], None]:
    """Compile the L1 distance with vector instructions, which scipy's does not use."""
    import numba  # takes longer to import than small screens to evaluate

    compiled: Callable[[Matrix, Matrix, Matrix], None]
    compiled = numba.njit(fastmath=True, cache=True)(_add_city_block)
    return compiled


def _add_city_block(first: Matrix, second: Matrix, distance: Matrix) -> None:
    """Add L1 distances to a matrix, a few rows of the first matrix at a time."""
    for start in range(0, len(first), ROWS_IN_CACHE):
        for j in range(len(second)):
            for i in range(start, min(start + ROWS_IN_CACHE, len(first))):
                total = 0.0
                for gene in range(first.shape[1]):
                    total += abs(first[i, gene] - second[j, gene])
                distance[i, j] += total


def _rank_of_right(
    first: Matrix, second: Matrix, distance: Callable[[Matrix, Matrix], Matrix]
) -> np.ndarray:
    """Rank the row of the second matrix that belongs to each of the first, from 0 for nearest to 1.

    Ties count one half. NaN for a single row. Of more than :data:`MOST_OTHERS` rows, that many are
    drawn at random, the same for all, and a row is ranked among these.
    """
    n = len(first)
    if n < 2:
        return np.full(n, np.nan)
    drawn = np.arange(n)
    if n > MOST_OTHERS:
        drawn = np.sort(np.random.default_rng(0).choice(n, MOST_OTHERS, replace=False))
        second_drawn, right_of = second[drawn], _distance_of_right(first, second, distance)
    ranks = np.empty(n)
    step = max(LARGEST_BLOCK // len(drawn), 1)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        if n > MOST_OTHERS:
            to_all, right = distance(first[rows], second_drawn), right_of[rows, None]
        else:
            to_all = distance(first[rows], second)
            right = to_all[np.arange(len(rows)), rows][:, None]
        tied = np.abs(to_all - right) <= ABSOLUTE_TIE + RELATIVE_TIE * np.abs(right)
        nearer = (to_all < right) & ~tied
        itself = np.isin(rows, drawn)
        others = len(drawn) - itself
        ranks[rows] = (nearer.sum(axis=1) + (tied.sum(axis=1) - itself) / 2) / others
    return ranks


def _distance_of_right(
    first: Matrix, second: Matrix, distance: Callable[[Matrix, Matrix], Matrix]
) -> np.ndarray:
    """Compute the distance of each row of a matrix from the same row of another."""
    blocks = [slice(start, start + PAIRED) for start in range(0, len(first), PAIRED)]
    return np.concatenate([np.diag(distance(first[rows], second[rows])) for rows in blocks])


def correlation_with_noise_free(between_halves: float) -> float:
    """Estimate the correlation of noise-free effects with those among all held-out cells.

    If r is the correlation between halves, the reliability of all cells is 2 r / (1 + r)
    (Spearman 1910; Brown 1910), and its root the correlation with noise-free effects. NaN for
    r < 0.
    """
    if not between_halves >= 0:
        return math.nan
    return math.sqrt(2 * between_halves / (1 + between_halves))


def error_of_noise_free(between_halves: float) -> float:
    """Estimate the error (RMSE or MAE) of noise-free effects: half of that between halves."""
    return between_halves / 2


MASK_THRESHOLD = 0.5

Matching = tuple[np.ndarray, np.ndarray]


def match_factors(true_mask: np.ndarray, mask: np.ndarray) -> Matching:
    """Match true factors with latent dimensions one to one, by true positives.

    Parameters
    ----------
    true_mask
        Targets x factors, 0 or 1.
    mask
        Targets x latent dimensions, 0 or 1.

    Returns
    -------
    factor, dimension : ndarray
        Matched pairs, the smaller of the two numbers of them.
    """
    return linear_sum_assignment(-(true_mask.T @ mask))


def match_factors_by_effects(true_effects: np.ndarray, effects: np.ndarray) -> Matching:
    """Match true factors with latent dimensions one to one, by the correlation of their effects.

    Parameters
    ----------
    true_effects
        Targets x factors.
    effects
        Targets x latent dimensions, posterior means.

    Returns
    -------
    factor, dimension : ndarray
        Matched pairs of the largest total absolute correlation over targets.
    """
    return linear_sum_assignment(-np.abs(effect_correlations(true_effects, effects)))


def effect_correlations(true_effects: np.ndarray, effects: np.ndarray) -> np.ndarray:
    """Correlate effects over targets, factors x latent dimensions; 0 for a constant effect."""
    return _standardised(true_effects).T @ _standardised(effects)


def _standardised(columns: np.ndarray) -> np.ndarray:
    centred = columns - columns.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    return centred / np.where(norm > 0, norm, 1.0)


def mask_scores(true_mask: np.ndarray, mask: np.ndarray, matching: Matching) -> dict[str, float]:
    """Compute precision, recall and F1 of an inferred mask.

    All latent dimensions are included: one without a matched factor adds false positives.

    Parameters
    ----------
    true_mask
        Targets x factors, 0 or 1.
    mask
        Targets x latent dimensions, 0 or 1.
    matching
        Pairs of factor and dimension.

    Returns
    -------
    dict of float
        precision (NaN for an empty mask), recall and f1.
    """
    factor, dimension = matching
    hits = float(np.sum(true_mask[:, factor] * mask[:, dimension]))
    return {
        "precision": hits / mask.sum() if mask.sum() else float("nan"),
        "recall": hits / true_mask.sum(),
        "f1": 2 * hits / (mask.sum() + true_mask.sum()),
    }


def latent_effect_scores(true_effects: np.ndarray, effects: np.ndarray) -> dict[str, float]:
    """Score latent effects after matching dimensions and signs by correlation with the truth.

    Parameters
    ----------
    true_effects
        Targets x factors, in standard deviations of the basal state.
    effects
        Targets x latent dimensions, posterior means, on the same scale.

    Returns
    -------
    dict of float
        mean_correlation, the mean absolute correlation over factors, 0 for a factor without a
        dimension; effect_r_squared, over all entries, without rescaling, since the standard normal
        basal state fixes the scale.
    """
    factor, dimension = match_factors_by_effects(true_effects, effects)
    correlation = effect_correlations(true_effects, effects)[factor, dimension]
    matched = np.zeros_like(true_effects)
    matched[:, factor] = effects[:, dimension] * np.sign(correlation)
    return {
        "mean_correlation": float(np.abs(correlation).sum()) / true_effects.shape[1],
        "effect_r_squared": float(r_squared(true_effects.ravel(), matched.ravel())),
    }


def with_means(recovery: pd.DataFrame) -> pd.DataFrame:
    """Average the recovery of true factors over runs, and over factors.

    Parameters
    ----------
    recovery
        The table recovery.tsv: split, model, seed, measure, state, factor and value; without a
        state where the measure is of masks.

    Returns
    -------
    DataFrame
        With factor_mean, over the runs of a model on a split, and state_mean, the mean of these
        over factors; NaN for measures of masks.
    """
    kind = ["split", "model", "measure", "state"]
    recovery = recovery.astype({"value": float})
    of_factor = recovery.groupby([*kind, "factor"])["value"].transform("mean")
    table = recovery.assign(factor_mean=of_factor)
    once = table.drop_duplicates([*kind, "factor"]).dropna(subset="factor_mean")
    state_mean = once.groupby(kind)["factor_mean"].mean().rename("state_mean")
    return table.join(state_mean, on=kind)
