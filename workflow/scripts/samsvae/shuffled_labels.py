"""A negative control: cells whose perturbation labels have changed places."""

import anndata
import numpy as np
import pandas as pd

from samsvae.splits import TRAIN, VAL


def with_shuffled_labels(screen: anndata.AnnData, parts: pd.Series, seed: int) -> anndata.AnnData:
    """Permute labels among the training cells, and among the validation cells.

    What a model then learns of a perturbation is chance, while cells, labels and their numbers
    are what they were. So it shows what a score is worth that a model reaches without any link
    between cells and labels.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Split of each cell, as in split.tsv.
    seed
        Seed of the permutation.

    Returns
    -------
    AnnData
        The same cells; labels and dosages of those that neither train nor validate stay.
    """
    rng = np.random.default_rng(seed)
    source = np.arange(screen.n_obs)
    for part in (TRAIN, VAL):
        own = np.flatnonzero(parts == part)
        source[own] = rng.permutation(own)
    shuffled = screen.copy()
    shuffled.obs["perturbation"] = screen.obs["perturbation"].array[source]
    shuffled.obsm["dosage"] = screen.obsm["dosage"][source]
    return shuffled
