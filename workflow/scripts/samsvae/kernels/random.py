"""Counter-based random numbers: functions of a key, the same on every device and in any order.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") computes the i-th
block of numbers of a key without the blocks before. With a key from its counts, a cell has the
same noise in any batch, and a GPU generates it without the CPU.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from samsvae.kernels import has_triton, match_numba_threads
from samsvae.kernels.gamma_poisson_numba import _log_of_sum, inlined

ROUNDS = 10
BLOCKS_AT_ONCE = 256  # of four numbers
MULTIPLIERS: Any = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
LOW, HALF_WORD = np.uint64(0xFFFFFFFF), np.uint64(32)
PER_WORD = np.float32(2**-32)
TWO_PI = np.float32(2 * math.pi)
ZERO, HALF, ONE, MINUS_TWO = (np.float32(value) for value in (0, 0.5, 1, -2))
# coefficients of t^9 to t of a sine and of t^8 to 1 of a cosine, from the highest power down
SINE = tuple(np.float32((-1) ** (n // 2) / math.factorial(n)) for n in (9, 7, 5, 3, 1))
COSINE = tuple(np.float32((-1) ** (n // 2) / math.factorial(n)) for n in (8, 6, 4, 2, 0))
EIGHTH, QUARTER_BITS = np.uint32(1 << 29), np.uint32(30)
ONE_BIT, TWO_BIT = np.uint32(1), np.uint32(2)

# of splitmix64 (Steele et al. 2014)
GOLDEN_64, MIXERS = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS, WORD_64 = (30, 27, 31), (1 << 64) - 1
GOLDEN: Any = np.uint64(GOLDEN_64)
FIRST_MIXER: Any
SECOND_MIXER: Any
FIRST_MIXER, SECOND_MIXER = (np.uint64(word) for word in MIXERS)


def cell_keys(counts: Tensor, seed: int, stream: int = 0) -> Tensor:
    """Compute a key of each cell from its counts.

    Parameters
    ----------
    counts
        B x G.
    seed, stream
        Select among independent keys of the same counts.

    Returns
    -------
    Tensor
        Keys of 64 bits, as int64, of length B. A cell's key depends neither on the other cells
        nor on the device.
    """
    bits = counts.float().contiguous().view(torch.int32)
    if counts.device.type == "cpu":
        keys = torch.empty(len(counts), dtype=torch.long)
        match_numba_threads()
        salt = (seed * GOLDEN_64 + stream) & WORD_64
        _digest(bits.numpy().view(np.uint32), np.uint64(salt), keys.numpy().view(np.uint64))
        return keys
    return _keys(bits, seed, stream)


def _keys(bits: Tensor, seed: int, stream: int) -> Tensor:
    """Compute the keys of :func:`_digest` by operations of PyTorch, on any device."""
    gene = torch.arange(1, bits.shape[-1] + 1, device=bits.device)
    salt = (seed * GOLDEN_64 + stream) & WORD_64
    start = torch.full((1,), _signed(salt), device=bits.device)
    of_genes = _mix(gene * _signed(GOLDEN_64) + start)
    return _mix(_mix(of_genes + bits.long()).sum(-1) + start)


def _mix(x: Tensor) -> Tensor:
    """Mix 64 bits bijectively, as splitmix64 does; products of int64 wrap around."""
    for shift, multiplier in zip(SHIFTS, (*MIXERS, 1), strict=True):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(multiplier)
    return x


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def cell_normals(keys: Tensor, particles: int, n_latent: int) -> Tensor:
    """Draw standard normal numbers for each cell.

    The number of dimension k, of K, is one of a block of four with the counter (k mod K / 4,
    particle, 0, 0), K / 4 rounded up. Devices differ by the rounding of logarithm and sine alone.

    Parameters
    ----------
    keys
        Keys of cells, int64, length B.
    particles, n_latent
        Q and K.

    Returns
    -------
    Tensor
        float32, Q x B x K, on the device of the keys.
    """
    if has_triton(keys.device):
        from samsvae.kernels.random_triton import cell_normals as on_cuda

        return on_cuda(keys, particles, n_latent)
    normals = torch.empty(particles, len(keys), n_latent)
    match_numba_threads()
    _fill(keys.cpu().numpy().view(np.uint64), normals.numpy())
    return normals.to(keys.device)


@inlined()
def _mixed(x: Any) -> Any:
    """Mix 64 bits bijectively, as splitmix64 does."""
    x = (x ^ (x >> np.uint64(30))) * FIRST_MIXER
    x = (x ^ (x >> np.uint64(27))) * SECOND_MIXER
    return x ^ (x >> np.uint64(31))


@njit(parallel=True, cache=True)
def _digest(bits: Any, salt: Any, keys: Any) -> None:
    """Compute keys from float32 bits, cells x genes, as sums over genes of mixed bits."""
    for cell in prange(len(bits)):
        total: Any = np.uint64(0)
        for gene in range(bits.shape[1]):
            of_gene = _mixed(np.uint64(gene + 1) * GOLDEN + salt)
            signed = np.uint64(np.int64(np.int32(bits[cell, gene])))
            total += _mixed(of_gene + signed)
        keys[cell] = _mixed(total + salt)


@inlined(fastmath={"contract"})
def _philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Compute four random words of 32 bits from a counter of four."""
    for _ in range(ROUNDS):
        first = MULTIPLIERS[0] * np.uint64(c0)
        second = MULTIPLIERS[1] * np.uint64(c2)
        c0, c1, c2, c3 = (
            np.uint32(np.uint32(second >> HALF_WORD) ^ c1 ^ k0),
            np.uint32(second & LOW),
            np.uint32(np.uint32(first >> HALF_WORD) ^ c3 ^ k1),
            np.uint32(first & LOW),
        )
        k0, k1 = np.uint32(k0 + WEYL[0]), np.uint32(k1 + WEYL[1])
    return c0, c1, c2, c3


