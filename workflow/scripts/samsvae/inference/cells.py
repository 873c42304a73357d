"""Cells for training and evaluation: encoded, in batches on the device or streamed from files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from torch import Tensor

from samsvae.models.base import Batch
from samsvae.screen.canonical import counts_in_blocks
from samsvae.screen.design import Design
from samsvae.screen.labels import doses, label_of
from samsvae.screen.splits import CellsOfSplit

# elements, of cells x genes
LARGEST_BLOCK = 4_000_000  # while counts become dense
LARGEST_STREAMED_BLOCK = 400_000


@dataclass(frozen=True)
class Encoding:
    """Encoding of conditions as rows of a model's design matrix.

    Attributes
    ----------
    names
        The T perturbations, without doses.
    combinations
        ``additive``: a combination is the sum of its genes, each scaled by its dose; ``unique``:
        a combination is a perturbation of its own under its full label, doses included, while a
        single gene is scaled by its dose.
    """

    names: tuple[str, ...]
    combinations: str = "additive"

    @classmethod
    def of(cls, design: Design, combinations: str) -> "Encoding":
        """Create the encoding of the perturbations of a design matrix."""
        if combinations == "additive":
            return cls(tuple(design.names), combinations)
        conditions = design.conditions()[1]
        return cls(tuple(sorted(set().union(*map(_as_one, conditions)))), combinations)

    def design(self, labels: Sequence[str]) -> np.ndarray:
        """Encode canonical labels as rows of the model's design matrix, as :meth:`rows`."""
        return self.rows([doses(label) for label in labels])

    def rows(self, conditions: Sequence[Mapping[str, float]]) -> np.ndarray:
        """Encode conditions as rows of the model's design matrix.

        Parameters
        ----------
        conditions
            Dose by perturbation; empty for control.

        Returns
        -------
        ndarray of float32
            Conditions x T.

        Raises
        ------
        KeyError
            If a condition has a perturbation that is not in `names`.
        """
        column = {name: index for index, name in enumerate(self.names)}
        rows = np.zeros((len(conditions), len(self.names)), dtype=np.float32)
        for row, condition in enumerate(conditions):
            given = condition if self.combinations == "additive" else _as_one(condition)
            for name, dose in given.items():
                rows[row, column[name]] = dose
        return rows


def _as_one(condition: Mapping[str, float]) -> Mapping[str, float]:
    """Treat a combination as a single perturbation, named by its label."""
    return condition if len(condition) < 2 else {label_of(condition): 1.0}


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
    """

    counts: Tensor
    library_size: Tensor
    design: Tensor
    condition: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(
        cls, screen: anndata.AnnData, keep: np.ndarray, encoding: Encoding, device: torch.device
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
        """
        labels, conditions = Design.of_screen(screen)[keep].conditions()
        return cls(
            counts=_gather(screen, keep, device),
            library_size=_on(device, screen.obs["library_size"][keep], torch.float32),
            design=torch.from_numpy(encoding.rows(conditions)).to(device),
            condition=_on(device, labels.codes, torch.long),
        )

    @classmethod
    def on_device(
        cls,
        counts: sparse.csr_matrix,
        library_size: np.ndarray,
        design: Tensor,
        condition: np.ndarray,
    ) -> "Cells":
        """Move cells to the device of their design matrix; arguments as the attributes."""
        return cls(
            counts=_dense(counts).to(design.device),
            library_size=_on(design.device, library_size, torch.float32),
            design=design,
            condition=_on(design.device, condition, torch.long),
        )

    def batch(self, index: Tensor) -> Batch:
        """Gather the cells at some indices; the batch represents all N cells."""
        return Batch(
            counts=self.counts[index].float(),
            library_size=self.library_size[index],
            design=self.design,
            condition=self.condition[index],
            n_cells=len(self),
        )

    def random_batches(self, size: int, seed: int) -> "RandomBatches":
        """Return an infinite loader of shuffled batches, all of the same size."""
        return RandomBatches(len(self), size, seed, self.counts.device)

    def batches(self, size: int) -> Iterator[Batch]:
        """Iterate over all cells once, in order."""
        for index in torch.arange(len(self), device=self.counts.device).split(size):
            yield self.batch(index)

    def moments(self, rescale: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Compute mean and standard deviation over cells of rescaled counts, each of length G."""
        total = torch.zeros(self.counts.shape[1], dtype=torch.float64)
        squares = torch.zeros_like(total)
        for part in self.counts.split(4096):
            rescaled = rescale(part.cpu().double())
            total += rescaled.sum(0)
            squares += (rescaled**2).sum(0)
        mean = total / len(self)
        variance = (squares / len(self) - mean**2).clamp(min=0)
        return mean.float(), variance.sqrt().float()


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
    labels
        Labels of the conditions of the streamed cells, in alphabetical order.
    design
        Row of the design matrix of each condition, C x T.
    n_cells
        Number of streamed cells.
    """

    screen: Path
    cells: CellsOfSplit
    parts: tuple[str, ...]
    labels: tuple[str, ...]
    design: Tensor
    n_cells: int

    @classmethod
    def of(
        cls,
        screen: str | Path,
        split: str | Path,
        parts: Sequence[str],
        encoding: Encoding,
        device: torch.device,
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

        Raises
        ------
        InputError
            If the split is of another screen.
        """
        with h5py.File(screen, "r") as file:
            n_genes = file["X"].attrs["shape"][1]
        cells = CellsOfSplit(Path(split), Path(screen), max(1, LARGEST_STREAMED_BLOCK // n_genes))
        conditions: dict[str, dict[str, float]] = {}
        first = n_cells = 0
        with h5py.File(screen, "r") as file:
            for block in cells:
                chosen = block["split"].isin(parts).to_numpy()
                labels, found = _read_design(file, first, first + len(block))[chosen].conditions()
                conditions.update(zip(labels.categories, found, strict=True))
                n_cells += len(labels)
                first += len(block)
        ordered = tuple(sorted(conditions))
        design = torch.from_numpy(encoding.rows([conditions[label] for label in ordered]))
        return cls(Path(screen), cells, tuple(parts), ordered, design.to(device), n_cells)

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
        with h5py.File(self.screen, "r") as file:
            for block in self.cells:
                chosen = block["split"].isin(self.parts).to_numpy()
                if chosen.any():
                    counts = _read_rows(file["X"], first, first + len(block))[chosen]
                    labels = _read_design(file, first, first + len(block))[chosen].labels()
                    table = block[chosen].reset_index(drop=True)
                    condition = labels.set_categories(self.labels).codes
                    size = table["library_size"].to_numpy()
                    yield table, Cells.on_device(counts, size, self.design, condition)
                first += len(block)


def _read_design(screen: h5py.Group, first: int, last: int) -> Design:
    """Read consecutive rows of the design matrix of a screen's file."""
    names = screen["uns/perturbations"].asstr()[:]
    return Design.of(_read_rows(screen["obsm/dosage"], first, last), names)


def _read_rows(counts: h5py.Group, first: int, last: int) -> sparse.csr_matrix:
    """Read consecutive rows of a CSR matrix and no others."""
    pointers = counts["indptr"][first : last + 1].astype(np.int64)
    entries = slice(pointers[0], pointers[-1])
    parts = counts["data"][entries], counts["indices"][entries], pointers - pointers[0]
    return sparse.csr_matrix(parts, shape=(last - first, counts.attrs["shape"][1]))
