"""Which gene sets a latent factor moves."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from samsvae.biology.enrichment import over_representation
from samsvae.biology.gene_sets import GeneSets
from samsvae.effects.factors import FactorEffects

CERTAIN = 3.0  # Monte-Carlo standard errors from 0
GENES = ["dimension", "gene", "effect", "standard_error", "push", "rank"]
ENRICHMENT = [
    "gene_sets", "dimension", "set", "size", "overlap", "score", "mean_effect", "pvalue", "fdr",
    "genes",
]  # fmt: skip


def factor_genes(found: FactorEffects, genes: list[str]) -> pd.DataFrame:
    """List what each factor does to each gene.

    Parameters
    ----------
    found
        Effects of factors.
    genes
        Their columns.

    Returns
    -------
    DataFrame
        One row per factor and gene, genes of the largest absolute effect first: effect and its
        Monte-Carlo standard error, log2(CP10k + 1), how far the factor was pushed, in basal
        standard deviations, and the gene's rank, from 1. An effect of less than three standard
        errors is not told apart from none.
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
                    "push": found.size[row],
                    "rank": np.arange(1, len(genes) + 1),
                }
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=GENES)


def factor_enrichment(
    genes: pd.DataFrame, collections: Mapping[str, GeneSets], n_top: int
) -> pd.DataFrame:
    """Test gene sets for over-representation among the genes that each factor moves most.

    Parameters
    ----------
    genes
        What :func:`factor_genes` gave, of measured genes alone; these are the background.
    collections
        Gene sets of measured genes, by collection.
    n_top
        Genes of a factor that are chosen, of largest absolute effect; fewer where fewer are told
        apart from 0.

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
