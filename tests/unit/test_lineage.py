"""The lineage of a file, from records alone."""

import json
from types import SimpleNamespace

import pytest

from samsvae.runtime.provenance import (
    describe_lineage,
    known_digest,
    read_record,
    seed_of,
    write_records,
)


class Named(dict):
    def __iter__(self):
        return iter(self.values())


def job(rule, inputs, outputs, **params):
    return SimpleNamespace(
        rule=rule,
        wildcards=Named(),
        input=inputs,
        output=outputs,
        params=Named(code="c0de", **params),
        threads=1,
    )


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "cells.h5ad").write_text("cells")
    (tmp_path / "results/screen.h5ad").write_text("screen")
    write_records(job("read_screen", ["cells.h5ad"], ["results/screen.h5ad"], settings={"seed": 3}))
    (tmp_path / "results/table.tsv").write_text("table")
    write_records(job("tabulate", ["results/screen.h5ad"], ["results/table.tsv"]))
    return tmp_path / "results"


def test_a_lineage_goes_back_to_the_given_files(results):
    told = describe_lineage("results/table.tsv")
    assert told.index("tabulate") < told.index("read_screen") < told.index("given")
    assert "cells.h5ad  sha256 " + known_digest("cells.h5ad") in told
    assert "seed 3" in told
    assert "code digest c0de" in told
    assert "Changed:" not in told
    assert "Gone:" not in told


def test_what_changed_or_went_is_told(results):
    (results / "screen.h5ad").write_text("another")
    assert "Changed: results/screen.h5ad, since results/table.tsv" in describe_lineage(
        "results/table.tsv"
    )
    (results / "screen.h5ad").unlink()
    assert "Gone: results/screen.h5ad" in describe_lineage("results/table.tsv")


def test_a_digest_is_taken_from_a_record_only_while_the_file_is_as_it_was(results):
    record = json.loads((results / "provenance/screen.h5ad.json").read_text())
    (results / "provenance/screen.h5ad.json").write_text(json.dumps({**record, "sha256": "known"}))
    assert known_digest("results/screen.h5ad") == "known"
    (results / "screen.h5ad").write_text("longer than before")
    assert known_digest("results/screen.h5ad") not in ("known", record["sha256"])


def test_what_is_no_result_has_no_record(results):
    assert read_record("cells.h5ad") is None
    assert read_record("/results/screen.h5ad") is None


@pytest.mark.parametrize(
    ("config", "wildcards", "seed"),
    [
        ({"seed": 4}, {"seed": "5"}, 4),
        ({"split": {"seed": 2}}, {}, 2),
        ({}, {"seed": "7"}, 7),
        ({}, {}, None),
    ],
)
def test_the_seed_is_that_of_the_job(config, wildcards, seed):
    assert seed_of(config, wildcards) == seed
