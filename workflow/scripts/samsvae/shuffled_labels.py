"""A negative control: cells whose perturbation labels have changed places."""

import numpy as np
import pandas as pd

from samsvae.splits import TRAIN, VAL


def shuffled_labels(labels: pd.Series, parts: pd.Series, seed: int) -> pd.Series:
    """Permute labels among the training cells, and among the validation cells.

    What a model then learns of a perturbation is chance, while cells, labels and their numbers
    are what they were. So it shows what a score is worth that a model reaches without any link
    between cells and labels.

    Parameters
    ----------
    labels
        Canonical label of each cell, categorical.
    parts
        Split of each cell, as in split.tsv.
    seed
        Seed of the permutation.

    Returns
    -------
    Series
        Labels of the same cells; those of cells that neither train nor validate stay.
    """
    rng = np.random.default_rng(seed)
    source = np.arange(len(labels))
    for part in (TRAIN, VAL):
        own = np.flatnonzero(parts == part)
        source[own] = rng.permutation(own)
    return pd.Series(labels.array[source], index=labels.index, name=labels.name)
