"""Baselines of predicted effects, without a generative model."""

import logging
from collections.abc import Mapping, Sequence

import anndata
import numpy as np
import pandas as pd

from samsvae.config.models import EXPRESSION
from samsvae.evaluation.marginal import mean_profiles
from samsvae.evaluation.observed import effects_within_batches, training_effects
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import CONTEXT, perturbations
from samsvae.screen.design import Design
from samsvae.screen.features import (
    PerturbationFeatures,
    principal_components,
    raw_features,
    standardised,
)
from samsvae.screen.labels import CONTROL, components, doses

FEWEST_PERTURBATIONS = 2
SAME_DISTANCE = 1e-9  # relative and absolute difference of distances up to which they are equal

logger = logging.getLogger(__name__)


def bilinear(
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    min_controls: int | None = None,
    *,
    n_components: int = 10,
    ridge: float = 0.1,
    perturbation_features: str | None = None,
) -> np.ndarray:
    """Predict effects by a bilinear model of principal components of target genes.

    With G the scores of genes on the principal components of the mean training profiles and b the
    mean effect of training perturbations with measured targets and of control, whose effect is 0, a
    predicted effect is b + G W p, where p is the sum of the rows of G of the target genes, each
    times its dose (Ahlmann-Eltze et al. 2025, Nature Methods). A target gene that is not measured
    has no row and adds nothing to p; a perturbation of such genes alone has b as its prediction.
    With a table of features, p is the sum of the features of the perturbations instead, as of
    :meth:`PerturbationFeatures.of`, 0 being the mean perturbation, and b the mean effect of all
    training perturbations.

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
    perturbation_features
        Table of features of perturbations.

    Returns
    -------
    ndarray
        Perturbations x genes, log2(CP10k + 1).

    Raises
    ------
    InputError
        If the target genes of fewer than two training perturbations are measured, or the table is
        not valid.
    """
    every = perturbations(screen[train])
    if perturbation_features is not None:
        measured = training_effects(screen, train, every, min_controls)
        design = Design.of_screen(screen)
        features = PerturbationFeatures.of_screen(
            perturbation_features, screen, train, design.names, n_components
        )
        of_name = dict(zip(design.names, features.values, strict=True))

        def represented(labels: Sequence[str]) -> np.ndarray:
            return np.array([sum(d * of_name[p] for p, d in doses(one).items()) for one in labels])

        genes = principal_components(mean_profiles(screen, train, every).T, n_components)
        mean = measured.mean(axis=0)
        weights = ridge_weights(genes, represented(every), measured - mean, ridge)
        return represented(names) @ weights.T @ genes.T + mean
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


def training_mean(
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    min_controls: int | None = None,
) -> np.ndarray:
    """Predict the effect of each perturbation among its own training cells.

    A combination, and each dose, is a perturbation of its own here. One without training cells has
    the unweighted mean effect of those with some, as of :func:`mean_effect`.
    """
    trained = perturbations(screen[train])
    effects = training_effects(screen, train, trained, min_controls)
    own = dict(zip(trained, effects, strict=True))
    mean = effects.mean(axis=0)
    return np.array([own.get(name, mean) for name in names])


def nearest_feature(
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    min_controls: int | None = None,
    *,
    perturbation_features: str = EXPRESSION,
    n_components: int = 10,
) -> np.ndarray:
    """Predict the training effect of the perturbation with the most similar features.

    Similarity is the Euclidean distance between features, which are standardised over perturbations
    with training cells (``expression``: centred). The effects of perturbations at the same distance
    are averaged. For a combination the predictions of its parts are added, each times its dose. A
    perturbation whose target is not measured has the mean effect of all.

    Parameters
    ----------
    screen, train, names, min_controls
        As of :func:`additive`.
    perturbation_features
        Path of a table, or ``expression`` for the principal components of training expression.
    n_components
        Number of these components.

    Returns
    -------
    ndarray
        Perturbations x genes, log2(CP10k + 1).

    Raises
    ------
    InputError
        If the features are not valid, or no perturbation has features and training cells of its
        own.
    """
    of_single = _effects_by_dose(screen, train, min_controls)
    every = Design.of_screen(screen).names
    raw = raw_features(perturbation_features, screen, train, every, n_components)
    is_trained = np.array([name in of_single for name in every])
    features = standardised(raw, is_trained, scale=perturbation_features != EXPRESSION)
    has_features = np.isfinite(raw).all(axis=1)
    known = np.flatnonzero(is_trained & has_features)
    effects = np.array([_effect_at(1.0, of_single[every[row]]) for row in known])
    every_effect = [_effect_at(1.0, of_dose) for of_dose in of_single.values()]
    mean = np.mean(every_effect, axis=0)
    predicted = np.zeros((len(names), screen.n_vars))
    for row, name in enumerate(names):
        for part, dose in doses(name).items():
            at = every.index(part)
            if part in of_single:
                predicted[row] += _effect_at(dose, of_single[part])
            elif has_features[at]:
                distance = np.linalg.norm(features[known] - features[at], axis=1)
                nearest = distance <= distance.min() * (1 + SAME_DISTANCE) + SAME_DISTANCE
                predicted[row] += dose * effects[nearest].mean(axis=0)
            else:
                predicted[row] += dose * mean
    return predicted


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
    seen = _effects_by_dose(screen, train, min_controls)
    predicted = np.zeros((len(names), screen.n_vars))
    for row, name in enumerate(names):
        for gene, dose in doses(name).items():
            if gene in seen:
                predicted[row] += _effect_at(dose, seen[gene])
    return predicted


def _effects_by_dose(
    screen: anndata.AnnData, train: np.ndarray, min_controls: int | None
) -> dict[str, dict[float, np.ndarray]]:
    """Compute the training effects of single perturbations by dose."""
    singles = [name for name in perturbations(screen[train]) if len(components(name)) == 1]
    effects = training_effects(screen, train, singles, min_controls)
    seen: dict[str, dict[float, np.ndarray]] = {}
    for single, effect in zip(singles, effects, strict=True):
        [(gene, dose)] = doses(single).items()
        seen.setdefault(gene, {})[dose] = effect
    return seen


def _effect_at(dose: float, seen: Mapping[float, np.ndarray]) -> np.ndarray:
    nearest = min(seen, key=lambda known: abs(known - dose))
    return dose / nearest * seen[nearest]


BASELINES = {
    "no_change": no_change,
    "mean_effect": mean_effect,
    "training_mean": training_mean,
    "additive": additive,
    "other_contexts": other_contexts,
    "bilinear": bilinear,
    "nearest_feature": nearest_feature,
}
