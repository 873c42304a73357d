"""Which genes differ between a perturbation's cells and control cells."""

import anndata
import illico
import numpy as np
import pandas as pd
from loguru import logger
from scipy import sparse
from scipy.stats import false_discovery_control

from samsvae.labels import CONTROL

FEWEST_CELLS = 2


def rank_sum_tests(
    expression: sparse.csr_matrix, labels: pd.Series, names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Test each gene of each perturbation by the Wilcoxon rank-sum test, two-sided.

    Parameters
    ----------
    expression
        Normalised expression, cells x genes.
    labels
        Perturbation of each cell, control among them.
    names
        Perturbations to test.

    Returns
    -------
    pvalue, fdr : ndarray
        Perturbations x genes; the false discovery rate is Benjamini-Hochberg's over the genes of
        a perturbation. NaN for a perturbation with fewer than two cells.
    """
    n_cells = labels.value_counts()
    tested = [name for name in names if n_cells.get(name, 0) >= FEWEST_CELLS]
    kept = labels.isin([*tested, CONTROL]).to_numpy()
    matrix = sparse.csr_matrix(expression[kept])
    matrix.sort_indices()
    genes = pd.RangeIndex(matrix.shape[1]).astype(str)
    cells = anndata.AnnData(
        X=matrix,
        obs=pd.DataFrame({"perturbation": pd.Categorical(labels[kept])}, labels.index[kept]),
        var=pd.DataFrame(index=genes),
    )
    logger.disable("illico")
    table = illico.asymptotic_wilcoxon(
        cells, is_log1p=False, group_keys="perturbation", reference=CONTROL
    )
    found = table["p_value"]
    pvalue = np.full((len(names), len(genes)), np.nan)
    for name in tested:
        pvalue[names.index(name)] = found.loc[name].reindex(genes)
    fdr = np.full_like(pvalue, np.nan)
    rows = [names.index(name) for name in tested]
    fdr[rows] = false_discovery_control(pvalue[rows], axis=1)
    return pvalue, fdr
