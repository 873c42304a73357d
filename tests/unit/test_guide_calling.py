"""Guides called from UMI counts, against the truth of simulated ones."""

import numpy as np
import pytest
from scipy import sparse, stats

from samsvae.runtime.errors import InputError
from samsvae.sources.guides import (
    call_guides,
    mixture_thresholds,
    poisson_gaussian_threshold,
    poisson_threshold,
)


def simulated(n_cells=4000, n_guides=12, low=0.3, high=60.0, share=0.06, spread=0.6, seed=0):
    """Ambient molecules of every guide, and log-normally many of those that a cell has."""
    rng = np.random.default_rng(seed)
    has = rng.random((n_cells, n_guides)) < share
    ambient = rng.poisson(low * rng.lognormal(0, 0.3, n_guides), has.shape)
    own = rng.poisson(high * rng.lognormal(0, spread, has.shape))
    return sparse.csr_matrix(ambient + has * own), has


@pytest.mark.parametrize("mixture", ["poisson_gaussian", "poisson"])
@pytest.mark.parametrize("low", [0.05, 0.3, 1.5])
def test_a_mixture_finds_the_cells_that_have_a_guide(mixture, low):
    umis, has = simulated(low=low)
    calls = call_guides(umis, None, mixture, "file")
    called = calls.present.toarray() > 0
    assert (called == has).mean() > 0.995
    assert called[has].mean() > 0.95
    assert (~called)[~has].mean() > 0.995
    # each call is a threshold on its guide's counts
    np.testing.assert_array_equal(called, umis.toarray() >= calls.thresholds)


def test_a_threshold_is_what_it_says():
    umis = sparse.csr_matrix([[0, 4, 5], [6, 0, 1]])
    calls = call_guides(umis, 5, None, "file")
    assert calls.present.toarray().tolist() == [[0, 0, 1], [1, 0, 0]]
    assert calls.thresholds.tolist() == [5, 5, 5]


def test_the_poisson_mixture_is_at_a_maximum_of_its_likelihood():
    """The threshold is where the posterior odds of the best fit, found by a grid, change sign."""
    rng = np.random.default_rng(3)
    has = rng.random(5000) < 0.1
    counts = rng.poisson(np.where(has, 25.0, 0.8))

    def loss(low, high, share):
        parts = np.stack([stats.poisson.pmf(counts, low), stats.poisson.pmf(counts, high)])
        return -np.log([1 - share, share] @ parts).sum()

    grid = [
        (a, b, c)
        for a in np.linspace(0.7, 0.9, 9)
        for b in np.linspace(23, 27, 17)
        for c in np.linspace(0.08, 0.12, 9)
    ]
    low, high, share = min(grid, key=lambda one: loss(*one))
    levels = np.arange(60)
    odds = share * stats.poisson.pmf(levels, high) > (1 - share) * stats.poisson.pmf(levels, low)
    assert poisson_threshold(counts[counts > 0].astype(float), 5000) == levels[odds][0]


def test_one_level_of_counts_has_no_threshold():
    ones = np.ones(50)
    assert poisson_gaussian_threshold(ones, 1000) is None
    umis = sparse.csc_matrix((1000, 2))
    with pytest.raises(InputError, match=r"no guide has cells enough.*'threshold'"):
        mixture_thresholds(umis, "poisson", "file")


def test_a_guide_with_few_cells_gets_the_threshold_of_the_others():
    umis, _ = simulated()
    dense = umis.toarray()
    dense[:, 3] = 0
    dense[:4, 3] = 40
    found = mixture_thresholds(sparse.csc_matrix(dense), "poisson_gaussian", "file")
    assert found[3] == np.median(np.delete(found, 3))
    assert np.isfinite(found).all()


def test_fractions_are_no_counts_of_guides():
    with pytest.raises(InputError, match="no UMI counts"):
        call_guides(sparse.csr_matrix([[0.5, 2.0]]), 1, None, "file")
