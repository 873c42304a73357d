"""Every perturbation in a line: its cells and the genes that it changes."""

import anndata
import numpy as np
import pandas as pd

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
            "n_de": int(is_de[row].sum()),
            "raised": _strongest(effects[row], is_de[row] & (effects[row] > 0), observed.var_names),
            "lowered": _strongest(
                effects[row], is_de[row] & (effects[row] < 0), observed.var_names
            ),
            "figure": f"figures/perturbations/{file_name(name)}.svg",
        }
        for row, name in enumerate(observed.obs_names)
    ]
    return pd.DataFrame(rows).sort_values("n_de", ascending=False, kind="stable")


def _strongest(effect: np.ndarray, chosen: np.ndarray, genes: pd.Index) -> str:
    order = np.argsort(np.where(chosen, -np.abs(effect), np.inf), kind="stable")
    named = order[: min(MOST_NAMED, int(chosen.sum()))]
    return ", ".join(f"{genes[gene]} {effect[gene]:+.2f}" for gene in named).replace("-", "−")
