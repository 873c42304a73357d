import socket

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from samsvae.biology.enrichment import (
    Enrichment,
    enrich,
    over_representation,
    preranked,
    strongest,
)
from samsvae.runtime.errors import InputError
from samsvae.screen.gene_sets import measured_sets, read_gmt, write_gmt

GENES = [f"g{i}" for i in range(100)]
SETS = {"UP": GENES[:12], "DOWN": GENES[50:60], "NONE": GENES[70:90]}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def effect():
    rng = np.random.default_rng(0)
    values = pd.Series(rng.normal(0, 0.1, 100), index=GENES)
    values[SETS["UP"]] += 2
    values[SETS["DOWN"]] -= 2
    return values


def test_over_representation_is_the_hypergeometric_test_over_all_sets(effect):
    table = over_representation(effect, SETS, 20).set_index("set")
    assert list(table.index) == list(SETS)
    chosen = set(effect.abs().sort_values(ascending=False).index[:20])
    for name, members in SETS.items():
        hits = len(chosen & set(members))
        assert table.loc[name, "overlap"] == hits
        expected = stats.hypergeom.sf(hits - 1, 100, len(members), 20) if hits else 1.0
        assert table.loc[name, "pvalue"] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(table["fdr"], stats.false_discovery_control(table["pvalue"]))


def test_preranked_finds_both_ends_and_their_sign(effect):
    table = preranked(effect, SETS, 200, seed=0).set_index("set")
    assert table.loc["UP", "score"] > 1.5
    assert table.loc["DOWN", "score"] < -1.5
    assert table.loc[["UP", "DOWN"], "fdr"].max() < 0.01
    assert table.loc["NONE", "pvalue"] > 0.05
    assert set(table.loc["UP", "genes"].split(";")) <= set(SETS["UP"])
    pd.testing.assert_frame_equal(preranked(effect, SETS, 200, seed=0).set_index("set"), table)


def test_random_gene_sets_are_rarely_called(effect):
    rng = np.random.default_rng(1)
    sets = {f"S{i}": list(rng.choice(GENES, 10, replace=False)) for i in range(200)}
    values = pd.Series(rng.normal(size=100), index=GENES)
    for table in (over_representation(values, sets, 20), preranked(values, sets, 200, seed=0)):
        assert (table["fdr"] < 0.05).mean() < 0.02


def test_a_perturbation_without_effect_has_no_rows(effect):
    table = anndata.AnnData(np.vstack([effect, np.zeros(100)]).astype(np.float32))
    table.obs_names, table.var_names = ["moved", "unmoved"], GENES
    found = enrich(table, ["moved", "unmoved"], {"mine": SETS}, Enrichment(top_genes=20), seed=0)
    assert set(found["perturbation"]) == {"moved"}
    assert len(found) == 2 * len(SETS)
    nothing = enrich(table, ["unmoved"], {"mine": SETS}, Enrichment(), seed=0)
    assert nothing.empty
    assert list(nothing.columns) == list(found.columns)
    assert strongest(table, 1) == ["moved"]


def test_rates_are_over_all_sets_of_all_collections(effect):
    table = anndata.AnnData(effect.to_numpy(dtype=np.float32)[None])
    table.obs_names, table.var_names = ["moved"], GENES
    other = {f"S{i}": GENES[60 + i : 70 + i] for i in range(30)}
    found = enrich(
        table, ["moved"], {"mine": SETS, "other": other}, Enrichment(top_genes=20), seed=0
    )
    for _, rows in found.groupby("method"):
        assert len(rows) == len(SETS) + len(other)
        np.testing.assert_allclose(rows["fdr"], stats.false_discovery_control(rows["pvalue"]))


def test_sets_of_genes_without_any_effect_are_tested_too(effect):
    """Half of the genes never move, as in a screen with many silent genes."""
    effect[GENES[40:]] = 0
    sets = {**SETS, **{f"S{i}": GENES[60 + i : 66 + i] for i in range(30)}}
    table = preranked(effect, sets, 100, seed=0).set_index("set")
    assert list(table.index) == list(sets)
    assert table.loc["UP", "pvalue"] < 0.01
    assert np.isfinite(table["pvalue"]).all()
    assert table.loc["S3", "fdr"] > 0.05


def test_gmt_round_trip(tmp_path):
    write_gmt(SETS, tmp_path / "a.gmt", "described")
    assert read_gmt(tmp_path / "a.gmt") == SETS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A\tdescription\n", "line 1"),
        ("A\td\tg1\nB g2 g3\n", "line 2"),
        ("A\td\tg1\nA\td\tg2\n", "'A' a second time"),
        ("\n\n", "no gene set"),
    ],
)
def test_broken_gmt_files(tmp_path, text, said):
    path = tmp_path / "broken.gmt"
    path.write_text(text)
    with pytest.raises(InputError, match="broken") as error:
        read_gmt(path)
    assert said in str(error.value)


def test_binary_and_absent_gmt_files(tmp_path):
    (tmp_path / "b.gmt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_gmt(tmp_path / "b.gmt")
    with pytest.raises(InputError, match="no such file"):
        read_gmt(tmp_path / "absent.gmt")


def test_sets_are_restricted_to_measured_genes():
    kept = measured_sets({"A": ["g1", "x", "g2"], "B": ["x"]}, GENES, "a.gmt", 2, 10)
    assert kept == {"A": ["g1", "g2"]}
    with pytest.raises(InputError, match="none of its gene sets shares a gene") as error:
        measured_sets({"A": ["ENSG1"]}, GENES, "a.gmt")
    assert "'ENSG1'" in str(error.value)
    with pytest.raises(InputError, match="the largest has 2"):
        measured_sets({"A": ["g1", "g2"]}, GENES, "a.gmt", 3, 10)
