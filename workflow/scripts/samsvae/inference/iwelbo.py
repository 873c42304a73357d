"""The importance-weighted bound of single cells (Burda et al. 2016), and of fewer particles."""

import logging
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor

from samsvae.inference.cells import Cells, CellStream
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import draw_shifts, log_importance_weights
from samsvae.models.base import PerturbationModel
from samsvae.runtime.progress import CellProgress

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 2048  # particles x cells
LARGEST_BATCH = 1 << 27  # particles x cells x genes, on a GPU
FEWEST_GROUPS = 10  # for an empirical standard error; fewer groups are of ten particles or more


def iwelbo(
    model: PerturbationModel, cells: Cells, particles: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the predictive bound of each cell.

    The global variables are drawn once from the guide, shared by all cells, and not scored:
    log 1/Q sum_q exp[log p(x | z_q, l) + log p(z_q) - log q(z_q | x)].

    Parameters
    ----------
    model
        Model and guide.
    cells
        Held-out cells. A cell's bound is the same, but for rounding, whatever their order and
        whatever other cells there are.
    particles
        Q.
    seed
        Seed of the samples.

    Returns
    -------
    bound, standard_error : ndarray
        Of each cell, in nats; the error is that of the Monte-Carlo estimate, by the delta method.
    """
    shifts = _shifts(model, cells.design, particles, seed)
    bound, error = np.empty(len(cells)), np.empty(len(cells))
    for here, weights in log_weights_in_batches(model, cells, shifts, seed):
        bound[here], error[here] = _summarise(weights)
    return bound, error


class StreamedBounds:
    """Bounds of single cells, as :func:`iwelbo`, and mean bounds of parts, of streamed cells.

    Memory does not grow with the number of cells.

    Parameters
    ----------
    model
        Model and guide.
    cells
        Held-out cells, in files.
    particles
        Q.
    seed
        Seed of the samples.
    """

    def __init__(
        self, model: PerturbationModel, cells: CellStream, particles: int, seed: int
    ) -> None:
        self.model, self.cells = model, cells
        self.particles, self.seed = particles, seed
        self.means = {part: MeanBounds(particles) for part in sorted(cells.parts)}

    def tables(self) -> Iterator[pd.DataFrame]:
        """Go through all cells once.

        Yields
        ------
        DataFrame
            Rows of the split's table, with ``iwelbo`` and ``standard_error`` in nats. Without a
            cell, there is one table without a row.
        """
        shifts = _shifts(self.model, self.cells.design, self.particles, self.seed)
        progress = CellProgress(self.cells.n_cells)
        for table, cells in self.cells.blocks():
            part = table["split"].to_numpy()
            bound, error = np.empty(len(cells)), np.empty(len(cells))
            for here, weights in log_weights_in_batches(self.model, cells, shifts, self.seed):
                bound[here], error[here] = _summarise(weights)
                for name, mean in self.means.items():
                    mean.add(weights[:, part[here] == name])
            yield table.assign(iwelbo=bound, standard_error=error)
            progress.advance(len(cells))
        if progress.done == 0:
            yield pd.DataFrame(columns=["cell", "perturbation", "library_size", "split"]).assign(
                iwelbo=np.empty(0), standard_error=np.empty(0)
            )
        logger.info(
            "%d particles of %d cells in %s", self.particles, progress.done, progress.pace.elapsed
        )

    def by_particles(self) -> pd.DataFrame:
        """Lay out the mean bound of the cells of each part that were gone through.

        Returns
        -------
        DataFrame
            As :meth:`MeanBounds.table` lays it out, with the part as ``scope``; parts without a
            cell have no row.
        """
        tables = {name: mean.table() for name, mean in self.means.items() if mean.n_cells}
        tables = tables or {"": MeanBounds(self.particles).table()[:0]}
        return pd.concat(tables, names=["scope"]).reset_index("scope").reset_index(drop=True)


@torch.no_grad()
@pyro.validation_enabled(False)
def _shifts(model: PerturbationModel, design: Tensor, particles: int, seed: int) -> Tensor:
    """Draw the global variables once for all cells; shifts of the conditions, Q x C x size."""
    with seeded(seed, design.device):
        return draw_shifts(model, design, particles).expand(particles, -1, -1)


def log_weights_in_batches(
    model: PerturbationModel, cells: Cells, shifts: Tensor, seed: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Go through cells in batches.

    Yields
    ------
    slice
        Which cells.
    ndarray
        Their log importance weights, Q x cells, float64, in nats.
    """
    particles, done = len(shifts), 0
    rows = ROWS_AT_A_TIME
    if cells.counts.device.type != "cpu":  # whose batches are worth the launch of their kernels
        rows = max(rows, LARGEST_BATCH // max(1, cells.counts.shape[1]))
    for batch in cells.batches(max(1, rows // particles)):
        with pyro.validation_enabled(False):
            weights = log_importance_weights(model, batch, shifts, seed)
        here = slice(done, done := done + weights.shape[1])
        yield here, weights.cpu().double().numpy()


def _summarise(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bound, shares = _bounds_and_shares(log_weights, axis=0)
    return bound, np.sqrt(np.square(shares - 1 / len(shares)).sum(axis=0))


def _bounds_and_shares(log_weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Average weights over an axis; the logarithm, and each weight's share of the sum."""
    largest = log_weights.max(axis, keepdims=True)
    weights = np.exp(log_weights - largest)
    total = weights.sum(axis, keepdims=True)
    bound = largest + np.log(total / log_weights.shape[axis])
    return bound.squeeze(axis), weights / total


def fewer_particles(particles: int) -> list[int]:
    """List 1, 2, 5, 10, 25, 50, 100, 250, ... up to a number, and that number."""
    steps = [1, 2, 5, *(m * 10**power for power in range(1, 8) for m in (1, 2.5, 5))]
    return [*(int(n) for n in steps if n < particles), particles]


class MeanBounds:
    """The mean bound of cells at several numbers of particles, from the same weights.

    At q of Q particles, these are dealt into Q // q groups, and the bounds of the groups
    averaged: the expectation is that of q particles, while the noise is that of all. Cells share
    the draws of the shared variables, so their errors are not independent; hence the Monte-Carlo
    error of the mean is taken over particles, not over cells: from the scatter of the groups'
    mean bounds, or with fewer than ten groups by the delta method, from how much each particle
    contributes to the mean over cells. Fewer than ten particles in one group tell no error.

    Parameters
    ----------
    particles
        Q.
    """

    def __init__(self, particles: int) -> None:
        self.n_cells = 0
        self.numbers = fewer_particles(particles)
        # sums over cells: of each group's bound, and of each particle's share of its group
        self.bounds = {q: np.zeros(particles // q) for q in self.numbers}
        self.shares = {q: np.zeros((particles // q, q)) for q in self.numbers}

    def add(self, log_weights: np.ndarray) -> None:
        """Take in the weights of more cells, Q x cells."""
        n_cells = log_weights.shape[1]
        self.n_cells += n_cells
        for q in self.numbers:
            groups = log_weights[: self.shares[q].size].reshape(*self.shares[q].shape, n_cells)
            bounds, shares = _bounds_and_shares(groups, axis=1)
            self.bounds[q] += bounds.sum(axis=1)
            self.shares[q] += shares.sum(axis=2)

    def table(self) -> pd.DataFrame:
        """Lay out the mean bounds.

        Returns
        -------
        DataFrame
            A row for each number of ``particles``: ``n_cells``, ``iwelbo`` in nats per cell, and
            ``standard_error``, its Monte-Carlo error.
        """
        rows = []
        for q in self.numbers:
            bounds, shares = (sums[q] / max(self.n_cells, 1) for sums in (self.bounds, self.shares))
            n_groups = len(bounds)
            if n_groups < FEWEST_GROUPS <= q:
                variance = np.square(shares - 1 / q).sum(axis=1).mean()
            else:
                variance = bounds.var(ddof=1) if n_groups > 1 else math.nan
            error = math.sqrt(variance / n_groups)
            rows.append((q, self.n_cells, bounds.mean(), error))
        columns = ["particles", "n_cells", "iwelbo", "standard_error"]
        return pd.DataFrame(rows, columns=columns)
