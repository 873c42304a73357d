"""Random numbers of cells against published vectors and a plain Philox in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from scipy import stats

from samsvae.inference.noise import CellNoise, NoiseSpec
from samsvae.kernels import random
from samsvae.kernels.random import cell_keys, cell_normals

# Random123, kat_vectors: counter and key, then the words (Salmon et al. 2011)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox(counter, key):
    """Philox4x32-10 as the paper writes it, in whole numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & 0xFFFFFFFF,
            (first >> 32) ^ c3 ^ k1,
            first & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def plain_normals(keys, particles, n_latent):
    """What `cell_normals` draws, number by number in double precision."""
    quarter = -(-n_latent // 4)
    normals = np.empty((particles, len(keys), 4 * quarter))
    for cell, key in enumerate(np.asarray(keys).view(np.uint64).tolist()):
        for particle in range(particles):
            for index in range(quarter):
                words = philox((index, particle, 0, 0), (key & 0xFFFFFFFF, key >> 32))
                uniform = (np.array(words) + 0.5) / 2**32
                for pair in (0, 2):
                    radius, angle = np.sqrt(-2 * np.log(uniform[pair])), words[pair + 1] / 2**32
                    place = (particle, cell, [pair * quarter + index, (pair + 1) * quarter + index])
                    turn = 2 * np.pi * angle
                    normals[place] = radius * np.array([np.cos(turn), np.sin(turn)])
    return normals[..., :n_latent]


@njit
def _words(c0, c1, c2, c3, k0, k1):
    return random._philox(
        np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3), np.uint32(k0), np.uint32(k1)
    )


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(counter, key, words):
    assert philox(counter, key) == words
    assert _words(*counter, *key) == words


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4), st.integers(0, 5), st.integers(1, 11)
)
def test_normals_are_those_of_a_plain_philox(keys, particles, n_latent):
    keys = torch.tensor(keys, dtype=torch.long)
    drawn = cell_normals(keys, particles, n_latent)
    assert drawn.shape == (particles, len(keys), n_latent)
    assert drawn.dtype == torch.float32
    plain = plain_normals(keys, particles, n_latent)
    np.testing.assert_allclose(drawn.numpy(), plain, rtol=2e-6, atol=2e-6)


def test_words_at_the_ends_of_their_range_give_finite_numbers():
    ends = [0, 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 2**29, 2**32 - 1]
    pair = njit(lambda one, two: random._normal_pair(np.uint32(one), np.uint32(two)))
    for radius_word in ends:
        for angle_word in ends:
            radius = np.sqrt(-2 * np.log((radius_word + 0.5) / 2**32))
            turn = 2 * np.pi * angle_word / 2**32
            expected = radius * np.array([np.cos(turn), np.sin(turn)])
            np.testing.assert_allclose(
                pair(radius_word, angle_word), expected, rtol=2e-6, atol=3e-5
            )


def test_normals_have_their_distribution_and_are_independent():
    keys = cell_keys(torch.poisson(torch.full((40, 30), 2.0)), seed=1)
    drawn = cell_normals(keys, 50, 20).double()
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    for flat in (drawn.reshape(50, -1), drawn.transpose(0, 1).reshape(40, -1)):
        correlation = np.corrcoef(flat.numpy())[np.triu_indices(len(flat), 1)]
        assert np.abs(correlation).max() < 6 / np.sqrt(flat.shape[1])
    dimensions = np.corrcoef(drawn.reshape(-1, 20).T.numpy())[np.triu_indices(20, 1)]
    assert np.abs(dimensions).max() < 6 / np.sqrt(2000)


def test_noise_has_the_moments_of_its_distribution():
    counts = torch.poisson(torch.full((200, 30), 2.0))
    noise = CellNoise(counts, 100, seed=2)
    normal, uniform = (
        noise(name, NoiseSpec(is_uniform, torch.Size((200, 13)), 1)).double().flatten().numpy()
        for name, is_uniform in (("one", False), ("other", True))
    )
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert 0 <= uniform.min() < uniform.max() <= 1
    for values, moments in ((normal, (0, 1, 0, 3)), (uniform, (1 / 2, 1 / 3, 1 / 4, 1 / 5))):
        for power, moment in enumerate(moments, 1):
            error = (values**power).std() / np.sqrt(len(values))
            assert abs((values**power).mean() - moment) < 5 * error
    assert abs(np.corrcoef(normal, uniform)[0, 1]) < 5 / np.sqrt(len(normal))


@pytest.mark.parametrize("particles", [1, 40, 300])
def test_numbers_do_not_depend_on_how_many_particles_are_drawn(particles):
    """They are drawn for several particles at once: the number of these must not show."""
    keys = torch.tensor([0, -1, 2**40])
    few, many = cell_normals(keys, particles, 5), cell_normals(keys, particles + 170, 5)
    assert torch.equal(few, many[:particles])


def test_a_cells_numbers_follow_from_its_counts_alone():
    counts = torch.poisson(torch.full((30, 40), 1.0))
    whole = cell_normals(cell_keys(counts, seed=4), 3, 5)
    order = torch.randperm(30)
    torch.testing.assert_close(
        cell_normals(cell_keys(counts[order], seed=4), 3, 5), whole[:, order], rtol=0, atol=0
    )
    part = cell_normals(cell_keys(counts[7:9].to(torch.uint8), seed=4), 3, 5)
    assert torch.equal(part, whole[:, 7:9])


def test_keys_differ_with_counts_their_order_seed_and_stream():
    counts = torch.zeros(4, 50)
    counts[1, 0], counts[2, 1], counts[3, :2] = 1, 1, 1
    keys = [cell_keys(counts, seed, stream) for seed in (0, 1) for stream in (0, 1)]
    assert len(torch.cat(keys).unique()) == 16
    many = torch.poisson(torch.full((2000, 60), 0.5)).unique(dim=0)
    assert len(cell_keys(many, 0).unique()) == len(many)


@given(st.integers(0, 2**63 - 1), st.integers(0, 3), st.integers(0, 1000))
def test_keys_of_plain_operations_are_those_of_compiled_code(seed, stream, example):
    torch.manual_seed(example)
    values = torch.randn(3, 7) * 10
    bits = values.view(torch.int32)
    assert torch.equal(random._keys(bits, seed, stream), cell_keys(values, seed, stream))
