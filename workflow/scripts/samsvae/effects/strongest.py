"""The genes of largest effect, in words."""

import numpy as np
import pandas as pd


def strongest_genes(effect: np.ndarray, chosen: np.ndarray, genes: pd.Index, most: int) -> str:
    """Name the chosen genes of largest absolute effect, each with its effect.

    Parameters
    ----------
    effect
        Of each gene, log2(CP10k + 1).
    chosen
        Boolean, the genes that may be named.
    genes
        Their symbols.
    most
        How many at most.

    Returns
    -------
    str
        For instance ``KLF1 +1.20, GATA1 −0.85``; empty if none is chosen.
    """
    order = np.argsort(np.where(chosen, -np.abs(effect), np.inf), kind="stable")
    named = order[: min(most, int(chosen.sum()))]
    return ", ".join(f"{genes[gene]} {_signed(effect[gene])}" for gene in named)


def _signed(effect: float) -> str:
    return f"{effect:+.2f}".replace("-", "−")
