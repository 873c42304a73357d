"""Strata of cells, such as batches, and effects of perturbations within them.

Cells of different batches differ in expression and depth. If the fraction of a perturbation's cells
in a batch differs from that of the control cells, the plain difference contains the difference of
batches. Here each batch compares its own cells. With one stratum, effects are the plain difference.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.evaluation.expression import Expression, matrices
from samsvae.screen.canonical import BATCH, CONTEXT
from samsvae.screen.labels import CONTROL

LEFT_OUT = -1  # group of a cell that is in no comparison


@dataclass(frozen=True)
class Strata:
    """Groups and strata of cells.

    Attributes
    ----------
    group
        Index of each cell's perturbation; `n_groups` for control cells, -1 for cells to leave out.
    stratum
        Index of each cell's stratum, such as its batch.
    n_groups
        Number of perturbations.
    min_controls
        Smallest number of control cells of a stratum; others are not compared.
    """

    group: np.ndarray
    stratum: np.ndarray
    n_groups: int
    min_controls: int = 1

    @classmethod
    def of(
        cls,
        labels: pd.Series,
        names: Sequence[str],
        stratum: np.ndarray | None = None,
        min_controls: int = 1,
    ) -> "Strata":
        """Group cells by perturbation.

        Parameters
        ----------
        labels
            Perturbation of each cell; cells of others than `names` and control are left out.
        names
            Perturbations.
        stratum
            Stratum of each cell; None for a single one.
        min_controls
            As for the class; without effect if there is a single stratum.
        """
        group = pd.Index([*names, CONTROL]).get_indexer(labels.astype(str))
        number = np.zeros(len(labels), dtype=np.int64) if stratum is None else stratum
        several = len(number) > 0 and bool((number != number[0]).any())
        return cls(group, number, len(names), min_controls if several else 1)

    @property
    def sizes(self) -> np.ndarray:
        """Number of cells, strata x groups, control last."""
        n_strata = int(self.stratum.max(initial=-1)) + 1
        kept = self.group != LEFT_OUT
        sizes = np.zeros((n_strata, self.n_groups + 1), dtype=np.int64)
        np.add.at(sizes, (self.stratum[kept], self.group[kept]), 1)
        return sizes

    @property
    def compared(self) -> np.ndarray:
        """Number of compared cells, strata x perturbations: 0 where there are too few controls."""
        sizes = self.sizes
        enough = sizes[:, -1:] >= max(self.min_controls, 1)
        return np.where(enough, sizes[:, :-1], 0)


def knows_strata(screen: anndata.AnnData) -> bool:
    """Whether a screen names batches or contexts of its cells."""
    return BATCH in screen.obs or CONTEXT in screen.obs


def strata_of_cells(screen: anndata.AnnData, by_batch: bool, depth_bins: int = 1) -> np.ndarray:
    """Assign cells to strata by batch and context, and by depth within these.

    Parameters
    ----------
    screen
        Canonical screen.
    by_batch
        Whether batches, and contexts such as cell lines, are strata.
    depth_bins
        Number of bins of the library size, between quantiles of the control cells of a batch.

    Returns
    -------
    ndarray of int
        Stratum of each cell, from 0.
    """
    batch = np.zeros(screen.n_obs, dtype=np.int64)
    named = [name for name in (CONTEXT, BATCH) if name in screen.obs]
    if by_batch and named:
        of_cell = screen.obs.groupby([screen.obs[name].astype(str) for name in named], sort=True)
        batch = of_cell.ngroup().to_numpy(dtype=np.int64)
    if depth_bins == 1:
        return batch
    library_size = screen.obs["library_size"].to_numpy(dtype=np.float64)
    is_control = (screen.obs["perturbation"] == CONTROL).to_numpy()
    levels = np.linspace(0, 1, depth_bins + 1)[1:-1]
    depth = np.zeros(screen.n_obs, dtype=np.int64)
    for own in np.unique(batch):
        inside = batch == own
        if (inside & is_control).any():
            limits = np.quantile(library_size[inside & is_control], levels)
            depth[inside] = np.searchsorted(limits, library_size[inside], side="right")
    return batch * depth_bins + depth


def stratified_effects(
    expression: sparse.csr_matrix | Expression, strata: Strata
) -> tuple[np.ndarray, np.ndarray]:
    """Average the differences from control within strata, weighted by the perturbation's cells.

    Parameters
    ----------
    expression
        Cells x genes, log2(CP10k + 1).
    strata
        Groups and strata of the cells.

    Returns
    -------
    effect, standard_error : ndarray
        Perturbations x genes; NaN for a perturbation that is compared in no stratum. The standard
        error needs two cells of the perturbation in a stratum: the variance of a single cell is
        taken from the perturbation's other strata, or else from the control cells of its own.
    """
    effects, errors = zip(
        *(_effects_of_part(part, strata) for part in matrices(expression)), strict=True
    )
    return np.concatenate(effects, axis=1), np.concatenate(errors, axis=1)


def _effects_of_part(
    expression: sparse.csr_matrix, strata: Strata
) -> tuple[np.ndarray, np.ndarray]:
    """Compute :func:`stratified_effects` of some genes."""
    compared, sizes = strata.compared, strata.sizes
    n_strata, n_genes = len(compared), expression.shape[1]
    effect = np.full((strata.n_groups, n_genes), np.nan)
    error = np.full((strata.n_groups, n_genes), np.nan)
    controls = {
        stratum: moments(
            expression[(strata.group == strata.n_groups) & (strata.stratum == stratum)]
        )
        for stratum in np.flatnonzero(compared.any(axis=1))
    }
    known = np.flatnonzero(compared.sum(axis=0))
    for groups in blocks_of_groups(known, compared, n_genes):
        number = compared[:, groups]
        place = np.full(strata.n_groups + 1, -1)
        place[groups] = np.arange(len(groups))
        # cells of a block by stratum and group; those that are not compared are left out
        own = place[strata.group]
        own[(own >= 0) & (number[strata.stratum, own] == 0)] = -1
        bucket = np.where(own >= 0, strata.stratum * len(groups) + own, -1)
        means, variances = grouped_moments(expression, bucket, number.size)
        means, variances = (m.reshape(n_strata, len(groups), -1) for m in (means, variances))
        several = np.where(number > 1, number - 1, 0)
        degrees = several.sum(axis=0)
        pooled = np.zeros((len(groups), n_genes))
        for stratum in np.flatnonzero(several.any(axis=1)):
            pooled += several[stratum][:, None] * variances[stratum]
        pooled /= np.maximum(degrees, 1)[:, None]
        mean, variance = np.zeros((len(groups), n_genes)), np.zeros((len(groups), n_genes))
        for stratum in np.flatnonzero(number.any(axis=1)):
            rows = np.flatnonzero(number[stratum])
            n_cells = number[stratum, rows][:, None]
            control_mean, control_variance = controls[stratum]
            weight = n_cells / number[:, rows].sum(axis=0)[:, None]
            instead = np.where((degrees[rows] > 0)[:, None], pooled[rows], control_variance)
            spread = np.where(n_cells == 1, instead, variances[stratum, rows])
            of_control = control_variance / sizes[stratum, -1]
            mean[rows] += weight * (means[stratum, rows] - control_mean)
            variance[rows] += weight**2 * (spread / n_cells + of_control)
        effect[groups], error[groups] = mean, np.sqrt(variance)
    return effect, error


LARGEST_BLOCK = 2**22  # elements, of groups in strata x genes


def blocks_of_groups(
    groups: np.ndarray, compared: np.ndarray, n_genes: int
) -> Iterator[np.ndarray]:
    """Divide groups so that their strata x genes stay below :data:`LARGEST_BLOCK`."""
    step = max(1, LARGEST_BLOCK // max(len(compared) * n_genes, 1))
    for first in range(0, len(groups), step):
        yield groups[first : first + step]


def moments(cells: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and variance of each gene; the variance of a single cell is 0."""
    mean, variance = grouped_moments(cells, np.zeros(cells.shape[0], dtype=np.int64), 1)
    return mean[0], variance[0]


def grouped_moments(
    cells: sparse.csr_matrix, group: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and variance of each gene in groups of cells.

    Parameters
    ----------
    cells
        Cells x genes.
    group
        Group of each cell, -1 for none.
    n_groups
        Number of groups.

    Returns
    -------
    mean, variance : ndarray
        Groups x genes; the variance of a single cell, and both of a group without cells, are 0.
    """
    inside = np.flatnonzero(group >= 0)
    own, group = cells[inside].astype(np.float64), group[inside]
    number = np.bincount(group, minlength=n_groups)[:, None]
    shape = n_groups, len(inside)
    positions = np.arange(len(inside))
    fractions = sparse.csr_matrix((1.0 / number[group, 0], (group, positions)), shape)
    ones = sparse.csr_matrix((np.ones(len(inside)), (group, positions)), shape)
    mean = (fractions @ own).toarray()
    squares = (ones @ own.multiply(own)).toarray()
    variance = np.clip(squares - number * mean**2, 0, None) / np.maximum(number - 1, 1)
    return mean, variance
