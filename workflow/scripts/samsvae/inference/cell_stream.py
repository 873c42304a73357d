"""A screen's cells read from files block by block, in memory that their number does not change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from samsvae.inference.cells import Cells
from samsvae.inference.encoding import Encoding
from samsvae.splits import CellsOfSplit

LARGEST_BLOCK = 400_000  # elements, of cells x genes


@dataclass(frozen=True)
class CellStream:
    """Cells of some parts of a split, whose names, labels and counts stay in files.

    Attributes
    ----------
    screen
        File of a canonical screen.
    cells
        Its cells as the split's file describes them, block by block.
    parts
        The parts of the split that are streamed.
    labels
        Distinct labels of the streamed cells, in alphabetical order.
    dosage
        Row of the design of each label, C x T.
    n_cells
        Cells that are streamed.
    """

    screen: Path
    cells: CellsOfSplit
    parts: tuple[str, ...]
    labels: tuple[str, ...]
    dosage: Tensor
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
        """Look through a split for the cells to stream.

        Parameters
        ----------
        screen
            File of a canonical screen.
        split
            File of one of its splits.
        parts
            Which cells to stream, such as those of ``val`` and ``test``.
        encoding
            How labels become dosages.
        device
            Where the cells are needed.

        Raises
        ------
        InputError
            If the split is of another screen.
        """
        with h5py.File(screen, "r") as file:
            n_genes = file["X"].attrs["shape"][1]
        cells = CellsOfSplit(Path(split), Path(screen), max(1, LARGEST_BLOCK // n_genes))
        labels: set[str] = set()
        n_cells = 0
        for block in cells:
            chosen = block["split"].isin(parts)
            n_cells += int(chosen.sum())
            labels |= set(block.loc[chosen, "perturbation"])
        ordered = tuple(sorted(labels))
        dosage = torch.from_numpy(encoding.dosage(ordered)).to(device)
        return cls(Path(screen), cells, tuple(parts), ordered, dosage, n_cells)

    def blocks(self) -> Iterator[tuple[pd.DataFrame, Cells]]:
        """Go through all cells once, in order.

        Yields
        ------
        DataFrame
            Rows of the split's table.
        Cells
            The same cells, whose conditions are rows of :attr:`dosage`.
        """
        first = 0
        with h5py.File(self.screen, "r") as file:
            for block in self.cells:
                chosen = block["split"].isin(self.parts).to_numpy()
                if chosen.any():
                    counts = _read_rows(file["X"], first, first + len(block))[chosen]
                    table = block[chosen].reset_index(drop=True)
                    label = pd.Categorical(table["perturbation"], categories=self.labels)
                    size = table["library_size"].to_numpy()
                    yield table, Cells.on_device(counts, size, self.dosage, label.codes)
                first += len(block)


def _read_rows(counts: h5py.Group, first: int, last: int) -> sparse.csr_matrix:
    """Read consecutive rows of a CSR matrix; of its row pointers, too, no others are read."""
    pointers = counts["indptr"][first : last + 1].astype(np.int64)
    entries = slice(pointers[0], pointers[-1])
    parts = counts["data"][entries], counts["indices"][entries], pointers - pointers[0]
    return sparse.csr_matrix(parts, shape=(last - first, counts.attrs["shape"][1]))
