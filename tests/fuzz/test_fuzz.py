"""Configurations and h5ad files made to break things: each is used, or refused in plain words.

SAMSVAE_FUZZ_SECONDS says how long; see ``make fuzz``.
"""

import multiprocessing
import os
import resource
import shutil
import signal
import time
import traceback
from contextlib import suppress
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from scipy import sparse

from samsvae.config.configuration import merge, validate
from samsvae.config.experiments import runs, splits
from samsvae.config.sections import json_schema
from samsvae.inspection.screen import inspect_screen
from samsvae.runtime.errors import InputError
from samsvae.runtime.preflight import check_experiment
from samsvae.sources.h5ad import check_header, write_h5ad_screen
from samsvae.sources.h5ad_source import H5adSource
from tests.conftest import ROOT
from tests.fuzz.schema_strategies import changes, values
from tests.workflow.conftest import Project, copy_project

SECONDS = float(os.environ.get("SAMSVAE_FUZZ_SECONDS", "4")) / 2  # for each of two tests
FIRST_SEED = int(os.environ.get("SAMSVAE_FUZZ_SEED", "0"))
MOST_SECONDS, MOST_BYTES = 60, 2**31  # of one example, beyond what the process has already
SCHEMA = json_schema()
DEFAULTS = yaml.safe_load((ROOT / "config.yaml").read_text())
CONFIGURATIONS = values(SCHEMA, SCHEMA) | changes(DEFAULTS, SCHEMA)
PLANNING = 0.3  # share of the time in which Snakemake plans configurations that can be used

processes = multiprocessing.get_context("fork")

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def use_configuration(user):
    """Whether a configuration can be used; what it would run is listed."""
    if not isinstance(user, dict):
        return False
    try:
        config = validate(merge(DEFAULTS, user))
        for name, experiment in config["experiments"].items():
            assert all("/" not in split for split in splits(experiment))
            runs(experiment, config["models"])
            check_experiment(config, name)
    except InputError:
        return False
    return True


def plan(user, project):
    """Have Snakemake plan a configuration; it may still refuse it, but in plain words."""
    project.config = user
    shown = project.snakemake("--dry-run", "--quiet")
    assert "Traceback" not in shown.stdout, f"{user}\n{shown.stdout[-4000:]}"
    return shown.returncode == 0


def test_any_configuration_is_used_or_refused(tmp_path, monkeypatch):
    for name in ("empty", "project"):
        (tmp_path / name).mkdir()
    project = Project(copy_project(tmp_path / "project"))
    monkeypatch.chdir(tmp_path / "empty")
    tried, used, planned, spent = 0, 0, 0, 0.0
    start = time.monotonic()
    end = start + SECONDS

    def attempt(user):
        nonlocal tried, used, planned, spent
        now = time.monotonic()
        if now < end:
            tried += 1
            can_be_used = use_configuration(user)
            used += can_be_used
            if can_be_used and spent < PLANNING * (now - start):
                planned += plan(user, project)
                spent += time.monotonic() - now

    number = FIRST_SEED
    quiet = settings(max_examples=100, database=None, suppress_health_check=list(HealthCheck))
    while time.monotonic() < end:
        seed(number)(quiet(given(CONFIGURATIONS)(attempt)))()
        number += 1
    print(
        f"{tried} configurations, {used} of them used, {planned} planned, "
        f"seeds {FIRST_SEED} to {number - 1}"
    )
    assert tried
    assert list((tmp_path / "empty").iterdir()) == []


def good_file(path, layout):
    rng = np.random.default_rng(1)
    counts = (rng.poisson(1.0, (60, 8)) + np.eye(60, 8)).astype(np.float32) + 1
    labels = ["control"] * 20 + ["A"] * 15 + ["B"] * 15 + ["A+B"] * 10
    made = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}[layout](counts)
    cells = pd.DataFrame(
        {"label": labels, "depth": counts.sum(1)}, index=[f"c{i}" for i in range(60)]
    )
    cells["guide"] = [f"{label}_g1".replace("+", "_g1|") for label in labels]
    genes = pd.DataFrame(index=[f"G{i}" for i in range(8)])
    genes["feature_types"] = ["Gene Expression"] * 6 + ["CRISPR Guide Capture"] * 2
    genes["symbol"] = [*"STUVWX", None, "S"]
    data = anndata.AnnData(made, cells, genes)
    data.obsm["umis"] = sparse.csr_matrix(rng.poisson(2.0, (60, 3)))
    data.uns["names"] = np.array(["A", "B", "control"], dtype=object)
    data.raw = data.copy()
    data.write_h5ad(path, compression="gzip" if layout == "csr" else None)


def truncate(path, rng):
    with path.open("r+b") as file:
        file.truncate(int(rng.integers(0, path.stat().st_size)))


