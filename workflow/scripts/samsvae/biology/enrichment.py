"""Gene set enrichment of effects and latent factors, and agreement of predicted with observed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
from scipy import stats
from scipy.stats import false_discovery_control

from samsvae.biology.similarity import clustered
from samsvae.screen.gene_sets import GeneSets

if TYPE_CHECKING:
    from samsvae.evaluation.predicted import FactorEffects

logger = logging.getLogger(__name__)

TINY = 1e-6  # of the largest effect
OVER_REPRESENTATION, PRERANKED = "over_representation", "preranked"
COLUMNS = [
    "gene_sets", "method", "perturbation", "set", "size", "overlap", "score", "pvalue", "fdr",
    "genes",
]  # fmt: skip


@dataclass(frozen=True)
class Enrichment:
    """Settings of enrichment tests; the configuration's schema describes each field."""

    top_genes: int = 30
    min_size: int = 5
    max_size: int = 500
    max_perturbations: int = 100
    permutations: int = 1000


def enrich(
    effects: anndata.AnnData,
    perturbations: Sequence[str],
    collections: Mapping[str, GeneSets],
    settings: Enrichment,
    seed: int,
) -> pd.DataFrame:
    """Test gene sets for each perturbation's effect.

    Parameters
    ----------
    effects
        Perturbations x genes; the genes are the background.
    perturbations
        Rows to test.
    collections
        Gene sets restricted to the measured genes, by collection.
    settings
        Settings of the tests.
    seed
        Seed of the random gene sets.

    Returns
    -------
    DataFrame
        One row per collection, method, perturbation and set. `score` is the odds ratio of
        over-representation or the normalised enrichment score; `fdr` is by Benjamini-Hochberg
        over the sets of all collections that a method tests for a perturbation; `genes` are those
        of the overlap or the leading edge. A perturbation with an effect of 0 has no rows.
    """
    parts = []
    for number, name in enumerate(perturbations, start=1):
        effect = pd.Series(np.asarray(effects[name].X).ravel(), index=effects.var_names)
        if effect.abs().max() == 0:
            continue
        for method in (OVER_REPRESENTATION, PRERANKED):
            tested = [
                _tested(method, effect, sets, settings, seed).assign(gene_sets=collection)
                for collection, sets in collections.items()
            ]
            table = pd.concat(tested, ignore_index=True)
            table["fdr"] = false_discovery_control(table["pvalue"])
            parts.append(table.assign(method=method, perturbation=name))
        if number % 10 == 0 or number == len(perturbations):
            logger.info("%d of %d perturbations tested", number, len(perturbations))
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def _tested(
    method: str, effect: pd.Series, sets: GeneSets, settings: Enrichment, seed: int
) -> pd.DataFrame:
    if method == OVER_REPRESENTATION:
        return over_representation(effect, sets, settings.top_genes)
    return preranked(effect, sets, settings.permutations, seed)


def strongest(observed: anndata.AnnData, n_perturbations: int) -> list[str]:
    """List the perturbations of largest observed effect (standard deviation over genes)."""
    strength = pd.Series(np.asarray(observed.X).std(axis=1), index=observed.obs_names)
    return list(strength.sort_values(ascending=False, kind="stable").index[:n_perturbations])


def over_representation(effect: pd.Series, sets: GeneSets, n_top: int) -> pd.DataFrame:
    """Test sets for over-representation among the genes of largest absolute effect.

    Parameters
    ----------
    effect
        Effect by gene; all genes are the background. Genes with an effect of 0 are not selected.
    sets
        Gene sets of measured genes.
    n_top
        Number of selected genes.

    Returns
    -------
    DataFrame
        One row per set: hypergeometric p-value, odds ratio, FDR over all sets.
    """
    changed = effect.abs()[effect != 0].sort_values(ascending=False, kind="stable")
    chosen = list(changed.index[:n_top])
    import gseapy  # seconds, which figures of its tables do not take

    found = gseapy.enrich(
        gene_list=chosen, gene_sets=sets, background=list(effect.index), outdir=None
    ).results
    table = pd.DataFrame({"set": list(sets), "size": [len(sets[name]) for name in sets]})
    # gseapy omits tested sets without any hit
    hits = pd.DataFrame(found, columns=["Term", "P-value", "Odds Ratio"]).set_index("Term")
    hits = hits.reindex(table["set"])
    overlaps = [[gene for gene in chosen if gene in members] for members in map(set, sets.values())]
    table["overlap"] = [len(genes) for genes in overlaps]
    table["score"] = hits["Odds Ratio"].fillna(0.0).to_numpy(dtype=float)
    table["pvalue"] = hits["P-value"].fillna(1.0).to_numpy(dtype=float)
    table["fdr"] = false_discovery_control(table["pvalue"])
    table["genes"] = [";".join(genes) for genes in overlaps]
    return table


