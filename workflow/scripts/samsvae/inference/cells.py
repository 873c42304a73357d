"""Cells for training and evaluation: encoded, in batches on the device or streamed from files."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

from samsvae.models.base import Batch
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import BATCH, CONTEXT, counts_in_blocks
from samsvae.screen.design import Design
from samsvae.screen.labels import doses, label_of
from samsvae.screen.splits import CellsOfSplit

# elements, of cells x genes
LARGEST_BLOCK = 4_000_000  # while counts become dense
LARGEST_STREAMED_BLOCK = 400_000
CELLS_AT_A_TIME = 4096  # of a pass over all cells


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
    targets
        Pairs of a perturbation and a gene that it targets, both as indices, in the order of
        perturbations; empty for a model without on-target effects.
    in_contexts
        Perturbation (its index) and context of each effect in one context alone, which follow the
        perturbations as columns of the design matrix; empty for a model whose effects all contexts
        share.
    """

    names: tuple[str, ...]
    combinations: str = "additive"
    targets: tuple[tuple[int, int], ...] = ()
    in_contexts: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(
        cls,
        design: Design,
        combinations: str,
        genes: Sequence[str] = (),
        contexts: pd.Series | None = None,
    ) -> "Encoding":
        """Create the encoding of the perturbations of a design matrix.

        Parameters
        ----------
        design
            Design matrix of a screen.
        combinations
            As for the class.
        genes
            Genes among which the targets are; without them there are no targets.
        contexts
            Context of each training cell of the design matrix, missing for other cells; None for
            effects that all contexts share. A perturbation has effects of its own in the contexts
            of its training cells, if there are several.
        """
        names = tuple(design.names)
        if combinations == "unique":
            names = tuple(sorted(set().union(*map(_as_one, design.conditions()[1]))))
        column = {gene: index for index, gene in enumerate(genes)}
        targets = tuple(
            (index, column[target])
            for index, name in enumerate(names)
            for target in doses(name)
            if target in column
        )
        encoding = cls(names, combinations, targets)
        if contexts is None:
            return encoding
        codes, conditions = design.conditions()
        present = pd.DataFrame({"code": codes.codes, "context": contexts.astype(object)}).dropna()
        rows = encoding.rows(conditions)[present["code"]] != 0
        found = [
            (index, context)
            for index in range(len(names))
            for own in [sorted(set(present["context"][rows[:, index]]))]
            if len(own) > 1
            for context in own
        ]
        encoding = replace(encoding, in_contexts=tuple(found))
        if len(set(encoding.effects)) < len(encoding.effects):
            twice = pd.Series(encoding.effects).mode()[0]
            raise InputError(
                f"context_effects: {twice!r} would name two effects; rename perturbations or "
                "contexts so that none is called 'a in b'."
            )
        return encoding

    @property
    def effects(self) -> tuple[str, ...]:
        """Names of the columns of the design matrix: perturbations, then those in a context."""
        return *self.names, *(f"{self.names[t]} in {context}" for t, context in self.in_contexts)

    @property
    def shared_effects(self) -> list[int]:
        """Perturbation of each of :attr:`in_contexts`."""
        return [perturbation for perturbation, _ in self.in_contexts]

    @property
    def target_genes(self) -> list[int]:
        """Gene of each pair of :attr:`targets`."""
        return [gene for _, gene in self.targets]

    def pairs(self, design: Tensor) -> tuple[Tensor, ...]:
        """Find the pairs of a perturbation and its target of each condition.

        Parameters
        ----------
        design
            Rows of the model's design matrix, conditions x T.

        Returns
        -------
        tuple of Tensor
            As of :attr:`samsvae.models.base.Batch.targets`, on the device of the design matrix;
            nothing without targets.
        """
        if not self.targets:
            return ()
        perturbation = np.array([index for index, _ in self.targets])
        number = np.bincount(perturbation, minlength=len(self.effects))
        first = np.cumsum(number) - number
        doses_of = design.cpu().numpy()
        row, column = np.nonzero(doses_of)
        row, column = (np.repeat(each, number[column]) for each in (row, column))
        # position of a pair among those of its perturbation, and of its condition
        among = pd.DataFrame({"row": row, "column": column}).groupby(["row", "column"]).cumcount()
        position = pd.Series(row).groupby(row).cumcount().to_numpy()
        shape = len(doses_of), int(position.max(initial=0)) + 1
        pairs, dose = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        pairs[row, position] = first[column] + among.to_numpy()
        dose[row, position] = doses_of[row, column]
        return torch.from_numpy(pairs).to(design.device), torch.from_numpy(dose).to(design.device)

    def design(self, labels: Sequence[str], contexts: Sequence[str] | None = None) -> np.ndarray:
        """Encode canonical labels as rows of the model's design matrix, as :meth:`rows`."""
        return self.rows([doses(label) for label in labels], contexts)

    def conditions(
        self, design: Design, obs: pd.DataFrame
    ) -> tuple[pd.MultiIndex, dict[tuple[str, str], dict[str, float]]]:
        """Find the distinct conditions of cells, contexts included if effects depend on them.

        Parameters
        ----------
        design
            Design matrix of the cells.
        obs
            Columns of the cells, the context among them if the model has effects in contexts.

        Returns
        -------
        keys : MultiIndex
            Label and context of each cell; an empty context if all share the effects.
        conditions : dict
            Dose by perturbation, of each distinct key, sorted.
        """
        labels, found = design.conditions()
        context = obs[CONTEXT].astype(str) if self.in_contexts else [""] * len(labels)
        keys = pd.MultiIndex.from_arrays([labels, context])
        known = dict(zip(labels.categories, found, strict=True))
        return keys, {key: known[key[0]] for key in sorted(set(keys))}

    def of_keys(self, conditions: Mapping[tuple[str, str], Mapping[str, float]]) -> np.ndarray:
        """Encode what :meth:`conditions` found as rows of the model's design matrix."""
        return self.rows(list(conditions.values()), [context for _, context in conditions])

    def knows(self, condition: Mapping[str, float]) -> bool:
        """Whether the model has all perturbations of a condition."""
        given = condition if self.combinations == "additive" else _as_one(condition)
        return set(given) <= set(self.names)

    def rows(
        self, conditions: Sequence[Mapping[str, float]], contexts: Sequence[str] | None = None
    ) -> np.ndarray:
        """Encode conditions as rows of the model's design matrix.

        Parameters
        ----------
        conditions
            Dose by perturbation; empty for control.
        contexts
            Context of each; None for the effects that all contexts share.

        Returns
        -------
        ndarray of float32
            Conditions x T, or T and the effects in contexts.

        Raises
        ------
        KeyError
            If a condition has a perturbation that is not in `names`.
        """
        column = {name: index for index, name in enumerate(self.names)}
        own = {pair: len(self.names) + index for index, pair in enumerate(self.in_contexts)}
        rows = np.zeros((len(conditions), len(self.effects)), dtype=np.float32)
        for row, condition in enumerate(conditions):
            given = condition if self.combinations == "additive" else _as_one(condition)
            for name, dose in given.items():
                rows[row, column[name]] = dose
                if contexts is not None and (pair := (column[name], contexts[row])) in own:
                    rows[row, own[pair]] = dose
        return rows


