"""The workflow in other folders, as a module of another workflow, and deployed by snakedeploy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, TINY
from tests.workflow.conftest import copy_project

pytestmark = pytest.mark.workflow

CONFIG = {
    "screens": {"tiny": {"source": "simulated", **vars(TINY)}},
    "experiments": {
        "tiny": {"screen": "tiny", "split": {"kind": "random"}, "models": ["additive", "no_change"]}
    },
}
SCREEN = "results/screens/tiny/screen.h5ad"
SPLIT = "results/tiny/random-seed0/split.tsv"
MODULE = """
configfile: "own.yaml"

module samsvae:
    snakefile: {snakefile!r}
    config: config

use rule * from samsvae{renamed}

rule cells:
    input: {split!r}
    output: "cells.txt"
    shell: "wc -l < {{input}} > {{output}}"
"""
PLAIN = """
configfile: "own.yaml"

module samsvae:
    snakefile: {snakefile}
    config: config

use rule * from samsvae
"""
TAG = "v0.0.1"


def snakemake(folder, *arguments, **environment):
    command = [sys.executable, "-m", "snakemake", *arguments, "--cores", "2", "--nocolor"]
    return subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": "", **environment}, timeout=600, check=False,
    )  # fmt: skip


def made(done, *paths):
    assert done.returncode == 0, done.stdout[-4000:]
    assert all(path.is_file() for path in paths)


def planned(done):
    assert done.returncode == 0, done.stdout[-4000:]
    assert "write_report" in done.stdout
    return [line.strip() for line in done.stdout.splitlines() if "output: results/report" in line]


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with a configuration, and nothing of the workflow."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "own.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def test_results_are_where_snakemake_runs_whatever_the_configuration_is_called(elsewhere):
    snakefile = str(ROOT / "Snakefile")
    given = ("-s", snakefile, "--configfile", "own.yaml")
    made(snakemake(elsewhere, SPLIT, *given), elsewhere / SCREEN, elsewhere / SPLIT)
    assert "results/report-own.html" in planned(snakemake(elsewhere, "-n", *given))[0]
    # without a configuration, the default one
    by_default = snakemake(elsewhere, "-n", "-s", snakefile)
    assert "results/report.html" in planned(by_default)[0]
    assert "rule train_seeds:" in by_default.stdout
    # with one that lies there
    (elsewhere / "own.yaml").rename(elsewhere / "config.yaml")
    lies_there = snakemake(elsewhere, "-n", "-s", snakefile)
    assert "results/report.html" in planned(lies_there)[0]
    assert "rule train" not in lies_there.stdout


def test_another_directory_from_any_folder(elsewhere, tmp_path):
    configfile = str(elsewhere / "own.yaml")
    target = tmp_path / "target"
    given = ("-s", str(ROOT / "Snakefile"), "--directory", str(target), "--configfile", configfile)
    made(snakemake(tmp_path, SPLIT, *given), target / SPLIT)
    assert planned(snakemake(tmp_path, "-n", *given))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("renamed", ["", " as samsvae_*"])
def test_a_module_of_another_workflow(elsewhere, renamed):
    snakefile = str(ROOT / "Snakefile")
    text = MODULE.format(snakefile=snakefile, renamed=renamed, split=SPLIT)
    (elsewhere / "Snakefile").write_text(text)
    made(snakemake(elsewhere, "cells.txt"), elsewhere / SPLIT, elsewhere / "cells.txt")
    cells = int((elsewhere / "cells.txt").read_text())
    assert cells == len((elsewhere / SPLIT).read_text().splitlines())
    prefix = renamed.removeprefix(" as ").removesuffix("*")
    assert "results/report.html" in planned(snakemake(elsewhere, f"{prefix}all", "-n"))[0]
    assert "Nothing to be done" in snakemake(elsewhere, "cells.txt").stdout


def test_a_key_that_occurs_twice_in_a_file_is_refused(elsewhere):
    with (elsewhere / "own.yaml").open("a") as file:
        file.write("screens: {}\n")
    done = snakemake(elsewhere, "-n", "-s", str(ROOT / "Snakefile"), "--configfile", "own.yaml")
    assert done.returncode != 0
    for words in ("own.yaml", "'screens'", "line"):
        assert words in done.stdout


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """What a user of a host of repositories has: its address, which leads here to a local clone,
    and the library of a release installed from it."""
    folder = tmp_path_factory.mktemp("host")
    clone = folder / "lab" / "samsvae"
    clone.mkdir(parents=True)
    copy_project(clone)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    shutil.copytree(ROOT / "config", clone / "config")
    git = ["git", "-c", "user.name=lab", "-c", "user.email=lab@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"], ["tag", TAG]):
        subprocess.run([*git, *command], cwd=clone, check=True, capture_output=True)
    environment = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{folder}/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    address = f"git+https://github.com/lab/samsvae@{TAG}"
    installed = subprocess.run(
        [*pip, "--target", str(site), address],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    return {"environment": environment, "site": site}


def test_a_remote_module_uses_the_installed_library_or_says_how_to_install_it(elsewhere, host):
    remote = f'github("lab/samsvae", path="Snakefile", tag={TAG!r})'
    (elsewhere / "Snakefile").write_text(PLAIN.format(snakefile=remote))
    without = snakemake(elsewhere, "-n", **host["environment"])
    assert without.returncode != 0
    assert f'-m pip install "git+https://github.com/lab/samsvae@{TAG}"' in without.stdout

    environment = {**host["environment"], "PYTHONPATH": str(host["site"])}
    assert planned(snakemake(elsewhere, "-n", **environment))
    made(snakemake(elsewhere, SPLIT, **environment), elsewhere / SPLIT)
    assert "Nothing to be done" in snakemake(elsewhere, SPLIT, **environment).stdout


def test_a_library_of_another_version_is_refused(elsewhere, host, tmp_path):
    remote = f'github("lab/samsvae", path="Snakefile", tag={TAG!r})'
    (elsewhere / "Snakefile").write_text(PLAIN.format(snakefile=remote))
    other = tmp_path / "site" / "samsvae"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text('__version__ = "9.9.9"\n')
    done = snakemake(
        elsewhere, "-n", **{**host["environment"], "PYTHONPATH": str(tmp_path / "site")}
    )
    assert done.returncode != 0
    assert "9.9.9" in done.stdout
    assert "-m pip install" in done.stdout


def test_what_snakedeploy_writes_runs(host, tmp_path):
    beside = Path(sys.executable).with_name("snakedeploy")
    snakedeploy = str(beside) if beside.is_file() else shutil.which("snakedeploy")
    if snakedeploy is None:
        pytest.skip("snakedeploy is not installed")
    address = "https://github.com/lab/samsvae"
    deployed = subprocess.run(
        [snakedeploy, "deploy-workflow", address, "project", "--tag", TAG],
        cwd=tmp_path, env={**os.environ, **host["environment"]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert deployed.returncode == 0, deployed.stderr
    project = tmp_path / "project"
    environment = {**host["environment"], "PYTHONPATH": str(host["site"])}
    by_default = snakemake(project, "-n", **environment)
    assert "results/report.html" in planned(by_default)[0]
    assert "rule train_seeds:" in by_default.stdout
    (project / "config/config.yaml").write_text(yaml.safe_dump(CONFIG))
    made(snakemake(project, SPLIT, **environment), project / SPLIT)
