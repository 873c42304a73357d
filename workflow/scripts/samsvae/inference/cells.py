"""Cells for training and evaluation: encoded, in batches on the device or streamed from files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import anndata
import h5py
import numpy as np
import pandas as pd
import torch
from anndata.io import read_elem
from numpy.typing import ArrayLike
from scipy import sparse
from torch import Tensor

from samsvae.inference.encoding import NO_COVARIATES, Covariates, Encoding
from samsvae.models.base import Batch
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import CONTEXT, counts_in_blocks
from samsvae.screen.design import Design
from samsvae.screen.splits import CellsOfSplit

# elements, of cells x genes
LARGEST_BLOCK = 4_000_000  # while counts become dense
LARGEST_STREAMED_BLOCK = 400_000
CELLS_AT_A_TIME = 4096  # of a pass over all cells


@dataclass(frozen=True)
class Cells:
    """Cells in the smallest integer type that holds their counts, or in float32 without counts.

    Attributes
    ----------
    counts
        N x G.
    library_size
        Length N.
    design
        Distinct rows of the design matrix, C x T.
    condition
        Row of `design` of each cell, length N.
    covariates
        Covariates of the cells, N x C, as the only item; empty without covariates.
    targets
        As of :attr:`samsvae.models.base.Batch.targets`.
    """

    counts: Tensor
    library_size: Tensor
    design: Tensor
    condition: Tensor
    covariates: tuple[Tensor, ...] = ()
    targets: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(
        cls,
        screen: anndata.AnnData,
        keep: np.ndarray,
        encoding: Encoding,
        device: torch.device,
        covariates: Covariates = NO_COVARIATES,
    ) -> "Cells":
        """Move some cells of a screen to the device.

        Parameters
        ----------
        screen
            Canonical screen, whose counts may be in a file.
        keep
            Boolean, one per cell of the screen.
        encoding
            Encoding of conditions as rows of the model's design matrix.
        device
            Device of the cells.
        covariates
            Encoding of the cells' covariates.
        """
        obs = screen.obs[keep]
        keys, conditions = encoding.conditions(Design.of_screen(screen)[keep], obs)
        design = torch.from_numpy(encoding.of_keys(conditions)).to(device)
        return cls(
            counts=_gather(screen, keep, device),
            library_size=_on(device, screen.obs["library_size"][keep], torch.float32),
            design=design,
            condition=_on(device, _positions(keys, conditions), torch.long),
            covariates=covariates.on_device(obs, device),
            targets=encoding.pairs(design),
        )

    @classmethod
    def on_device(
        cls,
        counts: sparse.csr_matrix,
        library_size: np.ndarray,
        design: Tensor,
        condition: np.ndarray,
        covariates: tuple[Tensor, ...] = (),
        targets: tuple[Tensor, ...] = (),
    ) -> "Cells":
        """Move cells to the device of their design matrix; arguments as the attributes."""
        return cls(
            counts=_dense(counts).to(design.device),
            library_size=_on(design.device, library_size, torch.float32),
            design=design,
            condition=_on(design.device, condition, torch.long),
            covariates=covariates,
            targets=targets,
        )

    def select(self, cells: np.ndarray) -> "Cells":
        """Select some cells, of the same conditions."""
        chosen = torch.from_numpy(cells).to(self.counts.device)
        return replace(
            self,
            counts=self.counts[chosen],
            library_size=self.library_size[chosen],
            condition=self.condition[chosen],
            covariates=tuple(values[chosen] for values in self.covariates),
        )

    def batch(self, index: Tensor) -> Batch:
        """Gather the cells at some indices; the batch represents all N cells."""
        return Batch(
            counts=self.counts[index].float(),
            library_size=self.library_size[index],
            design=self.design,
            condition=self.condition[index],
            n_cells=len(self),
            covariates=tuple(values[index] for values in self.covariates),
            targets=self.targets,
        )

    def random_batches(self, size: int, seed: int) -> "Batches":
        """Return an infinite loader of shuffled batches, all of the same size."""
        return RandomBatches(len(self), size, seed, self.counts.device)

    def among_all(self, index: Tensor) -> Tensor:
        """Return the positions, among all N cells, of the cells at some indices."""
        return index

    def batches(self, size: int) -> Iterator[Batch]:
        """Iterate over all cells once, in order."""
        for index in torch.arange(len(self), device=self.counts.device).split(size):
            yield self.batch(index)

    def moments(self, rescale: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Compute mean and standard deviation over cells of rescaled counts, each of length G."""
        total = torch.zeros(self.counts.shape[1], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for batch in self.batches(CELLS_AT_A_TIME):
            rescaled = rescale(batch.counts.cpu().double())
            total += rescaled.sum(0)
            squares += (rescaled**2).sum(0)
        mean = total / len(self)
        variance = (squares / len(self) - mean**2).clamp(min=0)
        return mean.float(), variance.sqrt().float()


def refuse_no_cells(part: str, number: int) -> None:
    """Refuse a split without cells of a part.

    Raises
    ------
    InputError
        Naming the part.
    """
    if not number:
        raise InputError(
            f"The split has no {part} cells. Use more cells, or a larger fraction of them for "
            f"{part}."
        )


def _gather(screen: anndata.AnnData, keep: np.ndarray, device: torch.device) -> Tensor:
    """Move counts to the device block by block, so that no second copy is complete."""
    gathered = torch.empty(int(keep.sum()), screen.n_vars, dtype=torch.uint8, device=device)
    done = 0
    for _, counts in counts_in_blocks(screen, keep, LARGEST_BLOCK):
        block = _dense(counts)
        gathered = gathered.to(torch.promote_types(gathered.dtype, block.dtype))
        gathered[done : done + len(block)] = block
        done += len(block)
    return gathered


def _positions(keys: pd.MultiIndex, conditions: Iterable[tuple[str, str]]) -> np.ndarray:
    """Find the position of each cell's key among the conditions."""
    if not len(keys):
        return np.empty(0, dtype=np.int64)
    return pd.MultiIndex.from_tuples(list(conditions)).get_indexer(keys)


def _dense(counts: sparse.csr_matrix) -> Tensor:
    return torch.from_numpy(counts.astype(smallest_type(counts)).toarray())


def _on(device: torch.device, values: ArrayLike, dtype: torch.dtype) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=dtype, device=device)


