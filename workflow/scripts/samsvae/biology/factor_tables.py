"""Everything there is to say about the latent factors of one trained model, as tables."""

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
    latent_effects,
    masks_of,
    members_of,
    target_genes,
    used_shifts,
)
from samsvae.biology.gene_sets import GeneSets, read_collections, read_gmt
from samsvae.evaluation.effects import measured_genes, read_effects
from samsvae.evaluation.predicted import factor_effects
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.posterior import has_masks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotation:
    """What is known beside the model.

    Attributes
    ----------
    perturbation_groups
        Genes, or perturbations, by known group; empty if there are none.
    target_genes
        The gene that a perturbation targets, where its name is not the gene itself.
    gene_sets
        Sets of measured genes by collection; empty if there are none.
    measured
        The genes of the model that a cell shows, the background of enrichment.
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
        """Every table by its name."""
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
        What is known of perturbations and genes.
    settings
        How gene sets are tested.
    latent_draws, effect_draws
        Draws behind latent effects, and behind a factor's effect on expression.
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
    used = masks_of(latents).loc[names]
    shifts = used_shifts(latents).loc[names]
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
    """Read what is known beside the models.

    Parameters
    ----------
    screen
        The canonical screen; its column ``gene`` of ``obs``, if any, is what guides target.
    observed
        Observed effects, which say how many cells show each gene; None where there are no counts.
    perturbation_groups
        GMT file of groups of perturbations, by their names or by the genes that they target.
    gene_sets
        GMT files by collection.
    settings
        Sizes of sets that are tested.

    Raises
    ------
    InputError
        If a file is not a GMT file, or a collection shares no gene with the screen.
    """
    measured = [] if observed is None else measured_genes(read_effects(observed))
    return Annotation(
        perturbation_groups={} if perturbation_groups is None else read_gmt(perturbation_groups),
        target_genes=target_genes(screen),
        gene_sets=read_collections(gene_sets, measured, settings.min_size, settings.max_size),
        measured=frozenset(measured),
    )
