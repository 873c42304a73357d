"""Every perturbation in a line: its cells and the genes that it changes."""

import anndata
import numpy as np
import pandas as pd

from samsvae.effects.strongest import strongest_genes
from samsvae.labels import file_name

MOST_NAMED = 6


def list_perturbations(observed: anndata.AnnData, fdr: float) -> pd.DataFrame:
    """List perturbations, from the one with most differentially expressed genes on.

    Parameters
    ----------
    observed
        Observed effects.
    fdr
        False discovery rate below which a gene is differentially expressed.

    Returns
    -------
    DataFrame
        perturbation, n_cells, n_held_out (cells that the test is of), n_de (differentially
        expressed genes), raised and lowered (the strongest of these genes, with their effect
        among held-out cells, log2(CP10k + 1)), figure (its file's name).
    """
    effects = np.asarray(observed.layers["ate_held_out"], dtype=np.float64)
    is_de = np.asarray(observed.layers["fdr"]) < fdr
    rows = [
        {
            "perturbation": name,
            "n_cells": observed.obs["n_cells"].iloc[row],
            "n_held_out": observed.obs["n_held_out"].iloc[row],
            "n_de": int(own.sum()),
            "raised": strongest_genes(effect, own & (effect > 0), observed.var_names, MOST_NAMED),
            "lowered": strongest_genes(effect, own & (effect < 0), observed.var_names, MOST_NAMED),
            "figure": f"figures/perturbations/{file_name(name)}.svg",
        }
        for row, (name, effect, own) in enumerate(
            zip(observed.obs_names, effects, is_de, strict=True)
        )
    ]
    return pd.DataFrame(rows).sort_values("n_de", ascending=False, kind="stable")
