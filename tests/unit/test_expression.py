"""Expression by parts of genes is that of all cells and genes at once."""

import os

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from assess_screen import assess_conditions
from samsvae.biology.quality import principal_components
from samsvae.evaluation import expression as module
from samsvae.evaluation.expression import Expression, log_expression
from samsvae.screen.canonical import open_screen, write_source_screen
from samsvae.sources.simulated import Simulation, simulate

SETTINGS = {
    "effects": "stratified", "fdr": 0.05, "depth_bins": 1, "min_controls_per_batch": 5,
    "min_cells_null": 5, "min_cells_guide": 5, "perturbation_kind": "knockdown",
}  # fmt: skip


def screen_of(counts):
    screen = anndata.AnnData(sparse.csr_matrix(counts))
    screen.obs["library_size"] = np.maximum(np.asarray(counts).sum(axis=1), 1).astype(float)
    screen.obs["perturbation"] = "control"
    return screen


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 40), st.integers(1, 12), st.integers(1, 200), st.integers(1, 60),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_parts_are_the_genes_in_order(n_cells, n_genes, largest_part, largest_block, seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 1, n_genes), (n_cells, n_genes)).astype(np.int32)
    screen = screen_of(counts)
    cells = rng.random(n_cells) < 0.7
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "LARGEST_PART", largest_part)
        patched.setattr(module, "LARGEST_BLOCK", largest_block)
        for chosen in (None, cells):
            own = Expression(screen, chosen)
            whole = log_expression(screen, chosen)
            parts = list(own.parts())
            assert [gene for part in parts for gene in range(n_genes)[part.genes]] == list(
                range(n_genes)
            )
            assert own.shape == whole.shape
            found = np.hstack([part.counts.toarray() for part in parts])
            np.testing.assert_array_equal(found, counts if chosen is None else counts[cells])
            found = np.hstack([part.log.toarray() for part in parts])
            np.testing.assert_array_equal(found, whole.toarray())
            blocks = [np.empty((0, n_genes)), *(block.toarray() for block in own.by_cells())]
            np.testing.assert_array_equal(np.vstack(blocks), whole.toarray())
            if whole.nnz > largest_part:
                widest = max(part.counts.nnz for part in parts)
                assert widest < largest_part + n_cells


def test_counts_and_logs_agree_though_scipy_sorts_positions_in_place():
    rng = np.random.default_rng(0)
    dense = rng.poisson(1.0, (30, 8)).astype(np.int32)
    counts = sparse.csr_matrix(dense)
    for row in range(30):  # positions of a row in descending order
        own = slice(*counts.indptr[row : row + 2])
        counts.indices[own] = counts.indices[own][::-1].copy()
        counts.data[own] = counts.data[own][::-1].copy()
    counts.has_sorted_indices = False
    screen = screen_of(dense)
    screen.X = counts
    [part] = Expression(screen).parts()
    before = part.log.toarray()
    assert (part.log > 0).sum() == (dense > 0).sum()
    np.testing.assert_array_equal(part.counts.toarray(), dense)
    np.testing.assert_array_equal(part.log.toarray(), before)


def test_a_screen_is_assessed_alike_by_parts_and_at_once(tmp_path, monkeypatch):
    screen = simulate(
        Simulation(
            n_perturbations=8, n_pairs=0, cells_per_perturbation=30, n_controls=120, n_batches=2,
            guides_per_target=2, n_contexts=2, knock_down=1.5,
        )
    )[0]  # fmt: skip
    write_source_screen(screen, "{}", tmp_path / "screen.h5ad")
    whole, tables = assess_conditions(screen, SETTINGS, "{}")
    monkeypatch.setattr(module, "LARGEST_PART", screen.X.nnz // 7)
    monkeypatch.setattr(module, "LARGEST_BLOCK", screen.n_vars * 50)
    assert len(list(Expression(screen).parts())) >= 7
    with open_screen(tmp_path / "screen.h5ad") as opened:
        by_parts, own = assess_conditions(opened, SETTINGS, "{}")
    for layer in (None, *whole.layers):
        np.testing.assert_array_equal(by_parts.to_df(layer), whole.to_df(layer))
    pd.testing.assert_frame_equal(by_parts.obs, whole.obs)
    pd.testing.assert_frame_equal(by_parts.var, whole.var)
    for name, table in tables.items():
        assert len(table)
        pd.testing.assert_frame_equal(own[name], table)


def test_components_of_some_cells_are_those_of_all(monkeypatch):
    rng = np.random.default_rng(0)
    programmes = rng.normal(0, 1.0, (3, 80))
    rate = np.exp(1 + rng.normal(size=(1500, 3)) @ programmes * 0.5)
    expression = Expression(screen_of(rng.poisson(rate)))
    whole = principal_components(expression, 0)
    monkeypatch.setattr("samsvae.biology.quality.LARGEST_FITTED", 80 * 500)
    some = principal_components(expression, 0)
    assert some.shape == whole.shape == (1500, 50)
    # components of similar variance turn into each other, so that their plane is compared
    found = some[:, :3] @ np.linalg.lstsq(some[:, :3], whole[:, :3], rcond=None)[0]
    unexplained = np.var(whole[:, :3] - found, axis=0) / np.var(whole[:, :3], axis=0)
    assert unexplained.max() < 0.02
    assert not np.array_equal(some, whole)


def test_the_temporary_file_vanishes_with_the_expression(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(module, "LARGEST_PART", 10)
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    expression = Expression(screen_of(np.ones((20, 4), dtype=np.int32)))
    assert len(list(expression.parts())) > 1
    assert not list(tmp_path.iterdir())  # it has no name
    del expression
    if before:
        assert len(os.listdir("/proc/self/fd")) <= len(before)
