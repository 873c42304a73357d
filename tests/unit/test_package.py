"""The library as a package of its own."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest

import samsvae
from samsvae.report.sections import SHOWN_FIGURES
from tests.conftest import ROOT
from tests.unit.test_environment import normal, pins

LIBRARY = ROOT / "workflow/scripts/samsvae"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# what is called otherwise on the package index
DISTRIBUTIONS = {
    "pyro": "pyro-ppl",
    "skmisc": "scikit-misc",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Triton comes with PyTorch for CUDA; Snakemake is asked where scripts are run by hand
OPTIONAL = {"snakemake", "triton"}


def imported():
    names = set()
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - OPTIONAL - {"samsvae"}


def declared():
    parts = [re.match(r"([\w.-]+)>=([\d.]+)", one).groups() for one in PROJECT["dependencies"]]
    return {normal(name): version for name, version in parts}


def test_what_is_imported_is_declared_and_nothing_else():
    assert {normal(DISTRIBUTIONS.get(name, name)) for name in imported()} == set(declared())


def test_the_lock_satisfies_what_is_declared():
    lock = pins(ROOT / "envs/requirements.txt")
    for name, least in declared().items():
        locked = [int(part) for part in lock[name].split(".")]
        assert locked >= [int(part) for part in least.split(".")], name


@pytest.mark.parametrize("name", samsvae.__all__)
def test_every_public_name_is_there(name):
    assert getattr(samsvae, name).__name__ == name


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="absent"):
        _ = samsvae.absent


def test_the_package_imports_nothing_heavy():
    code = "import sys, samsvae, samsvae.runtime.layout; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=LIBRARY.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"torch", "pyro", "scanpy", "anndata"} & set(done.stdout.split())


PACKAGES = re.findall(r"(?m):mod:`samsvae\.(\w+)`", samsvae.__doc__)


def imported_packages(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("samsvae."):
            yield node.module.split(".")[1]


def test_packages_import_lower_ones_only():
    """In the order of the docstring of samsvae; runtime serves all."""
    *ordered, serving = PACKAGES
    assert serving == "runtime"
    assert set(PACKAGES) == {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    upwards = {
        (str(path.relative_to(LIBRARY)), package)
        for place, own in enumerate(ordered)
        for path in (LIBRARY / own).rglob("*.py")
        for package in imported_packages(path)
        if package != serving and ordered.index(package) > place
    }
    assert not upwards


TABLES_AND_FIGURES = (
    "assess_screen", "check_screen", "collect_tables", "compare_iwelbo",
    "compare_models", "compare_pathways", "compare_perturbations", "compute_maps", "draw_figures",
    "draw_perturbation", "enrich_effects", "evaluate_effects", "list_perturbations",
    "observe_effects", "predict_baselines", "predict_ceiling", "share_assessment", "split_cells",
    "tabulate_cells", "tabulate_effects", "tabulate_selection", "tabulate_warnings",
    "write_report",
)  # fmt: skip


@pytest.mark.slow
def test_jobs_of_tables_and_figures_import_no_model():
    """Torch and scanpy take longer to import than most tables to make."""
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    adding = re.findall(r'"(samsvae[.\w]+):\w+"', rules)
    assert "samsvae.evaluation.scores" in adding
    drawing = {f"samsvae.figures.{figure.module}" for figure in SHOWN_FIGURES.values()}
    modules = [*TABLES_AND_FIGURES, *adding, *sorted(drawing)]
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=LIBRARY.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"torch", "pyro", "scanpy", "umap", "gseapy"} & set(done.stdout.split())
