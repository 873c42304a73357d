"""Effects and tests within batches, against plain computations, scipy, and under the null."""

import itertools

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.spatial.distance import cdist, pdist

from samsvae.evaluation.energy import energy_tests
from samsvae.evaluation.strata import LEFT_OUT, Strata, stratified_effects
from samsvae.evaluation.stratified import gated_tests, gated_tests_against_rest, stratified_rank_sum

N_GROUPS, N_GENES = 3, 12


def screen(rng, n_cells=300, n_strata=3, depth=1.0):
    """Counts with many zeros and ties, groups of unequal fractions by stratum, some cells out."""
    stratum = rng.integers(n_strata, size=n_cells)
    group = rng.integers(-1, N_GROUPS + 1, size=n_cells)
    rate = depth * rng.gamma(1.0, 1.0, N_GENES) * (1 + 0.5 * stratum)[:, None]
    values = np.log2(1 + rng.poisson(rate)).astype(np.float64)
    return sparse.csr_matrix(values), Strata(group, stratum, N_GROUPS, min_controls=5)


def by_hand(values, strata, group):
    """Statistic, variance and half step of van Elteren's test of each gene, with scipy's ranks."""
    total, variance, steps = 0.0, 0.0, []
    for b in np.unique(strata.stratum):
        inside = strata.stratum == b
        own, control = (inside & (strata.group == g) for g in (group, strata.n_groups))
        n, m = own.sum(), control.sum()
        if n == 0 or m < strata.min_controls:
            continue
        pooled = np.concatenate([values[own], values[control]])
        ranks = stats.rankdata(pooled, axis=0)
        centred = ranks[:n].sum(axis=0) - n * (n + m + 1) / 2
        ties = np.array([np.sum(k**3 - k) for k in map(counts_of, pooled.T)])
        spread = n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1)))
        total, variance = total + centred / (n + m + 1), variance + spread / (n + m + 1) ** 2
        steps.append(1 / (n + m + 1))
    return total, variance, min(steps) / 2


def counts_of(column):
    return np.unique(column, return_counts=True)[1]


@pytest.mark.parametrize("seed", range(4))
def test_the_stratified_test_is_van_elterens(seed):
    expression, strata = screen(np.random.default_rng(seed))
    found = stratified_rank_sum(expression, strata)
    for group in range(N_GROUPS):
        total, variance, half = by_hand(expression.toarray(), strata, group)
        z = np.clip(np.abs(total) - half, 0, None) / np.sqrt(variance)
        np.testing.assert_allclose(found[group], 2 * stats.norm.sf(z), rtol=1e-10)


def test_with_one_stratum_it_is_the_wilcoxon_test():
    expression, strata = screen(np.random.default_rng(5), n_strata=1)
    found = stratified_rank_sum(expression, strata)
    values = expression.toarray()
    for group in range(N_GROUPS):
        expected = stats.mannwhitneyu(
            values[strata.group == group], values[strata.group == N_GROUPS], method="asymptotic"
        ).pvalue
        np.testing.assert_allclose(found[group], expected, rtol=1e-10)


def test_the_skewness_is_that_of_all_permutations():
    """Of a small screen with ties, whose permutations are enumerated; two strata add up."""
    rng = np.random.default_rng(10)
    values = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 3.5])
    moments, statistic = np.zeros(2), 0.0
    for ordered in (values, rng.permutation(values)):
        ranks = (stats.rankdata(ordered) - 5.5) / 11
        sums = np.array([ranks[list(own)].sum() for own in itertools.combinations(range(10), 3)])
        moments += [np.mean(sums**2), np.mean(sums**3)]
        statistic += ranks[:3].sum()
        ordered_twice = ordered
    expression = sparse.csr_matrix(np.concatenate([values, ordered_twice])[:, None])
    strata = Strata(np.tile([0] * 3 + [1] * 7, 2), np.repeat([0, 1], 10), 1)
    z = np.clip(abs(statistic) - 1 / 22, 0, None) / np.sqrt(moments[0])
    skewness = np.sign(statistic) * moments[1] / moments[0] ** 1.5
    expected = min(1.0, 2 * stats.pearson3.sf(z, skewness))
    found = stratified_rank_sum(expression, strata, skewed=True)
    assert found[0, 0] == pytest.approx(expected, rel=1e-10)
    assert skewness != 0


