"""Latent factors: latent effects, inferred masks, and known groups of perturbations.

A factor is an active latent dimension. The inferred mask of a perturbation has the dimensions with
a posterior mask probability above 1/2.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from samsvae.biology.enrichment import (
    ENRICHMENT,
    GENES,
    Enrichment,
    factor_enrichment,
    factor_genes,
)
from samsvae.biology.similarity import clustered
from samsvae.evaluation.agreement import MASK_THRESHOLD
from samsvae.evaluation.effects import measured_genes, read_effects
from samsvae.evaluation.predicted import factor_effects
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import draw_effects_in_parts, has_masks, mask_probability
from samsvae.screen.gene_sets import GeneSets, read_collections, read_gmt
from samsvae.screen.labels import CONTROL, components


def target_genes(path: str | Path) -> dict[str, str]:
    """Read the target gene of each perturbation of a screen.

    Parameters
    ----------
    path
        File of a canonical screen; only ``obs`` is read.

    Returns
    -------
    dict of str
        Gene by perturbation, from the column ``gene`` of ``obs``; empty if there is none.
    """
    with h5py.File(path) as file:
        obs = anndata.io.read_elem(file["obs"])
    if "gene" not in obs:
        return {}
    targets = obs.loc[obs["perturbation"] != CONTROL, ["perturbation", "gene"]].astype(str)
    return dict(targets.drop_duplicates("perturbation").to_numpy().tolist())


def members_of(
    groups: GeneSets, perturbations: Sequence[str], genes: Mapping[str, str]
) -> pd.DataFrame:
    """Determine the members of known groups among perturbations.

    Parameters
    ----------
    groups
        Genes, or perturbations, by group.
    perturbations
        Names of a model's perturbations.
    genes
        Target gene by perturbation, if its name is not the gene itself.

    Returns
    -------
    DataFrame of bool
        Perturbations x groups with members. A combination that is a perturbation of its own
        belongs to a group if all its genes do.
    """
    inside = pd.DataFrame(
        {
            group: [
                genes.get(name, name) in members or set(components(name)) <= members
                for name in perturbations
            ]
            for group, members in ((g, set(m)) for g, m in groups.items())
        },
        index=pd.Index(perturbations, name="perturbation"),
        dtype=bool,
    )
    return inside.loc[:, inside.any()]


LARGEST_DRAW = 2**25  # elements, of draws x perturbations x latent dimensions
COLUMNS = ["perturbation", "dimension", "shift", "shift_sd", "mask_probability"]


@torch.no_grad()
def latent_effects(trained: TrainedModel, draws: int, seed: int) -> pd.DataFrame:
    """Compute posterior mean latent effects of perturbations.

    Parameters
    ----------
    trained
        A trained model.
    draws
        Number of draws from the guide.
    seed
        Seed of the draws.

    Returns
    -------
    DataFrame
        One row per perturbation and latent dimension: shift (posterior mean of the effect at
        dose 1, in basal standard deviations), its posterior standard deviation, and
        mask_probability (empty for a model without a mask). No rows for a model without latent
        effects.
    """
    with seeded(seed, trained.device):
        parts = draw_effects_in_parts(trained.model, draws, LARGEST_DRAW)
        moments = _mean_and_std(parts)
    if moments is None:
        return pd.DataFrame(columns=COLUMNS)
    mean, std = moments
    probability = mask_probability(trained.model)
    n_latent = mean.shape[-1]
    table = pd.MultiIndex.from_product(
        [trained.encoding.effects, range(n_latent)], names=["perturbation", "dimension"]
    ).to_frame(index=False)
    table["shift"] = mean.reshape(-1).cpu().numpy()
    table["shift_sd"] = std.reshape(-1).cpu().numpy()
    table["mask_probability"] = (
        float("nan") if probability is None else probability.reshape(-1).cpu().numpy()
    )
    return table[COLUMNS]


def _mean_and_std(parts: Iterable[tuple[int, Tensor | None]]) -> tuple[Tensor, Tensor] | None:
    """Compute mean and standard deviation over draws that come in parts (Chan et al. 1983)."""
    total, mean, squares = 0, None, None
    for number, effects in parts:
        if effects is None:
            return None
        own_mean = effects.mean(0)
        own_squares = effects.var(0, correction=0) * number
        if mean is None or squares is None:
            total, mean, squares, only = number, own_mean, own_squares, effects.std(0)
            continue
        only = None
        difference = own_mean - mean
        squares = squares + own_squares + difference**2 * (total * number / (total + number))
        mean = mean + difference * (number / (total + number))
        total += number
    if mean is None or squares is None:
        return None
    # of one part as torch computes it
    return mean, (squares / (total - 1)).sqrt() if only is None else only


USAGE = [
    "dimension", "n_perturbations", "fraction", "expected_perturbations", "size",
    "fraction_positive", "perturbations",
]  # fmt: skip
GROUPS = [
    "dimension", "group", "n_perturbations", "group_size", "overlap", "expected_overlap",
    "pvalue", "fdr", "fdr_permuted", "perturbations", "fraction",
]  # fmt: skip
SHARING = [
    "group", "group_size", "shared_factors", "expected_shared_factors", "pvalue", "fdr",
]  # fmt: skip
PERMUTATIONS = 1000
MOST_GROUPS = 20_000  # enumerated for an exact test
RANDOM_GROUPS = 5_000


def inferred_masks(latents: pd.DataFrame) -> pd.DataFrame:
    """Compute inferred masks, perturbations x latent dimensions, boolean.

    Parameters
    ----------
    latents
        A table of :func:`latent_effects` for a model with a mask.
    """
    return _matrix(latents, "mask_probability") > MASK_THRESHOLD


def masked_shifts(latents: pd.DataFrame) -> pd.DataFrame:
    """Compute masked latent effects, perturbations x latent dimensions, 0 outside the mask.

    Parameters
    ----------
    latents
        As for :func:`inferred_masks`.
    """
    return _matrix(latents, "shift").where(inferred_masks(latents), 0.0)


def _matrix(latents: pd.DataFrame, value: str) -> pd.DataFrame:
    return latents.pivot_table(index="perturbation", columns="dimension", values=value)


MOST_SHIFTED = 50  # perturbations in the order of latent effects
MOST_USING = 80  # perturbations in the order of factors
MASKED_MODELS = 4  # first ones with masks, which determine the order of factors
ORDERS = [
    "perturbation_order", "dimension_order", "active", "n_perturbations", "n_active",
    "factor_order", "mask_order",
]  # fmt: skip


def with_orders(latents: pd.DataFrame) -> pd.DataFrame:
    """Add the orders of perturbations and dimensions, and numbers of perturbations by factor.

    Parameters
    ----------
    latents
        Latent effects of several models, as of :func:`latent_effects`, with a column ``model``
        and the known groups of a perturbation (``group``). The first row is of the first model.

    Returns
    -------
    DataFrame
        With the columns, orders from 0 and missing where there is none: perturbation_order,
        hierarchical clustering by the first model's shifts, of the 50 perturbations with its
        largest ones; dimension_order, of a model's dimensions by the sum of squared shifts of
        these perturbations, largest first; active, whether the mask probability is above
        1/2; n_perturbations, the number of perturbations with a dimension in their mask, and
        n_active, that of active dimensions of the model; factor_order, of the active dimensions by
        n_perturbations;
        mask_order, of the 80 perturbations with the largest masked shifts in the first four models
        with masks: by known group, then by hierarchical clustering; missing for all other
        models.
    """
    if latents.empty:
        return latents.reindex(columns=[*latents, *ORDERS])
    models = list(dict.fromkeys(latents["model"]))
    by_model = {model: latents[latents["model"] == model] for model in models}
    first = _matrix(by_model[models[0]], "shift")
    largest = first.abs().max(axis=1).sort_values(ascending=False).index[:MOST_SHIFTED]
    shown = largest[clustered(first.loc[largest].to_numpy())]
    masked = [m for m, rows in by_model.items() if rows["mask_probability"].notna().any()]
    users = _users_in_order({model: by_model[model] for model in masked[:MASKED_MODELS]})
    parts = []
    for model, rows in by_model.items():
        power = (_matrix(rows, "shift").reindex(shown) ** 2).sum()
        dimensions = power.sort_values(ascending=False).index
        added = {
            "perturbation_order": _positions(rows["perturbation"], shown),
            "dimension_order": _positions(rows["dimension"], dimensions),
            "active": pd.Series(pd.NA, rows.index, dtype="boolean"),
            **dict.fromkeys(ORDERS[3:], pd.Series(pd.NA, rows.index, dtype="Int64")),
        }
        if model in masked:
            n_perturbations = inferred_masks(rows).sum()
            n_perturbations = n_perturbations[n_perturbations > 0].sort_values(
                ascending=False, kind="stable"
            )
            added |= {
                "active": (rows["mask_probability"] > MASK_THRESHOLD).astype("boolean"),
                "n_perturbations": rows["dimension"].map(n_perturbations).fillna(0).astype("Int64"),
                "n_active": pd.Series(len(n_perturbations), rows.index, dtype="Int64"),
                "factor_order": _positions(rows["dimension"], n_perturbations.index),
                "mask_order": _positions(
                    rows["perturbation"], users if model in masked[:MASKED_MODELS] else []
                ),
            }
        parts.append(rows.assign(**added))
    return pd.concat(parts)


def _positions(names: pd.Series, order: Sequence[Any] | pd.Index) -> pd.Series:
    """Return the position of each name in an order; missing if it is not in it."""
    position = {name: at for at, name in enumerate(order)}
    return pd.Series([position.get(name) for name in names], names.index, dtype="Int64")


def _users_in_order(masked: Mapping[str, pd.DataFrame]) -> list[str]:
    """Sort perturbations by known group, then by clustering of their shifts in all models."""
    matrices = {model: masked_shifts(rows) for model, rows in masked.items()}
    shifts = {model: matrix.loc[:, (matrix != 0).any()] for model, matrix in matrices.items()}
    if not any(matrix.shape[1] for matrix in shifts.values()):
        return []
    # models with combinations as perturbations of their own have more perturbations
    together = pd.concat(shifts.values(), axis=1, keys=shifts).fillna(0.0).sort_index()
    strength = (together**2).sum(axis=1).sort_values(ascending=False, kind="stable")
    kept = together.loc[sorted(strength.index[:MOST_USING])]
    similar = kept.index[clustered(kept.to_numpy())]
    rows = pd.concat(masked.values()).drop_duplicates("perturbation")
    known = rows.set_index("perturbation")["group"].reindex(similar).fillna("")
    return list(known.index[np.lexsort([np.arange(len(known)), known, known == ""])])


def factor_usage(latents: pd.DataFrame) -> pd.DataFrame:
    """Summarise the active latent dimensions, by decreasing number of perturbations.

    Parameters
    ----------
    latents
        As for :func:`inferred_masks`.

    Returns
    -------
    DataFrame
        One row per factor: number and ``fraction`` of perturbations with the factor in
        their mask, and the number expected from the mask probabilities; their mean absolute shift,
        in basal standard deviations, and the fraction with a positive shift; their names, by
        decreasing absolute shift.
    """
    used = inferred_masks(latents)
    probability, shift = _matrix(latents, "mask_probability"), _matrix(latents, "shift")
    rows = []
    for dimension in used.columns[used.any()]:
        shifts = shift.loc[used[dimension], dimension]
        by_size = shifts.abs().sort_values(ascending=False, kind="stable").index
        rows.append(
            {
                "dimension": dimension,
                "n_perturbations": len(shifts),
                "fraction": len(shifts) / len(used),
                "expected_perturbations": probability[dimension].sum(),
                "size": shifts.abs().mean(),
                "fraction_positive": (shifts > 0).mean(),
                "perturbations": ";".join(by_size),
            }
        )
    table = pd.DataFrame(rows, columns=USAGE)
    return table.sort_values("n_perturbations", ascending=False, kind="stable")


def factor_groups(
    used: pd.DataFrame, members: pd.DataFrame, seed: int, permutations: int = PERMUTATIONS
) -> pd.DataFrame:
    """Test known groups for enrichment among the perturbations of each factor.

    Parameters
    ----------
    used
        Inferred masks, perturbations x dimensions.
    members
        Members of groups, the same perturbations x groups.
    seed
        Seed of the permutations.
    permutations
        Number of permutations of masks among perturbations.

    Returns
    -------
    DataFrame
        One row per active factor and group: hypergeometric p-value among all perturbations of
        the model, and its false discovery rate over all rows in two ways. `fdr` is by Benjamini
        and Hochberg. `fdr_permuted` is the mean number of p-values as small under permutations of
        whole masks among perturbations, divided by the number observed; permutations preserve the
        correlation of factors and the overlap of groups. `fraction` is the fraction of the group
        with the factor in its masks.
    """
    used = used.loc[:, used.any()]
    hits = used.to_numpy(dtype=int).T @ members.to_numpy(dtype=int)
    if not hits.size:
        return pd.DataFrame(columns=GROUPS)
    n_users, sizes = used.sum().to_numpy(), members.sum().to_numpy()

    def pvalues(overlap: np.ndarray) -> np.ndarray:
        return stats.hypergeom.sf(overlap - 1, len(used), sizes[None, :], n_users[:, None])

    pvalue = pvalues(hits)
    rng = np.random.default_rng(seed)
    null = np.sort(
        np.concatenate(
            [
                pvalues(used.to_numpy(dtype=int)[rng.permutation(len(used))].T @ members).ravel()
                for _ in range(permutations)
            ]
        )
    )
    return pd.DataFrame(
        {
            "dimension": np.repeat(used.columns.to_numpy(), len(sizes)),
            "group": np.tile(members.columns.to_numpy(), len(n_users)),
            "n_perturbations": np.repeat(n_users, len(sizes)),
            "group_size": np.tile(sizes, len(n_users)),
            "overlap": hits.ravel(),
            "expected_overlap": np.outer(n_users, sizes).ravel() / len(used),
            "pvalue": pvalue.ravel(),
            "fdr": stats.false_discovery_control(pvalue.ravel()),
            "fdr_permuted": _permuted_fdr(pvalue.ravel(), null, permutations),
            "perturbations": [
                ";".join(used.index[used[factor] & members[group]])
                for factor in used.columns
                for group in members.columns
            ],
            "fraction": (hits / sizes[None, :]).ravel(),
        }
    ).sort_values("pvalue", kind="stable")[GROUPS]


def _permuted_fdr(pvalue: np.ndarray, null: np.ndarray, permutations: int) -> np.ndarray:
    """Compute monotone false discovery rates from p-values under permutation."""
    order = np.argsort(pvalue, kind="stable")
    limit = pvalue[order] * (1 + 1e-9)  # includes p-values that are equal up to rounding
    expected = np.searchsorted(null, limit, side="right") / permutations
    found = np.searchsorted(pvalue[order], limit, side="right")
    rate = np.minimum.accumulate((expected / found)[::-1])[::-1].clip(max=1)
    result = np.empty_like(rate)
    result[order] = rate
    return result


def group_sharing(used: pd.DataFrame, members: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Test whether perturbations of a group have more factors in common than by chance.

    Parameters
    ----------
    used, members, seed
        As for :func:`factor_groups`.

    Returns
    -------
    DataFrame
        One row per group of at least two perturbations: the mean number of common factors of two
        of its perturbations, the mean over groups of that size, and the fraction of these that
        reach it. If few, all groups of that size are enumerated, so that the p-value is exact;
        otherwise they are random, and the group itself counts as one of them.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for group in members.columns[members.sum() > 1]:
        inside = members[group].to_numpy()
        [observed] = _shared_by_two(inside[None], used)
        others, all_of_them = _groups_of_size(len(used), int(inside.sum()), rng)
        null = _shared_by_two(others, used)
        reached = int((null >= observed - 1e-9).sum())
        rows.append(
            {
                "group": group,
                "group_size": int(inside.sum()),
                "shared_factors": observed,
                "expected_shared_factors": null.mean(),
                "pvalue": (reached + 1 - all_of_them) / (len(null) + 1 - all_of_them),
            }
        )
    table = pd.DataFrame(rows, columns=SHARING[:-1])
    return table.assign(fdr=stats.false_discovery_control(table["pvalue"]) if rows else [])


def _groups_of_size(n: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Enumerate groups of a size, groups x perturbations, or draw them; return whether all."""
    if math.comb(n, size) > MOST_GROUPS:
        return rng.random((RANDOM_GROUPS, n)).argsort(axis=1) < size, False
    chosen = np.array(list(combinations(range(n), size)))
    groups = np.zeros((len(chosen), n), dtype=bool)
    np.put_along_axis(groups, chosen, True, axis=1)
    return groups, True


