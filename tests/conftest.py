"""What tests share: a small simulated screen, and paths to the real ones."""

import os
from pathlib import Path

import anndata
import pandas as pd
import pytest
import torch
from hypothesis import settings

from samsvae.screen.canonical import read_screen
from samsvae.sources.h5ad import write_h5ad_screen
from samsvae.sources.h5ad_source import H5adSource
from samsvae.sources.simulated import Simulation, simulate

# tests run side by side, so each keeps to one core
torch.set_num_threads(1)

# the same examples every time, however slow the machine
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("SAMSVAE_REAL_DATA", ROOT.parent / "shared" / "data"))

TINY = Simulation(
    seed=3,
    n_genes=60,
    n_factors=3,
    n_perturbations=8,
    n_pairs=4,
    n_controls=80,
    cells_per_perturbation=40,
    programme_size=10,
    median_library_size=400,
)


@pytest.fixture(scope="session")
def tiny_screen() -> anndata.AnnData:
    return simulate(TINY)[0]


def true_shifts(screen: anndata.AnnData) -> pd.DataFrame:
    """How far each target truly moves each factor, in basal standard deviations; 0 where masked."""
    truth = screen.uns["truth"]
    shifts = truth["mask"] * truth["embedding"]
    return pd.DataFrame(shifts, index=truth["targets"], columns=truth["factors"])


def canonical(source: H5adSource) -> anndata.AnnData:
    """Bring a file into canonical form, beside it."""
    path = Path(source.path).with_suffix(".screen.h5ad")
    write_h5ad_screen(source, "{}", path)
    return read_screen(path)


def real_file(name: str) -> Path:
    """Path of a real file, or skip the test where it is absent."""
    path = REAL_DATA / name
    if not path.is_file():
        pytest.skip(
            f"{name} is not there (looked in SAMSVAE_REAL_DATA or {REAL_DATA.parent.name}/data)"
        )
    return path
