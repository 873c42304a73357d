import numpy as np
import pandas as pd
import pytest

from samsvae.screen import dosages
from samsvae.shuffled_labels import with_shuffled_labels


@pytest.fixture(scope="module")
def parts(tiny_screen):
    names = np.random.default_rng(0).choice(["train", "val", "test"], tiny_screen.n_obs)
    return pd.Series(names, index=tiny_screen.obs_names)


def labels_of(screen):
    return screen.obs["perturbation"].astype(str)


def test_labels_change_places_within_their_part_and_dosages_go_with_them(tiny_screen, parts):
    before = labels_of(tiny_screen)
    shuffled = with_shuffled_labels(tiny_screen, parts, seed=0)
    after = labels_of(shuffled)
    for part in ("train", "val", "test"):
        own = parts == part
        assert after[own].value_counts().to_dict() == before[own].value_counts().to_dict()
        assert after[own].equals(before[own]) == (part == "test")
    expected = dosages(after, list(tiny_screen.uns["perturbations"]))
    assert (shuffled.obsm["dosage"] != expected).nnz == 0
    assert (shuffled.X != tiny_screen.X).nnz == 0
    assert labels_of(tiny_screen).equals(before)


def test_labels_that_change_places_say_nothing_of_a_cell(tiny_screen, parts):
    """A cell keeps its label as often as two cells drawn at random share theirs."""
    own = (parts == "train").to_numpy()
    before = labels_of(tiny_screen)[own]
    kept = [
        np.mean(labels_of(with_shuffled_labels(tiny_screen, parts, seed))[own] == before)
        for seed in range(20)
    ]
    expected = np.sum((before.value_counts() / own.sum()) ** 2)
    assert np.mean(kept) == pytest.approx(expected, abs=5 * np.std(kept) / np.sqrt(20))


def test_the_seed_decides(tiny_screen, parts):
    first, again, other = (
        labels_of(with_shuffled_labels(tiny_screen, parts, seed)) for seed in (1, 1, 2)
    )
    assert first.equals(again)
    assert not first.equals(other)
