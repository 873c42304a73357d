"""Known groups of perturbations, such as the members of a pathway or a complex."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata
import h5py
import pandas as pd

from samsvae.biology.gene_sets import GeneSets
from samsvae.labels import CONTROL, components


def target_genes(path: str | Path) -> dict[str, str]:
    """Look up which gene each perturbation targets, in a screen that says so.

    Parameters
    ----------
    path
        A canonical screen's file, of which only ``obs`` is read.

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
    """Say which perturbation belongs to which known group.

    Parameters
    ----------
    groups
        Genes, or perturbations, by group.
    perturbations
        Names of a model's perturbations.
    genes
        The gene that a perturbation targets, where its name is not the gene itself.

    Returns
    -------
    DataFrame of bool
        Perturbations x groups, without groups of none of them. A combination that is a
        perturbation of its own belongs where all its genes do.
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
