"""The importance-weighted bound of single cells (Burda et al. 2016), and of fewer particles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from samsvae.inference.log_weights import CellSource, log_weights
from samsvae.models.base import PerturbationModel

FEWEST_GROUPS = 10  # whose scatter tells an error; with fewer, groups are as large at least


@dataclass(frozen=True)
class Bounds:
    """Predictive bounds of cells.

    Attributes
    ----------
    bound
        Nats, one per cell.
    standard_error
        Of the Monte-Carlo estimate of each, by the delta method.
    by_particles
        The mean bound of each part of the cells at fewer and fewer particles, as
        :meth:`MeanBounds.table` lays it out, with the part as ``scope``.
    """

    bound: np.ndarray
    standard_error: np.ndarray
    by_particles: pd.DataFrame


def iwelbo(
    model: PerturbationModel, cells: CellSource, particles: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the predictive bound of each cell, and its error, as :func:`estimate_bounds`."""
    bounds = estimate_bounds(model, cells, ["all"] * len(cells), particles, seed)
    return bounds.bound, bounds.standard_error


def estimate_bounds(
    model: PerturbationModel, cells: CellSource, parts: Sequence[str], particles: int, seed: int
) -> Bounds:
    """Estimate the predictive bound of each cell, and the mean bound of parts of the cells.

    The global variables are drawn once from the guide, shared by all cells, and not scored:
    log 1/Q sum_q exp[log p(x | z_q, l) + log p(z_q) - log q(z_q | x)].

    Parameters
    ----------
    model
        Model and guide.
    cells
        Held-out cells. A cell's bound is the same, but for rounding, whatever their order and
        whatever other cells there are; see :func:`samsvae.inference.log_weights.log_weights`.
    parts
        The part of each cell, such as ``val`` and ``test``.
    particles
        Q.
    seed
        Seed of the samples.

    Returns
    -------
    Bounds
        In the order of the cells.
    """
    bound, error = np.empty(len(cells)), np.empty(len(cells))
    part = np.asarray(parts, dtype=object)
    means = {name: MeanBounds(particles) for name in sorted(set(parts))}
    done = 0
    for block in log_weights(model, cells, particles, seed):
        weights = block.cpu().double().numpy()
        here = slice(done, done := done + weights.shape[1])
        bound[here], error[here] = _summarise(weights)
        for name, mean in means.items():
            mean.add(weights[:, part[here] == name])
    tables = {name: mean.table() for name, mean in means.items()}
    tables = tables or {"": MeanBounds(particles).table()[:0]}
    by_particles = pd.concat(tables, names=["scope"]).reset_index("scope").reset_index(drop=True)
    return Bounds(bound, error, by_particles)


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
