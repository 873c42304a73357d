"""Which gene sets an effect moves: over-representation and preranked GSEA, all offline."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anndata
import gseapy
import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from samsvae.biology.gene_sets import GeneSets

logger = logging.getLogger(__name__)

TINY = 1e-6  # of the largest effect
OVER_REPRESENTATION, PRERANKED = "over_representation", "preranked"
COLUMNS = [
    "gene_sets", "method", "perturbation", "set", "size", "overlap", "score", "pvalue", "fdr",
    "genes",
]  # fmt: skip


@dataclass(frozen=True)
class Enrichment:
    """How gene sets are tested; see the configuration's schema for each field."""

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
        Which rows to test.
    collections
        Gene sets restricted to the measured genes, by collection.
    settings
        How to test.
    seed
        Seed of the random gene sets.

    Returns
    -------
    DataFrame
        One row per collection, method, perturbation and set. `score` is the odds ratio of
        over-representation or the normalised enrichment score; `fdr` is Benjamini-Hochberg's
        over all sets that a method tests of a perturbation, of whatever collection; `genes` are
        those of the overlap or the leading edge. A perturbation without any effect has no rows.
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
    """Name the perturbations of largest observed effect (standard deviation over genes)."""
    strength = pd.Series(np.asarray(observed.X).std(axis=1), index=observed.obs_names)
    return list(strength.sort_values(ascending=False, kind="stable").index[:n_perturbations])


def over_representation(effect: pd.Series, sets: GeneSets, n_top: int) -> pd.DataFrame:
    """Test whether a set is over-represented among the genes of largest absolute effect.

    Parameters
    ----------
    effect
        Effect by gene; all genes are the background. Genes without any effect are never chosen.
    sets
        Gene sets of measured genes.
    n_top
        Genes chosen.

    Returns
    -------
    DataFrame
        One row per set: hypergeometric p-value, odds ratio, FDR over all sets.
    """
    moved = effect.abs()[effect != 0].sort_values(ascending=False, kind="stable")
    chosen = list(moved.index[:n_top])
    found = gseapy.enrich(
        gene_list=chosen, gene_sets=sets, background=list(effect.index), outdir=None
    ).results
    table = pd.DataFrame({"set": list(sets), "size": [len(sets[name]) for name in sets]})
    # gseapy leaves out sets without a hit, which nevertheless were tested
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
    """Test whether a set gathers at either end of the genes ranked by signed effect.

    Parameters
    ----------
    effect
        Effect by gene.
    sets
        Gene sets of measured genes.
    permutations
        Random gene sets behind the normalised score.
    seed
        Seed of the random gene sets.

    Returns
    -------
    DataFrame
        One row per set: p-value by adaptive multilevel sampling, so that it resolves below
        1 / permutations (Korotkevich et al. 2021), normalised enrichment score, FDR over all
        sets.
    """
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
    """Rank genes without any effect at random among themselves.

    gseapy weighs a gene by its effect and cannot score a set whose genes all weigh nothing.
    """
    tie = np.random.default_rng(seed).uniform(-TINY, TINY, len(effect)) * effect.abs().max()
    return effect.where(effect != 0, tie)
