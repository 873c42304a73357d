"""Scripts run by hand."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from samsvae.runtime.errors import InputError
from samsvae.runtime.script import job_of
from tests.conftest import ROOT, TINY

SCRIPTS = ROOT / "workflow/scripts"
CONFIG = {
    "screens": {"tiny": {"source": "simulated", **vars(TINY)}},
    "experiments": {
        "tiny": {"screen": "tiny", "split": {"kind": "random"}, "models": ["additive", "no_change"]}
    },
}
SCREEN = "results/screens/tiny/screen.h5ad"
SPLIT = "results/tiny/random-seed0/split.tsv"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments, "--configfile", "own.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_scripts_make_what_snakemake_would(folder):
    made = run("simulate_screen", SCREEN)
    assert made.returncode == 0, made.stderr
    assert run("split_cells", SPLIT).returncode == 0
    by_hand = pd.read_csv(SPLIT, sep="\t")
    Path(SPLIT).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), SPLIT, "--cores", "1",
         "--configfile", "own.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(pd.read_csv(SPLIT, sep="\t"), by_hand)


def test_a_job_has_what_its_rule_says(folder):
    Path(SCREEN).parent.mkdir(parents=True)
    Path(SCREEN).touch()
    job = job_of(SPLIT, ["own.yaml"], threads=3)
    assert (job.rule, job.threads) == ("split_cells", 3)
    assert job.input.screen == SCREEN
    assert job.output.split == SPLIT
    assert job.params.split == {"kind": "random", "seed": 0, "fraction": None, "context": None}
    assert dict(job.wildcards.items()) == {"experiment": "tiny", "split": "random-seed0"}
    assert job.config["experiments"]["tiny"]["screen"] == "tiny"
    assert Path(SPLIT).parent.is_dir()


def test_what_cannot_be_made_is_refused(folder):
    with pytest.raises(InputError, match="no rule makes this"):
        job_of("results/absent.tsv", ["own.yaml"])
    with pytest.raises(InputError, match=f"inputs are missing.*{SCREEN}"):
        job_of(SPLIT, ["own.yaml"])


@pytest.mark.slow
def test_an_error_is_left_to_the_debugger(folder):
    failed = run("split_cells", SPLIT)
    assert failed.returncode != 0
    assert "Traceback" in failed.stderr
    assert "inputs are missing" in failed.stderr


def test_seeds_that_are_trained_together_are_one_job(folder):
    settings = {
        **CONFIG,
        "experiments": {"tiny": {**CONFIG["experiments"]["tiny"], "models": ["cpa_vae"], "seeds": [0, 1]}},
        "training": {"seeds_together": True},
        "evaluation": {"interval_draws": 0},
    }  # fmt: skip
    (folder / "own.yaml").write_text(yaml.safe_dump(settings))
    runs = [Path(f"results/tiny/random-seed0/cpa_vae/seed{seed}") for seed in (0, 1)]
    for path in (SCREEN, SPLIT, *(run / "model.safetensors" for run in runs)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    for name, rule in (("model.safetensors", "train_seeds"), ("iwelbo.parquet", "evaluate_seeds")):
        job = job_of(str(runs[1] / name), ["own.yaml"])
        assert job.rule == rule
        assert job.params.seeds == [0, 1]
