"""Which guides a cell has, from the UMI counts of guides: a threshold, or a mixture per guide.

Most guides of a cell's counts are ambient: a few molecules of every common guide are in most
droplets. Each guide is called present in the cells that have at least so many of its UMIs. The
number is given, or it is where a mixture of two components, background and carriers, says that a
cell is more probably a carrier:

- ``poisson_gaussian``: a Poisson and a Gaussian component on log2 of the counts above 0
  (Replogle et al. 2020, Nature Biotechnology 38:954);
- ``poisson``: two Poisson components on the counts of all cells (Barry et al. 2024, Genome Biology
  25:124, without their covariates).
"""

import logging
from dataclasses import dataclass

import numpy as np
from scipy import sparse, special

from samsvae.errors import InputError

FEWEST_CELLS = 10  # with a count of a guide, below which no mixture is fitted to it
STEPS = 500
TOLERANCE = 1e-8
SMALLEST = 1e-6

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calls:
    """Which cell has which guide.

    Attributes
    ----------
    present
        Cells x guides, 1 where the guide is called.
    thresholds
        UMIs from which on each guide is called; NaN for one that is never called.
    """

    present: sparse.csr_matrix
    thresholds: np.ndarray


def call_guides(
    counts: sparse.csr_matrix, threshold: int | None, mixture: str | None, where: str
) -> Calls:
    """Call guides present or absent.

    Parameters
    ----------
    counts
        UMI counts, cells x guides.
    threshold
        UMIs from which on a guide is called.
    mixture
        Without a threshold, the mixture that chooses one for each guide.
    where
        File and place, for messages.

    Returns
    -------
    Calls
        Fewer entries than the counts have.

    Raises
    ------
    InputError
        If the values are no counts, or no guide has cells enough for a mixture.
    """
    values = counts.data
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.floor(values)).any():
        raise InputError(
            f"{where}: the values are no UMI counts of guides, since some are no integers. "
            "'threshold' and 'mixture' need raw counts."
        )
    if threshold is not None:
        thresholds = np.full(counts.shape[1], float(threshold))
    else:
        thresholds = mixture_thresholds(counts.tocsc(), str(mixture), where)
    entries = counts.tocoo()
    kept = entries.data >= thresholds[entries.col]  # NaN compares false
    present = sparse.csr_matrix(
        (np.ones(int(kept.sum()), np.float32), (entries.row[kept], entries.col[kept])),
        shape=counts.shape,
    )
    return Calls(present, thresholds)


def mixture_thresholds(counts: sparse.csc_matrix, mixture: str, where: str) -> np.ndarray:
    """Choose the threshold of each guide by a mixture.

    A guide with few cells gets the median threshold of the others.

    Parameters
    ----------
    counts
        UMI counts, cells x guides.
    mixture
        ``poisson_gaussian`` or ``poisson``.
    where
        File and place, for messages.

    Raises
    ------
    InputError
        If no guide has cells enough.
    """
    fit = {"poisson_gaussian": poisson_gaussian_threshold, "poisson": poisson_threshold}[mixture]
    thresholds = np.full(counts.shape[1], np.nan)
    few = []
    for guide in range(counts.shape[1]):
        positive = counts.data[counts.indptr[guide] : counts.indptr[guide + 1]]
        positive = positive[positive > 0]
        found = fit(positive, counts.shape[0]) if len(positive) >= FEWEST_CELLS else None
        if found is None:
            few.append(guide)
        else:
            thresholds[guide] = found
    if len(few) == counts.shape[1]:
        raise InputError(
            f"{where}: no guide has cells enough ({FEWEST_CELLS}) with two levels of counts for a "
            "mixture. Set 'threshold', for instance to 5."
        )
    if few:
        thresholds[few] = np.nanmedian(thresholds)
        logger.info(
            "%s: %d of %d guides have too few cells for a mixture, and get the median threshold "
            "of the others, %g UMIs",
            where, len(few), counts.shape[1], np.nanmedian(thresholds),
        )  # fmt: skip
    return thresholds


