"""A linear model of effects, by what genes have in common across training perturbations."""

import logging
from collections.abc import Sequence

import anndata
import numpy as np

from samsvae.effects.expression import expression_in_blocks, group_means
from samsvae.errors import InputError
from samsvae.labels import CONTROL, doses
from samsvae.screen import perturbations

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
