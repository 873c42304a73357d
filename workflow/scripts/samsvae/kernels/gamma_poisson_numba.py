"""The decoder's term of a block of cells and its derivatives, compiled for the CPU.

What takes PyTorch some twenty passes over cells x genes is done here cell by cell, while a cell's
genes lie in the fastest cache. Exponential and logarithm are spelt out so that the compiler can
take several genes at once; they are accurate to within 2e-7 of the result.
"""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from samsvae.kernels.numba_threads import use_as_many_threads

# ln 2 as a sum, the first part of so few bits that its product with an exponent is exact
LN_2 = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
PER_LN_2 = np.float32(1 / math.log(2))
SMALLEST_ARGUMENT = np.float32(-87)  # of the exponential: below, results are not normal numbers
MANTISSA_BITS, EXPONENT_OF_ONE = np.int32(23), np.int32(127)
LANES = 32  # maxima of every 32nd gene, since the compiler does not take several by itself
BITS_OF_ROOT_HALF = np.float32(math.sqrt(0.5)).view(np.int32)
GROUPS = 8  # of cells; a fixed number, so that sums do not depend on the number of threads
ZERO, HALF, ONE, TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
# coefficients of t^7 to 1, and of the powers r^9 to r^3 of 2 artanh r
EXP_SERIES = tuple(np.float32(1 / math.factorial(power)) for power in range(7, -1, -1))
LOG_SERIES = tuple(np.float32(2 / power) for power in (9, 7, 5, 3))

# Inlined, since code from the cache would otherwise be optimised in another way than code compiled
# anew, and results differ in their last digits.
inlined = partial(njit, error_model="numpy", forceinline=True)
function = inlined(fastmath={"contract"})  # a product and a sum may be rounded once
over_genes = inlined(fastmath={"contract", "reassoc", "nsz"})  # and sums taken in any order


def score(
    x: Tensor,
    library_size: Tensor,
    c: Tensor,
    bias: Tensor,
    cell_weight: Tensor,
    logits: Tensor,
    by_c: Tensor,
    by_bias: Tensor,
    smallest_mean: float,
) -> Tensor:
    """Compute what :func:`samsvae.kernels.gamma_poisson._score` does, for float32 on a CPU."""
    term = torch.empty(logits.shape[:-1])
    inputs = (x, library_size, c, 1 / c, bias, cell_weight)
    arrays = [each.contiguous().numpy() for each in (*inputs, logits, term, by_c, by_bias)]
    use_as_many_threads()
    _score(np.float32(smallest_mean), *arrays)
    return term


def value(
    x: Tensor, library_size: Tensor, c: Tensor, bias: Tensor, logits: Tensor, smallest_mean: float
) -> Tensor:
    """Compute what :func:`samsvae.kernels.gamma_poisson._value_of_logits` does, likewise."""
    term = torch.empty(logits.shape[:-1])
    inputs = (x, library_size, c, 1 / c, bias, logits, term)
    arrays = [each.detach().contiguous().numpy() for each in inputs]
    use_as_many_threads()
    _value(np.float32(smallest_mean), *arrays)
    return term


@function
def _exp(x: Any) -> Any:
    """e^x for x <= 0: 2^k e^t with |t| <= ln 2 / 2."""
    x = max(x, SMALLEST_ARGUMENT)
    k = np.floor(x * PER_LN_2 + HALF)
    t = x - k * LN_2[0] - k * LN_2[1]
    series = ZERO
    for coefficient in EXP_SERIES:
        series = series * t + coefficient
    power = np.int32((np.int32(k) + EXPONENT_OF_ONE) << MANTISSA_BITS)
    return series * power.view(np.float32)


@function
def _log_of_sum(start: Any, y: Any) -> Any:
    """log(start + y), start being 0 or 1: k ln 2 + 2 artanh(t / (2 + t)), 1 + t near 1."""
    bits = np.float32(start + y).view(np.int32)
    k = np.int32(np.int32(bits - BITS_OF_ROOT_HALF) >> MANTISSA_BITS)
    scale = np.int32((EXPONENT_OF_ONE - k) << MANTISSA_BITS).view(np.float32)
    t = y * scale + (start * scale - ONE)
    ratio = t / (TWO + t)
    square = ratio * ratio
    series = ZERO
    for coefficient in LOG_SERIES:
        series = series * square + coefficient
    exponent = np.float32(k)
    return exponent * LN_2[0] + (TWO * ratio + (ratio * square * series + exponent * LN_2[1]))


