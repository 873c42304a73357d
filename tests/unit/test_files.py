import json
import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pandas as pd
import pyarrow.parquet
import pytest

from samsvae.runtime.errors import InputError
from samsvae.runtime.files import (
    fingerprint,
    read_lines,
    read_table,
    whole_file,
    write_parquet,
    write_tsv,
)
from samsvae.runtime.provenance import digest_of, provenance
from samsvae.runtime.script import run_job
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
    of_models = table.assign(model=pd.Categorical(["m", "n"]))
    write_parquet(of_models, "{}", tmp_path / "models.parquet")
    of_one = read_table(tmp_path / "models.parquet", columns=["a", "model"], model="n")
    assert of_one.to_numpy().tolist() == [["x", "n"]]
    metadata = pyarrow.parquet.read_schema(tmp_path / "t.parquet").metadata
    assert json.loads(metadata[b"provenance"]) == {"made": 1}


def test_provenance_names_configuration_code_data_and_versions():
    made = json.loads(provenance({"b": 1, "a": 2}, "abc", screen="123"))
    assert made["config_digest"] == digest_of({"a": 2, "b": 1})
    assert (made["code_digest"], made["inputs"]) == ("abc", {"screen": "123"})
    assert {"python", "torch", "samsvae"} <= set(made["versions"])


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
        modules = [module for module in modules if not module.endswith("_triton")]
    assert len(modules) > 30
    assert "snakemake" not in imported_by(f"import {', '.join(modules)}")


def test_what_the_snakefile_imports_is_light():
    modules = ["config.configuration", "config.experiments", "runtime.layout", "models"]
    loaded = imported_by(f"import {', '.join(f'samsvae.{module}' for module in modules)}")
    assert not {"torch", "scanpy", "pyro", "matplotlib", "gseapy"} & loaded


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_text_come_whole_from_any_program(tmp_path, encoding, end):
    path = tmp_path / "genes.txt"
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    path.write_bytes(mark + end.join(["KLF1", "", "é+1"]).encode(encoding))
    assert read_lines(path, "'genes'") == ["KLF1", "", "é+1"]


def test_text_in_another_encoding_is_told_with_its_line(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_bytes(b"KLF1\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"genes\.txt: line 2 .*0xe9.*Save it as UTF-8"):
        read_lines(path, "'genes'")
    path.write_bytes("KLF1\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="UTF-16 without"):
        read_lines(path, "'genes'")
    with pytest.raises(InputError, match=r"no such file.*'genes'"):
        read_lines(tmp_path / "absent.txt", "'genes'")


def test_a_fingerprint_changes_with_size_and_content_and_with_nothing_else(tmp_path):
    small, large, folder = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    small.write_bytes(b"one")
    large.write_bytes(bytes(3 * 2**20))
    (folder / "x").mkdir(parents=True)
    (folder / "x/zarr.json").write_text("{}")
    before = [fingerprint(path) for path in (small, large, folder)]
    assert len(set(before)) == 3
    for path in (small, large):
        os.utime(path, (1, 1))
    assert [fingerprint(path) for path in (small, large, folder)] == before
    small.write_bytes(b"two")
    with large.open("r+b") as file:
        file.write(b"changed")
    (folder / "x/zarr.json").write_text("[]")
    after = [fingerprint(path) for path in (small, large, folder)]
    assert not set(after) & set(before)
    assert fingerprint(tmp_path / "absent") == "absent"
