"""Cell-cycle scores and phases of cells, from the expression of marker genes."""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.evaluation.effects import CP10K

FEWEST_MARKERS = 10  # of each phase, below which a score says more of genes than of the phase

# Tirosh et al. 2016 (doi:10.1126/science.aad0501): 43 genes of S and 54 of G2 and M, human; three
# have another symbol since: MLF1IP is CENPU, FAM64A is PIMREG, HN1 is JPT1
S_GENES = [
    "ATAD2", "BLM", "BRIP1", "CASP8AP2", "CCNE2", "CDC45", "CDC6", "CDCA7", "CENPU", "CHAF1B",
    "CLSPN", "DSCC1", "DTL", "E2F8", "EXO1", "FEN1", "GINS2", "GMNN", "HELLS", "MCM2", "MCM4",
    "MCM5", "MCM6", "MLF1IP", "MSH2", "NASP", "PCNA", "POLA1", "POLD3", "PRIM1", "RAD51",
    "RAD51AP1", "RFC2", "RPA2", "RRM1", "RRM2", "SLBP", "TIPIN", "TYMS", "UBR7", "UHRF1", "UNG",
    "USP1", "WDR76",
]  # fmt: skip
G2M_GENES = [
    "ANLN", "ANP32E", "AURKA", "AURKB", "BIRC5", "BUB1", "CBX5", "CCNB2", "CDC20", "CDC25C",
    "CDCA2", "CDCA3", "CDCA8", "CDK1", "CENPA", "CENPE", "CENPF", "CKAP2", "CKAP2L", "CKAP5",
    "CKS1B", "CKS2", "CTCF", "DLGAP5", "ECT2", "FAM64A", "G2E3", "GAS2L3", "GTSE1", "HJURP",
    "HMGB2", "HMMR", "HN1", "JPT1", "KIF11", "KIF20B", "KIF23", "KIF2C", "LBR", "MKI67", "NCAPD2",
    "NDC80", "NEK2", "NUF2", "NUSAP1", "PIMREG", "PSRC1", "RANGAP1", "SMC4", "TACC3", "TMPO",
    "TOP2A", "TPX2", "TTK", "TUBB4B", "UBE2C",
]  # fmt: skip


def cell_cycle_scores(screen: anndata.AnnData, cells: np.ndarray, seed: int) -> pd.DataFrame:
    """Score S and G2/M marker genes in cells, and assign each cell a phase.

    This is :func:`scanpy.tl.score_genes_cell_cycle` on log(1 + counts per 10,000): the mean of the
    markers minus that of control genes of the same abundance, drawn at random.

    Parameters
    ----------
    screen
        Canonical screen, whose counts may be in a file.
    cells
        Positions of the cells, ascending.
    seed
        Seed of the control genes.

    Returns
    -------
    DataFrame
        ``phase`` (``G1``, ``S`` or ``G2M``), ``S_score`` and ``G2M_score`` of each cell, in natural
        log units; without a column where fewer than ten markers of S or of G2/M are measured, or
        where most genes are markers.
    """
    s_genes, g2m_genes = ([g for g in of if g in screen.var_names] for of in (S_GENES, G2M_GENES))
    n_markers = len(s_genes) + len(g2m_genes)
    if min(len(s_genes), len(g2m_genes)) < FEWEST_MARKERS or n_markers > screen.n_vars / 2:
        return pd.DataFrame(index=screen.obs_names[cells])
    import scanpy  # seconds, in which it compiles

    counts = sparse.csr_matrix(screen.X[cells]).astype(np.float32)
    expression = anndata.AnnData(
        counts, pd.DataFrame(index=screen.obs_names[cells]), pd.DataFrame(index=screen.var_names)
    )
    scanpy.pp.normalize_total(expression, target_sum=CP10K)
    scanpy.pp.log1p(expression)
    scanpy.tl.score_genes_cell_cycle(
        expression, s_genes=s_genes, g2m_genes=g2m_genes, random_state=seed
    )
    scores = expression.obs[["S_score", "G2M_score"]].round(4)
    scores.insert(0, "phase", expression.obs["phase"].astype(str))
    return scores
