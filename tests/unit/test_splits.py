from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samsvae.errors import InputError
from samsvae.experiments import Split
from samsvae.labels import components
from samsvae.splits import check_trained, held_out_cells, read_split, split_cells, split_table

FRACTIONS = [0, 0.25, 0.5, 0.75, 1]
LABELS = np.array(
    ["control"] * 50
    + [g for g in "ABCDEF" for _ in range(20)]
    + [f"{a}+{b}" for a, b in ["AB", "AC", "AD", "BC", "BD", "CD", "DE", "EF"] for _ in range(60)],
    dtype=object,
)
IS_PAIR = np.array([len(components(label)) > 1 for label in LABELS])


@given(st.integers(10, 2000), st.integers(0, 2**32 - 1))
def test_random_is_64_16_20(n_cells, seed):
    parts = split_cells(["control"] * n_cells, Split("random", seed))
    share = pd.Series(parts).value_counts(normalize=True)
    assert share["test"] == pytest.approx(0.2, abs=0.5 / n_cells + 1e-9)
    assert share["val"] == pytest.approx(0.16, abs=1.1 / n_cells)
    assert "unused" not in share


@given(st.integers(0, 10**6))
def test_unseen_combinations_hold_the_same_quarter_out_and_nest(seed):
    made = [split_cells(LABELS, Split("unseen_combinations", seed, f)) for f in FRACTIONS]
    tested = {frozenset(LABELS[parts == "test"]) for parts in made}
    assert len(tested) == 1
    held_out = next(iter(tested))
    assert len(held_out) == 2
    trained = [set(np.flatnonzero(parts == "train")) for parts in made]
    for fewer, more in pairwise(trained):
        assert fewer <= more
    for parts in made:
        assert not held_out & set(LABELS[(parts == "train") | (parts == "val")])
        assert set(parts[~IS_PAIR]) == {"train", "val"}
    assert not set(LABELS[made[0] == "train"]) & set(LABELS[IS_PAIR])
    assert set(LABELS[made[-1] == "train"]) | held_out == set(LABELS)


@given(st.integers(0, 10**6))
def test_data_efficiency_uses_a_growing_part_of_the_same_training_cells(seed):
    made = [split_cells(LABELS, Split("data_efficiency", seed, f)) for f in FRACTIONS]
    for parts in made:
        assert (parts == "test").tolist() == (made[0] == "test").tolist()
    numbers = [int(np.sum(IS_PAIR & (parts == "train"))) for parts in made]
    assert numbers == [round(f * numbers[-1]) for f in FRACTIONS]
    for fewer, more in pairwise(made):
        assert set(np.flatnonzero(fewer == "train")) <= set(np.flatnonzero(more == "train"))


def test_seeds_differ_and_repeat():
    first, again, other = (split_cells(LABELS, Split("random", s)) for s in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_combinations_are_needed_and_a_fraction():
    with pytest.raises(InputError, match="the screen has none"):
        split_cells(["control", "A"] * 20, Split("unseen_combinations", 0, 0.5))
    with pytest.raises(InputError, match="needs a fraction"):
        split_cells(LABELS, Split("unseen_combinations", 0))
    with pytest.raises(InputError, match="cannot be split"):
        split_cells(["control"] * 3, Split("random", 0))


def test_a_perturbation_without_a_training_cell_is_refused_or_kept():
    labels = np.array(["control", "A", "B", "A+C"], dtype=object)
    parts = np.array(["train", "train", "val", "test"], dtype=object)
    with pytest.raises(InputError, match=r"2 perturbation\(s\) have no training cell") as error:
        check_trained(labels, parts, "refuse")
    assert "B (1 cells), C (1 cells)" in str(error.value)
    assert check_trained(labels, parts, "keep_prior") == ["B", "C"]
    parts[0] = "test"
    with pytest.raises(InputError, match="control"):
        check_trained(labels, parts, "keep_prior")


def test_held_out_are_cells_that_no_model_saw_else_validation_cells():
    labels = pd.Series(["A", "A", "A", "B", "B", "C"])
    parts = pd.Series(["train", "val", "test", "train", "val", "unused"])
    assert held_out_cells(labels, parts).tolist() == [False, False, True, False, True, True]


def test_a_split_of_another_screen_is_refused(tiny_screen, tmp_path):
    parts = split_cells(tiny_screen.obs["perturbation"], Split("random", 0))
    path = tmp_path / "split.tsv"
    split_table(tiny_screen, parts).to_csv(path, sep="\t", index=False)
    assert (read_split(path, tiny_screen).to_numpy() == parts).all()
    with pytest.raises(InputError, match="not those of the screen"):
        read_split(path, tiny_screen[1:])
