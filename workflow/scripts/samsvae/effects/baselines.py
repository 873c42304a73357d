"""Baselines: predictions that take no training."""

from collections.abc import Mapping, Sequence

import anndata
import numpy as np

from samsvae.effects.bilinear import bilinear
from samsvae.effects.expression import expression_in_blocks, group_means
from samsvae.labels import components, doses
from samsvae.screen import perturbations


def no_change(screen: anndata.AnnData, train: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Predict that every perturbation leaves cells as control cells are: 0."""
    return np.zeros((len(names), screen.n_vars))


def mean_effect(screen: anndata.AnnData, train: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Predict for every perturbation the mean effect of those with training cells, each as one."""
    seen = perturbations(screen[train])
    means = group_means(expression_in_blocks(screen, train), seen, screen.n_vars)
    return np.tile(means.effects()[0].mean(axis=0), (len(names), 1))


def additive(screen: anndata.AnnData, train: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Predict the effect of a gene among training cells; of a combination, the sum of its genes'.

    At a dose without training cells of the gene alone, the effect at the nearest dose that has
    some is scaled in proportion. A gene that has none at any dose adds nothing, since nothing is
    known of it.

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
    singles = [name for name in perturbations(screen[train]) if len(components(name)) == 1]
    means = group_means(expression_in_blocks(screen, train), singles, screen.n_vars)
    seen: dict[str, dict[float, np.ndarray]] = {}
    for single, effect in zip(singles, means.effects()[0], strict=True):
        [(gene, dose)] = doses(single).items()
        seen.setdefault(gene, {})[dose] = effect
    predicted = np.zeros((len(names), screen.n_vars))
    for row, name in enumerate(names):
        for gene, dose in doses(name).items():
            if gene in seen:
                predicted[row] += _effect_at(dose, seen[gene])
    return predicted


def _effect_at(dose: float, seen: Mapping[float, np.ndarray]) -> np.ndarray:
    nearest = min(seen, key=lambda known: abs(known - dose))
    return dose / nearest * seen[nearest]


BASELINES = {
    "no_change": no_change,
    "mean_effect": mean_effect,
    "additive": additive,
    "bilinear": bilinear,
}
