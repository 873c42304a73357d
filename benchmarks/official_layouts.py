"""Files of the layouts in which the screens of Norman and Replogle are published, of any size.

Columns of ``obs`` and ``var``, types, chunks and compression are those of the published files (as
far as they are documented); names are the published ones where a reference table lists them. The
counts are simulated cells, repeated. ``python -m benchmarks.official_layouts --help`` lists the
options.
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from scipy import sparse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from samsvae.files import read_table, whole_file
from samsvae.labels import components

PERTURBATIONS = ROOT / "data/reference/replogle_perturbations.tsv"
RESPONSE_GENES = ROOT / "data/reference/replogle_response_genes.tsv"

CONTROL_SHARE = 75_328 / 1_989_578
TARGETED_SHARE = 116_641 / 1_989_578  # cells of the 681 genes
RESPONSE_SHARE = 1_187 / 8_248
SECOND_PAIRS = 722 / 681 - 1  # genes with two pairs of guides

SIMULATED_CELLS = 2_000  # which larger files repeat
SPARSE_CHUNK = 2**16  # entries


@dataclass(frozen=True)
class ReplogleLayout:
    """Size and form of a Replogle file.

    Attributes
    ----------
    copy
        ``original`` is dense; ``scperturb`` CSR.
    n_cells, n_genes
        Size of X.
    n_targets
        Targets, out of the 681 of the paper's experiment.
    targeted
        Share of the cells that have one of them; other cells have other targets.
    controls
        Share of the non-targeting cells.
    chunks
        Of the dense X; None for contiguous, as anndata writes it.
    compression
        Of the sparse X.
    depth
        Mean counts of a cell.
    seed
        Of everything random.
    """

    copy: str = "original"
    n_cells: int = 20_000
    n_genes: int = 8_248
    n_targets: int = 681
    targeted: float = TARGETED_SHARE
    controls: float = CONTROL_SHARE
    chunks: tuple[int, int] | None = None
    compression: str | None = "gzip"
    depth: float = 11_000.0
    seed: int = 0


def write_replogle(path: str | Path, layout: ReplogleLayout) -> None:
    """Write a file of the layout of Replogle et al. 2022, a block of cells at a time.

    Parameters
    ----------
    path
        The file.
    layout
        Its size and form.
    """
    rng = np.random.default_rng(layout.seed)
    obs, var = _replogle_cells(rng, layout), _replogle_genes(rng, layout)
    n_simulated = min(SIMULATED_CELLS, layout.n_cells)
    counts = _in_whole_chunks(rng, _counts(rng, n_simulated, layout.n_genes, layout.depth))
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        if layout.copy == "original":
            _write_dense(file, counts.toarray(), layout)
        else:
            _write_sparse(file, counts, layout)
            obs = obs.rename(
                columns={"sgID_AB": "guide_id", "gem_group": "batch", "mitopercent": "percent_mito"}
            )
            obs["perturbation"] = obs["gene"].cat.rename_categories({"non-targeting": "control"})
            var = var.reset_index().set_index("gene_name", drop=False).rename_axis("index")
            var.index = pd.Index(anndata.utils.make_index_unique(var.index))
        _write_frames(file, obs, var)


def _replogle_cells(rng: np.random.Generator, layout: ReplogleLayout) -> pd.DataFrame:
    listed = list(read_table(PERTURBATIONS)["gene"][: layout.n_targets])
    genes = [*listed, *(f"OTHER{i:04d}" for i in range(1, 9_868 - 681)), "non-targeting"]
    kind = rng.choice(
        3, layout.n_cells,
        p=[layout.targeted, 1 - layout.targeted - layout.controls, layout.controls],
    )  # fmt: skip
    kind[:2] = (0, 2)  # however few the cells
    draws = (
        rng.integers(0, len(listed), layout.n_cells),
        rng.integers(len(listed), len(genes) - 1, layout.n_cells),
        np.full(layout.n_cells, len(genes) - 1),
    )
    target = np.choose(kind, draws)
    pairs = [_guides(gene, place, 2) for place, gene in enumerate(genes)]
    twice = (target < SECOND_PAIRS * len(listed)) | (target == len(genes) - 1)
    pair = 2 * target + twice * rng.integers(0, 2, layout.n_cells)
    depth = rng.lognormal(np.log(layout.depth), 0.3, layout.n_cells)
    identifiers = [f"ENSG{i:011d}" for i in range(len(genes))]
    transcripts = [f"{i}_{gene}_P1P2" for i, gene in enumerate(genes)]
    return pd.DataFrame(
        {
            "gem_group": rng.integers(1, 274, layout.n_cells),
            "gene": pd.Categorical.from_codes(target, genes),
            "gene_id": pd.Categorical.from_codes(target, identifiers),
            "transcript": pd.Categorical.from_codes(np.zeros(layout.n_cells, int), ["P1P2"]),
            "gene_transcript": pd.Categorical.from_codes(target, transcripts),
            "sgID_AB": pd.Categorical.from_codes(pair, [name for both in pairs for name in both]),
            "mitopercent": rng.beta(10, 90, layout.n_cells),
            "UMI_count": depth,
            "z_gemgroup_UMI": rng.normal(size=layout.n_cells),
            "core_scale_factor": rng.lognormal(0, 0.2, layout.n_cells),
            "core_adjusted_UMI_count": depth,
        },
        index=pd.Index(_barcodes(rng, layout.n_cells), name="cell_barcode"),
    )  # fmt: skip


def _guides(gene: str, place: int, n: int) -> list[str]:
    if gene == "non-targeting":
        return [f"{gene}_{7 * i:05d}|{gene}_{7 * i + 3:05d}" for i in range(n)]
    at = [1_000_000 + 100 * place + 25 * i for i in range(2 * n)]
    return [f"{gene}_+_{at[2 * i]}.23-P1P2|{gene}_-_{at[2 * i + 1]}.23-P1P2" for i in range(n)]


def _barcodes(rng: np.random.Generator, n: int) -> np.ndarray:
    letters = rng.choice(np.array(list("ACGT")), (n, 12))
    words = letters.view(f"{letters.dtype.str[:2]}12").ravel()
    return np.char.add(np.char.add(words, "-"), np.arange(n).astype(str)).astype(object)


def _replogle_genes(rng: np.random.Generator, layout: ReplogleLayout) -> pd.DataFrame:
    n_response = max(round(RESPONSE_SHARE * layout.n_genes), 2)
    response = list(read_table(RESPONSE_GENES)["gene"][: n_response - 1])
    # one symbol stands for two genes
    others = [f"MEASURED{i:04d}" for i in range(layout.n_genes - n_response)]
    symbols = rng.permutation(np.array([*response, response[0], *others], dtype=object))
    n = layout.n_genes
    numbers = {name: rng.random(n) for name in ("mean", "std", "cv", "fano")}
    return pd.DataFrame(
        {
            "gene_name": symbols,
            "chr": pd.Categorical(["chr1"] * n),
            "start": np.arange(n),
            "end": np.arange(n) + 1,
            "class": pd.Categorical(["gene_version1"] * n),
            "strand": pd.Categorical(["+"] * n),
            "length": np.ones(n, dtype=int),
            "in_matrix": np.ones(n, dtype=bool),
            **numbers,
        },
        index=pd.Index([f"ENSG{i:011d}" for i in range(n)], name="gene_id"),
    )


def _counts(rng: np.random.Generator, n_cells: int, n_genes: int, depth: float) -> np.ndarray:
    share = rng.lognormal(0, 1.3, n_genes)
    size = rng.lognormal(np.log(depth), 0.3, (n_cells, 1))
    rate = size * share / share.sum()
    return rng.poisson(rng.gamma(4.0, rate / 4.0)).astype(np.float32)


def _write_dense(file: h5py.File, counts: np.ndarray, layout: ReplogleLayout) -> None:
    chunks = None
    if layout.chunks is not None:
        chunks = (min(layout.chunks[0], layout.n_cells), min(layout.chunks[1], layout.n_genes))
    shape = (layout.n_cells, layout.n_genes)
    values = file.create_dataset("X", shape, np.float32, chunks=chunks)
    values.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for first in range(0, layout.n_cells, len(counts)):
        values[first : first + len(counts)] = counts[: layout.n_cells - first]


def _in_whole_chunks(rng: np.random.Generator, counts: np.ndarray) -> sparse.csr_matrix:
    """Drop a few entries, so that cells end with a chunk, and it can be compressed once."""
    matrix = sparse.csr_matrix(counts)
    if matrix.nnz > SPARSE_CHUNK:
        dropped = rng.choice(matrix.nnz, matrix.nnz % SPARSE_CHUNK, replace=False)
        matrix.data[dropped] = 0
        matrix.eliminate_zeros()
    return matrix


def _write_sparse(file: h5py.File, counts: sparse.csr_matrix, layout: ReplogleLayout) -> None:
    entries, edges = counts.nnz, counts.indptr.astype(np.int64)
    repeats, rest = divmod(layout.n_cells, counts.shape[0])
    total = repeats * entries + int(edges[rest])
    group = file.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array([layout.n_cells, layout.n_genes])
    steps = np.concatenate([np.tile(np.diff(edges), repeats), np.diff(edges[: rest + 1])])
    group["indptr"] = np.concatenate([[0], np.cumsum(steps)])
    chunk = min(SPARSE_CHUNK, total)
    for name, values in (("data", counts.data), ("indices", counts.indices.astype(np.int64))):
        dataset = group.create_dataset(
            name, (total,), values.dtype, chunks=(chunk,), compression=layout.compression
        )
        whole = min(repeats, 1) * entries
        dataset[:whole] = values[:whole]
        compressed = (
            [dataset.id.read_direct_chunk((at,)) for at in range(0, whole, chunk)]
            if repeats > 1 and entries % chunk == 0
            else None
        )
        for repeat in range(1, repeats):
            if compressed is None:
                dataset[repeat * entries : (repeat + 1) * entries] = values[:entries]
                continue
            for place, (mask, block) in enumerate(compressed):
                dataset.id.write_direct_chunk((repeat * entries + place * chunk,), block, mask)
        dataset[repeats * entries :] = values[: edges[rest]]


def _write_frames(file: h5py.File, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    write_elem(file, "obs", obs)
    write_elem(file, "var", var)
    for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
        write_elem(file, name, {})


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
        sparse.csr_matrix(_counts(rng, n_cells, n_genes, depth=8.0 * n_genes)),
        [labels[i % len(labels)] for i in range(n_cells)],
        list(_barcodes(rng, n_cells)),
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


def main() -> None:
    """Read the options and write a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("screen", choices=["norman", "replogle"])
    parser.add_argument("path")
    parser.add_argument("--copy", choices=["original", "scperturb"], default="original")
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.screen == "norman":
        cells = simulate_norman(
            arguments.cells, arguments.genes, arguments.genes // 5, seed=arguments.seed
        )
        write_norman(arguments.path, arguments.copy, cells)
    else:
        layout = ReplogleLayout(
            arguments.copy, arguments.cells, arguments.genes, seed=arguments.seed
        )
        write_replogle(arguments.path, layout)


if __name__ == "__main__":
    main()
