"""Baselines of predicted effects, without a generative model."""

import logging
from collections.abc import Mapping, Sequence

import anndata
import numpy as np
import pandas as pd

from samsvae.evaluation.marginal import mean_profiles
from samsvae.evaluation.observed import effects_within_batches, training_effects
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import CONTEXT, perturbations
from samsvae.screen.labels import CONTROL, components, doses

FEWEST_PERTURBATIONS = 2

logger = logging.getLogger(__name__)


def bilinear(
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    min_controls: int | None = None,
    *,
    n_components: int = 10,
    ridge: float = 0.1,
) -> np.ndarray:
    """Predict effects by a bilinear model of principal components of target genes.

    With G the scores of genes on the principal components of the mean training profiles and b the
    mean effect, a predicted effect is b + G W p, where p is the sum of the rows of G of the target
    genes, each times its dose (Ahlmann-Eltze et al. 2025, Nature Methods). A target gene that is
    not measured has no row and adds nothing to p; a perturbation of such genes alone has the mean
    effect as its prediction.

    Parameters
    ----------
    screen
        Canonical screen.
    train
        Boolean, the training cells.
    names
        Perturbations to predict.
    min_controls
        As of :func:`training_effects`.
    n_components
        Number of principal components, at most the number of profiles.
    ridge
        Penalty on W, for genes and for perturbations.

    Returns
    -------
    ndarray
        Perturbations x genes, log2(CP10k + 1).

    Raises
    ------
    InputError
        If the target genes of fewer than two training perturbations are measured.
    """
    every = perturbations(screen[train])
    row = {gene: index for index, gene in enumerate(screen.var_names)}
    known = [name for name in every if all(part in row for part in doses(name))]
    if len(known) < FEWEST_PERTURBATIONS:
        raise InputError(
            f"The model 'bilinear' represents a perturbation by the expression of its target gene, "
            f"but the target genes of only {len(known)} training perturbation(s) are among the "
            f"{screen.n_vars} measured genes. Remove it from the experiment's 'models'."
        )
    unknown = sorted({part for name in names for part in doses(name)} - set(row))
    if unknown:
        logger.info(
            "%d target gene(s) are not measured and add nothing to predictions: %s",
            len(unknown),
            ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else ""),
        )
    profiles = mean_profiles(screen, train, every)
    genes = principal_components(profiles.T, n_components)

    def representation(labels: Sequence[str]) -> np.ndarray:
        parts = [[(row[p], dose) for p, dose in doses(one).items() if p in row] for one in labels]
        return np.array([sum((d * genes[r] for r, d in one), 0 * genes[0]) for one in parts])

    # control is a condition without target gene and without effect
    chosen = [every.index(name) for name in known]
    measured = training_effects(screen, train, every, min_controls)
    effects = np.vstack([measured[chosen], np.zeros(screen.n_vars)])
    mean = effects.mean(axis=0)
    weights = ridge_weights(genes, representation([*known, CONTROL]), effects - mean, ridge)
    return representation(names) @ weights.T @ genes.T + mean


def principal_components(matrix: np.ndarray, number: int) -> np.ndarray:
    """Compute scores of rows on the first principal components, columns centred."""
    left, singular, _ = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    return left[:, :number] * singular[:number]


def ridge_weights(
    genes: np.ndarray, representations: np.ndarray, effects: np.ndarray, ridge: float
) -> np.ndarray:
    """Fit W in effects = (G W P')' with ridge penalties.

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


def no_change(
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    min_controls: int | None = None,
) -> np.ndarray:
    """Predict an effect of 0 for each perturbation."""
    return np.zeros((len(names), screen.n_vars))


def mean_effect(
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    min_controls: int | None = None,
) -> np.ndarray:
    """Predict the unweighted mean effect of training perturbations for each perturbation."""
    effects = training_effects(screen, train, perturbations(screen[train]), min_controls)
    return np.tile(effects.mean(axis=0), (len(names), 1))


def other_contexts(
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    min_controls: int | None = None,
) -> np.ndarray:
    """Predict the mean effect of each perturbation in the other contexts, over its contexts."""
    predicted = from_other_contexts(screen, train, names, min_controls)
    return over_contexts(screen, ~train, names, predicted)


def from_other_contexts(
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    min_controls: int | None = None,
) -> dict[str, np.ndarray]:
    """Predict the effects of perturbations in each context by their mean in the others.

    Parameters
    ----------
    screen, train, names, min_controls
        As of :func:`samsvae.evaluation.observed.training_effects`.

    Returns
    -------
    dict of ndarray
        By context, perturbations x genes, log2(CP10k + 1): the unweighted mean over the other
        contexts of effects within each; 0 for a perturbation without training cells in any.
    """
    of_cell = screen.obs[CONTEXT].astype(str).to_numpy()
    within = {
        context: effects_within_batches(
            screen, train & (of_cell == context), names, min_controls or 1
        )
        for context in sorted(set(of_cell))
    }
    predicted = {}
    for context in within:
        total, number = np.zeros((len(names), screen.n_vars)), np.zeros((len(names), 1))
        for other, effects in within.items():
            known = np.isfinite(effects).all(axis=1) & (other != context)
            total[known] += effects[known]
            number[known] += 1
        predicted[context] = total / np.maximum(number, 1)
    return predicted


def over_contexts(
    screen: anndata.AnnData,
    cells: np.ndarray,
    names: Sequence[str],
    effects: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Average the effects in contexts, weighted by some cells of each perturbation."""
    labels = screen.obs["perturbation"].astype(str)[cells]
    of_cell = screen.obs[CONTEXT].astype(str)[cells]
    number = pd.crosstab(labels, of_cell).reindex(index=names, fill_value=0)
    weight = number.div(number.sum(axis=1).clip(lower=1), axis=0)
    parts = [weight[[context]].to_numpy() * effects[str(context)] for context in weight]
    return sum(parts, np.zeros((len(names), screen.n_vars)))


def additive(
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    min_controls: int | None = None,
) -> np.ndarray:
    """Predict a combination's effect as the sum of the training effects of its genes.

    For a dose without training cells of the single gene, the effect at the nearest dose with
    training cells is scaled in proportion. A gene without any training cells adds 0.

    Parameters
    ----------
    screen
        Canonical screen.
    train
        Boolean, the training cells.
    names
        Perturbations to predict.
    min_controls
        As of :func:`training_effects`.

    Returns
    -------
    ndarray
        Perturbations x genes, log2(CP10k + 1).
    """
    singles = [name for name in perturbations(screen[train]) if len(components(name)) == 1]
    effects = training_effects(screen, train, singles, min_controls)
    seen: dict[str, dict[float, np.ndarray]] = {}
    for single, effect in zip(singles, effects, strict=True):
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
    "other_contexts": other_contexts,
    "bilinear": bilinear,
}
