"""Gamma-Poisson log-probability on a CPU, in float32, compiled by Numba.

With c the concentration of a gene and m its mean, the log-probability of a count x is

    [lgamma(x + c) - lgamma(c) - x log c - lgamma(x + 1)]  +  [x log m - (x + c) log(1 + m / c)].

The first bracket, the counts' term, depends on counts and c alone and is computed once for all
particles. Written as

    sum_{j < x} log(1 + j / c) - lgamma(x + 1)

it has no cancellation for large c, and is cached in a table of small counts by genes. The second
bracket, the decoder's term, is computed in blocks of cells. PyTorch needs some twenty passes over
cells x genes for it; here it is computed cell by cell, while a cell's genes are in the fastest
cache, and no tensor of particles x cells x genes is stored. Exponential and logarithm are written
out so that the compiler can vectorise them over genes; their relative error is below 2e-7.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from samsvae.kernels import SMALLEST_MEAN, match_numba_threads
from samsvae.kernels.linear import multiply

ROWS_AT_A_TIME = 512  # so that intermediate results stay in the cache
LARGEST_TABULATED = 63  # larger counts are rare
LARGE_CONCENTRATION = 16.0  # from here Stirling's series is exact to rounding

# ln 2 as a sum, the first part of so few bits that its product with an exponent is exact
LN_2 = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
PER_LN_2 = np.float32(1 / math.log(2))
SMALLEST_ARGUMENT = np.float32(-87)  # of the exponential: below, results are not normal numbers
MANTISSA_BITS, EXPONENT_OF_ONE = np.int32(23), np.int32(127)
LANES = 32  # maxima of every 32nd gene, since the compiler does not vectorise a maximum
BITS_OF_ROOT_HALF = np.float32(math.sqrt(0.5)).view(np.int32)
GROUPS = 8  # of cells or genes; fixed, so that sums do not depend on the number of threads
# floats between arrays that a loop writes and reads: the compiled loop is vectorised only if they
# start far apart, and else adds in another order
APART = 128
ZERO, HALF, ONE, TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
# coefficients of t^7 to 1, and of the powers r^9 to r^3 of 2 artanh r
EXP_SERIES = tuple(np.float32(1 / math.factorial(power)) for power in range(7, -1, -1))
LOG_SERIES = tuple(np.float32(2 / power) for power in (9, 7, 5, 3))

# Inlined, since cached code would otherwise be optimised differently from newly compiled code, and
# results would differ in their last digits.
inlined = partial(njit, error_model="numpy", forceinline=True)
function = inlined(fastmath={"contract"})  # a product and a sum may be rounded once
over_genes = inlined(fastmath={"contract", "reassoc", "nsz"})  # and sums reordered


def log_prob(
    counts: Tensor,
    library_size: Tensor,
    concentration: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    genes: Tensor | None = None,
    offsets: Tensor | None = None,
    log_factors: Tensor | None = None,
) -> Tensor:
    """Compute the log-probability; see :class:`samsvae.kernels.gamma_poisson.Kernels`."""
    inputs: tuple[Tensor, ...] = (counts, library_size, concentration, hidden, weight, bias)
    inputs += _given(genes, offsets, log_factors)
    counts, library_size, c = (each.detach() for each in inputs[:3])
    match_numba_threads()
    of_replicates = zip(*(each.detach() for each in inputs), strict=True)
    value = _stack([_decoder_value(*each) for each in of_replicates])
    return value.add_(_counts_term(counts, c, torch.ones_like(library_size))[0][:, None])


@torch.library.custom_op("samsvae::gamma_poisson_cpu", mutates_args=())
def log_prob_and_gradients(
    cell_weight: Tensor,
    counts: Tensor,
    library_size: Tensor,
    concentration: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    genes: Tensor | None = None,
    offsets: Tensor | None = None,
    log_factors: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute log-probability and gradients; see :class:`samsvae.kernels.gamma_poisson.Kernels`."""
    of_cells = cell_weight, counts, library_size
    inputs: tuple[Tensor, ...] = (*of_cells, concentration, hidden, weight, bias)
    inputs += _given(genes, offsets, log_factors)
    match_numba_threads()
    of_replicates = zip(*(each.detach() for each in inputs), strict=True)
    found = [_decoder_value_and_gradients(*each) for each in of_replicates]
    value, by_c, by_hidden, by_weight, *others = map(_stack, zip(*found, strict=True))
    by_bias, by_offsets, by_log_factors = others
    term, term_by_c = _counts_term(counts.detach(), concentration.detach(), cell_weight.sum(1))
    value, by_c = value + term[:, None], by_c + term_by_c
    return value, by_c, by_hidden, by_weight, by_bias, by_offsets, by_log_factors