def _shared_by_two(groups: np.ndarray, used: pd.DataFrame) -> np.ndarray:
    """Compute the mean number of common factors of two members, by group."""
    number = groups.astype(float) @ used.to_numpy(dtype=float)
    size = groups.sum(axis=1)
    return (number * (number - 1)).sum(axis=1) / (size * (size - 1))


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotation:
    """Known annotation of perturbations and genes.

    Attributes
    ----------
    perturbation_groups
        Genes, or perturbations, by known group; empty if there are none.
    target_genes
        Target gene by perturbation, if its name is not the gene itself.
    gene_sets
        Sets of measured genes by collection; empty if there are none.
    measured
        Genes of the model that are detected in a cell, the background of enrichment.
    """

    perturbation_groups: GeneSets
    target_genes: Mapping[str, str]
    gene_sets: Mapping[str, GeneSets]
    measured: frozenset[str]


@dataclass(frozen=True)
class FactorTables:
    """Tables of the latent factors; all but the first are empty for a model without a mask.

    Attributes
    ----------
    latents
        As of :func:`samsvae.biology.factors.latent_effects`, with the known groups of a
        perturbation, joined by ";".
    factors, groups, sharing, genes, enrichment
        As of :func:`factor_usage`, :func:`factor_groups`, :func:`group_sharing`,
        :func:`factor_genes` and :func:`factor_enrichment`.
    """

    latents: pd.DataFrame
    factors: pd.DataFrame
    groups: pd.DataFrame
    sharing: pd.DataFrame
    genes: pd.DataFrame
    enrichment: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def factor_tables(
    trained: TrainedModel,
    annotation: Annotation,
    settings: Enrichment,
    latent_draws: int,
    effect_draws: int,
    seed: int,
) -> FactorTables:
    """Describe the latent factors of a model.

    Parameters
    ----------
    trained
        A trained model.
    annotation
        Annotation of perturbations and genes.
    settings
        Settings of enrichment tests.
    latent_draws, effect_draws
        Numbers of draws for latent effects, and for effects of factors on expression.
    seed
        Seed of draws and permutations.
    """
    latents = latent_effects(trained, latent_draws, seed)
    names = list(trained.encoding.effects)
    # effects in a context are not perturbations of their own, which factors and groups count
    perturbations = list(trained.encoding.names)
    members = members_of(annotation.perturbation_groups, perturbations, annotation.target_genes)
    if annotation.perturbation_groups and not members.shape[1]:
        known = next(iter(annotation.perturbation_groups.values()))[0]
        logger.warning(
            "none of the perturbations belongs to a known group (a member there: %r; a "
            "perturbation: %r)",
            known,
            perturbations[0],
        )
    groups = {name: ";".join(members.columns[row]) for name, row in members.iterrows()}
    latents = latents.assign(group=latents["perturbation"].map(groups).fillna(""))
    if not has_masks(trained.model):
        empty = [pd.DataFrame(columns=c) for c in (USAGE, GROUPS, SHARING, GENES, ENRICHMENT)]
        return FactorTables(latents, *empty)
    used = inferred_masks(latents).loc[names]
    shifts = masked_shifts(latents).loc[names]
    effects = factor_effects(trained, shifts.to_numpy(), effect_draws, seed)
    genes = factor_genes(effects, trained.genes)
    measured = genes[genes["gene"].isin(annotation.measured)]
    return FactorTables(
        latents=latents,
        factors=factor_usage(latents[latents["perturbation"].isin(perturbations)]),
        groups=factor_groups(used.loc[perturbations], members, seed),
        sharing=group_sharing(used.loc[perturbations], members, seed),
        genes=genes,
        enrichment=factor_enrichment(measured, annotation.gene_sets, settings.top_genes),
    )


def read_annotation(
    screen: str | Path,
    observed: str | Path | None,
    perturbation_groups: str | Path | None,
    gene_sets: Mapping[str, str | Path],
    settings: Enrichment,
) -> Annotation:
    """Read the annotation of perturbations and genes.

    Parameters
    ----------
    screen
        The canonical screen; its column ``gene`` of ``obs``, if any, has target genes.
    observed
        Observed effects, with the number of cells in which a gene is detected; None without counts.
    perturbation_groups
        GMT file of groups of perturbations, by name or by target gene.
    gene_sets
        GMT files by collection.
    settings
        Sizes of tested sets.

    Raises
    ------
    InputError
        If a file is not a GMT file, or a collection has no gene in common with the screen.
    """
    measured = [] if observed is None else measured_genes(read_effects(observed))
    return Annotation(
        perturbation_groups={} if perturbation_groups is None else read_gmt(perturbation_groups),
        target_genes=target_genes(screen),
        gene_sets=read_collections(gene_sets, measured, settings.min_size, settings.max_size),
        measured=frozenset(measured),
    )
