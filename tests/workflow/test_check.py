"""The check target, from the command line."""

import json
import os

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tests.conftest import TINY

pytestmark = pytest.mark.workflow

EXPERIMENT = {"split": {"kind": "random"}, "models": ["additive"]}


def write(path, labels, edit=None):
    counts = 1 + np.random.default_rng(0).poisson(60.0, (len(labels), 12)).astype(np.float32)
    if edit is not None:
        edit(counts)
    cells = pd.DataFrame({"label": labels}, index=[f"cell{i}" for i in range(len(labels))])
    genes = pd.DataFrame(index=["A", "B", *(f"GENE{i}" for i in range(10))])
    anndata.AnnData(sparse.csr_matrix(counts), cells, genes).write_h5ad(path)


def own(path):
    return {"source": "h5ad", "path": path, "perturbation_column": "label"}


def logarithms(counts):
    counts[:, 2:] = np.log1p(counts[:, 2:])
    counts[5] = 0


def test_screens_of_every_kind_are_checked_before_anything_is_trained(project):
    write(project.folder / "good.h5ad", ["control"] * 250 + ["A"] * 60 + ["B"] * 60)
    write(project.folder / "bad.h5ad", ["control"] * 50 + ["A"] * 60 + ["a"] * 60, logarithms)
    project.config = {
        "screens": {
            "good": own("good.h5ad"),
            "bad": own("bad.h5ad"),
            "lost": own("lost.h5ad"),
            "tiny": {"source": "simulated", **vars(TINY)},
        },
        "experiments": {
            name: {"screen": name, **EXPERIMENT} for name in ("good", "bad", "lost", "tiny")
        },
    }
    done = project.snakemake("check")
    assert done.returncode != 0
    assert "Screen good (good.h5ad)" in done.stdout
    assert "Errors: none\nWarnings: none" in done.stdout
    for words in [
        "Screen bad (bad.h5ad)", "not an integer", "1 cell(s) have no count", "50 control cells",
        "'A' ~ 'a'", "lost.h5ad: no such file", "Screens that cannot be used: bad, lost",
        "12: 8 single genes, 4 pairs",
    ]:  # fmt: skip
        assert words in done.stdout, words
    assert "Traceback" not in done.stdout
    results = project.folder / "results"
    screens = {str(p.relative_to(results)) for p in results.glob("screens/*/*.h5ad")}
    assert screens == {"screens/tiny/screen.h5ad"}
    texts = {p.name for p in (results / "checks").iterdir()}
    assert texts == {f"{n}.{end}" for n in project.config["screens"] for end in ("txt", "tsv")}
    assert (results / "checks/bad.txt").read_text() in done.stdout

    # what is mended is checked again, and nothing else
    write(project.folder / "lost.h5ad", ["control"] * 250 + ["A"] * 60 + ["B"] * 60)
    del project.config["experiments"]["bad"]
    assert project.planned("check") == {"check_screen": 1, "check": 1}
    again = project.snakemake("check")
    assert again.returncode == 0, again.stdout[-3000:]
    assert again.stdout.count("Warnings: none") == 2
    # a check that has nothing to do still shows what it found
    assert project.planned("check") == {"check": 1}


def own_by_guides(project):
    """A screen of a file, a table of guides and a list of genes, and what reads it."""
    write(project.folder / "a.h5ad", ["NT_1"] * 250 + ["A_1"] * 60 + ["A_2"] * 30 + ["B_1"] * 60)
    table = project.folder / "guides.tsv"
    table.write_text("NT_1\tcontrol\nA_1\tA\nA_2\tA\nB_1\tB\n")
    (project.folder / "genes.txt").write_text("A\nB\nGENE1\nGENE2\nGENE3\n")
    project.config = {
        "screens": {"own": {**own("a.h5ad"), "guide_table": "guides.tsv", "genes": "genes.txt"}},
        "experiments": {"own": {"screen": "own", **EXPERIMENT}},
    }
    return "results/own/random-seed0/split.tsv"


def test_every_file_of_a_screen_is_watched_whatever_its_date(project):
    split = own_by_guides(project)
    done = project.snakemake(split)
    assert done.returncode == 0, done.stdout[-3000:]
    # what the check warns of is shown once
    assert done.stdout.count("of the screen own (") == 1
    assert "perturbations with few cells" not in done.stdout
    assert project.planned(split) == {}
    screen = anndata.read_h5ad(project.folder / "results/screens/own/screen.h5ad")
    assert dict(screen.obs["perturbation"].value_counts()) == {"control": 250, "A": 90, "B": 60}
    made_of = json.loads(screen.uns["provenance"])["inputs"]
    assert set(made_of) == {"path", "guide_table", "genes"}

    reread = {"read_screen": 1, "check_screen": 1, "show_warnings": 1, "split_cells": 1}
    for name, edit in {
        "guides.tsv": lambda text: text.replace(b"A_2\tA", b"A_2\tC"),
        "genes.txt": lambda text: text.replace(b"GENE3", b"GENE4"),
        "a.h5ad": None,
    }.items():
        path = project.folder / name
        before, times = path.read_bytes(), path.stat()
        if edit is None:
            write(path, ["NT_1"] * 251 + ["A_1"] * 60 + ["A_2"] * 30 + ["B_1"] * 59)
        else:
            path.write_bytes(edit(before))
            assert path.read_bytes() != before
        os.utime(path, (times.st_atime - 10_000, times.st_mtime - 10_000))
        assert project.planned(split) == reread, name
        path.write_bytes(before)
        os.utime(path, (times.st_atime, times.st_mtime))
        assert project.planned(split) == {}, name