def _given(
    genes: Tensor | None, offsets: Tensor | None, log_factors: Tensor | None
) -> tuple[Tensor, ...]:
    if genes is None or offsets is None:
        return ()
    return genes, offsets, offsets.new_zeros(genes.shape) if log_factors is None else log_factors


def _stack(replicates: Sequence[Tensor]) -> Tensor:
    """Stack tensors; a single one is not copied."""
    return torch.stack(list(replicates)) if len(replicates) > 1 else replicates[0].unsqueeze(0)


def _decoder_value(
    counts: Tensor,
    library_size: Tensor,
    c: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    *own: Tensor,
) -> Tensor:
    """Compute the decoder's term of one replicate."""
    value = hidden.new_empty(hidden.shape[:-1])
    of_genes = _arrays((c, 1 / c, bias))
    for cells, particles in _blocks(hidden):
        logits = _logits(hidden[particles, cells], weight)
        _add_offsets(logits, cells, particles, *own)
        term = torch.empty(logits.shape[:-1])
        of_cells = _arrays((counts[cells], library_size[cells], *_of_block(cells, *own)))
        result = _arrays((logits, term))
        _decoder_term(np.float32(SMALLEST_MEAN), *of_cells, *of_genes, *result)
        value[particles, cells] = term
    return value


def _decoder_value_and_gradients(
    cell_weight: Tensor,
    counts: Tensor,
    library_size: Tensor,
    c: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    *own: Tensor,
) -> tuple[Tensor, ...]:
    """Compute the decoder's term of one replicate, and its gradients."""
    value, by_hidden = hidden.new_empty(hidden.shape[:-1]), torch.empty_like(hidden)
    by_offsets = torch.empty_like(own[1]) if own else hidden.new_empty(0)
    by_log_factors = torch.zeros_like(own[2]) if own else hidden.new_empty(0)
    by_c, by_bias = torch.zeros_like(c), torch.zeros_like(bias)
    by_weight = weight.new_zeros(weight.shape[::-1]).T  # the layout that `multiply` returns
    for cells, particles in _blocks(hidden):
        h = hidden[particles, cells]
        logits = _logits(h, weight)
        _add_offsets(logits, cells, particles, *own)
        term = torch.empty(logits.shape[:-1])
        of_cells = (counts[cells], library_size[cells], *_of_block(cells, *own))
        own_weight = cell_weight[particles, cells]
        by_log_c = logits.new_zeros(*term.shape, of_cells[2].shape[-1])
        given = (*of_cells, c, 1 / c, bias, own_weight, logits, term, by_c, by_bias, by_log_c)
        _decoder_term_and_gradients(np.float32(SMALLEST_MEAN), *_arrays(given))
        value[particles, cells] = term
        if own:
            genes = own[0][cells].expand(len(logits), -1, -1)
            by_offsets[particles, cells] = logits.gather(-1, genes)
            by_log_factors[cells] += by_log_c.sum(0)
        by_logits = logits.view(-1, len(bias))
        by_weight += multiply(by_logits.T, h.view(-1, h.shape[-1]))
        by_hidden[particles, cells] = multiply(by_logits, weight).view_as(h)
    return value, by_c, by_hidden, by_weight, by_bias, by_offsets, by_log_factors


