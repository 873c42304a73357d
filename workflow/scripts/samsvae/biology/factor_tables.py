"""Tables of the latent factors of a trained model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from samsvae.biology.enrichment import (
    ENRICHMENT,
    GENES,
    Enrichment,
    factor_enrichment,
    factor_genes,
)
from samsvae.biology.factors import (
    GROUPS,
    SHARING,
    USAGE,
    factor_groups,
    factor_usage,
    group_sharing,
    inferred_masks,
    latent_effects,
    masked_shifts,
    members_of,
    target_genes,
)
from samsvae.biology.gene_sets import GeneSets, read_collections, read_gmt
from samsvae.evaluation.effects import measured_genes, read_effects
from samsvae.evaluation.predicted import factor_effects
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.posterior import has_masks

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
    names = list(trained.encoding.names)
    members = members_of(annotation.perturbation_groups, names, annotation.target_genes)
    if annotation.perturbation_groups and not members.shape[1]:
        known = next(iter(annotation.perturbation_groups.values()))[0]
        logger.warning(
            "none of the perturbations belongs to a known group (a member there: %r; a "
            "perturbation: %r)",
            known,
            names[0],
        )
    groups = {name: ";".join(members.columns[row]) for name, row in members.iterrows()}
    latents = latents.assign(group=latents["perturbation"].map(groups))
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
        factors=factor_usage(latents),
        groups=factor_groups(used, members, seed),
        sharing=group_sharing(used, members, seed),
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
