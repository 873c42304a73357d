"""Baselines: predictions of effects without a trained generative model."""

import logging
from collections.abc import Mapping, Sequence

import anndata
import numpy as np

from samsvae.evaluation.effects import expression_in_blocks, group_means
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import perturbations
from samsvae.screen.labels import CONTROL, components, doses

FEWEST_PERTURBATIONS = 2

logger = logging.getLogger(__name__)


def bilinear(
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    *,
    n_components: int = 10,
    ridge: float = 0.1,
) -> np.ndarray:
    """Predict effects from the principal components of the targeted genes.

    G holds each gene's scores on the principal components of the mean training profiles, b the
    mean effect, and an effect is b + G W p, where p is the sum of the rows of G of the targeted
    genes, each times its dose (Ahlmann-Eltze et al. 2025, Nature Methods). A target that is not
    among the measured genes has no row: it adds nothing to p, and a perturbation of none but
    such is predicted to have the mean effect.

    Parameters
    ----------
    screen
        Canonical screen.
    train
        Boolean, the training cells.
    names
        Perturbations to predict.
    n_components
        Number of principal components; fewer where there are not as many profiles.
    ridge
        Penalty on W, on the side of the genes and on that of the perturbations.

    Returns
    -------
    ndarray
        Perturbations x genes, log2(CP10k + 1).

    Raises
    ------
    InputError
        If the targets of fewer than two training perturbations are measured.
    """
    every = perturbations(screen[train])
    row = {gene: index for index, gene in enumerate(screen.var_names)}
    known = [name for name in every if all(part in row for part in doses(name))]
    if len(known) < FEWEST_PERTURBATIONS:
        raise InputError(
            f"The model 'bilinear' knows a perturbation by the expression of its target, but the "
            f"targets of only {len(known)} training perturbation(s) are among the "
            f"{screen.n_vars} measured genes. Leave it out of the experiment's 'models'."
        )
    unknown = sorted({part for name in names for part in doses(name)} - set(row))
    if unknown:
        logger.info(
            "%d target(s) are not among the measured genes and so add nothing: %s",
            len(unknown),
            ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else ""),
        )
    means = group_means(expression_in_blocks(screen, train), every, screen.n_vars)
    genes = principal_components(means.mean.T, n_components)

    def representation(labels: Sequence[str]) -> np.ndarray:
        parts = [[(row[p], dose) for p, dose in doses(one).items() if p in row] for one in labels]
        return np.array([sum((d * genes[r] for r, d in one), 0 * genes[0]) for one in parts])

    # control is a condition like any other, one without target and without effect
    chosen = [every.index(name) for name in known]
    effects = np.vstack([means.effects()[0][chosen], np.zeros(screen.n_vars)])
    mean = effects.mean(axis=0)
    weights = ridge_weights(genes, representation([*known, CONTROL]), effects - mean, ridge)
    return representation(names) @ weights.T @ genes.T + mean


def principal_components(matrix: np.ndarray, number: int) -> np.ndarray:
    """Score rows on the first principal components, after centring each column."""
    left, singular, _ = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    return left[:, :number] * singular[:number]


def ridge_weights(
    genes: np.ndarray, representations: np.ndarray, effects: np.ndarray, ridge: float
) -> np.ndarray:
    """Fit W in effects = (G W P')', with a ridge penalty on either side.

    Parameters
    ----------
    genes, representations
        G, genes x components, and P, perturbations x components.
    effects
        Perturbations x genes.
    ridge
        The penalty.

    Returns
    -------
    ndarray
        Components of genes x components of perturbations.
    """
    of_genes = np.linalg.solve(_penalised(genes, ridge), genes.T @ effects.T @ representations)
    return np.linalg.solve(_penalised(representations, ridge), of_genes.T).T


def _penalised(matrix: np.ndarray, ridge: float) -> np.ndarray:
    return matrix.T @ matrix + ridge * np.eye(matrix.shape[1])


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
