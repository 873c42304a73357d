"""What the simulators of latent shifts share: the record of a simulation, and its decoder.

As a screen, a simulation of counts is canonical. Gaussian measurements are float32 in place of
counts, each cell with a library size of 1, which models with the likelihood ``normal`` leave aside.
"""

from dataclasses import dataclass
from itertools import pairwise

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.labels import CONTROL
from samsvae.screen import build_screen, describe_cells

TRAIN, VAL, TEST = "train", "val", "test"
LEAKY_SLOPE = 0.2


@dataclass(frozen=True)
class LatentSimulation:
    """Cells whose latent truth is known.

    Attributes
    ----------
    values
        Cells x genes: float32 measurements, or int64 counts.
    dosage
        Cells x perturbations, 0 or 1; a control cell has none.
    part
        ``train``, ``val`` or ``test`` of each cell.
    mask
        Perturbations x latent dimensions, 0 or 1.
    embedding
        Perturbations x latent dimensions, in standard deviations of the basal state.
    basal
        Cells x latent dimensions: the state that a cell would have without perturbation.
    """

    values: np.ndarray
    dosage: np.ndarray
    part: np.ndarray
    mask: np.ndarray
    embedding: np.ndarray
    basal: np.ndarray

    @property
    def effects(self) -> np.ndarray:
        """M * e, perturbations x latent dimensions."""
        return self.mask * self.embedding


def latent_screen(simulation: LatentSimulation) -> anndata.AnnData:
    """Lay out a simulation as a screen.

    Parameters
    ----------
    simulation
        Cells and their truth.

    Returns
    -------
    AnnData
        With ``uns["truth"]``, the mask and the embedding (targets x factors) and their names,
        ``obsm["true_basal"]``, the basal states, and ``obs["part"]``, the part of a split that
        each cell was made for.
    """
    n_targets, n_factors = simulation.mask.shape
    targets = np.array([f"TARGET{index:03d}" for index in range(1, n_targets + 1)], dtype=object)
    names = np.array([CONTROL, *targets], dtype=object)
    labels = pd.Categorical(names[(simulation.dosage @ np.arange(1, n_targets + 1)).astype(int)])
    cells = [f"cell{index}" for index in range(len(labels))]
    genes = [f"GENE{index:03d}" for index in range(1, simulation.values.shape[1] + 1)]
    if np.issubdtype(simulation.values.dtype, np.integer):
        screen = build_screen(simulation.values, labels, cells, genes, "the simulated screen")
    else:
        screen = describe_cells(labels, np.ones(len(labels)), cells, genes)
        screen.X = sparse.csr_matrix(simulation.values)
    screen.obs["part"] = pd.Categorical(simulation.part)
    screen.obsm["true_basal"] = simulation.basal.astype(np.float32)
    screen.uns["truth"] = {
        "targets": targets,
        "factors": np.array([f"FACTOR_{index:02d}" for index in range(1, n_factors + 1)], object),
        "mask": simulation.mask,
        "embedding": simulation.embedding,
    }
    return screen


def single_perturbations(
    n_perturbations: int, cells: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Give every perturbation, and control, so many cells of each part.

    Returns
    -------
    dosage, part : ndarray
        Cells x perturbations, and the part of each cell.
    """
    rows = np.vstack([np.zeros(n_perturbations), np.eye(n_perturbations)])
    dosage = np.concatenate([rows.repeat(number, axis=0) for number in cells.values()])
    part = np.repeat(list(cells), [len(rows) * number for number in cells.values()])
    return dosage, part


def signed_effects(
    rng: np.random.Generator, shape: tuple[int, int], size: float, spread: float
) -> np.ndarray:
    """Draw N(size, spread) with a random sign."""
    return rng.normal(size, spread, shape) * rng.choice([-1.0, 1.0], shape)


def orthogonal_layers(
    rng: np.random.Generator, n_latent: int, n_genes: int, n_layers: int
) -> list[np.ndarray]:
    """Draw the weights of a decoder, the first K x G and the others G x G.

    Each has orthonormal rows (the shorter side), so that no layer loses a direction.
    """
    sizes = [n_latent] + [n_genes] * n_layers
    return [_orthonormal(rng, m, n) for m, n in pairwise(sizes)]


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))  # so that all directions are equally likely
    return q.T if rows < columns else q


def decode(latent: np.ndarray, layers: list[np.ndarray]) -> np.ndarray:
    """Send latent states [N, K] through the layers, with LeakyReLU(0.2) between them."""
    hidden = latent @ layers[0]
    for weights in layers[1:]:
        hidden = np.where(hidden > 0, hidden, LEAKY_SLOPE * hidden) @ weights
    return hidden
