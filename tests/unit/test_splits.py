from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samsvae.config.experiments import Split
from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design
from samsvae.screen.labels import components
from samsvae.screen.splits import (
    check_trained,
    chosen_pairs,
    held_out_cells,
    read_split,
    split_cells,
    split_table,
)

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
    parts = split_cells(Design.of_labels(["control"] * n_cells), Split("random", seed))
    share = pd.Series(parts).value_counts(normalize=True)
    assert share["test"] == pytest.approx(0.2, abs=0.5 / n_cells + 1e-9)
    assert share["val"] == pytest.approx(0.16, abs=1.1 / n_cells)
    assert "unused" not in share


def cells_of(parts, part):
    return set(np.flatnonzero(parts == part))


@given(st.integers(0, 10**6))
def test_unseen_combinations_are_those_of_the_definition(seed):
    pairs = sorted(set(LABELS[IS_PAIR]))
    np.random.default_rng(seed).shuffle(pairs)
    for fraction in FRACTIONS:
        parts = split_cells(Design.of_labels(LABELS), Split("unseen_combinations", seed, fraction))
        assert set(LABELS[parts == "test"]) == set(pairs[-2:])
        for part in ("train", "val"):
            assert set(LABELS[(parts == part) & IS_PAIR]) == set(pairs[: round(8 * fraction)])
        assert set(parts[~IS_PAIR]) == {"train", "val"}


@given(st.integers(0, 10**6))
def test_up_to_three_quarters_no_tested_pair_is_trained_on_and_with_all_each_is(seed):
    for fraction in FRACTIONS:
        parts = split_cells(Design.of_labels(LABELS), Split("unseen_combinations", seed, fraction))
        tested = set(LABELS[parts == "test"])
        seen = set(LABELS[np.isin(parts, ["train", "val"])])
        assert tested <= seen if fraction == 1 else not tested & seen


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_chosen_pairs_nest_and_keep_the_tested_apart(n_pairs, seed):
    pairs = [f"A+B{index}" for index in range(n_pairs)]
    made = [chosen_pairs(pairs, fraction, seed) for fraction in FRACTIONS]
    assert len({frozenset(tested) for _, tested in made}) == 1
    for (fewer, _), (more, _) in pairwise(made):
        assert fewer <= more
    for fraction, (trained, tested) in zip(FRACTIONS, made, strict=True):
        assert len(tested) == max(1, n_pairs - round(0.75 * n_pairs))
        assert trained | tested <= set(pairs)
        assert fraction == 1 or not trained & tested
    assert made[0][0] == set()
    assert made[-1][0] == set(pairs)


@given(
    st.sampled_from(["unseen_combinations", "data_efficiency"]),
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(20, 60),
    st.integers(0, 2**32 - 1),
    st.randoms(use_true_random=False),
)
def test_splits_of_pairs_nest_whatever_the_screen(kind, cells_per_pair, others, seed, shuffler):
    """More may be trained on as the fraction grows, and the cells of a test never change."""
    labels = ["control"] * others + ["A"] * others
    labels += [f"A+B{pair}" for pair, n in enumerate(cells_per_pair) for _ in range(n)]
    shuffler.shuffle(labels)
    labels = np.array(labels, dtype=object)
    is_pair = np.char.find(labels.astype(str), "+") >= 0
    made = [
        split_cells(Design.of_labels(labels), Split(kind, seed, fraction)) for fraction in FRACTIONS
    ]
    for fewer, more in pairwise(made):
        for part in ("train", "val"):
            assert cells_of(fewer, part) <= cells_of(more, part)
        assert cells_of(fewer, "test") == cells_of(more, "test")
        assert (fewer[~is_pair] == more[~is_pair]).all()
    assert not (is_pair & (made[0] == "train")).any()
    assert not (~is_pair & np.isin(made[0], ["test", "unused"])).any()
    n_val = int(np.sum(~is_pair & (made[0] == "val")))
    assert n_val == round(0.2 * 2 * others)


@given(st.integers(0, 10**6))
def test_data_efficiency_uses_a_growing_part_of_the_same_training_cells(seed):
    made = [
        split_cells(Design.of_labels(LABELS), Split("data_efficiency", seed, f)) for f in FRACTIONS
    ]
    numbers = [int(np.sum(IS_PAIR & (parts == "train"))) for parts in made]
    n_pair_cells = int(IS_PAIR.sum())
    assert numbers[-1] == n_pair_cells - round(0.2 * n_pair_cells) - round(0.16 * n_pair_cells)
    assert numbers == [round(f * numbers[-1]) for f in FRACTIONS]
    for parts in made:
        assert cells_of(parts, "test") == cells_of(made[0], "test")
        assert cells_of(parts, "val") == cells_of(made[0], "val")


@given(st.integers(0, 10**6))
def test_both_kinds_train_on_the_same_cells_where_everything_may_be_trained_on(seed):
    """As in the paper's table, whose validation bounds of the two tasks agree at fraction 1."""
    unseen = split_cells(Design.of_labels(LABELS), Split("unseen_combinations", seed, 1))
    efficiency = split_cells(Design.of_labels(LABELS), Split("data_efficiency", seed, 1))
    for part in ("train", "val"):
        assert cells_of(unseen, part) == cells_of(efficiency, part)
    assert cells_of(unseen, "test") < cells_of(efficiency, "test")


def test_seeds_differ_and_repeat():
    first, again, other = (
        split_cells(Design.of_labels(LABELS), Split("random", s)) for s in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_combinations_are_needed_and_a_fraction():
    with pytest.raises(InputError, match="the screen has none"):
        split_cells(Design.of_labels(["control", "A"] * 20), Split("unseen_combinations", 0, 0.5))
    with pytest.raises(InputError, match="needs a fraction"):
        split_cells(Design.of_labels(LABELS), Split("unseen_combinations", 0))
    with pytest.raises(InputError, match="cannot be split"):
        split_cells(Design.of_labels(["control"] * 3), Split("random", 0))


def test_a_perturbation_without_a_training_cell_is_refused_or_kept():
    labels = np.array(["control", "A", "B", "A+C"], dtype=object)
    parts = np.array(["train", "train", "val", "test"], dtype=object)
    with pytest.raises(InputError, match=r"2 perturbation\(s\) have no training cell") as error:
        check_trained(Design.of_labels(labels), parts, "refuse")
    assert "B (1 cells), C (1 cells)" in str(error.value)
    assert check_trained(Design.of_labels(labels), parts, "keep_prior") == ["B", "C"]
    parts[0] = "test"
    with pytest.raises(InputError, match="control"):
        check_trained(Design.of_labels(labels), parts, "keep_prior")


def test_held_out_are_cells_that_no_model_saw_else_validation_cells():
    labels = pd.Series(["A", "A", "A", "B", "B", "C"])
    parts = pd.Series(["train", "val", "test", "train", "val", "unused"])
    assert held_out_cells(labels, parts).tolist() == [False, False, True, False, True, True]


def test_a_split_of_another_screen_is_refused(tiny_screen, tmp_path):
    parts = split_cells(Design.of_screen(tiny_screen), Split("random", 0))
    path = tmp_path / "split.tsv"
    split_table(tiny_screen, parts).to_csv(path, sep="\t", index=False)
    assert (read_split(path, tiny_screen).to_numpy() == parts).all()
    with pytest.raises(InputError, match="not those of the screen"):
        read_split(path, tiny_screen[1:])