def preranked(effect: pd.Series, sets: GeneSets, permutations: int, seed: int) -> pd.DataFrame:
    """Test sets for enrichment at either end of the genes ranked by signed effect.

    Parameters
    ----------
    effect
        Effect by gene.
    sets
        Gene sets of measured genes.
    permutations
        Number of random gene sets for the normalised score.
    seed
        Seed of the random gene sets.

    Returns
    -------
    DataFrame
        One row per set: p-value by adaptive multilevel sampling, so that it resolves below
        1 / permutations (Korotkevich et al. 2021), normalised enrichment score, FDR over all
        sets.
    """
    import gseapy

    found = gseapy.prerank(
        rnk=_without_ties_at_zero(effect, seed).sort_values(ascending=False, kind="stable"),
        gene_sets=sets,
        method="multilevel",
        min_size=1,
        max_size=len(effect),
        permutation_num=permutations,
        threads=1,
        seed=seed,
        outdir=None,
        no_plot=True,
        verbose=False,
    ).res2d.set_index("Term")
    found = found.reindex(list(sets))
    leading = found["Lead_genes"].fillna("").astype(str)
    pvalue = found["NOM p-val"].astype(float).fillna(1.0).to_numpy()
    return pd.DataFrame(
        {
            "set": list(sets),
            "size": [len(members) for members in sets.values()],
            "overlap": [len([g for g in genes.split(";") if g]) for genes in leading],
            "score": found["NES"].astype(float).to_numpy(),
            "pvalue": np.clip(pvalue, 0, 1),
            "fdr": false_discovery_control(np.clip(pvalue, 0, 1)),
            "genes": leading.to_numpy(),
        }
    )


def _without_ties_at_zero(effect: pd.Series, seed: int) -> pd.Series:
    """Replace effects of 0 by tiny random ones, so that these genes rank at random.

    gseapy weights genes by their effect and cannot score a set whose weights are all 0.
    """
    noise = np.random.default_rng(seed).uniform(-TINY, TINY, len(effect)) * effect.abs().max()
    return effect.where(effect != 0, noise)


CERTAIN = 3.0  # Monte-Carlo standard errors from 0
GENES = ["dimension", "gene", "effect", "standard_error", "intervention", "rank"]
ENRICHMENT = [
    "gene_sets", "dimension", "set", "size", "overlap", "score", "mean_effect", "pvalue", "fdr",
    "genes",
]  # fmt: skip