def _as_one(condition: Mapping[str, float]) -> Mapping[str, float]:
    """Treat a combination as a single perturbation, named by its label."""
    return condition if len(condition) < 2 else {label_of(condition): 1.0}


@dataclass(frozen=True)
class Covariates:
    """Encoding of covariates of cells as inputs of a model's encoder and decoder.

    A categorical covariate, such as the batch, has an input for each level, 1 for the cells of this
    level and 0 for others. A continuous one is standardised.

    Attributes
    ----------
    levels
        Levels of each categorical column of obs.
    scaling
        Mean and standard deviation over training cells of each continuous column of obs.
    strata
        Levels that occur together in training cells, one per categorical column.
    frequency
        Fraction of the training cells in each stratum.
    """

    levels: dict[str, list[str]] = field(default_factory=dict)
    scaling: dict[str, tuple[float, float]] = field(default_factory=dict)
    strata: list[list[str]] = field(default_factory=lambda: [[]])
    frequency: list[float] = field(default_factory=lambda: [1.0])

    @classmethod
    def of(cls, obs: pd.DataFrame, columns: Sequence[str] | None) -> "Covariates":
        """Create the encoding of the covariates of training cells.

        Parameters
        ----------
        obs
            Training cells of a canonical screen.
        columns
            Columns of obs; None for batch and context, where the screen has them. Columns with
            one value have no input.

        Raises
        ------
        InputError
            If there is no such column, or a value is missing or infinite.
        """
        if columns is None:
            columns = [name for name in (BATCH, CONTEXT) if name in obs]
        levels, scaling = {}, {}
        refuse_unknown_covariates(columns, obs)
        for name in columns:
            if obs[name].isna().any():
                raise InputError(
                    f"covariates: {int(obs[name].isna().sum())} training cells have no {name!r}."
                )
            if obs[name].nunique() < 2:
                continue
            if _is_continuous(obs[name]):
                values = _finite_or_missing(obs, name)
                scaling[name] = float(values.mean()), float(values.std())
            else:
                levels[name] = sorted(obs[name].astype(str).unique())
        if not levels:
            return cls(levels, scaling)
        number = obs[list(levels)].astype(str).value_counts(normalize=True).sort_index()
        return cls(levels, scaling, [list(key) for key in number.index], number.tolist())

    def __len__(self) -> int:
        """Return the number of inputs."""
        return sum(map(len, self.levels.values())) + len(self.scaling)

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """Encode the covariates of cells, cells x inputs, float32.

        A cell whose level no training cell has, or whose level is missing, gets 0 for all levels; a
        missing number is the mean over training cells.

        Raises
        ------
        InputError
            If a value is infinite or not numeric.
        """
        parts: list[np.ndarray] = [np.zeros((len(obs), 0), dtype=np.float32)]
        for name, levels in self.levels.items():
            code = pd.Index(levels).get_indexer(obs[name].astype(str))
            rows = np.eye(len(levels) + 1, len(levels), dtype=np.float32)
            parts.append(rows[code])  # the last row, 0, for -1
        for name, (mean, deviation) in self.scaling.items():
            standardised = (_finite_or_missing(obs, name) - mean) / deviation
            parts.append(np.nan_to_num(standardised)[:, None])
        return np.concatenate(parts, axis=1).astype(np.float32)

    def on_device(self, obs: pd.DataFrame, device: torch.device) -> tuple[Tensor, ...]:
        """Encode covariates on a device, as the only item; nothing without covariates."""
        return (torch.from_numpy(self.encode(obs)).to(device),) if len(self) else ()

    def stratum(self, obs: pd.DataFrame) -> np.ndarray:
        """Find the stratum of each cell, -1 for one that no training cell is in."""
        if not self.levels:
            return np.zeros(len(obs), dtype=np.int64)
        strata = pd.MultiIndex.from_tuples(map(tuple, self.strata))
        keys = [obs[name].astype(str) for name in self.levels]
        return strata.get_indexer(pd.MultiIndex.from_arrays(keys))

    @property
    def contexts(self) -> list[str | None]:
        """Context of each stratum; None for all if the context is no covariate."""
        if CONTEXT not in self.levels:
            return [None] * len(self.strata)
        return [stratum[list(self.levels).index(CONTEXT)] for stratum in self.strata]

    def of_strata(self) -> np.ndarray:
        """Encode the strata, strata x inputs, with continuous covariates at their means."""
        obs = pd.DataFrame(self.strata, columns=list(self.levels))
        return self.encode(obs.assign(**{name: mean for name, (mean, _) in self.scaling.items()}))


