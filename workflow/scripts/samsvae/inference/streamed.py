"""Training cells that stay in the screen's file: a buffer of them is in memory and shuffled.

An epoch is the training cells in the order of the file, cut into blocks of consecutive cells whose
order is random. Consecutive blocks fill the buffer, and each seed shuffles the cells of the buffer
on its own; the next buffer is read meanwhile. So each cell comes once an epoch, but for those of an
incomplete last batch, as in :class:`samsvae.inference.cells.RandomBatches`. Everything follows from
the seed and the number of the step, so that a training resumes exactly.

Cells of one block share a buffer. In a file that is sorted by perturbation, a block has cells of
one perturbation, and the fraction p of a perturbation in a batch has the variance::

    p (1 - p) (1 / n + 1 / m),   n cells of a batch, m blocks of a buffer

(both much smaller than what they are drawn from), instead of p (1 - p) / n; the first term is of
each batch, the second of all batches of a buffer together. In a file in random order, batches are
those of a full shuffle.

scDataset and annbatch read cells likewise: blocks from random places, mixed in a buffer.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from samsvae.inference.cell_table import CellTable, digest_in
from samsvae.inference.cells import Cells, refuse_no_cells
from samsvae.inference.encoding import Covariates, Encoding
from samsvae.inference.machine import available_memory
from samsvae.models.base import Batch
from samsvae.runtime.errors import InputError
from samsvae.screen.splits import TRAIN, VAL
from samsvae.sources.blocks import read_ahead
from samsvae.sources.storage import CHUNK_CACHE_BYTES, explain_damage

FEWEST_IN_BLOCK, BLOCKS_IN_BUFFER = 64, 512
# rows of the file: a gap that is read rather than skipped, and most cells of one read
GAP, CELLS_OF_READ = 8, 512
VALUES_AT_A_TIME, EDGES_AT_A_TIME, ENTRIES_AT_A_TIME = 2**20, 2**16, 2**18
# of a buffer, unless its size is given: the fewer genes, the more cells, since a chunk of the file
# that is decompressed for one block then has the cells of more blocks
BUFFER_BYTES, FEWEST_IN_BUFFER = 48 * 2**20, 2**15
VALIDATION_CELLS = 2**14  # that are evaluated again and again
FRACTION_OF_MEMORY = 0.5  # of the memory available, above which cells are streamed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BufferPlan:
    """Order in which cells are read and shuffled. Buffers are numbered throughout all epochs.

    Attributes
    ----------
    n_cells
        Number of training cells N.
    batch_size
        Cells per batch, at most N.
    buffer_size
        Most cells of a buffer, but for those of an incomplete last batch; at least a batch.
    block_size
        Consecutive cells that are read together.
    """

    n_cells: int
    batch_size: int
    buffer_size: int
    block_size: int = FEWEST_IN_BLOCK

    @property
    def n_batches(self) -> int:
        """Number of batches of an epoch."""
        return self.n_cells // self.batch_size

    @property
    def batches_of_buffer(self) -> int:
        """Number of batches of a buffer, but for the last one of an epoch, which may have fewer."""
        most = max(1, self.buffer_size // self.batch_size)
        return math.ceil(self.n_batches / math.ceil(self.n_batches / most))

    @property
    def n_buffers(self) -> int:
        """Number of buffers of an epoch."""
        return math.ceil(self.n_batches / self.batches_of_buffer)

    @property
    def capacity(self) -> int:
        """Number of cells of the largest buffer."""
        return max(self.size(0), self.size(self.n_buffers - 1))

    def size(self, number: int) -> int:
        """Return the number of cells of a buffer."""
        first, last = self._span(number)
        return last - first

    def _span(self, number: int) -> tuple[int, int]:
        """Return the positions of a buffer's first cell in its epoch, and of the next buffer's."""
        within = number % self.n_buffers
        cells = self.batches_of_buffer * self.batch_size
        is_last = within == self.n_buffers - 1
        return within * cells, self.n_cells if is_last else (within + 1) * cells

    def buffer_of(self, step: int) -> tuple[int, int]:
        """Return the number of a step's buffer, and of its batch in the buffer, all from 0."""
        epoch, batch = divmod(step, self.n_batches)
        buffer, within = divmod(batch, self.batches_of_buffer)
        return epoch * self.n_buffers + buffer, within

    def cells_of(self, number: int) -> np.ndarray:
        """Return the sorted indices of the cells of a buffer, which all seeds have in common."""
        rng = np.random.default_rng((0, number // self.n_buffers))
        # where blocks begin differs between epochs, so that the same cells are not always together
        begins = np.arange(rng.integers(self.block_size), self.n_cells, self.block_size)
        begins = np.union1d(0, begins)
        order = rng.permutation(len(begins))
        begin, end = begins[order], np.append(begins[1:], self.n_cells)[order]
        position = np.cumsum(end - begin) - (end - begin)  # of each block in the epoch
        first, last = self._span(number)
        begin, end = (  # of the part of each block in the buffer
            np.clip(edge, begin + first - position, begin + last - position)
            for edge in (begin, end)
        )
        used = np.flatnonzero(begin < end)
        spans = sorted(zip(begin[used].tolist(), end[used].tolist(), strict=True))
        return np.concatenate([np.arange(*span) for span in spans])

    def order(self, number: int, seed: int) -> np.ndarray:
        """Shuffle the cells of a buffer: their positions in it, in the order of a seed."""
        return np.random.default_rng((seed, number)).permutation(self.size(number))


@dataclass(frozen=True)
class CellFile:
    """Some cells of a screen's file, and what else is known of them.

    Attributes
    ----------
    path
        File of a canonical screen.
    rows
        Row of each cell in the file, ascending.
    condition
        Row of the design matrix of each cell, as of :class:`samsvae.inference.cells.Cells`.
    library_size
        Counts of each cell, float32.
    obs
        Columns of the covariates of each cell.
    covariates
        Encoding of the covariates.
    counts_type
        Type of counts in memory.
    n_genes
        Number of genes.
    digest
        Digest of the screen's content, to tell when the file is replaced.
    """

    path: Path
    rows: np.ndarray
    condition: np.ndarray
    library_size: np.ndarray
    obs: pd.DataFrame
    covariates: Covariates
    counts_type: torch.dtype
    n_genes: int
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, cells: np.ndarray, pin: bool = False) -> list[Tensor]:
        """Read some cells.

        Parameters
        ----------
        cells
            Their positions among all cells of this object, ascending.
        pin
            Whether the tensors are in pinned memory, for copies that no step waits for.

        Returns
        -------
        list of Tensor
            Counts, dense; library size; condition; and covariates, if there are any. On the CPU.

        Raises
        ------
        InputError
            If the file cannot be read, is damaged, or is another one than at the start.
        """
        counts = torch.zeros(len(cells), self.n_genes, dtype=self.counts_type)
        cpu = torch.device("cpu")
        with (
            explain_damage(self.path),
            h5py.File(self.path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES) as file,
        ):
            if digest_in(file) != self.digest:
                raise InputError(
                    f"{self.path}: the screen was replaced while its cells were streamed. Train "
                    "again, and leave the file as it is meanwhile."
                )
            for cell, gene, value in _read_entries(file["X"], self.rows[cells]):
                counts.numpy()[cell, gene] = value
        read_also = [
            torch.from_numpy(self.library_size[cells]),
            torch.from_numpy(self.condition[cells].astype(np.int64)),
            *self.covariates.on_device(self.obs.iloc[cells], cpu),
        ]
        tensors = [counts, *read_also]
        return [tensor.pin_memory() for tensor in tensors] if pin else tensors

    def on_device(self, design: Tensor, targets: tuple[Tensor, ...]) -> Cells:
        """Read all cells and move them to the device of their design matrix."""
        counts, size, condition, *covariates = (
            tensor.to(design.device) for tensor in self.read(np.arange(len(self)))
        )
        return Cells(counts, size, design, condition, tuple(covariates), targets)


def _read_entries(
    counts: h5py.Group, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Read the entries of sorted rows of a CSR matrix, some at a time.

    Yields
    ------
    tuple of ndarray
        Index into `rows`, column and value of each entry. The entries of several reads are joined
        first: many small arrays would hold the interpreter, which the training step needs.
    """
    values, columns, pointers = (counts[name] for name in ("data", "indices", "indptr"))
    gathered: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    n_gathered = done = start = 0
    edges = np.empty(0, dtype=np.int64)
    for run in _runs(rows):
        first, last = int(run[0]), int(run[-1]) + 1
        if last - start >= len(edges):
            start = first
            edges = pointers[first : first + EDGES_AT_A_TIME + CELLS_OF_READ * GAP + 1]
        own = edges[first - start : last - start + 1].astype(np.int64)
        number = np.full(last - first, -1)
        number[run - first] = np.arange(done, done + len(run))
        entries = slice(own[0], own[-1])
        gathered.append((np.repeat(number, np.diff(own)), columns[entries], values[entries]))
        n_gathered += len(gathered[-1][0])
        done += len(run)
        if n_gathered >= ENTRIES_AT_A_TIME:
            yield _chosen(gathered)
            gathered, n_gathered = [], 0
    if gathered:
        yield _chosen(gathered)


def _chosen(
    gathered: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join entries, but for those of rows in between."""
    row, column, value = (np.concatenate(each) for each in zip(*gathered, strict=True))
    kept = row >= 0
    return row[kept], column[kept], value[kept]


def _runs(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Divide ascending rows into reads: without large gaps, and of bounded size."""
    cuts = np.flatnonzero(np.diff(rows) > GAP) + 1
    for run in np.split(rows, cuts):
        for first in range(0, len(run), CELLS_OF_READ):
            yield run[first : first + CELLS_OF_READ]


class _Window:
    """The number of the buffer that is in memory, and the thread that reads the next one.

    Parameters
    ----------
    read
        Reads the buffer of a number.
    """

    def __init__(self, read: Callable[[int], list[Tensor]]) -> None:
        self.read = read
        self.number = -1
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.ahead: dict[int, Future[list[Tensor]]] = {}

    def fill(self, number: int, tensors: Sequence[Tensor]) -> None:
        """Fill tensors with a buffer, in place, and start to read the next one."""
        if number == self.number:
            return
        self._copy(number, tensors)
        self.number = number
        # after the buffer that was read is free, so that there are two in memory, never three
        self.ahead = {number + 1: self.thread.submit(self.read, number + 1)}

    def _copy(self, number: int, tensors: Sequence[Tensor]) -> None:
        waiting = self.ahead.pop(number, None) or self.thread.submit(self.read, number)
        for tensor, values in zip(tensors, waiting.result(), strict=True):
            # in place, since a step that is recorded as a CUDA graph reads the same memory
            tensor[: len(values)].copy_(values, non_blocking=True)


@dataclass(frozen=True)
class StreamedCells(Cells):
    """Training cells of which a buffer is in memory; as a whole they are read in passes.

    The tensors of :class:`samsvae.inference.cells.Cells` hold the cells of the buffer, to which the
    indices of batches refer. Its length, moments and :meth:`batches` are of all N cells.

    Attributes
    ----------
    file
        The training cells.
    plan
        Order of the cells.
    window
        Which buffer is in memory.
    """

    file: CellFile = field(kw_only=True)
    plan: BufferPlan = field(kw_only=True)
    window: _Window = field(kw_only=True)

    @classmethod
    def of_file(
        cls, file: CellFile, plan: BufferPlan, design: Tensor, targets: tuple[Tensor, ...] = ()
    ) -> "StreamedCells":
        """Make room for the buffer on the device of the design matrix.

        Parameters
        ----------
        file
            The training cells.
        plan
            Order of the cells.
        design, targets
            As of :class:`samsvae.inference.cells.Cells`.
        """
        size, device = plan.capacity, design.device
        pin = device.type == "cuda"
        covariates = (torch.zeros(size, len(file.covariates), device=device),)
        return cls(
            counts=torch.zeros(size, file.n_genes, dtype=file.counts_type, device=device),
            library_size=torch.zeros(size, device=device),
            design=design,
            condition=torch.zeros(size, dtype=torch.long, device=device),
            covariates=covariates if len(file.covariates) else (),
            targets=targets,
            file=file,
            plan=plan,
            window=_Window(lambda number: file.read(plan.cells_of(number), pin)),
        )

    def __len__(self) -> int:
        return len(self.file)

    def fill(self, number: int) -> None:
        """Let the cells of a buffer be those in memory."""
        own = (self.counts, self.library_size, self.condition, *self.covariates)
        self.window.fill(number, own)

    def random_batches(self, size: int, seed: int) -> "StreamedBatches":
        """Return an infinite loader of shuffled batches, which fills the buffer.

        Seeds that are trained together have the same buffer, and each its own order of it. So
        their loaders must go on step by step together.
        """
        assert min(size, len(self)) == self.plan.batch_size
        return StreamedBatches(self, seed)

    def among_all(self, index: Tensor) -> Tensor:
        """Return the positions, among all N cells, of the cells at some indices of the buffer."""
        return torch.from_numpy(self.plan.cells_of(self.window.number))[index.cpu()]

    def batches(self, size: int) -> Iterator[Batch]:
        """Read all cells once, in order."""
        device = self.design.device
        parts = (
            np.arange(first, min(first + size, len(self))) for first in range(0, len(self), size)
        )
        for tensors in read_ahead(self.file.read(part) for part in parts):
            counts, library_size, condition, *covariates = (each.to(device) for each in tensors)
            yield Batch(
                counts=counts.float(),
                library_size=library_size,
                design=self.design,
                condition=condition,
                n_cells=len(self),
                covariates=tuple(covariates),
                targets=self.targets,
            )


class StreamedBatches:
    """Infinite loader of the indices of batches in the buffer, which it fills as they go on.

    Parameters
    ----------
    cells
        The training cells.
    seed
        Seed of the order within the buffer.
    """

    def __init__(self, cells: StreamedCells, seed: int) -> None:
        self.cells, self.seed = cells, seed
        self.size = cells.plan.batch_size
        self.step = 0
        self.number, self.order = -1, torch.empty(0, dtype=torch.long)

    def __next__(self) -> Tensor:
        """Return the indices of the next batch."""
        plan = self.cells.plan
        number, batch = plan.buffer_of(self.step)
        self.cells.fill(number)
        if number != self.number:
            order = torch.from_numpy(plan.order(number, self.seed))
            self.number, self.order = number, order.to(self.cells.design.device)
        self.step += 1
        return self.order[batch * self.size : (batch + 1) * self.size]

    def skip(self, number: int) -> None:
        """Pass over the next batches, without reading them."""
        self.step += number

    def state(self) -> dict[str, Tensor]:
        """Return the number of the next step, from which all else follows."""
        return {"step": torch.tensor(self.step)}

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Restore a state that :meth:`state` returned."""
        self.step = int(state["step"])


def streamed_cells(
    screen: str | Path,
    table: CellTable,
    encoding: Encoding,
    covariates: Covariates,
    batch_size: int,
    buffer_size: int | None,
    device: torch.device,
) -> tuple[StreamedCells, Cells]:
    """Prepare the cells of a training that streams them from the screen's file.

    Parameters
    ----------
    screen
        File of a canonical screen.
    table
        What the file and a split of it say of each cell.
    encoding
        Encoding of conditions.
    covariates
        Encoding of the covariates.
    batch_size
        Cells per batch.
    buffer_size
        Most cells in memory at a time, at least a batch; None for :func:`default_buffer`.
    device
        Device of the cells.

    Returns
    -------
    train : StreamedCells
        The training cells.
    validation : Cells
        The validation cells; if there are more than :data:`VALIDATION_CELLS`, as many of them at
        random, the same in every training.
    """
    rows = table.rows(TRAIN)
    refuse_no_cells("training", len(rows))
    also = encoding, covariates, type_of_counts(screen), device
    file, design, targets = _file_of(screen, table, rows, *also)
    size = buffer_size or default_buffer(file.n_genes, file.counts_type)
    block_size = max(FEWEST_IN_BLOCK, size // BLOCKS_IN_BUFFER)
    plan = BufferPlan(len(rows), min(batch_size, len(rows)), size, block_size)
    held_out = table.rows(VAL)
    if len(held_out) > VALIDATION_CELLS:
        logger.info("%d of %d validation cells are evaluated", VALIDATION_CELLS, len(held_out))
        rng = np.random.default_rng(0)
        held_out = np.sort(rng.choice(held_out, VALIDATION_CELLS, replace=False))
    train = StreamedCells.of_file(file, plan, design, targets)
    file, design, targets = _file_of(screen, table, held_out, *also)
    return train, file.on_device(design, targets)


def _file_of(
    screen: str | Path,
    table: CellTable,
    rows: np.ndarray,
    encoding: Encoding,
    covariates: Covariates,
    counts_type: torch.dtype,
    device: torch.device,
) -> tuple[CellFile, Tensor, tuple[Tensor, ...]]:
    """Describe some cells of a screen; also the design matrix of their conditions, and targets."""
    conditions, code = table.conditions(rows, encoding)
    names = [*covariates.levels, *covariates.scaling]
    file = CellFile(
        path=Path(screen),
        rows=rows,
        condition=code,
        library_size=table.library_size[rows],
        # with an index that takes no memory
        obs=pd.DataFrame(
            {name: table.obs[name].array[rows] for name in names}, pd.RangeIndex(len(rows))
        ),
        covariates=covariates,
        counts_type=counts_type,
        n_genes=len(table.genes),
        digest=table.digest,
    )
    design = torch.from_numpy(encoding.of_keys(conditions)).to(device)
    return file, design, encoding.pairs(design)


def default_buffer(n_genes: int, counts_type: torch.dtype) -> int:
    """Return the number of cells of a buffer whose size is not given."""
    return max(FEWEST_IN_BUFFER, BUFFER_BYTES // (n_genes * counts_type.itemsize))


def type_of_counts(screen: str | Path) -> torch.dtype:
    """Return the smallest type that holds every count of a screen's file; float32 for others."""
    with explain_damage(screen), h5py.File(screen, "r") as file:
        values = file["X/data"]
        if np.issubdtype(values.dtype, np.floating):
            return torch.float32
        largest = max(
            (
                int(values[first : first + VALUES_AT_A_TIME].max())
                for first in range(0, len(values), VALUES_AT_A_TIME)
            ),
            default=0,
        )
    return next(t for t in (torch.uint8, torch.int16, torch.int32) if largest <= torch.iinfo(t).max)


def is_streamed(
    cells: str, screen: str | Path, n_cells: int, n_genes: int, device: torch.device
) -> bool:
    """Decide whether training cells are streamed, and say so in the log.

    Parameters
    ----------
    cells
        The setting: ``device``, ``stream`` or ``auto``.
    screen
        File of a canonical screen.
    n_cells
        Number of its training cells.
    n_genes
        Number of its genes.
    device
        Device of the training.
    """
    available = available_memory(device)
    limit = FRACTION_OF_MEMORY * available
    size = n_cells * n_genes * torch.float32.itemsize
    if size > limit:  # the smallest type is known only from the counts
        size = n_cells * n_genes * type_of_counts(screen).itemsize
    streamed = cells == "stream" or (cells == "auto" and size > limit)
    logger.info(
        "training cells are %s (training.cells: %s); their counts take at most %.2g GiB, and %.3g "
        "GiB of memory are available",
        "streamed from the file" if streamed else "in memory",
        cells, size / 2**30, available / 2**30,
    )  # fmt: skip
    return streamed