def test_groups_of_few_control_cells_have_few_significant_genes():
    """Where few cells express a gene, the normal tail is too light, and the gate alone leaves it."""
    rng = np.random.default_rng(11)
    mean = rng.gamma(0.4, 1, 200)
    counts = rng.poisson(np.outer(rng.gamma(4, 25, 1200), mean / mean.sum()))
    expression = sparse.csr_matrix(np.log2(1 + counts))
    found = {20: 0, 60: 0}
    for n_cells in found:
        for _ in range(200):
            group = np.ones(1200, dtype=int)
            group[rng.choice(1200, n_cells, replace=False)] = 0
            _, fdr = gated_tests(expression, Strata(group, np.zeros(1200, dtype=int), 1))
            found[n_cells] += bool((fdr < 0.05).any())
    assert max(found.values()) <= 0.07 * 200


def test_effects_are_weighted_differences_within_strata():
    expression, strata = screen(np.random.default_rng(6))
    effect, error = stratified_effects(expression, strata)
    values = expression.toarray()
    for group in range(N_GROUPS):
        number = np.array(
            [np.sum((strata.group == group) & (strata.stratum == b)) for b in range(3)]
        )
        expected, variance = 0.0, 0.0
        for b in range(3):
            own = values[(strata.group == group) & (strata.stratum == b)]
            control = values[(strata.group == N_GROUPS) & (strata.stratum == b)]
            weight = number[b] / number.sum()
            expected = expected + weight * (own.mean(0) - control.mean(0))
            variance = variance + weight**2 * (
                own.var(0, ddof=1) / len(own) + control.var(0, ddof=1) / len(control)
            )
        np.testing.assert_allclose(effect[group], expected, atol=1e-12)
        np.testing.assert_allclose(error[group], np.sqrt(variance), atol=1e-12)


def test_strata_without_controls_are_left_out_and_a_group_of_none_has_no_value():
    rng = np.random.default_rng(7)
    expression, strata = screen(rng)
    group = strata.group.copy()
    group[(group == N_GROUPS) & (strata.stratum == 2)] = LEFT_OUT
    group[(group == 0) & (strata.stratum != 2)] = LEFT_OUT
    changed = Strata(group, strata.stratum, N_GROUPS, strata.min_controls)
    effect, error = stratified_effects(expression, changed)
    pvalue = stratified_rank_sum(expression, changed)
    for values in (effect, error, pvalue):
        assert np.isnan(values[0]).all()
        assert np.isfinite(values[1:]).all()
    inside = strata.stratum != 2
    alone = Strata(group[inside], strata.stratum[inside], N_GROUPS, strata.min_controls)
    np.testing.assert_allclose(effect[1:], stratified_effects(expression[inside], alone)[0][1:])
    np.testing.assert_allclose(pvalue[1:], stratified_rank_sum(expression[inside], alone)[1:])


def test_the_variance_of_single_cells_comes_from_other_strata():
    values = np.array([[1.0], [3.0], [9.0], [0.0], [2.0], [5.0], [7.0]])
    strata = Strata(np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 1, 0, 0, 1, 1]), 1)
    effect, error = stratified_effects(sparse.csr_matrix(values), strata)
    assert effect[0, 0] == pytest.approx(2 / 3 * (2 - 1) + 1 / 3 * (9 - 6))
    expected = 4 / 9 * (2 / 2 + 2 / 2) + 1 / 9 * (2 / 1 + 2 / 2)
    assert error[0, 0] == pytest.approx(np.sqrt(expected))


def test_null_p_values_are_uniform():
    rng = np.random.default_rng(8)
    values = []
    for _ in range(200):
        stratum = rng.integers(3, size=240)
        # the fraction of perturbed cells depends on the stratum, as do all genes
        group = (rng.random(240) > 0.2 + 0.2 * stratum).astype(int)
        expression = rng.normal(stratum[:, None] * 2 + 20, 1.0, (240, 1))
        values.append(stratified_rank_sum(sparse.csr_matrix(expression), Strata(group, stratum, 1)))
    assert stats.kstest(np.ravel(values), "uniform").pvalue > 0.01


def test_a_batch_effect_is_an_effect_for_the_plain_test_alone():
    rng = np.random.default_rng(9)
    stratum = np.repeat([0, 1], [600, 400])
    group = (rng.random(1000) > np.where(stratum == 0, 0.1, 0.4)).astype(int)
    shift = rng.normal(0, 1, 300) * stratum[:, None]
    expression = sparse.csr_matrix(np.log2(1 + rng.poisson(np.exp(0.5 + shift))))
    plain = stratified_rank_sum(expression, Strata(group, np.zeros(1000, dtype=int), 1))
    stratified = stratified_rank_sum(expression, Strata(group, stratum, 1))
    assert np.sum(stats.false_discovery_control(plain[0]) < 0.05) > 100
    assert np.sum(stats.false_discovery_control(stratified[0]) < 0.05) <= 2


def of_pairs(cells, controls):
    """The definition, over all pairs of different cells."""
    between = cdist(cells, controls, "sqeuclidean").mean()
    return 2 * between - pdist(cells, "sqeuclidean").mean() - pdist(controls, "sqeuclidean").mean()


