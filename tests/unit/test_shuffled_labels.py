import numpy as np
import pandas as pd
import pytest

from samsvae.screen.splits import shuffled_cells


@pytest.fixture(scope="module")
def parts(tiny_screen):
    names = np.random.default_rng(0).choice(["train", "val", "test"], tiny_screen.n_obs)
    return pd.Series(names, index=tiny_screen.obs_names)


@pytest.fixture
def labels(tiny_screen):
    return tiny_screen.obs["perturbation"]


def test_labels_change_places_within_their_part(labels, parts):
    source = shuffled_cells(parts, seed=0)
    assert sorted(source) == list(range(len(parts)))
    assert (parts.to_numpy()[source] == parts).all()
    after = labels.iloc[source].set_axis(labels.index)
    for part in ("train", "val", "test"):
        own = parts == part
        assert after[own].equals(labels[own]) == (part == "test")


def test_labels_that_change_places_say_nothing_of_a_cell(labels, parts):
    """A cell keeps its label as often as two cells drawn at random share theirs."""
    own = (parts == "train").to_numpy()
    before = labels[own].astype(str)
    kept = [
        np.mean(labels.to_numpy(dtype=str)[shuffled_cells(parts, seed)][own] == before)
        for seed in range(20)
    ]
    expected = np.sum((before.value_counts() / own.sum()) ** 2)
    assert np.mean(kept) == pytest.approx(expected, abs=5 * np.std(kept) / np.sqrt(20))


def test_the_seed_decides(parts):
    first, again, other = (shuffled_cells(parts, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).all()
