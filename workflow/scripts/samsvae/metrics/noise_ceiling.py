"""What noise-free effects would score against held-out cells, which are noisy.

Half of the held-out cells, h1, predict the other half, h2; a model is judged by all of them. Let
the noise of the mean of all held-out cells have variance v: that of either half has 2 v, and the
difference of the halves 4 v. Control cells are halved with the others, so that this holds of
effects, which are differences of means.
"""

import math


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
