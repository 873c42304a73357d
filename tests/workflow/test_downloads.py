"""A published file through the workflow: fetched, verified, and never fetched twice."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.loopback import answer, cut_after, serving
from tests.workflow.conftest import TINY_CONFIG

pytestmark = pytest.mark.workflow

CONTENT = np.random.default_rng(0).bytes(500_000)
RECEIPT = "results/downloads/norman_original.json"
FILE = Path("data/downloads/small.h5ad")


@pytest.fixture
def server():
    with serving(small=CONTENT) as running:
        yield running


@pytest.fixture
def norman(project, server):
    project.config = {
        **TINY_CONFIG,
        "screens": {"own": {"source": "norman"}},
        "downloads": {
            "norman_original": {
                "file": FILE.name,
                "urls": [server.url("/gone"), server.url("/small")],
                "size": len(CONTENT),
                "md5": hashlib.md5(CONTENT).hexdigest(),
                "sha256": None,
            }
        },
        "experiments": {
            "own": {"screen": "own", "split": {"kind": "random"}, "models": ["additive"]}
        },
    }
    return project


def test_a_broken_transfer_goes_on_in_the_next_run_and_a_whole_file_is_kept(norman, server):
    server.behaviours["/small"] = [cut_after(300_000), answer(404)]
    broken = norman.snakemake(RECEIPT)
    assert broken.returncode != 0
    assert "/gone: the server answers 404" in broken.stdout
    assert "/small: the server answers 404" in broken.stdout
    assert "Traceback" not in broken.stdout
    part = norman.folder / f"{FILE}.part"
    assert not (norman.folder / FILE).exists()
    have = part.stat().st_size
    assert 0 < have < len(CONTENT)

    server.sent.clear()
    assert norman.snakemake(RECEIPT).returncode == 0
    assert server.sent["/small"] == len(CONTENT) - have
    assert (norman.folder / FILE).read_bytes() == CONTENT
    assert not part.exists()
    assert json.loads((norman.folder / RECEIPT).read_text())["path"] == str(FILE)

    # results may go, and other addresses come: the file is verified again, not fetched
    asked = len(server.requests)
    (norman.folder / RECEIPT).unlink()
    norman.config["downloads"]["norman_original"]["urls"].append("http://127.0.0.1:9/other")
    done = norman.snakemake(RECEIPT)
    assert done.returncode == 0
    assert "is there already, and whole" in done.stdout
    assert len(server.requests) == asked


def test_a_users_own_file_is_verified_before_it_is_read(norman, server):
    own = norman.folder / "mine.h5ad"
    own.write_bytes(CONTENT[:-1] + b"?")
    norman.config["screens"]["own"]["path"] = "mine.h5ad"
    receipt = "results/screens/own/verified.json"
    refused = norman.snakemake(receipt)
    assert refused.returncode != 0
    assert "mine.h5ad: not the published small.h5ad: its md5 is" in refused.stdout
    assert "Traceback" not in refused.stdout
    own.write_bytes(CONTENT)
    assert norman.snakemake(receipt).returncode == 0
    assert server.requests == []
    own.write_bytes(CONTENT[:-1])
    assert "it has 499,999 bytes" in norman.snakemake(receipt, "--dry-run").stdout
