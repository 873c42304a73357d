"""Effects seen in the cells: average treatment effects, fold changes and their significance."""

from typing import Any

import anndata
import numpy as np
import pandas as pd

from samsvae.effects.differential_expression import rank_sum_tests
from samsvae.effects.expression import (
    GroupMeans,
    cp10k,
    expression_in_blocks,
    group_means,
    log_expression,
    n_cells_with_gene,
)
from samsvae.effects.table import effects_table
from samsvae.labels import CONTROL
from samsvae.splits import TEST, TRAIN, UNUSED, VAL, held_out_cells

PSEUDOCOUNT = 1.0  # added to mean CP10k before the ratio, as Seurat does


def observed_effects(
    screen: anndata.AnnData, parts: pd.Series, provenance: str, cells: np.ndarray | None = None
) -> anndata.AnnData:
    """Compute what the cells of a screen show of each perturbation.

    Parameters
    ----------
    screen
        Canonical screen, whose counts may be in a file.
    parts
        Split of each cell, as in split.tsv.
    provenance
        What made it, as JSON.
    cells
        Boolean, one per cell of the screen, those that count; None for all.

    Returns
    -------
    AnnData
        Perturbations x genes. ``X`` and layer ``ate``: effect among all cells, as in the paper;
        ``ate_held_out``: among held-out cells alone; ``standard_error`` of `ate`; ``log2fc``:
        log2 ratio of mean CP10k + 1; ``pvalue`` and ``fdr``: rank-sum test of held-out cells
        against control cells, corrected over genes. ``obs`` counts the cells of a perturbation,
        ``var`` the cells in which a gene was seen, and has the ``control_standard_error`` of the
        control cells' mean, which all of `standard_error` share; ``uns`` says how many control
        cells there are.
    """
    cells = np.ones(screen.n_obs, dtype=bool) if cells is None else cells
    labels = screen.obs["perturbation"].astype(str)
    names = sorted(set(labels[cells]) - {CONTROL})
    held_out = np.zeros_like(cells)
    held_out[cells] = held_out_cells(labels[cells], parts[cells])

    def means_of(*how: Any) -> GroupMeans:
        return group_means(expression_in_blocks(screen, *how), names, screen.n_vars)

    means = means_of(cells)
    ate, standard_error = means.effects()
    ate_held_out, _ = means_of(held_out).effects()
    linear = np.log2(means_of(cells, cp10k).mean + PSEUDOCOUNT)
    tested = held_out | (cells & (labels == CONTROL).to_numpy())
    pvalue, fdr = rank_sum_tests(log_expression(screen, tested), labels[tested], names)
    labels, parts = labels[cells], parts[cells]
    counted = pd.crosstab(labels, parts).reindex(index=names, columns=[TRAIN, VAL, TEST, UNUSED])
    obs = counted.fillna(0).astype(int).add_prefix("n_")
    obs.insert(0, "n_cells", means.n_cells[:-1])
    obs["n_held_out"] = labels[held_out[cells]].value_counts().reindex(names).fillna(0).astype(int)
    table = effects_table(
        ate,
        names,
        list(screen.var_names),
        {
            "ate": ate,
            "ate_held_out": ate_held_out,
            "standard_error": standard_error,
            "log2fc": linear[:-1] - linear[-1],
            "pvalue": pvalue,
            "fdr": fdr,
        },
        provenance,
        obs,
    )
    table.var["n_cells"] = n_cells_with_gene(screen, cells)
    table.var["control_standard_error"] = means.standard_error[-1].astype(np.float32)
    table.uns["n_control_cells"] = int(means.n_cells[-1])
    return table
