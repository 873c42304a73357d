"""Distances of the distributions of predicted and held-out cells."""

import numpy as np
import pandas as pd
import pytest

from samsvae.config.experiments import Split
from samsvae.evaluation import population
from samsvae.evaluation.population import (
    VCC_COLUMNS,
    HeldOutCells,
    energy_distance,
    median_distance,
    squared_discrepancy,
)
from samsvae.evaluation.scores import (
    DISCREPANCY,
    DISTANCES,
    ENERGY,
    POPULATION_COLUMNS,
    VARIANCE,
    with_mean_scaled,
    with_means,
)
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.models import build_model
from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design
from samsvae.screen.splits import TRAIN, split_screen

RUN = {"split": "s", "model": "m", "seed": 0}


def all_pairs(first, second, of_distance):
    """Means over all pairs of different cells, one pair after the other."""

    def mean(one, other, same):
        values = [
            of_distance(np.sqrt(((a - b) ** 2).sum()))
            for i, a in enumerate(one)
            for j, b in enumerate(other)
            if not (same and i == j)
        ]
        return np.mean(values)

    return mean(first, second, False), mean(first, first, True), mean(second, second, True)


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    return rng.normal(size=(31, 5)), rng.normal(0.4, 1.7, size=(24, 5))


def test_distances_are_those_of_all_pairs(samples):
    between, first, second = all_pairs(*samples, lambda distance: distance)
    assert energy_distance(*samples) == pytest.approx(2 * between - first - second, abs=1e-9)
    bandwidth = 2.3
    between, first, second = all_pairs(
        *samples, lambda distance: np.exp(-(distance**2) / (2 * bandwidth**2))
    )
    expected = first + second - 2 * between
    assert squared_discrepancy(*samples, bandwidth) == pytest.approx(expected, abs=1e-9)


def test_bandwidth_is_the_median_distance_of_pairs(samples):
    cells = samples[0]
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(cells) for b in cells[:i]]
    assert median_distance(cells) == pytest.approx(np.median(pairs), abs=1e-9)
    many = np.random.default_rng(1).normal(size=(3000, 2))
    assert median_distance(many) == pytest.approx(np.sqrt(4 * np.log(2)), rel=0.02)


def test_samples_of_one_distribution_are_at_distance_0_on_average():
    rng = np.random.default_rng(2)
    for function in (energy_distance, lambda a, b: squared_discrepancy(a, b, 2.0)):
        found = [function(*rng.normal(size=(2, 12, 3))) for _ in range(400)]
        assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(400)
        apart = function(rng.normal(size=(40, 3)), rng.normal(1.5, 1, size=(40, 3)))
        assert apart > 4 * np.std(found)


def test_cells_with_the_right_mean_and_too_little_spread_are_found_out():
    rng = np.random.default_rng(3)
    cells = rng.normal(size=(400, 4))
    narrow = 0.4 * rng.normal(size=(400, 4))
    assert energy_distance(cells, narrow) > 10 * abs(energy_distance(cells[:200], cells[200:]))


def test_order_and_rotation_do_not_matter(samples):
    first, second = samples
    rng = np.random.default_rng(4)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    shuffled = rng.permutation(first) @ rotation, rng.permutation(second) @ rotation
    assert energy_distance(*shuffled) == pytest.approx(energy_distance(*samples), abs=1e-9)
    assert energy_distance(second, first) == pytest.approx(energy_distance(*samples), abs=1e-12)
    assert squared_discrepancy(*shuffled, 2.0) == pytest.approx(
        squared_discrepancy(*samples, 2.0), abs=1e-12
    )


@pytest.fixture(scope="module")
def parts(tiny_screen):
    return pd.Series(split_screen(tiny_screen, Split("random", 0)), index=tiny_screen.obs_names)


@pytest.fixture(scope="module")
def held_out(tiny_screen, parts):
    return HeldOutCells(tiny_screen, parts, 6)


@pytest.fixture(scope="module")
def trained(tiny_screen):
    settings = {"kind": "cpa_vae", "n_latent": 3, "n_hidden": 8}
    encoding = Encoding.of(Design.of_screen(tiny_screen), "additive")
    model = build_model(settings, tiny_screen.n_vars, len(encoding.names)).eval()
    return TrainedModel(model, settings, list(tiny_screen.var_names), encoding)


