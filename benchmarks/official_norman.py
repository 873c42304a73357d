"""Files of the layouts in which the screen of Norman et al. 2019 is published."""

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from benchmarks.official_cells import barcodes, simulate_counts
from samsvae.runtime.files import whole_file
from samsvae.screen.labels import components


@dataclass(frozen=True)
class NormanCells:
    """Simulated cells that both layouts of Norman et al. 2019 can hold.

    Attributes
    ----------
    counts
        Cells x all genes.
    labels
        Canonical label of each cell.
    barcodes
        Names of the cells.
    symbols
        Names of the genes.
    variable
        Positions of the genes that the authors kept.
    """

    counts: sparse.csr_matrix
    labels: list[str]
    barcodes: list[str]
    symbols: list[str]
    variable: np.ndarray


def simulate_norman(
    n_cells: int, n_genes: int, n_variable: int, n_targets: int = 6, seed: int = 0
) -> NormanCells:
    """Simulate a control group, all single genes and the pairs of neighbours, in equal parts."""
    rng = np.random.default_rng(seed)
    targets = [f"TARGET{i:03d}" for i in range(n_targets)]
    pairs = [f"{a}+{b}" for a, b in pairwise(targets)]
    labels = ["control", *targets, *pairs]
    return NormanCells(
        sparse.csr_matrix(simulate_counts(rng, n_cells, n_genes, depth=8.0 * n_genes)),
        [labels[i % len(labels)] for i in range(n_cells)],
        list(barcodes(rng, n_cells)),
        [f"GENE{i:05d}" for i in range(n_genes)],
        np.sort(rng.choice(n_genes, n_variable, replace=False)),
    )


def write_norman(path: str | Path, copy: str, cells: NormanCells) -> None:
    """Write cells in a layout of Norman et al. 2019.

    Parameters
    ----------
    path
        The file.
    copy
        ``original`` or ``scperturb``.
    cells
        What it holds.
    """
    identifiers = [f"ENSG{i:011d}" for i in range(len(cells.symbols))]
    parts = [components(label) for label in cells.labels]
    obs = pd.DataFrame({"gemgroup": 1}, index=pd.Index(cells.barcodes, name="cell_barcode"))
    layers: dict[str, Any] = {}
    values = cells.counts
    if copy == "original":
        names = [["NegCtrl0"] * (2 - len(part)) + part for part in parts]
        obs["guide_identity"] = ["_".join(name) + "__" + "_".join(name) for name in names]
        for gene in sorted({gene for part in parts for gene in part}):
            obs[f"guide_{gene}"] = [int(gene in part) for part in parts]
        obs["guide_ids"] = [",".join(part) for part in parts]
        var = pd.DataFrame({"gene_symbols": cells.symbols}, index=identifiers)
        var["highly_variable"] = np.isin(np.arange(len(var)), cells.variable)
        layers["counts"] = cells.counts
        values = cells.counts.log1p()
    else:
        # as published, in no order
        obs["perturbation"] = ["_".join(reversed(part)) or "control" for part in parts]
        obs["nperts"] = [len(part) for part in parts]
        var = pd.DataFrame({"ensemble_id": identifiers}, index=cells.symbols)
    with whole_file(path) as temporary:
        anndata.AnnData(values, obs, var, layers=layers).write_h5ad(temporary, compression="gzip")
