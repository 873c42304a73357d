"""The choice among candidates: the known winner, by validation cells alone, and the same each time."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from samsvae.config.experiments import Split
from samsvae.evaluation.model_selection import overview, select, validation_bounds
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import write_parquet

NAMES = ["sams--n_latent-3", "sams--n_latent-5", "sams--n_latent-9"]
HYPERPARAMETERS = {name: {"n_latent": int(name[-1])} for name in NAMES}


def write_bounds(folder, gains, test_gains=None, seeds=(0, 1)):
    """Bounds of cells that differ by far more than the candidates do, which differ by `gains`."""
    cells = [f"c{i}" for i in range(60)]
    parts = np.array(["val"] * 40 + ["test"] * 20)
    rng = np.random.default_rng(7)
    level = rng.normal(-500, 50, len(cells))
    paths = {}
    for name, gain, test_gain in zip(NAMES, gains, test_gains or gains, strict=True):
        for seed in seeds:
            noise = np.random.default_rng([seed, NAMES.index(name)]).normal(0, 0.1, len(cells))
            bound = level + noise + np.where(parts == "val", gain, test_gain)
            table = pd.DataFrame({"cell": cells, "split": parts, "iwelbo": bound})
            table["split"] = table["split"].astype("category")
            paths[name, seed] = folder / f"{name}-{seed}.parquet"
            write_parquet(table.sample(frac=1, random_state=seed), "{}", paths[name, seed])
    return paths


def selected(paths):
    runs = [(name, seed, validation_bounds(path)) for (name, seed), path in paths.items()]
    return select(runs, HYPERPARAMETERS)


def winner(table):
    return table["candidate"][table["chosen"]].unique().tolist()


def test_the_best_on_validation_cells_is_chosen_and_its_lead_is_right(tmp_path):
    table = selected(write_bounds(tmp_path, [0.0, 1.0, 0.6]))
    assert winner(table) == NAMES[1:2]
    assert list(table["candidate"]) == list(np.repeat(NAMES, 2))
    assert list(table["hyperparameters"][:2]) == ["n_latent 3"] * 2
    assert (table["n_cells"] == 40).all()
    of_candidates = table.drop_duplicates("candidate").set_index("candidate")
    assert of_candidates["difference"].to_list() == pytest.approx([1.0, 0.0, 0.4], abs=0.06)
    # cells are far apart, candidates are not: the paired interval is the narrower by far
    assert ((table["difference_high"] - table["difference_low"]) < 0.2).all()
    assert ((table["high"] - table["low"]) > 10).all()
    others = of_candidates.drop(NAMES[1])
    assert (others["difference_low"] > 0).all()
    assert (others["difference_high"] > others["difference"]).all()


def test_means_and_intervals_are_students_over_cells(tmp_path):
    paths = write_bounds(tmp_path, [0.0, 1.0, 0.6])
    table = selected(paths).set_index(["candidate", "seed"])
    tables = {
        run: pd.read_parquet(path).set_index("cell").sort_index() for run, path in paths.items()
    }
    bounds = {run: one["iwelbo"][one["split"] == "val"] for run, one in tables.items()}
    for run, bound in bounds.items():
        low, high = stats.ttest_1samp(bound, 0).confidence_interval(0.95)
        assert table.loc[run, ["iwelbo", "low", "high"]].to_list() == pytest.approx(
            [bound.mean(), low, high]
        )
    difference = (
        bounds[NAMES[1], 0] + bounds[NAMES[1], 1] - bounds[NAMES[0], 0] - bounds[NAMES[0], 1]
    ) / 2
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    assert table.loc[
        (NAMES[0], 0), ["difference", "difference_low", "difference_high"]
    ].to_list() == pytest.approx([difference.mean(), low, high])


@pytest.mark.parametrize("test_gains", [[50.0, -50.0, 0.0], [np.nan, np.inf, -np.inf]])
def test_test_cells_are_never_looked_at(tmp_path, test_gains):
    (tmp_path / "other").mkdir()
    plain = selected(write_bounds(tmp_path, [0.0, 1.0, 0.6]))
    perturbed = selected(write_bounds(tmp_path / "other", [0.0, 1.0, 0.6], test_gains))
    pd.testing.assert_frame_equal(plain, perturbed)


def test_the_mean_over_seeds_decides_and_not_the_luckiest_seed(tmp_path):
    paths = write_bounds(tmp_path, [0.0, 0.5, -1.0])
    lucky = pd.read_parquet(paths[NAMES[2], 0])
    lucky["iwelbo"] += 2.5  # by one and a half better than the others, with this seed alone
    write_parquet(lucky, "{}", paths[NAMES[2], 0])
    table = selected(paths).set_index(["candidate", "seed"])
    assert table["iwelbo"].idxmax() == (NAMES[2], 0)
    assert winner(table.reset_index()) == [NAMES[1]]


def test_ties_go_to_the_first_of_the_grid_in_whatever_order_runs_come(tmp_path):
    paths = write_bounds(tmp_path, [0.0, 0.0, -1.0])
    for seed in (0, 1):
        paths[NAMES[1], seed] = paths[NAMES[0], seed]
    backwards = dict(reversed(paths.items()))
    for given in (paths, backwards):
        assert winner(selected(given)) == [NAMES[0]]
    pd.testing.assert_frame_equal(selected(paths), selected(backwards))


def test_a_candidate_without_a_finite_bound_is_never_chosen(tmp_path):
    paths = write_bounds(tmp_path, [np.nan, 0.0, np.inf])
    assert winner(selected(paths)) == [NAMES[1]]
    with pytest.raises(InputError, match=r"sams--n_latent-9\b"):
        selected(write_bounds(tmp_path, [np.nan, np.inf, np.nan]))


def test_the_overview_counts_splits_and_averages_over_them(tmp_path):
    splits = {
        s.name: s for f in (0.0, 0.5) for s in (Split("data_efficiency", k, f) for k in range(3))
    }
    gains = [[0.0, 1.0, 0.6], [0.0, 1.0, 0.6], [2.0, 1.0, 0.6]] * 2
    tables = []
    for split, gain in zip(splits, gains, strict=True):
        (tmp_path / split).mkdir()
        table = selected(write_bounds(tmp_path / split, gain))
        tables.append(table.assign(split=split, model="sams"))
    selection = pd.concat(tables)
    table = overview(selection, splits)
    assert list(table["fraction"]) == [0.0] * 3 + [0.5] * 3
    assert list(table["candidate"]) == NAMES * 2
    assert list(table["n_chosen"]) == [1, 2, 0] * 2
    assert (table["n_splits"] == 3).all()
    means = (
        selection.drop_duplicates(["split", "candidate"]).groupby("candidate")["mean_iwelbo"].mean()
    )
    assert table["validation_iwelbo"][:3].to_list() == pytest.approx(means[NAMES].to_list())

    alone = overview(tables[0], {next(iter(splits)): splits[next(iter(splits))]})
    of_split = tables[0].drop_duplicates("candidate")
    assert alone["difference_low"].to_list() == pytest.approx(of_split["difference_low"].to_list())
