"""Gamma-Poisson log-probability on a CUDA device, in float32, by Triton.

See :mod:`samsvae.kernels.gamma_poisson_numba` for the two terms of the log-probability. Each has
one kernel. That of the decoder's term holds a row (the genes of a particle of a cell) in registers
from softmax to gradient, so that it reads and writes the row once. The logits are the only tensor
of replicates x particles x cells x genes, and are replaced by their gradients in place. If
matrices are multiplied in bfloat16, logits are stored in it; sums are in float32.

Kernels have no type hints, since Triton would treat them as constants.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.language.extra import libdevice

from samsvae.kernels import SMALLEST_MEAN

LARGEST_PARTS = 8  # of a row of genes, unrolled
REGISTERS = 128  # of a thread, so that a multiprocessor holds 16 warps
WARPS_OF_A_REPLICATE = 2048  # fixed, so that sums do not depend on the device
TILE_GENES, TILE_CELLS = 128, 8  # of the counts' term
CELL_CHUNKS = 16
ALIGNED_GENES = 8
SUMMED_CHUNKS, SUMMED_GENES = 64, 32

LOWEST = tl.constexpr(-1e30)
# ln 2 as a sum, the first part of so few bits that its product with an exponent is exact
LN_2, REST_OF_LN_2 = tl.constexpr(0.693359375), tl.constexpr(-2.12194440e-4)
BITS_OF_ROOT_HALF = tl.constexpr(0x3F3504F3)
HALF_LOG_2_PI = tl.constexpr(0.9189385332046727)


def log_prob(
    counts: Tensor,
    library_size: Tensor,
    concentration: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    genes: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Compute the log-probability; see :class:`samsvae.kernels.gamma_poisson.Kernels`."""
    inputs = (counts, library_size, concentration, hidden, weight, bias)
    counts, library_size, c, hidden, weight, bias = (each.detach().contiguous() for each in inputs)
    terms, _ = _counts_terms(counts, c, None)
    logits = _logits(hidden, weight)
    _add_offsets(logits, genes, offsets)
    return _launch_rows(logits, counts, library_size, c, bias, None, terms)[0]


