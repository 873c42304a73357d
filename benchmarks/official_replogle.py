"""Files of the layouts in which the screen of Replogle et al. 2022 is published."""

import sys
from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from scipy import sparse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from benchmarks.official_cells import barcodes, simulate_counts
from samsvae.runtime.files import read_table, whole_file

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
    counts = _in_whole_chunks(rng, simulate_counts(rng, n_simulated, layout.n_genes, layout.depth))
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
        index=pd.Index(barcodes(rng, layout.n_cells), name="cell_barcode"),
    )  # fmt: skip


def _guides(gene: str, place: int, n: int) -> list[str]:
    if gene == "non-targeting":
        return [f"{gene}_{7 * i:05d}|{gene}_{7 * i + 3:05d}" for i in range(n)]
    at = [1_000_000 + 100 * place + 25 * i for i in range(2 * n)]
    return [f"{gene}_+_{at[2 * i]}.23-P1P2|{gene}_-_{at[2 * i + 1]}.23-P1P2" for i in range(n)]


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