def test_as_many_cells_are_predicted_as_are_held_out_and_at_most_some(held_out, trained, parts):
    labels = held_out.screen.obs["perturbation"].astype(str)
    for cells in (held_out.sampled(trained, 0), held_out.mean_response):
        number = pd.Series(cells.labels).value_counts()
        expected = labels[(parts == "test").to_numpy()].value_counts().drop("control")
        assert number.to_dict() == expected[expected >= 4].clip(upper=6).to_dict()
        assert np.issubdtype(cells.counts.dtype, np.integer)
    again = held_out.sampled(trained, 0)
    assert (again.counts != held_out.sampled(trained, 0).counts).nnz == 0
    assert (again.counts != held_out.sampled(trained, 1).counts).nnz > 0


def test_of_many_perturbations_those_with_most_held_out_cells_are_compared(
    tiny_screen, parts, held_out, monkeypatch
):
    monkeypatch.setattr(population, "MOST_PERTURBATIONS", 3)
    few = HeldOutCells(tiny_screen, parts, 6)
    number = pd.Series(held_out.cells.labels).value_counts().drop("control").sort_index()
    assert few.names == sorted(number.sort_values(ascending=False, kind="stable").index[:3])
    assert set(few.cells.labels) == {*few.names, "control"}
    # of three, those whose counts fit in memory; one in any case
    order = number.sort_values(ascending=False, kind="stable").index[:3]
    size = [few.cells[few.cells.labels == name].counts.nnz for name in order]
    for most, expected in ((sum(size), 3), (sum(size) - 1, 2), (size[0], 1), (1, 1)):
        monkeypatch.setattr(population, "MOST_COUNTS", most)
        assert HeldOutCells(tiny_screen, parts, 6).names == sorted(order[:expected])


def test_of_many_cells_random_ones_are_compared(tiny_screen, parts):
    """Files may be sorted by batch, so that the first cells would be of one."""
    few, every = (HeldOutCells(tiny_screen, parts, most) for most in (6, 100))
    values = every.held_out_by_perturbation["control"]
    assert len(values) > 12
    chosen = few.held_out_by_perturbation["control"]
    rows = [int(np.abs(values - cell).sum(axis=1).argmin()) for cell in chosen]
    np.testing.assert_allclose(values[rows], chosen)
    assert len(set(rows)) == 6
    assert rows == sorted(rows) != list(range(6))


def test_a_replicate_and_control_cells_are_ceiling_and_floor(tiny_screen, parts):
    every = HeldOutCells(tiny_screen, parts, 100)
    floor, ceiling = (
        {name: pair[at] for name, pair in every.distance_anchors.items()} for at in (0, 1)
    )
    assert abs(ceiling[ENERGY]) < 0.2 * floor[ENERGY]
    assert abs(ceiling[DISCREPANCY]) < 0.2 * floor[DISCREPANCY]
    assert ceiling[VARIANCE] == pytest.approx(1, abs=0.15)
    perfect = every.distances_of(every.cells)
    assert perfect[VARIANCE] == pytest.approx(1)
    assert perfect[ENERGY] < 0  # pairs of a cell with itself are at distance 0


def test_tables_have_a_row_per_metric_and_means_over_runs(held_out, trained):
    cells = held_out.sampled(trained, 0)
    population = held_out.population_table(held_out.distances_of(cells), RUN)
    assert list(population.columns) == POPULATION_COLUMNS
    assert list(population["metric"]) == list(DISTANCES)
    scores = held_out.vcc_table(held_out.vcc_scores_of(cells), RUN)
    assert list(scores.columns) == VCC_COLUMNS
    two = pd.concat([scores.assign(scaled=1.0), scores.assign(seed=1, scaled=2.0)])
    assert (with_mean_scaled(two)["mean_scaled"] == 1.5).all()
    two = pd.concat([population, population.assign(seed=1, value=population["value"] + 1)])
    means = with_means(two)
    np.testing.assert_allclose(means["mean_value"], [*(population["value"] + 0.5)] * 2)
    np.testing.assert_allclose(means["mean_control"], means["control"])


def test_splits_without_cells_to_compare_with_are_refused(tiny_screen, parts):
    is_control = (tiny_screen.obs["perturbation"] == "control").to_numpy()
    held = np.flatnonzero(is_control & (parts == "test").to_numpy())
    few = parts.copy()
    few.iloc[held[3:]] = TRAIN
    with pytest.raises(InputError, match="at least 4 held-out cells"):
        HeldOutCells(tiny_screen, few, 10)
    with pytest.raises(InputError, match="'control'"):
        HeldOutCells(tiny_screen, parts.mask(is_control, TRAIN), 10)
