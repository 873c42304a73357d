"""The decoder's term of all cells and its derivatives, in two kernels for CUDA devices.

What takes PyTorch some twenty passes over particles x cells x genes takes three here: one sums over
the genes of each row (a particle of a cell), one differentiates tile by tile, which reads what it
then overwrites. Nothing of that size is stored but the logits, whose place their derivatives take.

Kernels have no type hints, which Triton would take for constants.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

GENES_AT_ONCE = 1024  # of a row
TILE_GENES, TILE_ROWS = 128, 8
CHUNKS = 32  # of rows; a fixed number, so that sums do not depend on the device

LOWEST = tl.constexpr(-1e30)
# ln 2 as a sum, the first part of so few bits that its product with an exponent is exact
LN_2, REST_OF_LN_2 = tl.constexpr(0.693359375), tl.constexpr(-2.12194440e-4)
BITS_OF_ROOT_HALF = tl.constexpr(0x3F3504F3)


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
    """Compute what :func:`samsvae.kernels.gamma_poisson._score` does, for float32 on CUDA."""
    cells, genes = x.shape
    rows = logits.numel() // genes
    inputs = [each.contiguous() for each in (logits, x, library_size, c, bias)]
    term, by_row = _sums(inputs, smallest_mean)
    sums = logits.new_empty(2, CHUNKS, genes)
    grid = triton.cdiv(genes, TILE_GENES), CHUNKS
    _differentiate[grid](
        *inputs,
        cell_weight.contiguous(),
        *by_row,
        *sums,
        rows,
        cells,
        genes,
        triton.cdiv(triton.cdiv(rows, CHUNKS), TILE_ROWS),
        smallest_mean,
        TILE_ROWS,
        TILE_GENES,
    )
    by_c += sums[0].sum(0)
    by_bias += sums[1].sum(0)
    return term


def value(
    x: Tensor, library_size: Tensor, c: Tensor, bias: Tensor, logits: Tensor, smallest_mean: float
) -> Tensor:
    """Compute what :func:`samsvae.kernels.gamma_poisson._value_of_logits` does, likewise."""
    inputs = (logits, x, library_size, c, bias)
    return _sums([each.detach().contiguous() for each in inputs], smallest_mean)[0]


def _sums(inputs: Sequence[Tensor], smallest_mean: float) -> tuple[Tensor, Tensor]:
    """Sum over genes.

    Parameters
    ----------
    inputs
        Logits, particles x cells x genes; counts; library sizes; inverse dispersions; bias.
    smallest_mean
        What is added to each mean.

    Returns
    -------
    term : Tensor
        Nats, particles x cells.
    by_row : Tensor
        Two numbers of each row: the log of the sum of the logits' exponentials, and the sum of the
        derivatives by the logs of the proportions.
    """
    logits, x, *_ = inputs
    term = logits.new_empty(logits.shape[:-1])
    by_row = logits.new_empty(2, term.numel())
    _sum_row[(term.numel(),)](*inputs, term, *by_row, *x.shape, smallest_mean, GENES_AT_ONCE)
    return term, by_row


@triton.jit
def _log_1p(y):
    """log(1 + y): k ln 2 + 2 artanh(t / (2 + t)), 1 + t near 1; accurate however small y is."""
    bits = (1.0 + y).to(tl.int32, bitcast=True)
    k = (bits - BITS_OF_ROOT_HALF) >> 23
    scale = ((127 - k) << 23).to(tl.float32, bitcast=True)
    t = y * scale + (scale - 1.0)
    ratio = t / (2.0 + t)
    square = ratio * ratio
    series = (((2.0 / 9.0) * square + 2.0 / 7.0) * square + 2.0 / 5.0) * square + 2.0 / 3.0
    exponent = k.to(tl.float32)
    return exponent * LN_2 + (2.0 * ratio + (ratio * square * series + exponent * REST_OF_LN_2))


@triton.jit
def _of_gene(logit, log_total, size, x, c, smallest_mean):
    """Proportion, mean, log(1 + mean / c), derivative by the mean, and by the log proportion."""
    proportion = tl.exp(logit - log_total)
    mean = size * proportion + smallest_mean
    log_ratio = _log_1p(mean / c)
    scaled = (x - mean) / ((mean + c) * mean)  # and times c, the derivative by the mean
    return proportion, mean, log_ratio, scaled, scaled * proportion * c


@triton.jit
def _sum_row(
    logits,
    x,
    library_size,
    c,
    bias,
    term,
    log_total,
    by_log_total,
    cells,
    genes,
    smallest_mean,
    AT_ONCE: tl.constexpr,
):
    row = tl.program_id(0)
    cell = row % cells
    logits += row.to(tl.int64) * genes
    x += cell.to(tl.int64) * genes
    lane = tl.arange(0, AT_ONCE)
    largest = tl.full([AT_ONCE], LOWEST, tl.float32)
    total = tl.zeros([AT_ONCE], tl.float32)
    for start in range(0, genes, AT_ONCE):
        gene = start + lane
        inside = gene < genes
        logit = tl.load(logits + gene, inside, LOWEST) + tl.load(bias + gene, inside, 0.0)
        larger = tl.maximum(largest, logit)
        total = total * tl.exp(largest - larger) + tl.exp(logit - larger)
        largest = larger
    of_row = tl.max(largest, 0)
    log_sum = of_row + tl.log(tl.sum(total * tl.exp(largest - of_row), 0))
    size = tl.load(library_size + cell)
    terms = tl.zeros([AT_ONCE], tl.float32)
    by_logs = tl.zeros([AT_ONCE], tl.float32)
    for start in range(0, genes, AT_ONCE):
        gene = start + lane
        inside = gene < genes
        logit = tl.load(logits + gene, inside, LOWEST) + tl.load(bias + gene, inside, 0.0)
        count = tl.load(x + gene, inside, 0.0)
        shape = tl.load(c + gene, inside, 1.0)
        _, mean, log_ratio, _, by_log = _of_gene(logit, log_sum, size, count, shape, smallest_mean)
        terms += tl.where(inside, count * (tl.log(mean) - log_ratio) - shape * log_ratio, 0.0)
        by_logs += by_log  # 0 outside, as the proportion is
    tl.store(term + row, tl.sum(terms, 0))
    tl.store(log_total + row, log_sum)
    tl.store(by_log_total + row, tl.sum(by_logs, 0))


@triton.jit
def _differentiate(
    logits,
    x,
    library_size,
    c,
    bias,
    cell_weight,
    log_total,
    by_log_total,
    by_c,
    by_bias,
    rows,
    cells,
    genes,
    tiles,
    smallest_mean,
    ROWS: tl.constexpr,
    GENES: tl.constexpr,
):
    gene = tl.program_id(0) * GENES + tl.arange(0, GENES)
    inside = gene < genes
    chunk = tl.program_id(1)
    offset = tl.load(bias + gene, inside, 0.0)[None, :]
    shape = tl.load(c + gene, inside, 1.0)[None, :]
    sum_by_c = tl.zeros([ROWS, GENES], tl.float32)
    sum_by_bias = tl.zeros([ROWS, GENES], tl.float32)
    for tile in range(tiles):
        row = (chunk * tiles + tile) * ROWS + tl.arange(0, ROWS)
        there = row < rows
        cell = row % cells
        both = there[:, None] & inside[None, :]
        place = logits + row.to(tl.int64)[:, None] * genes + gene[None, :]
        logit = tl.load(place, both, LOWEST) + offset
        count = tl.load(x + cell.to(tl.int64)[:, None] * genes + gene[None, :], both, 0.0)
        size = tl.load(library_size + cell, there, 0.0)[:, None]
        weight = tl.load(cell_weight + row, there, 0.0)[:, None]
        log_sum = tl.load(log_total + row, there, 0.0)[:, None]
        by_logs = tl.load(by_log_total + row, there, 0.0)[:, None]
        proportion, mean, log_ratio, scaled, by_log = _of_gene(
            logit, log_sum, size, count, shape, smallest_mean
        )
        by_logit = weight * size * (by_log - proportion * by_logs)
        tl.store(place, by_logit, both)
        sum_by_c += weight * (count / shape - log_ratio - scaled * mean)
        sum_by_bias += by_logit
    sums = chunk * genes + gene
    tl.store(by_c + sums, tl.sum(sum_by_c, 0), inside)
    tl.store(by_bias + sums, tl.sum(sum_by_bias, 0), inside)