@torch.library.custom_op("samsvae::gamma_poisson", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute log-probability and gradients; see :class:`samsvae.kernels.gamma_poisson.Kernels`."""
    inputs = (cell_weight, counts, library_size, concentration, hidden, weight, bias)
    cell_weight, counts, library_size, c, hidden, weight, bias = (
        each.contiguous() for each in inputs
    )
    replicates, particles, cells, _ = hidden.shape
    n_genes = counts.shape[-1]
    terms, cells_by_c = _counts_terms(counts, c, cell_weight)
    logits = _logits(hidden, weight)
    _add_offsets(logits, genes, offsets)
    value, rows_by_c, rows_by_bias = _launch_rows(
        logits, counts, library_size, c, bias, cell_weight, terms
    )
    assert rows_by_c is not None  # with gradients
    by_c, by_bias = torch.empty_like(c), torch.empty_like(bias)
    _sum_chunks[(triton.cdiv(n_genes, SUMMED_GENES), replicates)](
        rows_by_c,
        rows_by_bias,
        cells_by_c,
        by_c,
        by_bias,
        rows_by_c.shape[1],
        CELL_CHUNKS,
        n_genes,
        SUMMED_CHUNKS,
        SUMMED_GENES,
    )
    if genes is not None and offsets is not None:
        # the kernel has replaced logits by their gradients
        by_offsets = logits.gather(-1, genes[:, None].expand_as(offsets)).float()
    else:
        by_offsets = hidden.new_empty(replicates, 0)
    by_logits = logits.view(replicates, particles * cells, -1)
    h, w = hidden.to(logits.dtype).view(replicates, particles * cells, -1), _padded(weight, logits)
    by_weight = _multiply(by_logits.transpose(1, 2), h)[:, :n_genes]
    if torch.get_float32_matmul_precision() == "high":
        # TF32 units need matrices that are contiguous along the sum; a copy is faster than none
        w = w.transpose(1, 2).contiguous().transpose(1, 2)
    by_hidden = _multiply(by_logits, w).view(hidden.shape)
    return value, by_c, by_hidden, by_weight.contiguous(), by_bias, by_offsets


@log_prob_and_gradients.register_fake
def _(
    cell_weight,
    counts,
    library_size,
    concentration,
    hidden,
    weight,
    bias,
    genes=None,
    offsets=None,
):
    value = cell_weight.new_empty(cell_weight.shape)
    by_offsets = hidden.new_empty((len(hidden), 0) if offsets is None else offsets.shape)
    inputs = (concentration, hidden, weight, bias)
    return value, *(each.new_empty(each.shape) for each in inputs), by_offsets


def _add_offsets(logits: Tensor, genes: Tensor | None, offsets: Tensor | None) -> None:
    """Add offsets to the logits of some genes in place."""
    if genes is not None and offsets is not None:
        own = offsets.to(logits.dtype)
        logits.scatter_add_(-1, genes[:, None].expand_as(own), own)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Compute W h, in bfloat16 where matrices are multiplied in it.

    Rows are padded to aligned lengths: R x P x B x (G, rounded up to a multiple of 8).
    """
    replicates, particles, cells, _ = hidden.shape
    if torch.get_float32_matmul_precision() == "medium":
        hidden = hidden.bfloat16()
    padded = _padded(weight, hidden)
    product = _multiply(
        hidden.view(replicates, particles * cells, -1), padded.transpose(1, 2), hidden.dtype
    )
    return product.view(replicates, particles, cells, -1)


def _padded(weight: Tensor, like: Tensor) -> Tensor:
    """Pad the genes of weights with zeros, in the type of another tensor."""
    missing = -weight.shape[1] % ALIGNED_GENES
    weight = weight.to(like.dtype)
    return functional.pad(weight, (0, 0, 0, missing)) if missing else weight


def _multiply(left: Tensor, right: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Multiply the matrices of each replicate."""
    if len(left) > 1:
        return torch.bmm(left, right, dtype) if left.dtype != dtype else torch.bmm(left, right)
    one, other = left[0], right[0]
    product = torch.mm(one, other, dtype) if one.dtype != dtype else torch.mm(one, other)
    return product.unsqueeze(0)


def _counts_terms(
    counts: Tensor, c: Tensor, cell_weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Compute the counts' term of each cell, and its weighted gradient summed over cells.

    Parameters
    ----------
    counts
        R x B x G.
    c
        R x G.
    cell_weight
        R x P x B; None if no gradient is needed.

    Returns
    -------
    terms : Tensor
        Summed over the genes of each tile, R x tiles x B.
    by_c : Tensor or None
        Summed over the cells of each chunk, R x CELL_CHUNKS x G.
    """
    replicates, cells, genes = counts.shape
    tiles = triton.cdiv(genes, TILE_GENES)
    terms = counts.new_empty(replicates, tiles, cells)
    by_c = None if cell_weight is None else counts.new_empty(replicates, CELL_CHUNKS, genes)
    _count_tiles[(tiles, CELL_CHUNKS, replicates)](
        counts,
        c,
        cell_weight,
        terms,
        by_c,
        0 if cell_weight is None else cell_weight.shape[1],
        cells,
        triton.cdiv(triton.cdiv(cells, CELL_CHUNKS), TILE_CELLS),
        genes,
        cell_weight is not None,
        TILE_CELLS,
        TILE_GENES,
    )
    return terms, by_c


def _launch_rows(
    logits: Tensor,
    counts: Tensor,
    library_size: Tensor,
    c: Tensor,
    bias: Tensor,
    cell_weight: Tensor | None,
    terms: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the log-probability of each row, and replace its logits by their gradients.

    Returns
    -------
    value : Tensor
        R x P x B.
    by_c, by_bias : Tensor or None
        Gradients summed over the rows of each program, R x programs x G; None without
        `cell_weight`.
    """
    replicates, particles, cells, stride = logits.shape
    genes = counts.shape[-1]
    # a row is held in registers, four genes of each part by a thread
    at_once = max(64, triton.next_power_of_2(triton.cdiv(genes, LARGEST_PARTS)))
    warps = max(1, min(32, at_once // 128))
    rows = particles * cells
    rows_each = max(1, triton.cdiv(rows * warps, WARPS_OF_A_REPLICATE))
    programs = triton.cdiv(rows, rows_each)
    value = logits.new_empty(replicates, particles, cells, dtype=torch.float32)
    sums: tuple[Tensor | None, Tensor | None] = None, None
    if cell_weight is not None:
        empty = logits.new_empty(2, replicates, programs, genes, dtype=torch.float32)
        sums = empty[0], empty[1]
    _rows[(programs, replicates)](
        logits,
        counts,
        library_size,
        c,
        bias,
        cell_weight,
        terms,
        value,
        *sums,
        particles,
        cells,
        rows_each,
        SMALLEST_MEAN,
        genes,
        stride,
        terms.shape[1],
        cell_weight is not None,
        triton.cdiv(genes, at_once),
        at_once,
        num_warps=warps,
        maxnreg=REGISTERS,
    )
    return value, *sums


@triton.jit
def _divide(x, y):
    """Divide to within 2 units in the last place."""
    return libdevice.fast_dividef(x, y)


@triton.jit
def _log(x):
    """Take the logarithm to within 3e-7, or 3 units in the last place where it is large."""
    return libdevice.fast_logf(x)


@triton.jit
def _log_1p(y):
    """Compute log(1 + y) as k ln 2 + 2 artanh(t / (2 + t)), 1 + t near 1; accurate for small y."""
    bits = (1.0 + y).to(tl.int32, bitcast=True)
    k = (bits - BITS_OF_ROOT_HALF) >> 23
    scale = ((127 - k) << 23).to(tl.float32, bitcast=True)
    t = y * scale + (scale - 1.0)
    ratio = _divide(t, 2.0 + t)
    square = ratio * ratio
    series = (((2.0 / 9.0) * square + 2.0 / 7.0) * square + 2.0 / 5.0) * square + 2.0 / 3.0
    exponent = k.to(tl.float32)
    return exponent * LN_2 + (2.0 * ratio + (ratio * square * series + exponent * REST_OF_LN_2))


@triton.jit
def _counts_term(x, c):
    """Compute lgamma(x + c) - lgamma(c) - x log c - lgamma(x + 1), digamma(x + c) - digamma(c).

    Arguments are shifted by 4, so that Stirling's series is exact to rounding. The gradient of
    -x log c cancels with one of the decoder's term, so that neither is computed.
    """
    a = 1.0 / (c + 4.0)
    b = _divide(1.0, c + x + 4.0)
    a2 = a * a
    b2 = b * b
    shift = _log_1p(x * a)
    rising = _divide(
        ((c + x) * (c + 1.0 + x)) * ((c + 2.0 + x) * (c + 3.0 + x)),
        (c * (c + 1.0)) * ((c + 2.0) * (c + 3.0)),
    )
    value = (c + 3.5) * shift + x * (_log_1p(_divide(x + 4.0, c)) - 1.0) - _log(rising)
    value += b * (1.0 / 12.0 - b2 * (1.0 / 360.0 - b2 * (1.0 / 1260.0 - b2 / 1680.0)))
    value -= a * (1.0 / 12.0 - a2 * (1.0 / 360.0 - a2 * (1.0 / 1260.0 - a2 / 1680.0)))
    y = x + 5.0
    d = _divide(1.0, y)
    d2 = d * d
    log_factorial = (x + 4.5) * _log(y) - y + HALF_LOG_2_PI
    log_factorial -= _log(((x + 1.0) * (x + 2.0)) * ((x + 3.0) * (x + 4.0)))
    log_factorial += d * (1.0 / 12.0 - d2 * (1.0 / 360.0 - d2 * (1.0 / 1260.0 - d2 / 1680.0)))
    slope = shift + a * (0.5 + a * (1.0 / 12.0 - a2 * (1.0 / 120.0 - a2 / 252.0)))
    slope -= b * (0.5 + b * (1.0 / 12.0 - b2 * (1.0 / 120.0 - b2 / 252.0)))
    # sums of x / ((c + i) (c + i + x)), two by two
    one = c * (c + x)
    two = (c + 1.0) * (c + 1.0 + x)
    three = (c + 2.0) * (c + 2.0 + x)
    four = (c + 3.0) * (c + 3.0 + x)
    slope += x * (_divide(one + two, one * two) + _divide(three + four, three * four))
    return value - log_factorial, slope


@triton.jit
def _count_tiles(
    counts,
    c,
    cell_weight,
    terms,
    by_c,
    particles,
    cells,
    tiles,
    genes: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    CELLS: tl.constexpr,
    GENES: tl.constexpr,
):
    tile_of_genes = tl.program_id(0)
    chunk = tl.program_id(1)
    replicate = tl.program_id(2)
    gene = tile_of_genes * GENES + tl.arange(0, GENES)
    inside = gene < genes
    concentration = tl.load(c + replicate * genes + gene, inside, 1.0)[None, :]
    counts += replicate.to(tl.int64) * cells * genes
    terms += (replicate * tl.num_programs(0) + tile_of_genes) * cells
    sum_by_c = tl.zeros([CELLS, GENES], tl.float32)
    for tile in range(tiles):
        cell = (chunk * tiles + tile) * CELLS + tl.arange(0, CELLS)
        there = cell < cells
        both = there[:, None] & inside[None, :]
        x = tl.load(counts + cell.to(tl.int64)[:, None] * genes + gene[None, :], both, 0.0)
        term, slope = _counts_term(x, concentration)
        tl.store(terms + cell, tl.sum(tl.where(both, term, 0.0), 1), there)
        if WITH_GRADIENT:
            weight = tl.zeros([CELLS], tl.float32)
            for particle in range(particles):
                row = (replicate * particles + particle) * cells + cell
                weight += tl.load(cell_weight + row, there, 0.0)
            sum_by_c += weight[:, None] * slope
    if WITH_GRADIENT:
        target = by_c + (replicate * tl.num_programs(1) + chunk) * genes + gene
        tl.store(target, tl.sum(sum_by_c, 0), inside)


@triton.jit
def _add_exponentials(largest, total, other_largest, other_total):
    """Add two sums of exponentials, each divided by its largest summand."""
    larger = tl.maximum(largest, other_largest)
    return larger, total * tl.exp(largest - larger) + other_total * tl.exp(other_largest - larger)


@triton.jit
def _add_pairs(first, second, other_first, other_second):
    return first + other_first, second + other_second


@triton.jit
def _rows(
    logits,
    counts,
    library_size,
    c,
    bias,
    cell_weight,
    terms,
    value,
    by_c,
    by_bias,
    particles,
    cells,
    rows_each,
    smallest_mean,
    genes: tl.constexpr,
    stride: tl.constexpr,
    tiles: tl.constexpr,
    WITH_GRADIENTS: tl.constexpr,
    PARTS: tl.constexpr,
    GENES: tl.constexpr,
):
    program = tl.program_id(0)
    replicate = tl.program_id(1)
    c += replicate * genes
    bias += replicate * genes
    lane = tl.arange(0, GENES)
    zeros = tl.zeros([GENES], tl.float32)
    sums_by_c = ()
    sums_by_bias = ()
    for _ in tl.static_range(PARTS):
        sums_by_c = sums_by_c + (zeros,)
        sums_by_bias = sums_by_bias + (zeros,)
    first = program * rows_each
    for row_of_replicate in range(first, min(first + rows_each, particles * cells)):
        row = replicate * particles * cells + row_of_replicate
        cell_of_replicate = row_of_replicate % cells
        cell = replicate * cells + cell_of_replicate
        own_logits = logits + row.to(tl.int64) * stride
        own_counts = counts + cell.to(tl.int64) * genes
        size = tl.load(library_size + cell)
        own_by_c = ()
        own_by_bias = ()
        shifted = ()
        largest = zeros + LOWEST
        for part in tl.static_range(PARTS):
            gene = part * GENES + lane
            logit = tl.load(own_logits + gene, gene < genes, LOWEST).to(tl.float32)
            logit += tl.load(bias + gene, gene < genes, 0.0)
            shifted = shifted + (logit,)
            largest = tl.maximum(largest, logit)
        total = zeros
        exponentials = ()
        for part in tl.static_range(PARTS):
            exponential = tl.exp(shifted[part] - largest)
            exponentials = exponentials + (exponential,)
            total += exponential
        of_row, total_of_row = tl.reduce((largest, total), 0, _add_exponentials)
        norm = tl.exp(largest - of_row) / total_of_row
        # the counts' term, and the decoder's
        of_counts = terms + (replicate * tiles + lane) * cells + cell_of_replicate
        sums = tl.load(of_counts, lane < tiles, 0.0)
        by_logs = zeros
        by_log_proportions = ()
        weight = tl.load(cell_weight + row) if WITH_GRADIENTS else 0.0
        for part in tl.static_range(PARTS):
            gene = part * GENES + lane
            x = tl.load(own_counts + gene, gene < genes, 0.0)
            shape = tl.load(c + gene, gene < genes, 1.0)
            proportion = exponentials[part] * norm
            mean = size * proportion + smallest_mean
            log_ratio = _log_1p(_divide(mean, shape))
            term = x * (_log(mean) - log_ratio) - shape * log_ratio
            sums += tl.where(gene < genes, term, 0.0)
            if WITH_GRADIENTS:
                scaled = _divide(x - mean, (mean + shape) * mean)
                by_log = scaled * proportion * shape
                by_logs += by_log  # 0 outside, as the proportion is
                by_log_proportions = by_log_proportions + (by_log,)
                own_by_c = own_by_c + (sums_by_c[part] - weight * (log_ratio + scaled * mean),)
        if WITH_GRADIENTS:
            value_of_row, by_log_total = tl.reduce((sums, by_logs), 0, _add_pairs)
            total_norm = norm * by_log_total
            for part in tl.static_range(PARTS):
                gene = part * GENES + lane
                by_logit = by_log_proportions[part] - exponentials[part] * total_norm
                by_logit = weight * size * by_logit
                tl.store(own_logits + gene, by_logit.to(logits.dtype.element_ty), gene < stride)
                own_by_bias = own_by_bias + (sums_by_bias[part] + by_logit,)
            sums_by_c = own_by_c
            sums_by_bias = own_by_bias
        else:
            value_of_row = tl.sum(sums, 0)
        tl.store(value + row, value_of_row)
    if WITH_GRADIENTS:
        offset = (replicate * tl.num_programs(0) + program) * genes
        for part in tl.static_range(PARTS):
            gene = part * GENES + lane
            tl.store(by_c + offset + gene, sums_by_c[part], gene < genes)
            tl.store(by_bias + offset + gene, sums_by_bias[part], gene < genes)


@triton.jit
def _sum_chunks(
    rows_by_c,
    rows_by_bias,
    cells_by_c,
    by_c,
    by_bias,
    row_chunks,
    cell_chunks,
    genes,
    CHUNKS: tl.constexpr,
    GENES: tl.constexpr,
):
    gene = tl.program_id(0) * GENES + tl.arange(0, GENES)[None, :]
    replicate = tl.program_id(1)
    sum_by_c = tl.zeros([CHUNKS, GENES], tl.float32)
    sum_by_bias = tl.zeros([CHUNKS, GENES], tl.float32)
    for start in range(0, cell_chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)[:, None]
        offset = (replicate * cell_chunks + chunk) * genes + gene
        sum_by_c += tl.load(cells_by_c + offset, (chunk < cell_chunks) & (gene < genes), 0.0)
    for start in range(0, row_chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)[:, None]
        offset = (replicate * row_chunks + chunk) * genes + gene
        both = (chunk < row_chunks) & (gene < genes)
        sum_by_c += tl.load(rows_by_c + offset, both, 0.0)
        sum_by_bias += tl.load(rows_by_bias + offset, both, 0.0)
    offset = replicate * genes + gene
    tl.store(by_c + offset, tl.sum(sum_by_c, 0)[None, :], gene < genes)
    tl.store(by_bias + offset, tl.sum(sum_by_bias, 0)[None, :], gene < genes)
