"""What the files of the official layouts share: simulated counts, and names of cells."""

import numpy as np


def simulate_counts(
    rng: np.random.Generator, n_cells: int, n_genes: int, depth: float
) -> np.ndarray:
    """Draw negative-binomial counts, cells x genes, of a mean depth; float32."""
    share = rng.lognormal(0, 1.3, n_genes)
    size = rng.lognormal(np.log(depth), 0.3, (n_cells, 1))
    rate = size * share / share.sum()
    return rng.poisson(rng.gamma(4.0, rate / 4.0)).astype(np.float32)


def barcodes(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw unique names of cells."""
    letters = rng.choice(np.array(list("ACGT")), (n, 12))
    words = letters.view(f"{letters.dtype.str[:2]}12").ravel()
    return np.char.add(np.char.add(words, "-"), np.arange(n).astype(str)).astype(object)
