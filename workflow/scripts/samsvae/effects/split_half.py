"""The ceiling: how well cells predict other cells of the same perturbation."""

import anndata
import numpy as np
import pandas as pd

from samsvae.effects.expression import expression_in_blocks, group_means
from samsvae.effects.observed import observed_effects
from samsvae.effects.table import effects_table
from samsvae.errors import InputError
from samsvae.labels import CONTROL
from samsvae.screen import perturbations
from samsvae.splits import held_out_cells


def half_of_held_out(labels: pd.Series, parts: pd.Series, seed: int) -> np.ndarray:
    """Choose half of each perturbation's held-out cells, and of the held-out control cells.

    Parameters
    ----------
    labels, parts
        Perturbation and split of each cell.
    seed
        Seed of the choice.

    Returns
    -------
    ndarray of bool
        The cells chosen; of an odd number the smaller half.
    """
    cells = np.random.default_rng(seed).permutation(np.flatnonzero(held_out_cells(labels, parts)))
    shuffled = labels.iloc[cells]
    place = shuffled.groupby(shuffled, observed=True).cumcount()
    number = shuffled.groupby(shuffled, observed=True).transform("size")
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[cells[(place < number // 2).to_numpy()]] = True
    return chosen


def split_half(
    screen: anndata.AnnData, parts: pd.Series, seed: int, provenance: str
) -> anndata.AnnData:
    """Predict the effects among half of the held-out cells, to be judged by the other cells.

    Its score is that of a prediction as good as measuring once more, with half as many cells as
    are held out. A model that averages over noise can reach higher where these are few.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Split of each cell, as in split.tsv.
    seed
        Seed of the choice of cells.
    provenance
        What made it, as JSON.

    Returns
    -------
    AnnData
        Perturbations x genes. ``X``: effect among the chosen half; the layers ``ate``,
        ``ate_held_out`` and ``fdr`` are as of observed effects, of the cells that were not
        chosen. A perturbation with fewer than two held-out cells has 0 in ``X`` and NaN in
        the layers.

    Raises
    ------
    InputError
        If fewer than two control cells are held out.
    """
    names = perturbations(screen)
    labels = screen.obs["perturbation"].astype(str)
    half = half_of_held_out(labels, parts, seed)
    means = group_means(expression_in_blocks(screen, half), names, screen.n_vars)
    if not means.n_cells[-1]:
        raise InputError(
            f"The ceiling 'split_half' needs two held-out cells of {CONTROL!r} at least, and the "
            "split has fewer. Leave it out of the experiment's 'models'."
        )
    others = observed_effects(screen, parts, provenance, ~half)
    halved = means.n_cells[:-1] > 0
    layers = {name: np.asarray(others.layers[name]) for name in ("ate", "ate_held_out", "fdr")}
    return effects_table(
        np.where(halved[:, None], means.effects()[0], 0.0),
        names,
        list(screen.var_names),
        {name: np.where(halved[:, None], layer, np.nan) for name, layer in layers.items()},
        provenance,
        others.obs,
    )