@njit(parallel=True, cache=True)
def _score(
    smallest_mean: Any,
    x: Any,
    library_size: Any,
    c: Any,
    dispersion: Any,
    bias: Any,
    cell_weight: Any,
    logits: Any,
    term: Any,
    by_c: Any,
    by_bias: Any,
) -> None:
    """Share particles and cells among threads, with sums of its own for each group."""
    rows = term.size
    sums = np.zeros((2, GROUPS, len(c)), np.float32)
    for group in prange(GROUPS):
        _score_rows(
            (group * rows // GROUPS, (group + 1) * rows // GROUPS),
            smallest_mean,
            x,
            library_size,
            c,
            dispersion,
            bias,
            cell_weight,
            logits,
            term,
            sums[0, group],
            sums[1, group],
        )
    for group in range(GROUPS):
        by_c += sums[0, group]
        by_bias += sums[1, group]


@over_genes
def _score_rows(
    rows: Any,
    smallest_mean: Any,
    x: Any,
    library_size: Any,
    c: Any,
    dispersion: Any,
    bias: Any,
    cell_weight: Any,
    logits: Any,
    term: Any,
    by_c: Any,
    by_bias: Any,
) -> None:
    """Go through particles and cells."""
    proportion = np.empty_like(c)
    for index in range(*rows):
        particle, cell = divmod(index, term.shape[1])
        row, size, weight = logits[particle, cell], library_size[cell], cell_weight[particle, cell]
        row += bias
        largest, total = _largest(row), ZERO
        for gene in range(len(c)):
            proportion[gene] = _exp(row[gene] - largest)
            total += proportion[gene]
        term[particle, cell], by_log_total = _score_cell(
            smallest_mean, x[cell], size, c, dispersion, weight, ONE / total, proportion, row, by_c
        )
        for gene in range(len(c)):
            row[gene] = weight * size * (row[gene] - proportion[gene] * by_log_total)
            by_bias[gene] += row[gene]


@function
def _largest(row: Any) -> Any:
    """Find the largest entry that is a number."""
    maxima = np.empty(LANES, np.float32)
    maxima[:] = row[0]
    aligned = len(row) - len(row) % LANES
    for start in range(0, aligned, LANES):
        part = row[start : start + LANES]
        for lane in range(LANES):
            maxima[lane] = part[lane] if part[lane] > maxima[lane] else maxima[lane]
    largest = np.max(maxima)
    for gene in range(aligned, len(row)):
        largest = max(largest, row[gene])
    return largest


@over_genes
def _score_cell(
    smallest_mean: Any,
    x: Any,
    size: Any,
    c: Any,
    dispersion: Any,
    weight: Any,
    norm: Any,
    proportion: Any,
    by_log: Any,
    by_c: Any,
) -> Any:
    """Sum a cell's term; set its derivative by the log of the proportion, up to the size."""
    term, by_log_total = ZERO, ZERO
    for gene in range(len(c)):
        proportion[gene] *= norm
        mean = size * proportion[gene] + smallest_mean
        log_ratio = _log_of_sum(ONE, mean * dispersion[gene])
        term += x[gene] * (_log_of_sum(ZERO, mean) - log_ratio) - c[gene] * log_ratio
        scaled = (x[gene] - mean) / ((mean + c[gene]) * mean)
        by_c[gene] += weight * (x[gene] * dispersion[gene] - log_ratio - scaled * mean)
        by_log[gene] = scaled * proportion[gene] * c[gene]
        by_log_total += by_log[gene]
    return term, by_log_total


@njit(parallel=True, cache=True)
def _value(
    smallest_mean: Any,
    x: Any,
    library_size: Any,
    c: Any,
    dispersion: Any,
    bias: Any,
    logits: Any,
    term: Any,
) -> None:
    """Share particles and cells among threads."""
    rows = term.size
    for group in prange(GROUPS):
        for index in range(group * rows // GROUPS, (group + 1) * rows // GROUPS):
            particle, cell = divmod(index, term.shape[1])
            row = logits[particle, cell]
            scale = library_size[cell] / _exponentials(row, bias)
            term[particle, cell] = _value_of_cell(smallest_mean, x[cell], scale, c, dispersion, row)


@over_genes
def _exponentials(row: Any, bias: Any) -> Any:
    """Turn logits without their bias into the exponentials of a softmax, and sum them."""
    row += bias
    largest, total = _largest(row), ZERO
    for gene in range(len(row)):
        row[gene] = _exp(row[gene] - largest)
        total += row[gene]
    return total


@over_genes
def _value_of_cell(
    smallest_mean: Any, x: Any, scale: Any, c: Any, dispersion: Any, exponentials: Any
) -> Any:
    """Sum a cell's term, means being scaled exponentials."""
    term = ZERO
    for gene in range(len(c)):
        mean = scale * exponentials[gene] + smallest_mean
        log_ratio = _log_of_sum(ONE, mean * dispersion[gene])
        term += x[gene] * (_log_of_sum(ZERO, mean) - log_ratio) - c[gene] * log_ratio
    return term