def _of_block(cells: slice, *own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the genes with concentrations of their own, and their factors, of some cells."""
    if not own:
        return torch.empty(0, 0, dtype=torch.long), torch.empty(0, 0)
    genes, _, log_factors = own
    return genes[cells], log_factors[cells].exp()


def _add_offsets(logits: Tensor, cells: slice, particles: slice, *own: Tensor) -> None:
    """Add offsets to the logits of a block in place, given genes and offsets of all cells."""
    if own:
        genes, offsets, _ = own
        here = offsets[particles, cells]
        logits.scatter_add_(-1, genes[cells].expand_as(here), here)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Compute W h, P x B x G."""
    product = multiply(hidden.view(-1, hidden.shape[-1]), weight.T)
    return product.view(*hidden.shape[:-1], len(weight))


def _arrays(tensors: Iterable[Tensor]) -> list[np.ndarray]:
    return [tensor.contiguous().numpy() for tensor in tensors]


def _blocks(hidden: Tensor) -> Iterator[tuple[slice, slice]]:
    """Iterate over cells and particles in blocks that are contiguous in memory."""
    particles, cells, _ = hidden.shape
    cells_per_block = math.ceil(cells / math.ceil(cells / ROWS_AT_A_TIME))
    particles_per_block = max(1, ROWS_AT_A_TIME // cells)
    for cell in range(0, cells, cells_per_block):
        for particle in range(0, particles, particles_per_block):
            yield (
                slice(cell, cell + cells_per_block),
                slice(particle, particle + particles_per_block),
            )


def _counts_term(counts: Tensor, c: Tensor, cell_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the counts' term over genes, and differentiate its weighted sum over cells.

    It is computed for all replicates at once, since its operations are many and small.

    Parameters
    ----------
    counts
        x, R x B x G.
    c
        Concentrations, R x G.
    cell_weight
        R x B.

    Returns
    -------
    term : Tensor
        Nats, R x B.
    by_c : Tensor
        Gradient of the weighted sum of the cells' terms, R x G.
    """
    replicates, cells, genes = counts.shape
    largest = int(counts.max()) if counts.numel() else 0
    small = torch.arange(min(largest, LARGEST_TABULATED) + 1, dtype=c.dtype)[:, None]
    of_gene, below = c[:, None], small[:-1]
    start = torch.zeros_like(of_gene)
    rising = torch.cat([start, torch.log1p(below / of_gene).cumsum(1)], 1) - torch.lgamma(small + 1)
    slope = torch.cat([start, (-below / (of_gene * (of_gene + below))).cumsum(1)], 1)
    by_group, weight = counts.new_zeros(replicates, GROUPS, cells), torch.zeros_like(rising)
    _sum_table_entries(*_arrays((counts, rising, cell_weight, by_group, weight)))
    term, by_c = by_group.sum(1), (weight * slope).sum(1)
    if largest > LARGEST_TABULATED:
        replicate, cell, gene = (counts > LARGEST_TABULATED).nonzero(as_tuple=True)
        x, own_c = counts[replicate, cell, gene], c[replicate, gene]
        last = replicate, LARGEST_TABULATED, gene
        exact = log_rising(x, own_c) - torch.lgamma(x + 1)
        # in order whatever the number of threads, unlike index_put_
        term.view(-1).index_add_(0, replicate * cells + cell, exact - rising[last])
        excess = cell_weight[replicate, cell] * (_log_rising_slope(x, own_c) - slope[last])
        by_c.view(-1).index_add_(0, replicate * genes + gene, excess)
    return term, by_c


def log_rising(x: Tensor, c: Tensor) -> Tensor:
    """Compute sum_{j < x} log(1 + j / c) = lgamma(x + c) - lgamma(c) - x log c."""
    direct = torch.lgamma(x + c) - torch.lgamma(c) - x * torch.log(c)
    large = c.clamp(min=LARGE_CONCENTRATION)
    series = (x + large - 0.5) * torch.log1p(x / large) - x - x / (12 * large * (x + large))
    return torch.where(c > LARGE_CONCENTRATION, series, direct)


def _log_rising_slope(x: Tensor, c: Tensor) -> Tensor:
    """Differentiate :func:`log_rising` by c."""
    direct = torch.digamma(x + c) - torch.digamma(c) - x / c
    large = c.clamp(min=LARGE_CONCENTRATION)
    product = large * (x + large)
    series = torch.log1p(x / large) - (x + large - 0.5) * x / product
    series += x * (x + 2 * large) / (12 * product**2)
    return torch.where(c > LARGE_CONCENTRATION, series, direct)


@njit(parallel=True, cache=True)
def _sum_table_entries(counts: Any, table: Any, cell_weight: Any, term: Any, weight: Any) -> None:
    """Sum table entries over genes, and cells' weights over entries; larger counts are clipped.

    `term` is replicates x groups of genes x cells; `weight` is of the table's shape, replicates x
    counts x genes.
    """
    (replicates, groups, cells), (_, last, genes) = term.shape, table.shape
    for group in prange(groups):
        for replicate in range(replicates):
            for cell in range(cells):
                for gene in range(group * genes // groups, (group + 1) * genes // groups):
                    x = min(np.int32(counts[replicate, cell, gene]), last - 1)
                    term[replicate, group, cell] += table[replicate, x, gene]
                    weight[replicate, x, gene] += cell_weight[replicate, cell]


@function
def _exp(x: Any) -> Any:
    """Compute e^x for x <= 0 as 2^k e^t with |t| <= ln 2 / 2."""
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
    """Compute log(start + y) as k ln 2 + 2 artanh(t / (2 + t)), 1 + t near 1; start is 0 or 1."""
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
def _decoder_term_and_gradients(
    smallest_mean: Any,
    x: Any,
    library_size: Any,
    own_genes: Any,
    own_factors: Any,
    c: Any,
    dispersion: Any,
    bias: Any,
    cell_weight: Any,
    logits: Any,
    term: Any,
    by_c: Any,
    by_bias: Any,
    by_log_c: Any,
) -> None:
    """Compute the decoder's term of a block, and replace its logits by their gradients.

    The gradients with respect to c and the bias are added to `by_c` and `by_bias`; those with
    respect to the logarithm of the concentrations that cells have of their own, c times
    `own_factors` of `own_genes`, are `by_log_c`. Each thread handles groups of rows, each group
    with its own sums.
    """
    rows, genes = term.size, len(c)
    sums = np.zeros((2, GROUPS + 1, genes + APART), np.float32)
    for group in prange(GROUPS):
        _rows_and_gradients(
            (group * rows // GROUPS, (group + 1) * rows // GROUPS),
            smallest_mean,
            x,
            library_size,
            own_genes,
            own_factors,
            c,
            dispersion,
            bias,
            cell_weight,
            logits,
            term,
            sums[0, group + 1, :genes],
            sums[1, group + 1, :genes],
            by_log_c,
        )
    for group in range(GROUPS):
        by_c += sums[0, group + 1, :genes]
        by_bias += sums[1, group + 1, :genes]


@over_genes
def _rows_and_gradients(
    rows: Any,
    smallest_mean: Any,
    x: Any,
    library_size: Any,
    own_genes: Any,
    own_factors: Any,
    c: Any,
    dispersion: Any,
    bias: Any,
    cell_weight: Any,
    logits: Any,
    term: Any,
    by_c: Any,
    by_bias: Any,
    by_log_c: Any,
) -> None:
    """Compute the decoder's term and its gradients for a group of rows."""
    own = np.empty((4, len(c) + APART), np.float32)
    proportion, own_c, own_dispersion = own[1, : len(c)], own[2, : len(c)], own[3, : len(c)]
    own_c[:], own_dispersion[:] = c, dispersion
    n_own = own_genes.shape[1]
    saved = np.empty(n_own, np.float32)
    for index in range(*rows):
        particle, cell = divmod(index, term.shape[1])
        row, size, weight = logits[particle, cell], library_size[cell], cell_weight[particle, cell]
        row += bias
        largest, total = _largest(row), ZERO
        for gene in range(len(c)):
            proportion[gene] = _exp(row[gene] - largest)
            total += proportion[gene]
        for at in range(n_own):
            gene = own_genes[cell, at]
            saved[at] = by_c[gene]
            own_c[gene] *= own_factors[cell, at]
            own_dispersion[gene] = ONE / own_c[gene]
        for at in range(n_own):
            by_c[own_genes[cell, at]] = ZERO
        term[particle, cell], by_log_total = _cell_and_gradients(
            smallest_mean,
            x[cell],
            size,
            own_c,
            own_dispersion,
            weight,
            ONE / total,
            proportion,
            row,
            by_c,
        )
        for at in range(n_own):
            gene = own_genes[cell, at]
            by_log_c[particle, cell, at] = by_c[gene] * own_c[gene]
        for at in range(n_own):
            gene = own_genes[cell, at]
            by_c[gene] = saved[at] + by_log_c[particle, cell, at] / c[gene]
        for at in range(n_own):
            gene = own_genes[cell, at]
            own_c[gene] = c[gene]
            own_dispersion[gene] = dispersion[gene]
        for gene in range(len(c)):
            row[gene] = weight * size * (row[gene] - proportion[gene] * by_log_total)
            by_bias[gene] += row[gene]


@function
def _largest(row: Any) -> Any:
    """Find the largest entry, NaN left out."""
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
def _cell_and_gradients(
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
    """Sum a cell's term; write its derivative by the log proportion, divided by the size."""
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
def _decoder_term(
    smallest_mean: Any,
    x: Any,
    library_size: Any,
    own_genes: Any,
    own_factors: Any,
    c: Any,
    dispersion: Any,
    bias: Any,
    logits: Any,
    term: Any,
) -> None:
    """Compute the decoder's term of a block in place of its logits."""
    rows, n_own = term.size, own_genes.shape[1]
    for group in prange(GROUPS):
        own_c, own_dispersion = c.copy(), dispersion.copy()
        for index in range(group * rows // GROUPS, (group + 1) * rows // GROUPS):
            particle, cell = divmod(index, term.shape[1])
            row = logits[particle, cell]
            scale = library_size[cell] / _exponentials(row, bias)
            for at in range(n_own):
                gene = own_genes[cell, at]
                own_c[gene] *= own_factors[cell, at]
                own_dispersion[gene] = ONE / own_c[gene]
            term[particle, cell] = _cell(smallest_mean, x[cell], scale, own_c, own_dispersion, row)
            for at in range(n_own):
                gene = own_genes[cell, at]
                own_c[gene] = c[gene]
                own_dispersion[gene] = dispersion[gene]


@over_genes
def _exponentials(row: Any, bias: Any) -> Any:
    """Replace logits without their bias by the exponentials of a softmax, and sum these."""
    row += bias
    largest, total = _largest(row), ZERO
    for gene in range(len(row)):
        row[gene] = _exp(row[gene] - largest)
        total += row[gene]
    return total


@over_genes
def _cell(
    smallest_mean: Any, x: Any, scale: Any, c: Any, dispersion: Any, exponentials: Any
) -> Any:
    """Sum a cell's term over genes, whose means are scaled exponentials."""
    term = ZERO
    for gene in range(len(c)):
        mean = scale * exponentials[gene] + smallest_mean
        log_ratio = _log_of_sum(ONE, mean * dispersion[gene])
        term += x[gene] * (_log_of_sum(ZERO, mean) - log_ratio) - c[gene] * log_ratio
    return term
