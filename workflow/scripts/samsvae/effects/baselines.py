"""Baselines: predictions that take no model."""

from collections.abc import Sequence

import anndata
import numpy as np

from samsvae.effects.observed import group_means, log_expression
from samsvae.screen import components


def no_change(screen: anndata.AnnData, train: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Predict that every perturbation leaves cells as control cells are: 0."""
    return np.zeros((len(names), screen.n_vars))


def additive(screen: anndata.AnnData, train: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Predict the effect of a gene among training cells; of a combination, the sum of its genes'.

    A gene without training cells of its own adds nothing, since nothing is known of it.

    Parameters
    ----------
    screen
        Canonical screen.
    train
        Boolean, the training cells.
    names
        Perturbations to predict.

    Returns
    -------
    ndarray
        Perturbations x genes, log2(CP10k + 1).
    """
    singles = sorted({part for name in names for part in components(name)})
    trained = screen[train]
    means = group_means(log_expression(trained), trained.obs["perturbation"].astype(str), singles)
    effects = np.nan_to_num(means.effects()[0], nan=0.0)
    row = {single: effects[index] for index, single in enumerate(singles)}
    return np.array([sum(row[part] for part in components(name)) for name in names])


BASELINES = {"no_change": no_change, "additive": additive}
