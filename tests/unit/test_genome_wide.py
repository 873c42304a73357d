"""The benchmark of a genome-wide screen: its file, its configuration, its stages."""

import argparse

import anndata
import numpy as np
import pytest
import yaml
from benchmarks.genome_wide import (
    BASELINES,
    CONTROL,
    KNOCK_DOWN,
    configuration,
    stages,
    write_screen,
)

from samsvae.config.configuration import merge, validate
from tests.conftest import ROOT

ARGUMENTS = argparse.Namespace(
    genes=200, seed=0, cells_per_perturbation=9, controls=300, depth=2000, steps=30, latents=5,
    hidden=8, cores=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome_wide") / "screen.h5ad"
    assert write_screen(path, ARGUMENTS, 100) == 300 + 900
    return anndata.read_h5ad(path)


def test_every_perturbation_has_as_many_cells_and_counts_are_whole(screen):
    number = screen.obs["perturbation"].value_counts()
    assert number.pop(CONTROL) == 300
    assert set(number) == {9}
    assert len(number) == 100
    assert np.array_equal(screen.X.data, np.rint(screen.X.data))
    assert screen.X.sum(axis=1).mean() == pytest.approx(2000 * np.exp(0.35**2 / 2), rel=0.05)


def test_measured_targets_are_knocked_down(screen):
    labels = screen.obs["perturbation"].to_numpy()
    counts = screen.to_df()
    share = counts.div(counts.sum(axis=1), axis=0)
    own = np.array([share.loc[labels == f"GENE{n}", f"GENE{n}"].mean() for n in range(1, 81)])
    of_control = share[labels == CONTROL].mean().to_numpy()[:80]
    frequent = (of_control > 0.005) & (own > 0)
    assert np.log(own[frequent] / of_control[frequent]).mean() == pytest.approx(
        -KNOCK_DOWN, abs=0.4
    )
    assert "GENE81" not in labels


def test_its_configuration_is_valid(tmp_path):
    defaults = yaml.safe_load((ROOT / "config.yaml").read_text())
    config = validate(merge(defaults, configuration(tmp_path, ARGUMENTS)))
    [experiment] = config["experiments"].values()
    assert experiment["models"] == ["sams_vae", *BASELINES]
    untrained = argparse.Namespace(**{**vars(ARGUMENTS), "steps": 0})
    config = validate(merge(defaults, configuration(tmp_path, untrained)))
    [experiment] = config["experiments"].values()
    assert experiment["models"] == list(BASELINES)


def test_stages_sum_the_jobs_of_a_rule(tmp_path):
    columns = "s\tmax_rss\tcpu_time\n"
    (tmp_path / "observe").mkdir()
    (tmp_path / "observe" / "a.tsv").write_text(columns + "1.5\t100\t1.0\n")
    (tmp_path / "observe" / "b.tsv").write_text(columns + "2.5\t300\t2.0\n")
    (tmp_path / "write.tsv").write_text(columns + "0.5\t-\t-\n")
    found = stages(tmp_path)
    assert found["observe"] == {"seconds": 4.0, "cpu_seconds": 3.0, "peak_mib": 300.0}
    assert found["write"]["seconds"] == 0.5
    assert stages(tmp_path / "nothing") == {}