def smallest_type(matrix: sparse.csr_matrix) -> type[np.number]:
    """Choose the type that holds counts in the fewest bytes; float32 for other values."""
    if np.issubdtype(matrix.dtype, np.floating):
        return np.float32
    largest = int(matrix.max()) if matrix.shape[0] else 0
    return next(t for t in (np.uint8, np.int16, np.int32) if largest <= np.iinfo(t).max)


class Batches(Protocol):
    """Infinite loader of batches of cell indices, whose position can be saved.

    Attributes
    ----------
    size
        Cells per batch.
    """

    size: int

    def __next__(self) -> Tensor:
        """Return the indices of the next batch."""
        ...

    def skip(self, number: int) -> None:
        """Pass over the next batches."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next batches depend on."""
        ...

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Restore a state that :meth:`state` returned."""
        ...


class RandomBatches:
    """Infinite shuffled loader of cell indices; an incomplete last batch is dropped.

    Parameters
    ----------
    n_cells
        Number of cells.
    size
        Cells per batch; all cells if there are fewer.
    seed
        Seed of the order, which is the same on every device.
    device
        Device of the indices.
    """

    def __init__(self, n_cells: int, size: int, seed: int, device: torch.device) -> None:
        self.n_cells = n_cells
        self.size = min(size, n_cells)
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long, device=device)
        self.position = 0

    def __iter__(self) -> "RandomBatches":
        return self

    def __next__(self) -> Tensor:
        if self.position + self.size > len(self.order):
            order = torch.randperm(self.n_cells, generator=self.generator)
            self.order = order.to(self.order.device)
            self.position = 0
        self.position += self.size
        return self.order[self.position - self.size : self.position]

    def skip(self, number: int) -> None:
        """Pass over the next batches."""
        for _ in range(number):
            next(self)

    def state(self) -> dict[str, Tensor]:
        """Return the order of this epoch, the position in it, and the generator's state."""
        return {
            "order": self.order,
            "position": torch.tensor(self.position),
            "generator": self.generator.get_state(),
        }

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Restore a state that :meth:`state` returned."""
        self.order = state["order"].to(self.order.device)
        self.position = int(state["position"])
        self.generator.set_state(state["generator"])


@dataclass(frozen=True)
class CellStream:
    """Stream of the cells of some parts of a split, whose names, labels and counts stay in files.

    Attributes
    ----------
    screen
        File of a canonical screen.
    cells
        Its cells with their columns of the split's table, block by block.
    parts
        Parts of the split that are streamed.
    encoding
        Encoding of conditions.
    conditions
        Label and context of each condition of the streamed cells, as of
        :meth:`Encoding.conditions`, in alphabetical order.
    design
        Row of the design matrix of each condition, C x T.
    n_cells
        Number of streamed cells.
    covariates
        Encoding of the cells' covariates.
    targets
        As of :attr:`samsvae.models.base.Batch.targets`.
    """

    screen: Path
    cells: CellsOfSplit
    parts: tuple[str, ...]
    encoding: Encoding
    conditions: tuple[tuple[str, str], ...]
    design: Tensor
    n_cells: int
    covariates: Covariates
    targets: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        screen: str | Path,
        split: str | Path,
        parts: Sequence[str],
        encoding: Encoding,
        device: torch.device,
        covariates: Covariates = NO_COVARIATES,
    ) -> "CellStream":
        """Scan a split for the cells to stream.

        Parameters
        ----------
        screen
            File of a canonical screen.
        split
            File of one of its splits.
        parts
            Parts to stream, such as ``val`` and ``test``.
        encoding
            Encoding of conditions as rows of the model's design matrix.
        device
            Device of the cells.
        covariates
            Encoding of the cells' covariates.

        Raises
        ------
        InputError
            If the split is of another screen.
        """
        with h5py.File(screen, "r") as file:
            n_genes = file["X"].attrs["shape"][1]
        cells = CellsOfSplit(Path(split), Path(screen), max(1, LARGEST_STREAMED_BLOCK // n_genes))
        conditions: dict[tuple[str, str], dict[str, float]] = {}
        first = n_cells = 0
        with h5py.File(screen, "r") as file:
            obs = read_columns(file, [CONTEXT] if encoding.in_contexts else [])
            for block in cells:
                rows = slice(first, first + len(block))
                chosen = block["split"].isin(parts).to_numpy()
                own = read_design(file, rows.start, rows.stop)[chosen]
                conditions |= encoding.conditions(own, obs[rows][chosen])[1]
                n_cells += len(own)
                first += len(block)
        ordered = dict(sorted(conditions.items()))
        design = torch.from_numpy(encoding.of_keys(ordered)).to(device)
        also = covariates, encoding.pairs(design)
        keys = encoding, tuple(ordered)
        return cls(Path(screen), cells, tuple(parts), *keys, design, n_cells, *also)

    def blocks(self) -> Iterator[tuple[pd.DataFrame, Cells]]:
        """Iterate over all cells once, in order.

        Yields
        ------
        DataFrame
            Rows of the split's table.
        Cells
            The same cells, whose conditions are rows of :attr:`design`.
        """
        first = 0
        names = [*self.covariates.levels, *self.covariates.scaling]
        with h5py.File(self.screen, "r") as file:
            obs = read_columns(file, names)
            for block in self.cells:
                rows = slice(first, first + len(block))
                chosen = block["split"].isin(self.parts).to_numpy()
                if chosen.any():
                    counts = read_rows(file["X"], rows.start, rows.stop)[chosen]
                    design = read_design(file, rows.start, rows.stop)[chosen]
                    table = block[chosen].reset_index(drop=True)
                    keys, _ = self.encoding.conditions(design, obs[rows][chosen])
                    condition = _positions(keys, self.conditions)
                    size = table["library_size"].to_numpy()
                    given = self.covariates.on_device(obs[rows][chosen], self.design.device)
                    of_cells = condition, given, self.targets
                    yield table, Cells.on_device(counts, size, self.design, *of_cells)
                first += len(block)


def read_columns(screen: h5py.Group, names: Sequence[str]) -> pd.DataFrame:
    """Read columns of obs, a code or a number of each cell."""
    n_cells = len(screen["obs"][screen["obs"].attrs["_index"]])
    columns = {name: read_elem(screen[f"obs/{name}"]) for name in names}
    return pd.DataFrame(columns, index=pd.RangeIndex(n_cells))


def read_design(screen: h5py.Group, first: int, last: int) -> Design:
    """Read consecutive rows of the design matrix of a screen's file."""
    names = screen["uns/perturbations"].asstr()[:]
    return Design.of(read_rows(screen["obsm/dosage"], first, last), names)


def read_rows(counts: h5py.Group, first: int, last: int) -> sparse.csr_matrix:
    """Read consecutive rows of a CSR matrix and no others."""
    pointers = counts["indptr"][first : last + 1].astype(np.int64)
    entries = slice(pointers[0], pointers[-1])
    parts = counts["data"][entries], counts["indices"][entries], pointers - pointers[0]
    return sparse.csr_matrix(parts, shape=(last - first, counts.attrs["shape"][1]))
