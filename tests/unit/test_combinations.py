import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from samsvae.config.experiments import Split
from samsvae.evaluation.combinations import non_additivity, parts_of, tabulate_non_additivity
from samsvae.evaluation.expression import log_expression
from samsvae.evaluation.observed import observed_effects
from samsvae.screen.design import Design
from samsvae.screen.splits import split_cells

NAMES = ["A", "B", "C", "A+B", "A+C", "A+B+C", "B+D"]
N_GENES, N_CELLS, NOISE = 2000, 100, 0.3
DEPARTURE = 2.0  # of the first five genes of A+C


@pytest.fixture(scope="module")
def observed():
    return simulated(NOISE)


def simulated(noise, scale=1.0):
    """Effects as means of cells with normal noise; pairs are sums, but for A+C."""
    rng = np.random.default_rng(5)
    single = rng.normal(size=(3, N_GENES))
    members = np.array(
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]]
    )
    mean = members @ single * np.where(members.sum(axis=1) > 1, scale, 1)[:, None]
    mean[4, :5] += DEPARTURE
    error = noise / np.sqrt(N_CELLS)
    control = rng.normal(0, error, N_GENES)
    ate = mean + rng.normal(0, error, mean.shape) - control
    table = anndata.AnnData(ate.astype(np.float32))
    table.obs_names, table.var_names = NAMES, [f"g{i}" for i in range(N_GENES)]
    table.obs["n_cells"], table.obs["n_train"] = N_CELLS, [1, 1, 1, 0, 1, 1, 1]
    table.layers["ate"] = table.X
    table.layers["standard_error"] = np.full(ate.shape, np.sqrt(2) * error)
    table.var["control_standard_error"] = error
    table.uns["n_control_cells"] = N_CELLS
    return table


def predictions(observed, matrix):
    return anndata.AnnData(matrix.astype(np.float32), observed.obs, observed.var)


def test_parts_are_the_single_perturbations_at_their_doses():
    assert parts_of("A+B") == ["A", "B"]
    assert parts_of("A@0.5+B") == ["A@0.5", "B"]
    assert parts_of("A") == ["A"]


def test_errors_of_non_additivity_are_those_of_the_cells(observed):
    """Without interaction the p-values are uniform, for pairs and triples alike."""
    found = non_additivity(observed)
    assert found.names == ["A+B", "A+C", "A+B+C"]  # D alone was not observed
    for row, name in enumerate(found.names):
        z = (found.non_additivity / found.standard_error)[row, 5:]
        assert stats.kstest(z, "norm").pvalue > 1e-3, name
    # mean - sum of parts + (n - 1) controls, each with the same error
    expected = NOISE / np.sqrt(N_CELLS) * np.sqrt([1 + 2 + 1, 1 + 2 + 1, 1 + 3 + 4])
    np.testing.assert_allclose(found.standard_error[:, 0], expected, rtol=1e-3)


def test_few_cells_are_judged_by_welchs_t(observed):
    """A pair of two cells and parts of many: nearly all noise is the pair's, with 1 degree."""
    few = observed.copy()
    few.obs["n_cells"] = [N_CELLS, N_CELLS, N_CELLS, 2, N_CELLS, N_CELLS, N_CELLS]
    few.layers["standard_error"] = few.layers["standard_error"].copy()
    few.layers["standard_error"][3] = 10.0
    few.layers["ate"] = few.layers["ate"].copy()
    few.layers["ate"][3] += np.linspace(-500, 500, N_GENES, dtype=np.float32)
    found = non_additivity(few)
    pvalue = 2 * stats.t.sf(np.abs(found.non_additivity[0]) / found.standard_error[0], 1)
    np.testing.assert_allclose(found.fdr[0], stats.false_discovery_control(pvalue), rtol=0.02)


def test_a_planted_interaction_is_found_and_no_other(observed):
    table = tabulate_non_additivity(observed, {"model": observed}, 0.05).set_index("perturbation")
    assert table.loc["A+C", "n_non_additive"] == pytest.approx(5, abs=2)
    genes = table.loc["A+C", "non_additive_genes"].split(", ")
    assert {gene.split(" ")[0] for gene in genes} == {f"g{i}" for i in range(5)}
    assert all(" +" in gene for gene in genes)
    assert table.loc["A+B", "n_non_additive"] <= 2
    assert table.loc["A+C", "non_additivity"] == pytest.approx(DEPARTURE * np.sqrt(5 / N_GENES), rel=0.1)  # fmt: skip
    assert table.loc["A+B", "non_additivity"] < 0.02
    assert table.loc["A+B", "noise_size"] == pytest.approx(2 * NOISE / np.sqrt(N_CELLS), rel=1e-3)
    assert table.loc["A+B", "effect_size"] == pytest.approx(np.sqrt(2), rel=0.1)
    assert table["slope_on_sum"].between(0.95, 1.05).all()
    assert table["trained"].tolist() == [False, True, True]


def test_models_are_asked_where_they_are_not_additive(observed):
    single = np.asarray(observed.X[:3])
    sums = np.vstack(
        [single, single[0] + single[1], single[0] + single[2], single.sum(0), single[1]]
    )
    table = tabulate_non_additivity(
        observed, {"adds": predictions(observed, sums), "knows": observed}, 0.05
    ).set_index(["model", "perturbation"])
    assert (table.loc["adds", "predicted_non_additivity"] == 0).all()
    assert table.loc["adds", "non_additivity_correlation"].isna().all()
    np.testing.assert_allclose(table.loc["knows", "non_additivity_correlation"], 1, rtol=1e-4)


def test_non_additivity_and_its_errors_follow_from_cells(tiny_screen):
    design = Design.of_screen(tiny_screen)
    parts = pd.Series(split_cells(design, Split("random", 0)), index=tiny_screen.obs_names)
    found = non_additivity(observed_effects(tiny_screen, parts, "{}"))
    assert found.names
    logs = log_expression(tiny_screen).toarray()
    pair = found.names[0]
    means, variances = [], []
    for name in [pair, *pair.split("+"), "control"]:
        cells = logs[design.labels() == name]
        means.append(cells.mean(axis=0))
        variances.append(cells.var(axis=0) / (len(cells) - 1))
    np.testing.assert_allclose(found.non_additivity[0], means[0] - means[1] - means[2] + means[3], atol=1e-5)  # fmt: skip
    np.testing.assert_allclose(
        found.standard_error[0], np.sqrt(sum(variances)), rtol=1e-3, atol=1e-4
    )


def test_a_screen_without_combinations_has_no_rows(observed):
    alone = observed[["A", "B"]].copy()
    assert tabulate_non_additivity(alone, {"model": alone}, 0.05).empty


@pytest.mark.parametrize("scale", [0.6, 1.0])
def test_noise_of_few_cells_does_not_make_pairs_look_less_than_sums(scale):
    """The plain slope is off by what noise adds to the squares of the sums."""
    found = non_additivity(simulated(5.0, scale))
    np.testing.assert_allclose(found.slope, scale, atol=0.12)
    total = found.effect - found.non_additivity
    plain = np.sum(total * found.effect, axis=1) / np.sum(total**2, axis=1)
    assert (np.abs(plain - scale) > 0.05).any()
