"""The design matrix of a screen, its conditions and their labels; guides of cells.

A condition is a distinct row of the design matrix. Labels of conditions are derived from these
rows; they are parsed only where a source or a user gives perturbations by labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.screen.labels import doses, label_of

if TYPE_CHECKING:
    import anndata

JOINED_GUIDES = "|"  # joins the guides of a cell in obs


@dataclass(frozen=True)
class Design:
    """Design matrix of cells.

    Attributes
    ----------
    matrix
        Cells x perturbations, float32 CSR: 0, 1 or the dose.
    names
        Names of the perturbations, in alphabetical order; each has a cell.
    """

    matrix: sparse.csr_matrix
    names: list[str]

    @classmethod
    def of(cls, matrix: np.ndarray | sparse.spmatrix, names: Sequence[str] | np.ndarray) -> Design:
        """Sort the columns of a matrix by name, and drop columns of zeros."""
        rows = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        held = np.flatnonzero(rows.getnnz(axis=0))
        order = held[np.argsort(np.array(names, dtype=object)[held])]
        if not np.array_equal(order, np.arange(len(names))):
            rows = rows[:, order]
            rows.sort_indices()
        return cls(rows, [str(names[at]) for at in order])

    @classmethod
    def of_conditions(cls, conditions: Sequence[Mapping[str, float]], codes: np.ndarray) -> Design:
        """Build the design matrix of cells from their conditions.

        Parameters
        ----------
        conditions
            Dose by perturbation; empty for control.
        codes
            Index of the condition of each cell.
        """
        names = sorted(set().union(*conditions))
        column = {name: at for at, name in enumerate(names)}
        indptr = np.cumsum([0, *map(len, conditions)])
        indices = [column[name] for condition in conditions for name in condition]
        data = [dose for condition in conditions for dose in condition.values()]
        shape = len(conditions), len(names)
        rows = sparse.csr_matrix((np.array(data, np.float32), indices, indptr), shape=shape)
        return cls.of(rows[codes], names)

    @classmethod
    def of_labels(cls, labels: Sequence[str] | pd.Categorical) -> Design:
        """Parse canonical labels of cells, each distinct one once."""
        written = pd.Categorical(labels)
        return cls.of_conditions(list(map(doses, written.categories)), written.codes)

    @classmethod
    def of_screen(cls, screen: anndata.AnnData) -> Design:
        """Return the design matrix of a canonical screen, or of some of its cells."""
        return cls.of(screen.obsm["dosage"], screen.uns["perturbations"])

    def __getitem__(self, cells: np.ndarray) -> Design:
        """Select some cells and their perturbations."""
        return self.of(self.matrix[cells], self.names)

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def n_perturbations(self) -> np.ndarray:
        """Number of perturbations of each cell; 0 for control cells."""
        return np.diff(self.matrix.indptr)

    def labels(self) -> pd.Categorical:
        """Derive the label of each cell from its row."""
        return self.conditions()[0]

    def conditions(self) -> tuple[pd.Categorical, list[dict[str, float]]]:
        """Find the distinct rows.

        Returns
        -------
        labels : Categorical
            Label of each cell; the categories are in alphabetical order.
        doses : list of dict
            Dose by perturbation, of each category.
        """
        codes, rows = group_rows(self.matrix)
        found = []
        for row in rows:
            span = span_of_row(self.matrix, row)
            named = [self.names[at] for at in self.matrix.indices[span]]
            found.append(dict(zip(named, self.matrix.data[span].tolist(), strict=True)))
        written = list(map(label_of, found))
        labels, doses_of = categories_of(codes, written), dict(zip(written, found, strict=True))
        return labels, [doses_of[label] for label in labels.categories]


@dataclass(frozen=True)
class Guides:
    """Guides of cells, and the genes that they target.

    Attributes
    ----------
    table
        ``guide``, ``target`` and ``kind`` of each guide.
    present
        Cells x guides, 1 where a cell has the guide.
    """

    table: pd.DataFrame
    present: sparse.csr_matrix

    def of(self, cells: np.ndarray) -> Guides:
        """Select some cells and their guides."""
        present = self.present[cells]
        held = np.flatnonzero(np.asarray(present.sum(axis=0)).ravel() > 0)
        table = self.table.iloc[held].reset_index(drop=True)
        return Guides(table, sparse.csr_matrix(present[:, held]))

    def names(self) -> pd.Categorical:
        """Join the names of each cell's guides; an empty string for a cell without guides."""
        guides = self.table["guide"].to_numpy(dtype=object)
        codes, rows = group_rows(self.present)
        joined = [
            JOINED_GUIDES.join(
                guides[np.sort(self.present.indices[span_of_row(self.present, row)])]
            )
            for row in rows
        ]
        return categories_of(codes, joined)


def span_of_row(matrix: sparse.csr_matrix, row: int) -> slice:
    """Return the slice of the entries of a row of a sparse matrix."""
    return slice(matrix.indptr[row], matrix.indptr[row + 1])


def group_rows(matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct rows of a sparse matrix with sorted indices.

    Parameters
    ----------
    matrix
        In canonical form.

    Returns
    -------
    codes : ndarray of int
        Index of each row's distinct row.
    rows : ndarray of int
        First occurrence of each distinct row.
    """
    # two random projections modulo 2**64: collisions have a probability of 2**-128 a pair
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2**63, (2, matrix.shape[1] + 1), dtype=np.uint64) * 2 + 1
    bits = matrix.data.astype(np.float32).view(np.uint32).astype(np.uint64) + 1
    sums = np.zeros((matrix.shape[0], 2), dtype=np.uint64)
    edges = matrix.indptr.astype(np.int64)
    for number, weight in enumerate(weights):
        mixed = weight[matrix.indices] * bits
        mixed ^= mixed >> np.uint64(29)
        totals = np.concatenate([[np.uint64(0)], np.cumsum(mixed * weight[-1], dtype=np.uint64)])
        sums[:, number] = totals[edges[1:]] - totals[edges[:-1]]
    frame = pd.DataFrame(sums)
    codes = frame.groupby([0, 1], sort=False).ngroup().to_numpy()
    rows = np.flatnonzero(~pd.Series(codes).duplicated().to_numpy())
    return codes, rows


def categories_of(codes: np.ndarray, labels: Sequence[str]) -> pd.Categorical:
    """Build a categorical from codes of labels, which may repeat; each label has a cell."""
    known = sorted(set(labels))
    index = {label: at for at, label in enumerate(known)}
    mapped = np.array([index[label] for label in labels], dtype=np.int64)
    return pd.Categorical.from_codes(mapped[codes], known)
