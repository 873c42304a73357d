"""Importance-weighted bounds on the evidence of single cells (Burda et al. 2016)."""

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
from samsvae.inference.posterior import draw_on_target, draw_shifts, log_importance_weights
from samsvae.models.base import PerturbationModel
from samsvae.runtime.script import Progress

logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 8192  # particles x cells
LARGEST_BATCH = 1 << 27  # particles x cells x genes, on a GPU
SMALLEST_PART = 1 / 4  # of a batch, for which a condition has batches of its own
FEWEST_GROUPS = 10  # for an empirical standard error
FEWEST_PARTICLES = 10  # of a group, for one by the delta method


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
        Held-out cells. Up to rounding, a cell's bound depends neither on their order nor on the
        other cells.
    particles
        Q.
    seed
        Seed of the samples.

    Returns
    -------
    bound, standard_error : ndarray
        Of each cell, in nats; the error is that of the Monte-Carlo estimate, by the delta method.
    """
    shifts, on_target = _draw_globals(model, cells, particles, seed)
    bound, error = np.empty(len(cells)), np.empty(len(cells))
    for here, weights in log_weights_in_batches(model, cells, shifts, seed, on_target):
        bound[here], error[here] = _summarise(weights)
    return bound, error


class StreamedBounds:
    """Bounds of streamed cells, as of :func:`iwelbo`, and the mean bounds of their parts.

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
        """Compute the bounds of all cells, block by block.

        Yields
        ------
        DataFrame
            Rows of the split's table, with ``iwelbo`` and ``standard_error`` in nats; a single
            empty table if there are no cells.
        """
        shifts, own = _draw_globals(self.model, self.cells, self.particles, self.seed)
        progress = Progress("cell", self.cells.n_cells, " cells")
        for table, cells in self.cells.blocks():
            part = table["split"].to_numpy()
            bound, error = np.empty(len(cells)), np.empty(len(cells))
            for here, weights in log_weights_in_batches(self.model, cells, shifts, self.seed, own):
                bound[here], error[here] = _summarise(weights)
                for name, mean in self.means.items():
                    mean.add(weights[:, part[here] == name])
            yield table.assign(iwelbo=bound, standard_error=error)
            progress.update(len(cells))
        if progress.n == 0:
            yield pd.DataFrame(columns=["cell", "perturbation", "library_size", "split"]).assign(
                iwelbo=np.empty(0), standard_error=np.empty(0)
            )
        logger.info("%d particles of %d cells in %s", self.particles, progress.n, progress.elapsed)

    def by_particles(self) -> pd.DataFrame:
        """Tabulate the mean bound of each part, over the cells that :meth:`tables` yielded.

        Returns
        -------
        DataFrame
            As :meth:`MeanBounds.table`, with the part as ``scope``; parts without cells have no
            row.
        """
        tables = {name: mean.table() for name, mean in self.means.items() if mean.n_cells}
        tables = tables or {"": MeanBounds(self.particles).table()[:0]}
        return pd.concat(tables, names=["scope"]).reset_index("scope").reset_index(drop=True)


