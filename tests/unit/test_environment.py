import re
import subprocess

import pytest
import yaml

from tests.conftest import ROOT

CONDA_NAMES = {"pytorch": "torch", "pytorch-gpu": "torch", "matplotlib-base": "matplotlib"}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path):
    lines = [line.strip() for line in path.read_text().splitlines()]
    return {
        normal(line.split("==")[0]): line.split("==")[1]
        for line in lines
        if line and not line.startswith(("#", "-r"))
    }


def test_every_requirement_is_pinned_without_a_local_version():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for version in pins(ROOT / "envs" / name).values():
            assert re.fullmatch(r"\d+(\.\w+)+", version)


@pytest.mark.parametrize("file", ["samsvae.yaml", "samsvae-gpu.yaml"])
def test_conda_files_mirror_the_lock(file):
    lock = pins(ROOT / "envs/requirements.txt")
    entries = yaml.safe_load((ROOT / "envs" / file).read_text())["dependencies"]
    conda = dict(entry.split("=") for entry in entries if isinstance(entry, str) and "=" in entry)
    pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    conda.pop("python")
    assert len(conda) > 15
    for name, version in [*conda.items(), *(entry.split("==") for entry in pip)]:
        assert lock[normal(CONDA_NAMES.get(name, name))] == version


def test_conda_files_differ_in_torch_alone():
    cpu, gpu = (
        set((ROOT / "envs" / name).read_text().splitlines()[1:])
        for name in ("samsvae.yaml", "samsvae-gpu.yaml")
    )
    assert {line.strip("- ").split("=")[0] for line in cpu ^ gpu} == {"pytorch", "pytorch-gpu"}


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_containers_are_made_of_the_lock(name):
    text = (ROOT / "envs" / name).read_text()
    conda = yaml.safe_load((ROOT / "envs/samsvae.yaml").read_text())["dependencies"]
    [python] = [entry for entry in conda if str(entry).startswith("python=")]
    assert f"python:{python.partition('=')[2]}-" in text
    assert "--requirement /environment/requirements.txt" in text
    copied = re.findall(r"(envs/\S+) /environment/requirements\.txt", text)
    assert copied == ["envs/requirements.txt"]


def test_the_card_is_kept():
    lock = pins(ROOT / "envs/requirements.txt")
    assert {
        "snakemake",
        "torch",
        "pyro-ppl",
        "scanpy",
        "anndata",
        "pandas",
        "gseapy",
        "seaborn",
    } <= set(lock)
    for name in ("Snakefile", "config.yaml", "workflow/scripts", "envs", "data", "README.md"):
        assert (ROOT / name).exists()
    assert len((ROOT / "Snakefile").read_text().splitlines()) < 60


def tracked_text():
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in names.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png", ".svg"}:
            yield name, path.read_text(encoding="utf-8")


def test_no_path_of_a_machine_and_no_registry_in_any_file():
    hosts = ["pypi" + ".org", "files.python" + "hosted", "index" + "-url"]
    forbidden = re.compile(r"/(home|work|opt|root)/\w|" + "|".join(map(re.escape, hosts)))
    found = [name for name, text in tracked_text() if forbidden.search(text)]
    assert found == []
