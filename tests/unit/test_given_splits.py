"""Splits from elsewhere: read by the names of cells, and refused if they divide a screen badly."""

import numpy as np
import pandas as pd
import pytest

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import build_screen
from samsvae.screen.design import Design
from samsvae.screen.given_splits import given_parts
from samsvae.screen.splits import split_table


@pytest.fixture
def own_screen():
    """Ten cells each of control, two genes and their pair; six trained, one to select, two tested."""
    labels = np.repeat(["control", "A", "B", "A+B"], 10)
    counts = np.random.default_rng(0).poisson(5, (40, 6)) + 1
    screen = build_screen(
        counts, Design.of_labels(labels), [f"c{i}" for i in range(40)], list("UVWXYZ")
    )
    screen.obs["fold"] = pd.Categorical((["train"] * 6 + ["valid"] + ["test"] * 2 + [None]) * 4)
    return screen


def from_column(screen, **parts):
    given = {"column": "fold", "parts": parts or None}
    return given_parts(screen, given)


def from_table(path, screen, table, **parts):
    table.to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    return given_parts(screen, {"table": str(path), "parts": parts or None})


def table_of(screen):
    words = screen.obs["fold"].astype(object).fillna("").replace("valid", "val")
    return pd.DataFrame({"cell": screen.obs_names, "part": words.to_numpy()})


def test_a_split_of_a_column_is_that_of_its_words(own_screen):
    parts = from_column(own_screen, valid="val")
    assert list(parts[:10]) == ["train"] * 6 + ["val", "test", "test", "unused"]


def test_a_split_of_a_table_is_that_of_its_cells(own_screen, tmp_path):
    table = table_of(own_screen).sample(frac=1, random_state=1)
    table.loc[99] = ["a cell that was filtered out", "test"]
    expected = from_column(own_screen, valid="val")
    assert list(from_table(tmp_path / "a.tsv", own_screen, table)) == list(expected)
    renamed = table.rename(columns={"part": "split"})
    assert list(from_table(tmp_path / "a.csv", own_screen, renamed)) == list(expected)


def test_a_split_that_was_made_here_can_be_read_as_a_table(own_screen, tmp_path):
    parts = from_column(own_screen, valid="val")
    found = from_table(tmp_path / "a.tsv", own_screen, split_table(own_screen, parts))
    assert list(found) == list(parts)


def test_words_without_a_meaning_are_refused_or_with_a_mapping_unused(own_screen):
    with pytest.raises(InputError, match=r"1 word.*'valid' \(4 cells\).*parts: {valid: test}"):
        from_column(own_screen)
    with pytest.raises(InputError, match=r"names 'ood', the word of no cell.*'valid'"):
        from_column(own_screen, valid="val", ood="test")
    own_screen.obs["fold"] = own_screen.obs["fold"].cat.add_categories("new")
    own_screen.obs.loc["c39", "fold"] = "new"
    assert from_column(own_screen, valid="val")[39] == "unused"


def test_a_column_that_the_screen_does_not_have_is_refused(own_screen):
    with pytest.raises(InputError, match=r"'part' is not in obs.*fold.*from_table"):
        given_parts(own_screen, {"column": "part", "parts": None})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.iloc[3:], "no row for 3 of 40 cells.*c0, c1, c2"),
        (lambda t: pd.concat([t, t[:2]]), "2 cell.* more than once, for instance 'c0'"),
        (lambda t: t.rename(columns={"part": "fold"}), "has the columns 'cell', 'fold'.*'part'"),
        (lambda t: t.replace("val", ""), "no cell of the screen is of the part 'val'"),
        (lambda t: t.assign(part=t["part"].where(t.index >= 10, "test")), "none of 10 control cells"),
        (lambda t: t.assign(part=t["part"].where(t.index >= 10, "train")), "all 10 control cells"),
    ],
)  # fmt: skip
def test_tables_that_divide_the_screen_badly_are_refused(own_screen, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        from_table(tmp_path / "a.tsv", own_screen, change(table_of(own_screen)))