@torch.no_grad()
@pyro.validation_enabled(False)
def _draw_globals(
    model: PerturbationModel, cells: Cells | CellStream, particles: int, seed: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Draw the global variables once for all cells.

    Returns
    -------
    shifts : Tensor
        Shifts of the conditions, Q x C x size.
    on_target : tuple of Tensor
        Their on-target effects, as of :func:`samsvae.inference.posterior.draw_on_target`.
    """
    with seeded(seed, cells.design.device):
        shifts = draw_shifts(model, cells.design, particles).expand(particles, -1, -1)
        return shifts, draw_on_target(model, cells.targets, particles)


def log_weights_in_batches(
    model: PerturbationModel,
    cells: Cells,
    shifts: Tensor,
    seed: int,
    on_target: tuple[Tensor, ...] = (),
    chosen: tuple[Tensor, int] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Go through cells in batches; see :func:`samsvae.inference.posterior.log_importance_weights`.

    Yields
    ------
    ndarray
        Positions of some cells; each cell is among them once.
    ndarray
        Their log importance weights, Q x cells, float64, in nats.
    """
    particles = len(shifts)
    rows = ROWS_AT_A_TIME
    if cells.counts.device.type != "cpu":  # larger batches repay the launch of kernels
        rows = max(rows, LARGEST_BATCH // max(1, cells.counts.shape[1]))
    for here in _by_condition(cells.condition, max(1, rows // particles)):
        with pyro.validation_enabled(False):
            weights = log_importance_weights(
                model, cells.batch(here), shifts, seed, on_target, chosen
            )
        yield here.cpu().numpy(), weights.cpu().double().numpy()


def _by_condition(condition: Tensor, size: int) -> Iterator[Tensor]:
    """Divide cells into batches of at most `size`, those of a frequent condition into its own.

    What cells of one condition share is then computed once for all of them.

    Parameters
    ----------
    condition
        Condition of each cell.
    size
        Largest number of cells.

    Yields
    ------
    Tensor
        Positions of cells. Rare conditions share batches.
    """
    number = torch.bincount(condition)[condition]
    group = torch.where(number >= SMALLEST_PART * size, condition, -1)
    order = group.argsort(stable=True)
    _, sizes = group[order].unique_consecutive(return_counts=True)
    for cells in order.split(sizes.tolist()):
        yield from cells.chunk(-(-len(cells) // size))


def bounds_of(log_weights: np.ndarray) -> np.ndarray:
    """Compute the bound of each cell from its log importance weights, Q x cells."""
    return _bounds_and_normalised_weights(log_weights, axis=0)[0]


def _summarise(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bound, normalised = _bounds_and_normalised_weights(log_weights, axis=0)
    return bound, np.sqrt(np.square(normalised - 1 / len(normalised)).sum(axis=0))


def _bounds_and_normalised_weights(
    log_weights: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute log mean weights over an axis, and the normalised importance weights."""
    largest = log_weights.max(axis, keepdims=True)
    weights = np.exp(log_weights - largest)
    total = weights.sum(axis, keepdims=True)
    bound = largest + np.log(total / log_weights.shape[axis])
    return bound.squeeze(axis), weights / total


def fewer_particles(particles: int) -> list[int]:
    """List the numbers of particles 1, 2, 5, 10, 25, 50, 100, 250, ... up to `particles`."""
    steps = [1, 2, 5, *(m * 10**power for power in range(1, 8) for m in (1, 2.5, 5))]
    return [*(int(n) for n in steps if n < particles), particles]


class MeanBounds:
    """Mean bounds of cells at several numbers of particles, from the same importance weights.

    For q of Q particles, the particles form Q // q groups whose bounds are averaged: the
    expectation is that of q particles, while the noise is that of all. All cells use the same
    draws of the global variables, so their errors are not independent. The Monte-Carlo error of
    the mean is therefore estimated over particles, not over cells: from the variance of the
    groups' mean bounds, or with fewer than ten groups of ten particles or more by the delta method,
    from the contribution of each particle to the mean over cells. For a single group of fewer than
    ten particles the error is NaN.

    Parameters
    ----------
    particles
        Q.
    """

    def __init__(self, particles: int) -> None:
        self.n_cells = 0
        self.numbers = fewer_particles(particles)
        # sums over cells: bounds of groups, normalised weights of particles within their group
        self.bounds = {q: np.zeros(particles // q) for q in self.numbers}
        self.normalised = {q: np.zeros((particles // q, q)) for q in self.numbers}

    def add(self, log_weights: np.ndarray) -> None:
        """Add the log importance weights of more cells, Q x cells."""
        n_cells = log_weights.shape[1]
        self.n_cells += n_cells
        for q in self.numbers:
            shape = self.normalised[q].shape
            groups = log_weights[: self.normalised[q].size].reshape(*shape, n_cells)
            bounds, normalised = _bounds_and_normalised_weights(groups, axis=1)
            self.bounds[q] += bounds.sum(axis=1)
            self.normalised[q] += normalised.sum(axis=2)

    def table(self) -> pd.DataFrame:
        """Tabulate the mean bounds.

        Returns
        -------
        DataFrame
            A row for each number of ``particles``: ``n_cells``, ``iwelbo`` in nats per cell, and
            ``standard_error``, its Monte-Carlo error.
        """
        rows = []
        for q in self.numbers:
            n_cells = max(self.n_cells, 1)
            bounds, normalised = self.bounds[q] / n_cells, self.normalised[q] / n_cells
            n_groups = len(bounds)
            if n_groups < FEWEST_GROUPS and q >= FEWEST_PARTICLES:
                variance = np.square(normalised - 1 / q).sum(axis=1).mean()
            else:
                variance = bounds.var(ddof=1) if n_groups > 1 else math.nan
            error = math.sqrt(variance / n_groups)
            rows.append((q, self.n_cells, bounds.mean(), error))
        columns = ["particles", "n_cells", "iwelbo", "standard_error"]
        return pd.DataFrame(rows, columns=columns)
