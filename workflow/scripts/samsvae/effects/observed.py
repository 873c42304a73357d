"""Effects seen in the cells: average treatment effects, fold changes and their significance."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.effects.differential_expression import rank_sum_tests
from samsvae.effects.table import effects_table
from samsvae.labels import CONTROL
from samsvae.screen import perturbations
from samsvae.splits import TEST, TRAIN, UNUSED, VAL, held_out_cells

CP10K = 1e4
PSEUDOCOUNT = 1.0  # added to mean CP10k before the ratio, as Seurat does


def log_expression(screen: anndata.AnnData) -> sparse.csr_matrix:
    """Transform counts to log2(1 + 1e4 x / l), cells x genes; zeros stay zeros."""
    expression = cp10k(screen)
    expression.data = np.log2(1 + expression.data)
    return expression


def cp10k(screen: anndata.AnnData) -> sparse.csr_matrix:
    """Scale counts to 10,000 per cell, cells x genes."""
    per_cell = CP10K / screen.obs["library_size"].to_numpy(dtype=np.float64)
    return sparse.csr_matrix(sparse.diags_array(per_cell) @ screen.X)


@dataclass(frozen=True)
class GroupMeans:
    """Mean expression of each perturbation's cells.

    Attributes
    ----------
    mean
        Perturbations (control last) x genes.
    standard_error
        Of the mean, same shape; NaN for fewer than two cells.
    n_cells
        Cells in each group.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    n_cells: np.ndarray

    def effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Difference from control and its standard error, perturbations x genes."""
        difference = self.mean[:-1] - self.mean[-1]
        return difference, np.sqrt(self.standard_error[:-1] ** 2 + self.standard_error[-1] ** 2)


def group_means(expression: sparse.csr_matrix, labels: pd.Series, names: list[str]) -> GroupMeans:
    """Average expression by perturbation, control last.

    Parameters
    ----------
    expression
        Cells x genes.
    labels
        Canonical label of each cell.
    names
        Perturbations; a group without cells gets NaN.
    """
    groups = pd.Categorical(labels, categories=[*names, CONTROL])
    known = groups.codes >= 0
    member = sparse.csr_matrix(
        (np.ones(known.sum()), (groups.codes[known], np.flatnonzero(known))),
        shape=(len(names) + 1, len(labels)),
    )
    n_cells = np.asarray(member.sum(axis=1)).ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (member @ expression).toarray() / n_cells[:, None]
        squares = (member @ expression.multiply(expression)).toarray() / n_cells[:, None]
        variance = np.clip(squares - mean**2, 0, None) / (n_cells - 1)[:, None]
        variance[n_cells < 2] = np.nan
    return GroupMeans(mean, np.sqrt(variance), n_cells.astype(int))


def observed_effects(screen: anndata.AnnData, parts: pd.Series, provenance: str) -> anndata.AnnData:
    """Compute what the cells of a screen show of each perturbation.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Split of each cell, as in split.tsv.
    provenance
        What made it, as JSON.

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
    names = perturbations(screen)
    labels = screen.obs["perturbation"].astype(str)
    expression = log_expression(screen)
    held_out = held_out_cells(labels, parts)
    means = group_means(expression, labels, names)
    ate, standard_error = means.effects()
    ate_held_out, _ = group_means(expression[held_out], labels[held_out], names).effects()
    linear = np.log2(group_means(cp10k(screen), labels, names).mean + PSEUDOCOUNT)
    tested = held_out | (labels == CONTROL).to_numpy()
    pvalue, fdr = rank_sum_tests(expression[tested], labels[tested], names)
    counted = pd.crosstab(labels, parts).reindex(index=names, columns=[TRAIN, VAL, TEST, UNUSED])
    obs = counted.fillna(0).astype(int).add_prefix("n_")
    obs.insert(0, "n_cells", means.n_cells[:-1])
    obs["n_held_out"] = labels[held_out].value_counts().reindex(names).fillna(0).astype(int)
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
    table.var["n_cells"] = np.asarray((screen.X > 0).sum(axis=0)).ravel()
    table.var["control_standard_error"] = means.standard_error[-1].astype(np.float32)
    table.uns["n_control_cells"] = int(means.n_cells[-1])
    return table