def test_distances_are_those_of_pairs():
    rng = np.random.default_rng(0)
    components = rng.normal(size=(80, 5)) + np.arange(5)
    group = rng.integers(0, 3, 80)
    distance, _ = energy_tests(components, Strata(group, np.zeros(80, dtype=int), 2))
    for one in range(2):
        expected = of_pairs(components[group == one], components[group == 2])
        assert distance[one] == pytest.approx(expected, rel=1e-9)


def test_p_values_are_uniform_without_an_effect_though_batches_differ():
    rng = np.random.default_rng(1)
    plain, stratified = [], []
    for repeat in range(200):
        stratum = rng.integers(2, size=90)
        group = (rng.random(90) > 0.25 + 0.4 * stratum).astype(int)
        components = rng.normal(size=(90, 3)) + 2 * stratum[:, None]
        plain.append(energy_tests(components, Strata(group, 0 * stratum, 1), 0.5, 99, repeat)[1][0])
        strata = Strata(group, stratum, 1)
        stratified.append(energy_tests(components, strata, 0.5, 99, repeat)[1][0])
    # p-values are multiples of 0.01
    assert stats.kstest(np.array(stratified) - rng.random(200) / 100, "uniform").pvalue > 0.01
    assert np.mean(np.array(plain) <= 0.05) > 0.5


def test_an_effect_is_found():
    rng = np.random.default_rng(2)
    group = np.repeat([0, 1, 2], [40, 40, 200])
    components = rng.normal(size=(280, 10))
    components[group == 0, 0] += 1.0
    distance, pvalue = energy_tests(components, Strata(group, np.zeros(280, dtype=int), 2))
    assert pvalue[0] == pytest.approx(1 / 1000)
    assert pvalue[1] > 0.05
    assert distance[0] == pytest.approx(2.0, abs=0.8)


def test_too_few_cells_have_no_test():
    components = np.random.default_rng(3).normal(size=(12, 2))
    group = np.array([0, *[1] * 5, *[2] * 6])
    distance, pvalue = energy_tests(components, Strata(group, np.zeros(12, dtype=int), 2))
    assert np.isnan(distance[0])
    assert np.isnan(pvalue[0])
    assert np.isfinite(distance[1])


def test_perturbations_beyond_all_permutations_share_the_further_ones():
    rng = np.random.default_rng(0)
    group = np.concatenate([np.repeat(np.arange(60), 12), np.full(300, 60)])
    cells = rng.normal(size=(len(group), 4))
    strata = Strata(group, np.zeros(len(group), dtype=np.int64), 60)
    moved = np.isin(group, [3])
    _, alone = energy_tests(cells + 5 * moved[:, None], strata, n_permutations=99)
    # as many permutations as one of sixty perturbations needs
    assert alone[3] == 1 / (1 + 60 / 0.05)
    moved = group < 30
    _, together = energy_tests(cells + 5 * moved[:, None], strata, n_permutations=99)
    np.testing.assert_array_equal(together[:30], 1 / (1 + 99))
    assert (stats.false_discovery_control(together)[:30] < 0.05).all()


def test_ties_within_and_between_many_controls_are_ranked_as_by_scipy():
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(0.5, 4, 12), (900, 12)).astype(float)
    group = np.where(np.arange(900) < 60, np.arange(900) % 3, 3)
    strata = Strata(group, np.zeros(900, dtype=np.int64), 3)
    found = stratified_rank_sum(sparse.csr_matrix(counts), strata)
    expected = [
        stats.mannwhitneyu(counts[group == one], counts[group == 3], method="asymptotic").pvalue
        for one in range(3)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("n_strata", [1, 3])
def test_groups_against_the_rest_are_tested_as_one_by_one(n_strata):
    rng = np.random.default_rng(n_strata)
    expression, strata = screen(rng, n_cells=160, n_strata=n_strata, depth=0.6)
    group = np.where(strata.group == N_GROUPS, LEFT_OUT, strata.group)
    group[strata.stratum == 2] = 0  # a stratum without other cells
    own = Strata(group, strata.stratum, N_GROUPS, min_controls=20 if n_strata > 1 else 1)
    pvalue, rate = gated_tests_against_rest(expression, own)
    for at in range(N_GROUPS):
        alone = Strata((group != at).astype(int), own.stratum, 1, own.min_controls)
        expected = gated_tests(expression, alone)
        np.testing.assert_allclose(pvalue[at], expected[0][0], rtol=1e-12)
        np.testing.assert_allclose(rate[at], expected[1][0], rtol=1e-12)
    assert np.isfinite(pvalue).any()
    assert np.isnan(pvalue).any()