def factor_genes(found: "FactorEffects", genes: list[str]) -> pd.DataFrame:
    """Tabulate the effect of a latent traversal of each factor on each gene.

    Parameters
    ----------
    found
        Effects of factors.
    genes
        Genes of their columns.

    Returns
    -------
    DataFrame
        One row per factor and gene, genes of the largest absolute effect first: effect and its
        Monte-Carlo standard error, log2(CP10k + 1), the size of the ``intervention`` in basal
        standard deviations, and the gene's rank, from 1. An effect below three standard
        errors does not differ from 0.
    """
    parts = []
    for row, dimension in enumerate(found.dimensions):
        effect = found.effects[row]
        order = np.argsort(-np.abs(effect), kind="stable")
        parts.append(
            pd.DataFrame(
                {
                    "dimension": dimension,
                    "gene": np.asarray(genes, dtype=object)[order],
                    "effect": effect[order],
                    "standard_error": found.standard_error[row][order],
                    "intervention": found.size[row],
                    "rank": np.arange(1, len(genes) + 1),
                }
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=GENES)


def factor_enrichment(
    genes: pd.DataFrame, collections: Mapping[str, GeneSets], n_top: int
) -> pd.DataFrame:
    """Test gene sets for over-representation among the genes of largest effect of each factor.

    Parameters
    ----------
    genes
        A table of :func:`factor_genes`, for measured genes alone; these are the background.
    collections
        Gene sets of measured genes, by collection.
    n_top
        Largest number of selected genes of a factor, of largest absolute effect and different
        from 0.

    Returns
    -------
    DataFrame
        One row per collection, factor and set, as of
        :func:`samsvae.biology.enrichment.over_representation`, with the mean effect on the genes
        of the overlap. The FDR is over all factors and sets of a collection.
    """
    parts = []
    for collection, sets in collections.items():
        tables = []
        for dimension, rows in genes.groupby("dimension", sort=False):
            certain = rows["effect"].abs() >= CERTAIN * rows["standard_error"]
            effect = rows["effect"].where(certain, 0.0).set_axis(rows["gene"])
            if effect.any():
                table = over_representation(effect, sets, n_top)
                means = [effect[g.split(";")].mean() if g else np.nan for g in table["genes"]]
                tables.append(table.assign(dimension=dimension, mean_effect=means))
        if tables:
            together = pd.concat(tables, ignore_index=True)
            fdr = false_discovery_control(together["pvalue"])
            parts.append(together.assign(gene_sets=collection, fdr=fdr))
    if not parts:
        return pd.DataFrame(columns=ENRICHMENT)
    return pd.concat(parts, ignore_index=True)[ENRICHMENT]


OBSERVED = "observed"
CLUSTERED_SETS, CLUSTERED_PERTURBATIONS = 20, 40


def with_order(enrichment: pd.DataFrame) -> pd.DataFrame:
    """Add an order of sets and perturbations in which similar ones are neighbours.

    Parameters
    ----------
    enrichment
        The table enrichment.tsv, in which the model of observed effects is ``observed``, and its
        perturbations are sorted from the strongest on.

    Returns
    -------
    DataFrame
        With set_order and perturbation_order, from 0: hierarchical clustering by the normalised
        enrichment scores of observed effects, of the 20 sets with the smallest false discovery
        rates and the 40 strongest perturbations; missing for all others.
    """
    observed = enrichment[(enrichment["model"] == OBSERVED) & (enrichment["method"] == PRERANKED)]
    best = observed.groupby(["gene_sets", "set"])["fdr"].min().sort_values(kind="stable")
    sets = best.index[:CLUSTERED_SETS]
    names = list(dict.fromkeys(observed["perturbation"]))[:CLUSTERED_PERTURBATIONS]
    scores = observed.pivot_table(
        index=["gene_sets", "set"], columns="perturbation", values="score"
    ).reindex(index=sets, columns=names)
    matrix = scores.fillna(0.0).to_numpy()
    set_place = dict(zip(sets[clustered(matrix)], range(len(sets)), strict=True))
    columns = clustered(matrix.T) if len(sets) else []
    place = {names[column]: at for at, column in enumerate(columns)}
    keys = zip(enrichment["gene_sets"], enrichment["set"], strict=True)
    return enrichment.assign(
        set_order=pd.array([set_place.get(key) for key in keys], dtype="Int64"),
        perturbation_order=pd.array(
            [place.get(name) for name in enrichment["perturbation"]], dtype="Int64"
        ),
    )


KEY = ["split", "gene_sets", "method", "perturbation"]
AGREEMENT_COLUMNS = [
    "split", "model", "seed", "gene_sets", "method", "perturbation", "n_sets", "correlation",
    "n_observed", "n_predicted", "n_shared", "overlap", "top_observed", "top_predicted",
    "same_top", "rank_of_top",
]  # fmt: skip
AVERAGES = [
    "median_correlation", "median_overlap", "n_same_top", "n_with_top", "fraction_same_top",
]  # fmt: skip
FEWEST_SETS = 3


def pathway_agreement(enrichment: pd.DataFrame, fdr: float) -> pd.DataFrame:
    """Compare the gene sets of predicted with those of observed effects.

    Parameters
    ----------
    enrichment
        The table enrichment.tsv, in which the model of observed effects is ``observed``.
    fdr
        False discovery rate below which a set is significant.

    Returns
    -------
    DataFrame
        A row per run, collection, method and perturbation. correlation: Spearman's over sets, of
        normalised enrichment scores or of -log10 p of over-representation. n_observed,
        n_predicted, n_shared: numbers of significant sets, observed, predicted and both with the
        same sign; overlap: their Jaccard index, NaN without significant sets. same_top: whether
        the set of smallest p is the same; rank_of_top: rank of the observed top set among the
        predicted, 1 for the same. NaN or empty without significant observed sets. By model and
        method: medians of correlation and overlap, n_with_top (number of perturbations with a
        significant observed set), and number and fraction of these with the same top set.
    """
    observed = enrichment[enrichment["model"] == OBSERVED]
    predicted = enrichment[enrichment["model"] != OBSERVED]
    truths = {key: rows.set_index("set") for key, rows in observed.groupby(KEY, sort=False)}
    rows = []
    for (model, seed, *key), guess in predicted.groupby(
        ["model", "seed", *KEY], sort=False, dropna=False
    ):
        truth = truths.get(tuple(key))
        if truth is not None:
            own = dict(zip(KEY, key, strict=True)) | {"model": model, "seed": seed}
            rows.append(own | _agreement(truth, guess.set_index("set").loc[truth.index], fdr))
    table = pd.DataFrame(rows, columns=AGREEMENT_COLUMNS).astype({"seed": "Int64"})
    if table.empty:
        return table.reindex(columns=[*AGREEMENT_COLUMNS, *AVERAGES])
    same = table["same_top"].astype("boolean").astype("Float64")
    of_model = table.assign(same=same).groupby(["model", "method"])
    found = {
        "median_correlation": of_model["correlation"].transform("median"),
        "median_overlap": of_model["overlap"].transform("median"),
        "n_same_top": of_model["same"].transform("sum").astype("Int64"),
        "n_with_top": of_model["same"].transform("count"),
        "fraction_same_top": of_model["same"].transform("mean").astype(float),
    }
    return table.assign(**found)


def _agreement(truth: pd.DataFrame, guess: pd.DataFrame, fdr: float) -> dict[str, Any]:
    signed = truth["method"].iloc[0] == PRERANKED
    values = [_strength(table, signed) for table in (truth, guess)]
    defined = np.isfinite(values[0]) & np.isfinite(values[1])
    differ = all(np.ptp(value[defined]) > 0 for value in values) if defined.any() else False
    correlation = np.nan
    if defined.sum() >= FEWEST_SETS and differ:
        correlation = float(stats.spearmanr(values[0][defined], values[1][defined]).statistic)
    observed, found = (table["fdr"].to_numpy() < fdr for table in (truth, guess))
    same_sign = np.sign(truth["score"]) == np.sign(guess["score"]) if signed else True
    shared, either = int(np.sum(observed & found & same_sign)), int(np.sum(observed | found))
    order, guessed = _ranked(truth), _ranked(guess)
    known = bool(observed.any())
    return {
        "n_sets": len(truth),
        "correlation": correlation,
        "n_observed": int(observed.sum()),
        "n_predicted": int(found.sum()),
        "n_shared": shared,
        "overlap": shared / either if either else np.nan,
        "top_observed": order[0] if known else None,
        "top_predicted": guessed[0] if found.any() else None,
        "same_top": order[0] == guessed[0] if known else None,
        "rank_of_top": 1 + guessed.index(order[0]) if known else np.nan,
    }


def _strength(table: pd.DataFrame, signed: bool) -> np.ndarray:
    if signed:
        return table["score"].to_numpy(dtype=float)
    smallest = np.finfo(float).tiny
    return -np.log10(np.clip(table["pvalue"].to_numpy(dtype=float), smallest, 1))


def _ranked(table: pd.DataFrame) -> list[str]:
    """Sort sets by p-value, then by score."""
    strength = table["score"].abs().fillna(0)
    return list(table.index[np.lexsort((-strength, table["pvalue"]))])