def poisson_threshold(positive: np.ndarray, n_cells: int) -> float | None:
    """Fit two Poisson components by expectation-maximisation.

    Parameters
    ----------
    positive
        Counts above 0 of a guide.
    n_cells
        Cells, those without a count among them.

    Returns
    -------
    float or None
        The smallest count at which a cell is more probably of the component with the larger mean;
        None if there is one component alone.
    """
    values, cells = np.unique(positive, return_counts=True)
    if values[0] > 0:
        values = np.concatenate([[0.0], values])
        cells = np.concatenate([[n_cells - len(positive)], cells])
    mean = float(values @ cells / cells.sum())
    low, high, share = SMALLEST + mean / 10, float(values[-1]), 0.05
    for _ in range(STEPS):
        of_high = special.expit(_poisson_odds(values, low, high, share))
        weight, rest = cells * of_high, cells * (1 - of_high)
        if weight.sum() < SMALLEST or rest.sum() < SMALLEST:
            return None
        new_high = float(weight @ values / weight.sum())
        new_low = max(float(rest @ values / rest.sum()), SMALLEST)
        moved = abs(new_high - high) + abs(new_low - low)
        low, high, share = new_low, new_high, float(weight.sum() / cells.sum())
        if moved < TOLERANCE * high:
            break
    if high < 2 * low or not 0 < share < 1:
        return None
    # the odds rise with the count, and are even where they are 0
    even = (np.log1p(-share) - np.log(share) + high - low) / np.log(high / low)
    return float(max(np.floor(even) + 1, 1))


def _poisson_odds(values: np.ndarray, low: float, high: float, share: float) -> np.ndarray:
    return np.log(share) - np.log1p(-share) + values * np.log(high / low) - (high - low)


def poisson_gaussian_threshold(positive: np.ndarray, n_cells: int) -> float | None:
    """Fit a Poisson and a Gaussian component to log2 counts by expectation-maximisation.

    Parameters
    ----------
    positive
        Counts above 0 of a guide.
    n_cells
        Not used: cells without a count are background.

    Returns
    -------
    float or None
        The smallest count above the background's mean from which on a cell is more probably of the
        Gaussian component; None if there is one component alone.
    """
    counts, cells = np.unique(positive, return_counts=True)
    if len(counts) < 3:
        return None
    values = np.log2(counts)
    n = cells.sum()
    middle = values[-1] / 2
    rate = max(float(np.average(values, weights=cells * (values <= middle) + SMALLEST)), SMALLEST)
    mean = float(np.average(values, weights=cells * (values > middle) + SMALLEST))
    spread, share = 1.0, 0.5
    for _ in range(STEPS):
        odds = _gaussian_odds(values, rate, mean, spread, share)
        of_high = special.expit(odds)
        weight, rest = cells * of_high, cells * (1 - of_high)
        if weight.sum() < 1 or rest.sum() < SMALLEST:
            return None
        before = (rate, mean, spread, share)
        mean = float(weight @ values / weight.sum())
        spread = max(float(np.sqrt(weight @ (values - mean) ** 2 / weight.sum())), 0.1)
        rate = max(float(rest @ values / rest.sum()), SMALLEST)
        share = float(weight.sum() / n)
        if max(abs(a - b) for a, b in zip(before, (rate, mean, spread, share), strict=True)) < (
            TOLERANCE
        ):
            break
    if mean <= rate:
        return None
    # a wide Gaussian reaches below the background as well: the threshold is where it takes over
    every = np.arange(1.0, counts[-1] + 1) if counts[-1] < 1e6 else counts
    is_high = _gaussian_odds(np.log2(every), rate, mean, spread, share) > 0
    is_high &= np.log2(every) > rate
    is_high[np.log2(every) >= mean] = True
    background = np.flatnonzero(~is_high)
    return float(every[background[-1] + 1]) if len(background) else float(every[0])


def _gaussian_odds(
    values: np.ndarray, rate: float, mean: float, spread: float, share: float
) -> np.ndarray:
    gaussian = -0.5 * ((values - mean) / spread) ** 2 - np.log(spread * np.sqrt(2 * np.pi))
    poisson = values * np.log(rate) - rate - special.gammaln(values + 1)
    log_share = np.log(min(max(share, SMALLEST), 1 - SMALLEST))
    log_rest = np.log1p(-min(max(share, SMALLEST), 1 - SMALLEST))
    return np.asarray(log_share - log_rest + gaussian - poisson)
