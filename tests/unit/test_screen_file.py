import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import (
    build_screen,
    content_digest,
    read_screen,
    write_source_screen,
)
from samsvae.screen.design import Design
from samsvae.screen.writing import write_screen_in_blocks

LABELS = ["control", "A", "A+B", "B@0.5"]


def screen_of(n_cells, n_genes=7, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.6, (n_cells, n_genes))
    counts[:, 0] += 1
    return (
        counts,
        Design.of_labels([LABELS[i % len(LABELS)] for i in range(n_cells)]),
        [f"cell{i}" for i in range(n_cells)],
        [f"gene{i}" for i in range(n_genes)],
    )


def blocks_of(counts, sizes, dtype=np.float32):
    first = 0
    for size in [*sizes, len(counts)]:
        positions = np.arange(first, min(first + size, len(counts)))
        yield positions, sparse.csr_matrix(counts[positions].astype(dtype))
        first += size


def write(path, counts, design, cells, genes, sizes=(), **options):
    return write_screen_in_blocks(
        blocks_of(counts, sizes), design, cells, genes, '{"made": 1}', path, where="f: X", **options
    )


@pytest.mark.slow
@given(st.integers(4, 40), st.lists(st.integers(0, 9), max_size=8), st.integers(0, 99))
def test_a_file_in_blocks_says_the_same_as_one_at_once(tmp_path_factory, n_cells, sizes, seed):
    folder = tmp_path_factory.mktemp("screens")
    counts, *names = screen_of(n_cells, seed=seed)
    whole = build_screen(counts, *names)
    write_source_screen(whole, '{"made": 1}', folder / "whole.h5ad")
    assert write(folder / "blocks.h5ad", counts, *names, sizes=sizes) == counts.shape
    expected, found = read_screen(folder / "whole.h5ad"), read_screen(folder / "blocks.h5ad")
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)
    assert found.uns.keys() == expected.uns.keys()
    assert list(found.uns["perturbations"]) == list(expected.uns["perturbations"])
    for one, other in ((found.X, expected.X), (found.obsm["dosage"], expected.obsm["dosage"])):
        assert (one.format, one.shape) == (other.format, other.shape)
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part), strict=True)
    assert found.uns["content_digest"] == content_digest(found) == content_digest(whole)


def test_many_entries_are_written_over_many_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("samsvae.screen.writing.CHUNK", 16)
    counts, *names = screen_of(300)
    write(tmp_path / "s.h5ad", counts, *names, sizes=[7] * 30)
    assert (read_screen(tmp_path / "s.h5ad").X.toarray() == counts).all()


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "finite"), (-1, "negative"), (0.5, "not an integer"), (2.0**31, "is above")],
)
def test_a_fault_is_named_by_its_place_in_the_source_and_leaves_no_file(tmp_path, value, said):
    counts, design, cells, genes = screen_of(12)
    counts = counts.astype(float)
    counts[9, 2] = value
    blocks = ((10 * p, block) for p, block in blocks_of(counts, [4, 4], np.float64))
    with pytest.raises(InputError, match=said) as error:
        write_screen_in_blocks(
            blocks, design, cells, genes, "{}", tmp_path / "s.h5ad",
            where="f: X", genes=np.arange(7) + 100,
        )  # fmt: skip
    assert "f: X: the value" in str(error.value)
    assert "cell 90, gene 102 (counting from 0)" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_empty_cells_are_refused_or_dropped_as_asked(tmp_path, caplog):
    counts, design, cells, genes = screen_of(12)
    counts[[2, 7, 11]] = 0
    path = tmp_path / "s.h5ad"
    with pytest.raises(InputError, match=r"3 cell\(s\) have no count at all, the first at .* 2 "):
        write(path, counts, design, cells, genes, sizes=[5])
    assert not path.exists()
    covariates = pd.DataFrame({"batch": np.arange(12)})
    size = write(
        path, counts, design, cells, genes, sizes=[5], drop_empty=True, covariates=covariates
    )
    assert size == (9, 7)
    assert "3 of 12 cells" in caplog.text
    found = read_screen(path)
    kept = np.setdiff1d(np.arange(12), [2, 7, 11])
    assert list(found.obs["batch"]) == list(kept)
    assert list(found.obs_names) == [cells[i] for i in kept]
    same = build_screen(counts[kept], design[kept], [cells[i] for i in kept], genes)
    assert content_digest(found) == content_digest(same) == found.uns["content_digest"]


def test_a_perturbation_whose_cells_are_all_empty_is_forgotten(tmp_path):
    counts, _, cells, genes = screen_of(4)
    counts[2] = 0
    design = Design.of_labels(["control", "A", "B", "A"])
    write(tmp_path / "s.h5ad", counts, design, cells, genes, drop_empty=True)
    found = read_screen(tmp_path / "s.h5ad")
    assert list(found.uns["perturbations"]) == ["A"]
    assert found.obsm["dosage"].shape == (3, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"design": Design.of_labels(["A"] * 8)}, "no control cell"),
        ({"design": Design.of_labels(["control"] * 8)}, "every cell is a control"),
        ({"cells": ["same"] * 8}, "cell name"),
        ({"genes": ["same"] * 7}, "gene name"),
    ],
)
def test_names_and_labels_are_checked_before_any_count_is_read(tmp_path, changes, said):
    names = dict(zip(("design", "cells", "genes"), screen_of(8)[1:], strict=True))
    names.update(changes)

    def unread():
        raise AssertionError("read")
        yield

    with pytest.raises(InputError, match=said):
        write_screen_in_blocks(
            unread(), names["design"], names["cells"], names["genes"], "{}",
            tmp_path / "s.h5ad",
        )  # fmt: skip


def test_a_reading_that_breaks_off_leaves_the_former_file(tmp_path):
    path = tmp_path / "s.h5ad"
    path.write_text("former")
    counts, *names = screen_of(8)

    def broken():
        yield from list(blocks_of(counts, [4]))[:1]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        write_screen_in_blocks(broken(), *names, "{}", path)
    assert path.read_text() == "former"
    assert len(list(tmp_path.iterdir())) == 1


def test_covariates_stand_beside_the_labels(tmp_path):
    counts, *names = screen_of(8)
    covariates = pd.DataFrame(
        {"guide": pd.Categorical(list("abababab")), "batch": ["x"] * 8, "n": np.arange(8.0)}
    )
    write(tmp_path / "s.h5ad", counts, *names, covariates=covariates)
    obs = anndata.read_h5ad(tmp_path / "s.h5ad").obs
    assert list(obs.columns) == ["perturbation", "library_size", "guide", "batch", "n"]
    assert list(obs["guide"]) == list("abababab")
    assert obs["n"].sum() == 28
