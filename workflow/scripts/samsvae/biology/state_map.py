"""Latent states of cells on a plane."""

import warnings

import anndata
import numpy as np
import pandas as pd

from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.posterior import cell_states
from samsvae.labels import CONTROL
from samsvae.splits import TRAIN

N_NEIGHBOURS = 15
MIN_DISTANCE = 0.3
SHOWN_PERTURBATIONS = 7
OTHER = "other perturbations"


def plane_of(states: np.ndarray, seed: int) -> np.ndarray:
    """Lay out states by UMAP (McInnes et al. 2018), so that neighbours stay neighbours.

    Parameters
    ----------
    states
        Cells x K.
    seed
        Seed of the layout; it then runs on one core.

    Returns
    -------
    ndarray
        Cells x 2, without units.
    """
    import umap  # seconds, in which it compiles

    layout = umap.UMAP(
        n_neighbors=min(N_NEIGHBOURS, len(states) - 1),
        min_dist=MIN_DISTANCE,
        random_state=seed,
        n_jobs=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(layout.fit_transform(states.astype(np.float32)), dtype=float)


def shown_as(labels: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Name the few perturbations that move cells farthest, and call all others alike.

    Parameters
    ----------
    labels
        Perturbation of each cell.
    total
        States with the perturbation, cells x K.

    Returns
    -------
    ndarray of str
        For each cell ``control``, one of seven perturbations, or ``other perturbations``.
    """
    means = pd.DataFrame(total).groupby(labels).mean()
    origin = means.loc[CONTROL] if CONTROL in means.index else means.mean()
    distance = ((means - origin) ** 2).sum(axis=1).drop(CONTROL, errors="ignore")
    farthest = set(distance.sort_values(ascending=False, kind="stable").index[:SHOWN_PERTURBATIONS])
    return np.array([name if name in farthest | {CONTROL} else OTHER for name in labels], object)


def state_map(
    trained: TrainedModel, screen: anndata.AnnData, parts: pd.Series, most_cells: int, seed: int
) -> pd.DataFrame:
    """Lay out basal and total states of cells that a model was not trained on.

    Parameters
    ----------
    trained
        The model.
    screen
        Canonical screen.
    parts
        Split of each cell.
    most_cells
        So many cells at most, drawn at random.
    seed
        Seed of the cells and of the layout.

    Returns
    -------
    DataFrame
        One row per state (``basal``, ``total``) and cell: its place on the plane, x and y, its
        perturbation, what :func:`shown_as` calls it, and the other columns of the screen's
        ``obs`` but for library sizes.
    """
    cells = np.flatnonzero(parts != TRAIN)
    if len(cells) > most_cells:
        cells = np.sort(np.random.default_rng(seed).choice(cells, most_cells, replace=False))
    keep = np.zeros(screen.n_obs, dtype=bool)
    keep[cells] = True
    states = cell_states(trained, screen, keep, seed)
    known = screen.obs[keep].drop(columns=["library_size", "part"], errors="ignore")
    known.insert(0, "cell", known.index)
    known["shown_as"] = shown_as(known["perturbation"].to_numpy(dtype=object), states.total)
    planes = []
    for name, values in (("basal", states.basal), ("total", states.total)):
        x, y = plane_of(values, seed).T.round(4)
        planes.append(known.assign(state=name, x=x, y=y))
    return pd.concat(planes, ignore_index=True)