def flip_bits(path, rng):
    content = bytearray(path.read_bytes())
    for place in rng.integers(0, len(content), rng.integers(1, 30)):
        content[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def overwrite(path, rng):
    content = bytearray(path.read_bytes())
    start = int(rng.integers(0, len(content)))
    size = int(rng.integers(1, 200))
    content[start : start + size] = rng.bytes(len(content[start : start + size]))
    path.write_bytes(content)


def _members(file):
    found = []
    file.visit(found.append)
    return found


def remove_member(path, rng):
    with h5py.File(path, "a") as file:
        del file[rng.choice(_members(file))]


def add_link(path, rng):
    with h5py.File(path, "a") as file:
        name, target = rng.choice(_members(file), 2)
        del file[name]
        links = [
            h5py.SoftLink(f"/{target}"),
            h5py.SoftLink(f"/{name}"),
            h5py.ExternalLink("x", "/"),
        ]
        file[name] = links[int(rng.integers(3))]


def add_circle(path, rng):
    with h5py.File(path, "a") as file:
        groups = [name for name in _members(file) if isinstance(file[name], h5py.Group)]
        inner, outer = rng.choice(groups, 2)
        file[f"{inner}/again"] = file[outer]


def declare(path, rng):
    """Another shape or type for a data set, of which nothing need be written."""
    with h5py.File(path, "a") as file:
        names = [name for name in _members(file) if isinstance(file[name], h5py.Dataset)]
        name = rng.choice(names)
        attributes = dict(file[name].attrs)
        rank = int(rng.integers(0, 4))
        shape = tuple(int(10 ** rng.uniform(0, 12)) for _ in range(rank))
        types = [np.float64, np.int8, np.uint64, np.bool_, h5py.string_dtype(), "S3", np.complex64]
        kind = types[int(rng.integers(len(types)))]
        del file[name]
        chunks = tuple(min(side, 100) for side in shape) or None
        made = file.create_dataset(name, shape, kind, chunks=chunks)
        for key, value in attributes.items():
            made.attrs[key] = value


def change_attribute(path, rng):
    with h5py.File(path, "a") as file:
        names = [name for name in _members(file) if len(file[name].attrs)]
        attributes = file[rng.choice(names)].attrs
        key = rng.choice(list(attributes))
        wrong = ["x", -1, 2**62, np.zeros(3), np.array([-1, 5]), np.nan, "categorical", "dataframe"]
        attributes[key] = wrong[int(rng.integers(len(wrong)))]


def change_values(path, rng):
    with h5py.File(path, "a") as file:
        names = [
            name
            for name in _members(file)
            if isinstance(file[name], h5py.Dataset) and file[name].dtype.kind in "iuf"
        ]
        element = file[rng.choice(names)]
        if element.size:
            values_now = element[()]
            wrong = rng.choice([-1, 0, 100, -(2**31), 2**31 - 1])
            values_now.flat[int(rng.integers(element.size))] = np.array(wrong).astype(element.dtype)
            element[...] = values_now


HARMS = [
    truncate, flip_bits, overwrite, remove_member, add_link, add_circle, declare, change_attribute,
    change_values,
]  # fmt: skip


# ways of reading the file, between which they use every key of a screen
WAYS = [
    {
        "perturbation_column": "label", "covariates": ["depth"], "library_size_column": "depth",
        "batch_column": "label", "exclude": ["nan", "B"], "min_cells": 2, "counts_layer": "raw",
    },
    {
        "perturbation_matrix": {"obsm": "umis", "names": "names", "threshold": 3},
        "max_perturbations": 1, "no_guide": "control", "gene_symbol_column": "symbol",
    },
    {
        "perturbation_column": "guide", "guide_pattern": "^(.+)_g1$", "delimiter": "|",
        "context_column": "label", "control": {"pattern": "^control"},
    },
    {"guide_features": {"threshold": 4}, "control": ["G7"], "no_guide": "control"},
]  # fmt: skip


def use_file(path, folder):
    """What the workflow does with a file: its header, the check, the canonical screen."""
    for chosen in WAYS:
        here = {"path": str(path), **chosen}
        for use in (
            lambda here=here: check_header(H5adSource(**here)),
            lambda here=here: inspect_screen(here, {}, min_size=1, max_size=5),
            lambda here=here: write_h5ad_screen(H5adSource(**here), "{}", folder / "screen.h5ad"),
        ):
            with suppress(InputError):
                use()


def in_a_cage(path, folder):
    """In a process of its own, with bounds on memory and time; its exit status, and what it said."""

    def work():
        os.dup2(os.open(folder / "said.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(
            resource.RLIMIT_AS,
            (pages * resource.getpagesize() + MOST_BYTES, resource.RLIM_INFINITY),
        )
        signal.alarm(MOST_SECONDS)
        try:
            use_file(path, folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    process = processes.Process(target=work)
    process.start()
    process.join()
    return process.exitcode, (folder / "said.txt").read_text()


def test_any_h5ad_file_is_used_or_refused(tmp_path):
    good = {}
    for layout in ("dense", "csr", "csc"):
        good[layout] = tmp_path / f"good-{layout}.h5ad"
        good_file(good[layout], layout)
    (tmp_path / "out").mkdir()
    kept = set(tmp_path.iterdir()) | {tmp_path / "bad.h5ad"}
    number, end, tried = FIRST_SEED, time.monotonic() + SECONDS, {}
    while time.monotonic() < end:
        rng = np.random.default_rng(number)
        layout, harm = rng.choice(list(good)), HARMS[number % len(HARMS)]
        path = tmp_path / "bad.h5ad"
        shutil.copy(good[layout], path)
        harm(path, rng)
        status, said = in_a_cage(path, tmp_path / "out")
        assert status == 0, f"seed {number}, {harm.__name__}, {layout}: status {status}\n{said}"
        assert {p.name for p in (tmp_path / "out").iterdir()} <= {"screen.h5ad", "said.txt"}
        assert set(tmp_path.iterdir()) == kept
        tried[harm.__name__] = tried.get(harm.__name__, 0) + 1
        number += 1
    print(f"{tried}, seeds {FIRST_SEED} to {number - 1}")
    assert tried


def test_every_way_of_reading_a_good_file_succeeds(tmp_path):
    good_file(tmp_path / "good.h5ad", "csr")
    for number, chosen in enumerate(WAYS):
        source = H5adSource(path=str(tmp_path / "good.h5ad"), **chosen)
        check_header(source)
        write_h5ad_screen(source, "{}", tmp_path / f"{number}.h5ad")
