"""Wrong input ends within seconds, in one clear message, and leaves nothing behind."""

import copy
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tests.workflow.conftest import TINY_CONFIG

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.filterwarnings("ignore:Observation names:UserWarning"),
    pytest.mark.filterwarnings("ignore:Variable names:UserWarning"),
]


def good_labels():
    return ["control"] * 20 + ["A"] * 15 + ["B"] * 15 + ["A+B"] * 10


def write(path, labels=None, edit=None, cells=None, genes=None):
    labels = good_labels() if labels is None else labels
    counts = 1 + np.random.default_rng(0).poisson(3.0, (len(labels), 12)).astype(np.float32)
    if edit is not None:
        edit(counts)
    names = cells or [f"cell{i}" for i in range(len(labels))]
    data = anndata.AnnData(
        sparse.csr_matrix(counts),
        pd.DataFrame({"label": labels}, index=names),
        pd.DataFrame(index=genes or [f"GENE{i}" for i in range(12)]),
    )
    data.obs["dose"] = 0.0
    data.obs["umis_A"] = [3 * (label == "A") for label in labels]
    data.write_h5ad(path)


def put(row, column, value):
    def edit(counts):
        counts[row, column] = value

    return edit


def empty_cell(counts):
    counts[7] = 0


CASES = {
    "a missing file": (None, {}, ["no such file", "'path'"]),
    "not an h5ad": ("text", {}, ["not an h5ad file"]),
    "a missing column": ({}, {"perturbation_column": "guide"}, ["obs has no 'guide'", "label"]),
    "no control cells": ({}, {"control": "NT"}, ["no cell has the control label 'NT'", "control"]),
    "non-integer counts": ({"edit": put(3, 2, 1.5)}, {}, ["1.5", "cell 3, gene 2", "not an integer"]),
    "negative counts": ({"edit": put(3, 2, -1)}, {}, ["-1", "cell 3, gene 2", "negative"]),
    "not a number": ({"edit": put(3, 2, np.nan)}, {}, ["cell 3, gene 2", "not a finite number"]),
    "a name of several lines": ({"cells": [f"c{i}\n" for i in range(60)]}, {}, ["cell name", "control character"]),
    "counts of guides": (
        {}, {"perturbation_column": None, "perturbation_columns": {"prefix": "umis"}},
        ["as if they were UMI counts", "threshold: 5", "doses: true"],
    ),
    "two kinds of nothing": ({"labels": ["NT", *good_labels()]}, {"control": "NT"}, ["'control' would be merged", "exclude: [control]"]),
    "empty cells": ({"edit": empty_cell}, {}, ["1 cell(s) have no count", "position 7"]),
    "unknown delimiter": ({"labels": [*good_labels(), "A|B"]}, {}, ["'A|B'", "'delimiter'"]),
    "a dose of zero": ({}, {"dose_column": "dose"}, ["the dose '0.0' of 'A' is not above 0"]),
    "no training cell": (
        {"labels": [*good_labels(), "RARE"]}, {}, ["no training cell", "RARE (1 cells)", "min_cells", "keep_prior"],
    ),
}  # fmt: skip


# what is known of a screen before it is split
OF_THE_SCREEN = {
    "screen_effects.h5ad", "hits.tsv", "null_calibration.tsv", "null_quantiles.tsv",
    "knock_down.tsv", "guides.tsv", "batches.tsv", "contexts.tsv", "perturbations.tsv",
}  # fmt: skip


def own_config(path, **settings):
    config = copy.deepcopy(TINY_CONFIG)
    config["screens"] = {
        "own": {
            "source": "h5ad", "path": str(path), "perturbation_column": "label",
            "control": "control", **settings,
        }
    }  # fmt: skip
    split = {"kind": "random", "seeds": [3]}
    config["experiments"] = {"own": {"screen": "own", "split": split, "models": ["sams"]}}
    return config


def assert_refused(project, said, *arguments):
    done = project.snakemake(*arguments)
    assert done.returncode != 0
    for words in said:
        assert words in done.stdout
    assert "Traceback" not in done.stdout
    results = project.folder / "results"
    records = results / "provenance"
    made = [p for p in results.rglob("*") if p.is_file() and records not in p.parents]
    left = {p.name for p in made if p.suffix != ".log"}
    assert (
        left
        <= {"screen.h5ad", "own.tsv", "own.txt", "own.warnings.txt", "warnings.tsv"} | OF_THE_SCREEN
    )
    return done.stdout, left


@pytest.mark.parametrize("case", CASES)
def test_bad_screens(project, case):
    content, settings, said = CASES[case]
    path = project.folder / "bad.h5ad"
    if content == "text":
        path.write_text("cell\tgene\n")
    elif content is not None:
        write(path, **content)
    project.config = own_config(path, **settings)

    shown, left = assert_refused(project, said)
    message = next(line for line in shown.splitlines() if said[0] in line)
    assert len(re.findall(re.escape(message), shown)) == 1
    if case != "no training cell":
        assert "screen.h5ad" not in left


def test_an_unknown_model_kind(project):
    project.config = own_config("absent.h5ad")
    project.config["models"]["sams"]["kind"] = "sams_vea"
    said = ["models.sams.kind", "'sams_vea'", "allowed: sams_vae, ", "no_change, additive, "]
    assert_refused(project, said, "--dry-run")


def test_gene_sets_that_share_no_gene(project):
    write(project.folder / "good.h5ad")
    (project.folder / "ids.gmt").write_text("SET\tidentifiers\tENSG1\tENSG2\n")
    project.config = own_config("good.h5ad")
    project.config["gene_sets"] = {"ids": "ids.gmt"}
    assert_refused(
        project, ["ids.gmt", "none of its gene sets shares a gene", "'ENSG1'"], "--dry-run"
    )


def test_a_missing_gene_set_file(project):
    write(project.folder / "good.h5ad")
    project.config = own_config("good.h5ad")
    project.config["gene_sets"] = {"ids": "absent.gmt"}
    assert_refused(project, ["absent.gmt", "no such file"], "--dry-run")


def test_too_few_genes_in_every_set(project):
    write(project.folder / "good.h5ad")
    (project.folder / "few.gmt").write_text("SET\tfew\tGENE1\tGENE2\n")
    project.config = own_config("good.h5ad")
    project.config["gene_sets"] = {"few": "few.gmt"}
    assert_refused(project, ["few.gmt", "the largest has 2", "enrichment.min_size"], "--dry-run")


def test_combinations_that_the_screen_does_not_have(project):
    write(project.folder / "singles.h5ad", labels=["control"] * 30 + ["A"] * 30)
    project.config = own_config("singles.h5ad")
    project.config["experiments"]["own"]["split"] = {
        "kind": "unseen_combinations",
        "fractions": [1],
    }
    assert_refused(project, ["needs cells with combinations"])
