"""Similarity of perturbations by observed, predicted and latent effects."""

import numpy as np
import pandas as pd
from scipy.cluster import hierarchy

from samsvae.evaluation.agreement import MASK_THRESHOLD, pearson
from samsvae.screen.labels import doses

OBSERVED, PREDICTED, LATENT = "observed", "predicted", "latent"
READ = ["model", "perturbation", "gene", "screen_effect", "predicted"]  # of a table of effects
CLUSTERED = 40  # perturbations of largest observed effect
MOST_COMPARED = 1000  # perturbations of largest observed effect, since pairs grow with the square
FEWEST_COMPARED = 3  # perturbations, of a correlation of similarities


def clustered(matrix: np.ndarray) -> list[int]:
    """Order rows so that similar ones are neighbours (average linkage, optimal leaf order)."""
    if len(matrix) < 3:
        return list(range(len(matrix)))
    linkage = hierarchy.linkage(matrix, method="average", optimal_ordering=True)
    return [int(row) for row in hierarchy.leaves_list(linkage)]


def similarity_table(
    effects: pd.DataFrame, latents: pd.DataFrame, control_error: pd.Series
) -> pd.DataFrame:
    """Compute the similarity of every two perturbations, for each kind of effect.

    Parameters
    ----------
    effects
        A table of :func:`samsvae.evaluation.effects.long_table`.
    latents
        A table of :func:`samsvae.biology.factors.latent_effects`, with a column ``model``.
    control_error
        Standard error of the control cells' mean, by gene. Observed effects share this noise, so
        that effects of nothing would correlate; its expectation is subtracted from their
        covariances and variances.

    Returns
    -------
    DataFrame
        One row per kind, model and unordered pair of perturbations, equal ones included, among the
        1,000 perturbations of largest strength. Kinds
        are ``observed`` (effects of all cells, without the noise of control cells) and
        ``predicted``, Pearson correlations over genes, and ``latent``, the cosine similarity of
        masked latent effects, which are not centred, since 0 has a meaning. A perturbation with an
        effect of 0 has a similarity of 0. A model with the same prediction for all has no rows of
        that kind. strength is the standard deviation of the observed effect of ``first`` over
        genes. first_order and second_order, from 0, are indices in a hierarchical clustering by
        observed similarity of the 40 perturbations of largest strength, missing for all others;
        correlation, between the similarities of a kind and model and the observed ones, is over all
        pairs of two of these, NaN for the observed ones.
    """
    models = list(pd.unique(effects["model"]))
    effects = effects_of_strongest(effects)
    by_model = {model: effects[effects["model"] == model] for model in models}
    observed = effect_matrix(by_model[models[0]], "screen_effect")
    noise = float(np.sum(control_error.reindex(observed.columns).to_numpy(dtype=float) ** 2))
    shared = {OBSERVED: noise * (1 - 1 / observed.shape[1])}  # of centred effects
    matrices = {(OBSERVED, OBSERVED): observed}
    for model in models:
        predicted = effect_matrix(by_model[model], "predicted").loc[observed.index]
        if np.ptp(predicted.to_numpy(), axis=0).any():
            matrices[PREDICTED, model] = predicted
        own = latents[latents["model"] == model]
        if len(own):
            matrices[LATENT, model] = latent_shifts(own, list(observed.index))
    first, second = np.triu_indices(len(observed))
    names = observed.index.to_numpy(dtype=object)
    parts = [
        pd.DataFrame(
            {
                "kind": pd.Categorical([kind], [OBSERVED, PREDICTED, LATENT]).repeat(len(first)),
                "model": pd.Categorical([model], [OBSERVED, *models]).repeat(len(first)),
                "first": pd.Categorical.from_codes(first, names),
                "second": pd.Categorical.from_codes(second, names),
                "similarity": _cosines(matrix, kind != LATENT, shared.get(kind, 0.0))[
                    first, second
                ],
            }
        )
        for (kind, model), matrix in matrices.items()
    ]
    strength = pd.Series(observed.std(axis=1).to_numpy(), names)
    table = pd.concat(parts, ignore_index=True)
    table = table.assign(strength=table["first"].astype(object).map(strength).astype(np.float32))
    strongest = np.argsort(-strength.to_numpy(np.float32), kind="stable")[:CLUSTERED]
    similarities = {
        key: _cosines(matrix, key[0] != LATENT, shared.get(key[0], 0.0))[
            np.ix_(strongest, strongest)
        ].astype(float)
        for key, matrix in matrices.items()
    }
    place = np.full(len(names), -1)
    place[strongest[clustered(similarities[OBSERVED, OBSERVED])]] = np.arange(len(strongest))
    for side, codes in (("first", first), ("second", second)):
        order = pd.array(np.tile(place[codes], len(parts)), dtype="Int16")
        order[order < 0] = pd.NA
        table[f"{side}_order"] = order
    pairs = np.triu_indices(len(strongest), 1)
    table["correlation"] = np.repeat(
        [
            _correlation(similarities[OBSERVED, OBSERVED][pairs], own[pairs])
            if key != (OBSERVED, OBSERVED) and len(strongest) >= FEWEST_COMPARED
            else np.nan
            for key, own in similarities.items()
        ],
        len(first),
    )
    return table


def effects_of_strongest(effects: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the 1,000 perturbations of largest observed effect.

    Parameters
    ----------
    effects
        A table of :func:`samsvae.evaluation.effects.long_table`.

    Returns
    -------
    DataFrame
        The same table for fewer perturbations. The size of an effect is its standard deviation over
        genes, among all cells.
    """
    if effects["perturbation"].nunique() <= MOST_COMPARED:
        return effects
    first = effects[effects["model"] == effects["model"].iloc[0]]
    strength = first.groupby("perturbation", observed=True)["screen_effect"].std()
    kept = strength.sort_values(ascending=False, kind="stable").index[:MOST_COMPARED]
    rows = effects[effects["perturbation"].isin(kept)]
    names = rows["perturbation"].astype("category").cat.remove_unused_categories()
    return rows.assign(perturbation=names)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(pearson(one, other))


def effect_matrix(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """Arrange the effects of one model as perturbations x genes."""
    return rows.pivot_table(index="perturbation", columns="gene", values=value, observed=True)


def latent_shifts(latents: pd.DataFrame, perturbations: list[str]) -> pd.DataFrame:
    """Compute masked latent shifts of labels; those of a combination are the sum of its parts."""
    used = (latents["mask_probability"].isna()) | (latents["mask_probability"] > MASK_THRESHOLD)
    shifts = latents.assign(shift=latents["shift"].where(used, 0.0)).pivot_table(
        index="perturbation", columns="dimension", values="shift"
    )
    rows = [
        shifts.loc[name].to_numpy()
        if name in shifts.index
        else sum(dose * shifts.loc[part].to_numpy() for part, dose in doses(name).items())
        for name in perturbations
    ]
    return pd.DataFrame(np.array(rows), index=perturbations)


def _cosines(matrix: pd.DataFrame, centred: bool, shared: float) -> np.ndarray:
    """Compute the cosines of rows, without a variance that they all share."""
    rows = matrix.to_numpy(dtype=float)
    if centred:
        rows = rows - rows.mean(axis=1, keepdims=True)
    products = rows @ rows.T - shared
    norm = np.sqrt(np.clip(np.diag(products), 0, None))
    cosines = products / np.where(norm > 0, norm, np.inf)[:, None]
    return (cosines / np.where(norm > 0, norm, np.inf)).clip(-1, 1).astype(np.float32)
