"""What a screen's file says of each cell beside its counts, in a few bytes a cell.

Trainings that stream their cells read this instead of the whole screen: names of cells and the
design matrix are read block by block, and none is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from samsvae.inference.cells import read_columns, read_design
from samsvae.inference.encoding import Encoding, refuse_unknown_covariates
from samsvae.screen.canonical import BATCH, CONTEXT
from samsvae.screen.design import Design
from samsvae.screen.splits import TEST, TRAIN, UNUSED, VAL, CellsOfSplit, shuffled_cells
from samsvae.screen.validation import check_labels
from samsvae.sources.storage import check_length, explain_damage

PARTS = (TRAIN, VAL, TEST, UNUSED)
SCANNED_CELLS = 20_000  # in a block
PERTURBATION = "perturbation"  # column of obs


@dataclass(frozen=True)
class CellTable:
    """Part, label, library size and covariates of each cell of a screen.

    Attributes
    ----------
    genes
        Names of the genes.
    part
        Part of the split, with the categories of :data:`PARTS`.
    label
        Label of the condition of each cell.
    doses
        Dose by perturbation of each label, in the order of the categories of `label`.
    library_size
        Counts of each cell, float32.
    obs
        Columns of covariates and the context, as codes of categories or as numbers.
    digest
        Digest of the screen's content.
    """

    genes: list[str]
    part: pd.Categorical
    label: pd.Categorical
    doses: list[dict[str, float]]
    library_size: np.ndarray
    obs: pd.DataFrame
    digest: str

    @classmethod
    def read(
        cls, screen: str | Path, split: str | Path, covariates: Sequence[str] | None
    ) -> "CellTable":
        """Read the table of a screen and one of its splits, block by block.

        Parameters
        ----------
        screen
            File of a canonical screen.
        split
            File of one of its splits.
        covariates
            Columns of obs that a model takes; None for batch and context.

        Raises
        ------
        InputError
            If a file is damaged, if there is no such covariate, if the split is of another screen,
            or if the label of a cell is not that of its row of the design matrix.
        """
        with explain_damage(screen), h5py.File(screen, "r") as file:
            columns = [str(name) for name in file["obs"].attrs["column-order"]]
            refuse_unknown_covariates(covariates or (), columns)
            wanted = {BATCH, CONTEXT} if covariates is None else {CONTEXT, *covariates}
            wanted &= set(columns)
            obs = read_columns(file, sorted(wanted | {PERTURBATION}))
            label = pd.Categorical(obs[PERTURBATION]).remove_unused_categories()
            obs = obs[sorted(wanted)]
            _check_lengths(file, len(obs), str(screen))
            part = np.empty(len(obs), dtype=np.int8)
            library_size = np.empty(len(obs), dtype=np.float32)
            doses: dict[str, dict[str, float]] = {}
            first = 0
            for block in CellsOfSplit(Path(split), Path(screen), SCANNED_CELLS):
                rows = slice(first, first + len(block))
                written, found = read_design(file, rows.start, rows.stop).conditions()
                check_labels(written, label[rows], block["cell"], str(screen), first)
                doses |= dict(zip(written.categories, found, strict=True))
                part[rows] = pd.Categorical(block["split"], categories=list(PARTS)).codes
                library_size[rows] = file["obs/library_size"][rows]
                first = rows.stop
            return cls(
                genes=list(file["var"][file["var"].attrs["_index"]].asstr()[:]),
                part=pd.Categorical.from_codes(part, categories=list(PARTS)),
                label=label,
                doses=[doses[name] for name in label.categories],
                library_size=library_size,
                obs=obs,
                digest=digest_in(file),
            )

    def rows(self, part: str) -> np.ndarray:
        """List the rows of the cells of a part, ascending."""
        chosen = np.flatnonzero(self.part == part)
        return chosen.astype(np.int32 if len(self.part) <= np.iinfo(np.int32).max else np.int64)

    def with_shuffled_labels(self, seed: int) -> "CellTable":
        """Permute the labels as :func:`samsvae.screen.splits.shuffled_cells` does."""
        return replace(self, label=self.label[shuffled_cells(pd.Series(self.part), seed)])

    def encoding(self, combinations: str, genes: Sequence[str], by_context: bool) -> Encoding:
        """Create the encoding of the perturbations.

        Parameters
        ----------
        combinations, genes
            As of :meth:`samsvae.inference.encoding.Encoding.of`.
        by_context
            Whether perturbations have effects of their own in the contexts of their training cells.
        """
        codes, contexts = np.arange(len(self.doses)), None
        if by_context:
            of_pairs, names = self._pairs(self.rows(TRAIN))
            label, context = np.divmod(np.flatnonzero(np.bincount(of_pairs)), len(names))
            missing: list[str | None] = [None] * len(codes)
            contexts = pd.Series([*missing, *(names[at] for at in context)], dtype=object)
            codes = np.concatenate([codes, label])
        return Encoding.of(Design.of_conditions(self.doses, codes), combinations, genes, contexts)

    def conditions(
        self, rows: np.ndarray, encoding: Encoding
    ) -> tuple[dict[tuple[str, str], dict[str, float]], np.ndarray]:
        """Find the distinct conditions of some cells.

        Parameters
        ----------
        rows
            Rows of the cells.
        encoding
            Encoding of conditions.

        Returns
        -------
        conditions : dict
            As of :meth:`samsvae.inference.encoding.Encoding.conditions`.
        code : ndarray
            Position of each cell's condition among them, in the smallest type of integers.
        """
        pairs, names = self._pairs(rows) if encoding.in_contexts else (self.label.codes[rows], [""])
        present = np.flatnonzero(np.bincount(pairs))
        label, context = np.divmod(present, len(names))
        keys = [
            (str(self.label.categories[at]), names[in_context])
            for at, in_context in zip(label, context, strict=True)
        ]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        code = np.zeros(present.max(initial=0) + 1, dtype=np.min_scalar_type(len(keys)))
        code[present[order]] = np.arange(len(keys))
        return {keys[at]: self.doses[label[at]] for at in order}, code[pairs]

    def _pairs(self, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Encode the label and context of some cells as one number; list the contexts."""
        context = pd.Categorical(self.obs[CONTEXT].iloc[rows].astype(str))
        names = list(context.categories)
        return self.label.codes[rows].astype(np.int64) * len(names) + context.codes, names


def digest_in(screen: h5py.File) -> str:
    """Read the digest of the content of a screen's file."""
    return str(screen["uns/content_digest"].asstr()[()])


def _check_lengths(screen: h5py.File, n_cells: int, where: str) -> None:
    """Refuse counts and library sizes that are not those of all cells, by the name of an array."""
    n_entries = int(screen["X/indptr"][-1])
    lengths = {
        "obs/library_size": (n_cells, "cells"),
        "X/indptr": (n_cells + 1, "edges of rows"),
        "X/indices": (n_entries, "entries of the matrix"),
        "X/data": (n_entries, "entries of the matrix"),
    }
    for name, (expected, of_what) in lengths.items():
        check_length(len(screen[name]), expected, f"{where}: {name!r}", of_what)
