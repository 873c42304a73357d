import numpy as np
import pandas as pd
import pytest

from samsvae.screen.splits import shuffled_labels


@pytest.fixture(scope="module")
def parts(tiny_screen):
    names = np.random.default_rng(0).choice(["train", "val", "test"], tiny_screen.n_obs)
    return pd.Series(names, index=tiny_screen.obs_names)


@pytest.fixture
def labels(tiny_screen):
    return tiny_screen.obs["perturbation"]


def test_labels_change_places_within_their_part(labels, parts):
    before = labels.copy()
    after = shuffled_labels(labels, parts, seed=0)
    assert after.cat.categories.equals(before.cat.categories)
    assert after.index.equals(before.index)
    for part in ("train", "val", "test"):
        own = parts == part
        assert after[own].value_counts().to_dict() == before[own].value_counts().to_dict()
        assert after[own].equals(before[own]) == (part == "test")
    assert labels.equals(before)


def test_labels_that_change_places_say_nothing_of_a_cell(labels, parts):
    """A cell keeps its label as often as two cells drawn at random share theirs."""
    own = (parts == "train").to_numpy()
    before = labels[own].astype(str)
    kept = [
        np.mean(shuffled_labels(labels, parts, seed)[own].astype(str) == before)
        for seed in range(20)
    ]
    expected = np.sum((before.value_counts() / own.sum()) ** 2)
    assert np.mean(kept) == pytest.approx(expected, abs=5 * np.std(kept) / np.sqrt(20))


def test_the_seed_decides(labels, parts):
    first, again, other = (shuffled_labels(labels, parts, seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)