def refuse_unknown_covariates(columns: Iterable[str], known: Collection[str]) -> None:
    """Refuse covariates that are no columns of obs.

    Raises
    ------
    InputError
        Naming the first of them and the columns that there are.
    """
    for name in columns:
        if name not in known:
            raise InputError(
                f"covariates: the screen has no column {name!r}; it has {', '.join(known)}."
            )


def _is_continuous(column: pd.Series) -> bool:
    is_number = pd.api.types.is_numeric_dtype(column)
    return is_number and not pd.api.types.is_bool_dtype(column)


def _finite_or_missing(obs: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column of numbers as float64, NaN where one is missing; refuse others."""
    try:
        values = obs[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"covariates: {name!r} is a number in the training cells; here it is not ({error})."
        ) from error
    number = int(np.isinf(values).sum())
    if number:
        raise InputError(
            f"covariates: {name!r} is infinite in {number} cells. Give each a finite number, or "
            "leave the value out."
        )
    return values


NO_COVARIATES = Covariates()


def sizes_of(encoding: Encoding, covariates: Covariates) -> tuple[int, int, list[int], list[int]]:
    """Return the sizes of a model after its genes, as :func:`samsvae.models.build_model` takes."""
    of_targets, shared = encoding.target_genes, encoding.shared_effects
    return len(encoding.names), len(covariates), of_targets, shared


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
