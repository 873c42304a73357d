"""Counter-based standard normal numbers on a CUDA device, by Triton.

Kernels have no type hints, since Triton would treat them as constants.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = 1024  # of four numbers

PER_WORD = tl.constexpr(2.0**-32)
TWO_PI = tl.constexpr(6.283185307179586)


def cell_normals(keys: Tensor, particles: int, n_latent: int) -> Tensor:
    """Draw standard normal numbers; see :func:`samsvae.kernels.random.cell_normals`."""
    normals = torch.empty(particles, len(keys), n_latent, device=keys.device)
    quarter = triton.cdiv(n_latent, 4)
    blocks = particles * len(keys) * quarter
    if blocks:
        grid = (triton.cdiv(blocks, BLOCKS),)
        _fill[grid](keys.contiguous(), normals, len(keys), n_latent, quarter, blocks, BLOCKS)
    return normals


@triton.jit
def _fill(keys, normals, cells, n_latent, quarter, blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < blocks
    row = block // quarter
    index = (block % quarter).to(tl.int32)
    key = tl.load(keys + row % cells, inside, 0)
    zero = tl.zeros_like(index)
    first, second, third, fourth = tl.philox(key, index, (row // cells).to(tl.int32), zero, zero)
    target = normals + row * n_latent + index
    for pair in tl.static_range(2):
        radius_word = (first if pair == 0 else third).to(tl.uint32, bitcast=True)
        angle_word = (second if pair == 0 else fourth).to(tl.uint32, bitcast=True)
        uniform = radius_word.to(tl.float32) * PER_WORD + 0.5 * PER_WORD
        radius = tl.sqrt(-2.0 * tl.minimum(tl.log(uniform), 0.0))
        # between minus half a turn and half a turn, so that it is rounded little
        angle = angle_word.to(tl.int32, bitcast=True).to(tl.float32) * (PER_WORD * TWO_PI)
        one = index + 2 * pair * quarter
        two = one + quarter
        tl.store(target + 2 * pair * quarter, radius * tl.cos(angle), inside & (one < n_latent))
        tl.store(
            target + (2 * pair + 1) * quarter, radius * tl.sin(angle), inside & (two < n_latent)
        )
