"""A screen's cells on the device, handed out in batches by index."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import anndata
import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from torch import Tensor

from samsvae.inference.cards import take_card
from samsvae.inference.encoding import Encoding
from samsvae.models.base import Batch
from samsvae.screen import counts_in_blocks

LARGEST_BLOCK = 4_000_000  # elements, of cells x genes, while counts become dense


@cache  # a process that asked again would wait for the card that it has itself
def choose_device() -> torch.device:
    """Choose a CUDA device that no other job has, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        number = torch.cuda.device_count()
        cards = [str(torch.cuda.get_device_properties(n).uuid) for n in range(number)]
        torch.cuda.set_device(take_card(cards))
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@dataclass(frozen=True)
class Cells:
    """Cells in the smallest integer type that holds their counts, or in float32 if they have none.

    Attributes
    ----------
    counts
        N x G.
    library_size
        Length N.
    dosage
        Distinct rows of the design, C x T.
    condition
        Row of `dosage` of each cell, length N.
    """

    counts: Tensor
    library_size: Tensor
    dosage: Tensor
    condition: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(
        cls, screen: anndata.AnnData, keep: np.ndarray, encoding: Encoding, device: torch.device
    ) -> "Cells":
        """Put some cells of a screen on the device.

        Parameters
        ----------
        screen
            Canonical screen, whose counts may be in a file.
        keep
            Boolean, one per cell of the screen.
        encoding
            How labels become dosages.
        device
            Where to.
        """
        kept = screen.obs[keep]
        labels = kept["perturbation"].cat.remove_unused_categories().cat
        return cls(
            counts=_gather(screen, keep, device),
            library_size=_on(device, kept["library_size"], torch.float32),
            dosage=torch.from_numpy(encoding.dosage(list(labels.categories))).to(device),
            condition=_on(device, labels.codes, torch.long),
        )

    @classmethod
    def on_device(
        cls,
        counts: sparse.csr_matrix,
        library_size: np.ndarray,
        dosage: Tensor,
        condition: np.ndarray,
    ) -> "Cells":
        """Put cells where their dosages are; the attributes of the class say what is what."""
        return cls(
            counts=_dense(counts).to(dosage.device),
            library_size=_on(dosage.device, library_size, torch.float32),
            dosage=dosage,
            condition=_on(dosage.device, condition, torch.long),
        )

    def batch(self, index: Tensor) -> Batch:
        """Gather cells by their positions; the batch stands for all N cells."""
        return Batch(
            counts=self.counts[index].float(),
            library_size=self.library_size[index],
            dosage=self.dosage,
            condition=self.condition[index],
            n_cells=len(self),
        )

    def random_batches(self, size: int, seed: int) -> "RandomBatches":
        """Draw batches for ever, epoch after epoch, each of the same size."""
        return RandomBatches(len(self), size, seed, self.counts.device)

    def batches(self, size: int) -> Iterator[Batch]:
        """Go through all cells once, in order."""
        for index in torch.arange(len(self), device=self.counts.device).split(size):
            yield self.batch(index)

    def moments(self, rescale: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over cells of rescaled counts, each of length G."""
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
    """Put counts on the device block by block, so that no other copy is whole."""
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
    """Choose the type that holds counts in the fewest bytes; float32 if they are no counts."""
    if np.issubdtype(matrix.dtype, np.floating):
        return np.float32
    largest = int(matrix.max()) if matrix.shape[0] else 0
    return next(t for t in (np.uint8, np.int16, np.int32) if largest <= np.iinfo(t).max)


class RandomBatches:
    """Positions of cells in random order, epoch after epoch, what is left of an epoch dropped.

    Parameters
    ----------
    n_cells
        Cells to draw from.
    size
        Cells per batch; all cells if there are fewer.
    seed
        Seed of the order, which is the same on every device.
    device
        Where the positions are needed.
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
        """Where in the order the next batch begins, and what comes after this epoch."""
        return {
            "order": self.order,
            "position": torch.tensor(self.position),
            "generator": self.generator.get_state(),
        }

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        self.order = state["order"].to(self.order.device)
        self.position = int(state["position"])
        self.generator.set_state(state["generator"])
