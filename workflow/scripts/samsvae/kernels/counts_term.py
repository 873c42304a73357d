"""The part of a negative binomial's log-mass that knows of counts and dispersions alone.

With c the inverse dispersion of a gene, a count x has

    lgamma(x + c) - lgamma(c) - x log c - lgamma(x + 1) = sum_{j < x} log(1 + j / c) - lgamma(x + 1)

which is no difference of large numbers, however large c. On a CPU it is looked up in a table of
genes by small counts.
"""

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from samsvae.kernels.numba_threads import use_as_many_threads

LARGEST_TABULATED = 63  # few counts of a cell are larger
LARGE_SHAPE = 16.0  # from here Stirling's series is exact to rounding
GROUPS = 8  # of genes; a fixed number, so that sums do not depend on the number of threads


def counts_term(counts: Tensor, c: Tensor, cell_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the term over genes, and differentiate the weighted sum over cells.

    Parameters
    ----------
    counts
        x, B x G.
    c
        Inverse dispersions, length G.
    cell_weight
        Length B.

    Returns
    -------
    term : Tensor
        Nats, length B.
    by_c : Tensor
        Derivative of the sum of the cells' terms at their weights, length G.
    """
    if counts.device.type == "cpu":
        return _tabulated(counts, c, cell_weight)
    term = (_log_rising(counts, c) - torch.lgamma(counts + 1)).sum(-1)
    return term, cell_weight @ _slope(counts, c)


def _tabulated(counts: Tensor, c: Tensor, cell_weight: Tensor) -> tuple[Tensor, Tensor]:
    largest = int(counts.max()) if counts.numel() else 0
    small = torch.arange(min(largest, LARGEST_TABULATED) + 1, dtype=c.dtype)[:, None]
    start = torch.zeros_like(c)[None]
    rising = torch.cat([start, torch.log1p(small[:-1] / c).cumsum(0)]) - torch.lgamma(small + 1)
    slope = torch.cat([start, (-small[:-1] / (c * (c + small[:-1]))).cumsum(0)])
    by_group, weight = counts.new_zeros(GROUPS, len(counts)), torch.zeros_like(rising)
    given = (counts, rising, cell_weight, by_group, weight)
    use_as_many_threads()
    _look_up(*(each.numpy() for each in given))
    term, by_c = by_group.sum(0), (weight * slope).sum(0)
    if largest > LARGEST_TABULATED:
        cell, gene = (counts > LARGEST_TABULATED).nonzero(as_tuple=True)
        x, shape = counts[cell, gene], c[gene]
        exact = _log_rising(x, shape) - torch.lgamma(x + 1)
        term.index_add_(0, cell, exact - rising[LARGEST_TABULATED, gene])
        excess = _slope(x, shape) - slope[LARGEST_TABULATED, gene]
        by_c.index_add_(0, gene, cell_weight[cell] * excess)
    return term, by_c


def _log_rising(x: Tensor, c: Tensor) -> Tensor:
    """sum_{j < x} log(1 + j / c) = lgamma(x + c) - lgamma(c) - x log c."""
    direct = torch.lgamma(x + c) - torch.lgamma(c) - x * torch.log(c)
    large = c.clamp(min=LARGE_SHAPE)
    series = (x + large - 0.5) * torch.log1p(x / large) - x - x / (12 * large * (x + large))
    return torch.where(c > LARGE_SHAPE, series, direct)


def _slope(x: Tensor, c: Tensor) -> Tensor:
    """Differentiate :func:`_log_rising` by c."""
    direct = torch.digamma(x + c) - torch.digamma(c) - x / c
    large = c.clamp(min=LARGE_SHAPE)
    product = large * (x + large)
    series = torch.log1p(x / large) - (x + large - 0.5) * x / product
    series += x * (x + 2 * large) / (12 * product**2)
    return torch.where(c > LARGE_SHAPE, series, direct)


@njit(parallel=True, cache=True)
def _look_up(counts: Any, table: Any, cell_weight: Any, term: Any, weight: Any) -> None:
    """Sum table entries over genes, and cells' weights over entries; too large counts as largest.

    `term` is groups of genes x cells; `weight` is of the table's shape, counts x genes.
    """
    groups, (last, genes) = len(term), table.shape
    for group in prange(groups):
        for cell in range(len(counts)):
            for gene in range(group * genes // groups, (group + 1) * genes // groups):
                x = min(np.int32(counts[cell, gene]), last - 1)
                term[group, cell] += table[x, gene]
                weight[x, gene] += cell_weight[cell]
