"""A screen's cells read block by block, so that memory does not grow with their number."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import torch
from torch import Tensor

from samsvae.inference.cells import describe_conditions
from samsvae.inference.encoding import Encoding
from samsvae.models.base import Batch

LARGEST_BLOCK = 1_000_000  # elements, of cells x genes


@dataclass(frozen=True)
class CellStream:
    """Cells whose counts stay where they are, on disk or in a sparse matrix, until their turn.

    Attributes
    ----------
    counts
        X of the screen: CSR in memory, or of a screen that was opened ``backed``.
    position
        Rows of `counts` that are streamed, in rising order.
    library_size
        Of each streamed cell, length N.
    dosage
        Distinct rows of the design, C x T.
    condition
        Row of `dosage` of each streamed cell, length N.
    """

    counts: Any
    position: np.ndarray
    library_size: Tensor
    dosage: Tensor
    condition: Tensor

    def __len__(self) -> int:
        return len(self.position)

    @classmethod
    def of(
        cls, screen: anndata.AnnData, keep: np.ndarray, encoding: Encoding, device: torch.device
    ) -> "CellStream":
        """Stream some cells of a screen; parameters as of :meth:`samsvae.inference.cells.Cells.of`.

        The screen may have been opened with its counts on disk.
        """
        obs = screen.obs[keep]
        return cls(screen.X, np.flatnonzero(keep), *describe_conditions(obs, encoding, device))

    def batches(self, size: int) -> Iterator[Batch]:
        """Go through all cells once, in order, in batches of nearly the same size, or less."""
        n_rows, n_genes = self.counts.shape
        at_once = max(1, LARGEST_BLOCK // n_genes)
        for start in range(0, n_rows, at_once):
            first, last = np.searchsorted(self.position, (start, start + at_once))
            if first == last:
                continue
            rows = self.counts[start : start + at_once][self.position[first:last] - start]
            for index in np.array_split(np.arange(first, last), -(-(last - first) // size)):
                counts = rows[index - first].toarray().astype(np.float32, copy=False)
                here = torch.from_numpy(index).to(self.dosage.device)
                yield Batch(
                    counts=torch.from_numpy(counts).to(self.dosage.device),
                    library_size=self.library_size[here],
                    dosage=self.dosage,
                    condition=self.condition[here],
                    n_cells=len(self),
                )
