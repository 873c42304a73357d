"""The check target, from the command line."""

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