@inlined(fastmath={"contract"})
def _normal_pair(radius_word: Any, angle_word: Any) -> Any:
    """Transform two random words to two standard normal numbers (Box and Muller)."""
    uniform = np.float32(radius_word) * PER_WORD + HALF * PER_WORD
    radius = np.sqrt(MINUS_TWO * min(_log_of_sum(ZERO, uniform), ZERO))
    # reduce the angle to an eighth of a turn around the nearest quarter
    quarter = np.uint32(np.uint32(angle_word + EIGHTH) >> QUARTER_BITS)
    rest = np.int32(np.uint32(angle_word - np.uint32(quarter << QUARTER_BITS)))
    t = np.float32(rest) * PER_WORD * TWO_PI
    square, sine, cosine = t * t, ZERO, ZERO
    for coefficient in SINE:
        sine = sine * square + coefficient
    for coefficient in COSINE:
        cosine = cosine * square + coefficient
    sine *= t
    is_odd = (quarter & ONE_BIT) == ONE_BIT
    x, y = sine if is_odd else cosine, cosine if is_odd else sine
    x_sign = -ONE if ((quarter + ONE_BIT) & TWO_BIT) == TWO_BIT else ONE
    y_sign = -ONE if (quarter & TWO_BIT) == TWO_BIT else ONE
    return radius * x_sign * x, radius * y_sign * y


@njit(parallel=True, cache=True)
def _fill(keys: Any, normals: Any) -> None:
    """Fill particles x cells x dimensions, in loops that the compiler vectorises.

    They go over several particles at once, since few dimensions would not fill its vectors.
    """
    particles, cells, n_latent = normals.shape
    quarter = (n_latent + 3) // 4
    at_once = max(1, min(particles, BLOCKS_AT_ONCE // quarter))
    for cell in prange(cells):
        k0, k1 = np.uint32(keys[cell] & LOW), np.uint32(keys[cell] >> HALF_WORD)
        index = np.arange(at_once * quarter)
        dimension, particle = (
            (index % quarter).astype(np.uint32),
            (index // quarter).astype(np.uint32),
        )
        words = np.empty((4, len(index)), np.uint32)
        numbers = np.empty((4, len(index)), np.float32)
        for first in range(0, particles, at_once):
            for n in range(len(index)):
                words[0, n], words[1, n], words[2, n], words[3, n] = _philox(
                    dimension[n],
                    np.uint32(particle[n] + np.uint32(first)),
                    np.uint32(0),
                    np.uint32(0),
                    k0,
                    k1,
                )
            for pair in range(0, 4, 2):
                for n in range(len(index)):
                    numbers[pair, n], numbers[pair + 1, n] = _normal_pair(
                        words[pair, n], words[pair + 1, n]
                    )
            for here in range(min(at_once, particles - first)):
                for block in range(4):
                    own = normals[first + here, cell, block * quarter : (block + 1) * quarter]
                    own[:] = numbers[block, here * quarter : here * quarter + len(own)]
