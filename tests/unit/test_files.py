import json
import logging
import shutil
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pandas as pd
import pyarrow.parquet
import pytest

from samsvae.errors import InputError
from samsvae.files import read_table, whole_file, write_parquet, write_tsv
from samsvae.job import run_job
from samsvae.models.registry import MODELS, model_class
from samsvae.provenance import code_digest, digest_of, provenance
from samsvae.sources.registry import SIMULATORS
from tests.conftest import ROOT

SCRIPTS = ROOT / "workflow/scripts"


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "a.txt"

    def break_off():
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        break_off()
    assert list(path.parent.iterdir()) == []
    with whole_file(path) as temporary:
        temporary.write_text("whole")
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "whole"


def test_tables_keep_their_content_and_provenance(tmp_path):
    table = pd.DataFrame({"b": [1.5, None], "a": ["NA", "x"]})
    write_tsv(table, tmp_path / "t.tsv", first=["a", "absent"])
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.tsv"), table[["a", "b"]])
    write_parquet(table, '{"made": 1}', tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), table)
    metadata = pyarrow.parquet.read_schema(tmp_path / "t.parquet").metadata
    assert json.loads(metadata[b"provenance"]) == {"made": 1}


def test_provenance_names_configuration_code_data_and_versions():
    made = json.loads(provenance({"b": 1, "a": 2}, "abc", screen="123"))
    assert made["config_digest"] == digest_of({"a": 2, "b": 1})
    assert (made["code_digest"], made["inputs"]) == ("abc", {"screen": "123"})
    assert {"python", "torch", "samsvae"} <= set(made["versions"])


def test_code_digest_follows_imports_and_nothing_else(tmp_path, monkeypatch):
    library = tmp_path / "samsvae"
    library.mkdir()
    (library / "__init__.py").write_text("")
    (library / "deep.py").write_text("X = 1\n")
    (library / "used.py").write_text("def f():\n    from samsvae.deep import X\n    return X\n")
    (library / "other.py").write_text("Y = 1\n")
    script = tmp_path / "script.py"
    script.write_text("from samsvae import used\n")
    monkeypatch.setattr("samsvae.provenance.LIBRARY", library)
    before = code_digest(script)
    (library / "other.py").write_text("Y = 2\n")
    assert code_digest(script) == before
    (library / "deep.py").write_text("X = 2\n")
    assert code_digest(script) != before


@pytest.mark.parametrize(
    ("script", "uses", "ignores"),
    [
        ("train_model", "models/networks.py", "biology/enrichment.py"),
        ("enrich_effects", "biology/enrichment.py", "inference/trainer.py"),
        ("split_cells", "splits.py", "models/networks.py"),
    ],
)
def test_front_doors_depend_on_what_they_use_alone(script, uses, ignores, tmp_path, monkeypatch):
    copy = tmp_path / "samsvae"
    shutil.copytree(SCRIPTS / "samsvae", copy)
    monkeypatch.setattr("samsvae.provenance.LIBRARY", copy)
    before = code_digest(SCRIPTS / f"{script}.py")
    (copy / ignores).write_text("# changed\n")
    assert code_digest(SCRIPTS / f"{script}.py") == before
    (copy / uses).write_text("# changed\n")
    assert code_digest(SCRIPTS / f"{script}.py") != before


@pytest.mark.parametrize("script", ["train_model", "predict_effects", "sample_cells"])
def test_a_model_depends_on_the_module_of_its_own_kind_alone(script, tmp_path, monkeypatch):
    copy = tmp_path / "samsvae"
    shutil.copytree(SCRIPTS / "samsvae", copy)
    monkeypatch.setattr("samsvae.provenance.LIBRARY", copy)

    def digests():
        path = SCRIPTS / f"{script}.py"
        return {kind: code_digest(path, module) for kind, (module, _) in MODELS.items()}

    def changed_by_editing(module):
        before = digests()
        with (copy / module).open("a") as file:
            file.write("# edited\n")
        return {kind for kind, digest in digests().items() if digest != before[kind]}

    assert changed_by_editing("models/svae_plus.py") == {"svae_plus"}
    assert changed_by_editing("models/cpa_vae.py") == {"cpa_vae"}
    sams = {"sams_vae", "sams_vae_beta_bernoulli"}
    assert changed_by_editing("models/sams_vae.py") == sams
    assert changed_by_editing("models/base.py") == set(MODELS)


def test_a_simulated_screen_depends_on_its_own_simulator_alone(tmp_path, monkeypatch):
    copy = tmp_path / "samsvae"
    shutil.copytree(SCRIPTS / "samsvae", copy)
    monkeypatch.setattr("samsvae.provenance.LIBRARY", copy)

    def digests():
        path = SCRIPTS / "simulate_screen.py"
        return {name: code_digest(path, module) for name, (module, *_) in SIMULATORS.items()}

    before = digests()
    (copy / "sources/simulated_additive.py").write_text("# changed\n")
    assert {n for n, digest in digests().items() if digest != before[n]} == {"simulated_additive"}


def test_a_module_that_is_imported_by_name_exists():
    for kind, (module, _) in MODELS.items():
        assert model_class(kind).__module__ == module


def job(tmp_path):
    log = [str(tmp_path / "a.log")]
    return SimpleNamespace(log=log, rule="rule", wildcards={"w": "x"}, threads=1)


@pytest.fixture
def _logging_restored():
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.captureWarnings(False)
    logging.root.handlers, logging.root.level = handlers, level


@pytest.mark.usefixtures("_logging_restored")
def test_a_users_mistake_ends_a_job_with_its_message_and_no_traceback(tmp_path, capsys):
    def fail(_):
        raise InputError("the column is missing")

    with pytest.raises(SystemExit):
        run_job(fail, job(tmp_path))
    shown = capsys.readouterr().err
    assert "[rule x] the column is missing" in shown
    assert "Traceback" not in shown
    assert "the column is missing" in (tmp_path / "a.log").read_text()


@pytest.mark.usefixtures("_logging_restored")
def test_an_unexpected_error_is_in_the_log_with_its_traceback(tmp_path, capsys):
    def fail(_):
        import a_package_that_is_not_there  # noqa: F401

    with pytest.raises(SystemExit) as ended:
        run_job(fail, job(tmp_path))
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert "unexpected error, ModuleNotFoundError: No module named 'a_package" in shown
    assert str(tmp_path / "a.log") in shown
    assert "Traceback" not in shown
    assert "Traceback" in (tmp_path / "a.log").read_text()
    assert "a_package_that_is_not_there" in (tmp_path / "a.log").read_text()


def imported_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); {code}; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_the_library_imports_without_snakemake():
    modules = [
        ".".join(path.relative_to(SCRIPTS).with_suffix("").parts)
        for path in (SCRIPTS / "samsvae").rglob("*.py")
        if path.name != "__init__.py"
    ]
    if find_spec("triton") is None:  # it comes with PyTorch for CUDA
        modules.remove("samsvae.kernels.gamma_poisson_triton")
    assert len(modules) > 30
    assert "snakemake" not in imported_by(f"import {', '.join(modules)}")


def test_what_the_snakefile_imports_is_light():
    modules = ["config", "preflight", "experiments", "models.registry"]
    loaded = imported_by(f"import {', '.join(f'samsvae.{module}' for module in modules)}")
    assert not {"torch", "scanpy", "pyro", "matplotlib", "gseapy"} & loaded
