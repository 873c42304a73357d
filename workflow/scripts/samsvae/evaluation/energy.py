"""Energy distance of perturbed from control cells, and its test by permutations within strata."""

import numba
import numpy as np

from samsvae.evaluation.strata import Strata

N_PERMUTATIONS = 999


def energy_tests(
    components: np.ndarray,
    strata: Strata,
    fdr: float = 0.05,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Test each perturbation's energy distance from control by permutations within strata.

    The energy distance (E-distance) of two groups of cells is
    2 E|X - Y|^2 - E|X - X'|^2 - E|Y - Y'|^2 over pairs of different cells, with squared Euclidean
    distances of principal components, as in scPerturb (Peidli et al. 2024). Squared distances
    follow from sums over cells, without all pairs. It is 0 on average if the groups have the same
    mean. A permutation exchanges the cells of the perturbation with control cells of the same
    stratum, so that a difference of strata, such as batches, is no effect. The distance itself is
    that of the compared cells, without strata.

    Own code, since libraries compute distances of all pairs of cells and permute without strata;
    tests compare it with them.

    Parameters
    ----------
    components
        Principal components of expression, cells x components.
    strata
        Groups and strata of the cells.
    fdr
        False discovery rate over perturbations that p-values should be able to reach: the
        perturbations that exceed all of their permutations get further ones, until their p-value
        is significant if they are the only ones, so that the further permutations of all together
        are about n_groups / fdr.
    n_permutations
        Number of permutations at first.
    seed
        Seed of the permutations.

    Returns
    -------
    distance, pvalue : ndarray
        Of each perturbation; NaN if fewer than two of its cells, or of the control cells of their
        strata, are compared.
    """
    rng = np.random.default_rng(seed)
    distance, pvalue = (np.full(strata.n_groups, np.nan) for _ in range(2))
    members = _Members(components, strata)
    unreached = {}  # smallest distance that counts, of each group that exceeds its permutations
    for group in range(strata.n_groups):
        cells = members.of(group)
        if cells is None:
            continue
        distances = _permuted_distances(*cells, n_permutations, rng)
        distance[group] = distances[0]
        # equal distances differ by rounding
        limit = distances[0] - 1e-9 * abs(distances[0])
        reached = int(np.sum(distances[1:] >= limit))
        pvalue[group] = (1 + reached) / (1 + n_permutations)
        if not reached:
            unreached[group] = limit
    done = n_permutations
    while unreached and done < (needed := int(np.ceil(strata.n_groups / fdr / len(unreached)))):
        remaining = {}
        for group, limit in unreached.items():
            cells = members.of(group)
            assert cells is not None
            more = _permuted_distances(*cells, needed - done, rng)[1:]
            reached = int(np.sum(more >= limit))
            pvalue[group] = (1 + reached) / (1 + needed)
            if not reached:
                remaining[group] = limit
        unreached, done = remaining, needed
    return distance, pvalue


class _Members:
    """Cells of each perturbation with the control cells of the same strata.

    Parameters
    ----------
    components
        Cells x components.
    strata
        Groups and strata of the cells.
    """

    def __init__(self, components: np.ndarray, strata: Strata) -> None:
        self.components, self.strata = components, strata
        self.compared, self.sizes = strata.compared, strata.sizes
        self.controls = np.flatnonzero(strata.group == strata.n_groups)
        self.by_group = np.argsort(strata.group, kind="stable")
        self.starts = np.searchsorted(
            strata.group[self.by_group], np.arange(strata.n_groups + 1), side="left"
        )

    def of(self, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return compared cells by stratum, and numbers of own and of all cells of each stratum.

        The cells of the perturbation are the first of a stratum. None with fewer than two cells on
        either side.
        """
        shared = np.flatnonzero(self.compared[:, group])
        stratum = self.strata.stratum
        own, controls = (
            cells[np.isin(stratum[cells], shared)]
            for cells in (
                self.by_group[self.starts[group] : self.starts[group + 1]],
                self.controls,
            )
        )
        if len(own) < 2 or len(controls) < 2:
            return None
        both = np.concatenate([own, controls])
        order = both[np.argsort(stratum[both], kind="stable")]
        cells = np.ascontiguousarray(self.components[order], dtype=np.float64)
        n_own = self.compared[shared, group]
        return cells, n_own, n_own + self.sizes[shared, -1]


@numba.njit(cache=True)
def energy_distance(
    total: np.ndarray, square: float, whole: np.ndarray, whole_square: float, n: float, m: float
) -> float:
    """Compute the energy distance from sums over n of n + m cells, with squared distances."""
    rest = whole - total
    between = square / n + (whole_square - square) / m - 2 * np.sum(total * rest) / (n * m)
    within = (square - np.sum(total**2) / n) / (n - 1)
    within += (whole_square - square - np.sum(rest**2) / m) / (m - 1)
    return float(2 * (between - within))


@numba.njit(cache=True)
def _permuted_distances(
    cells: np.ndarray,
    n_own: np.ndarray,
    n_all: np.ndarray,
    n_permutations: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Compute the energy distance of the cells as they are, and after each permutation."""
    n_cells, n_components = cells.shape
    squares = np.empty(n_cells)
    whole = np.zeros(n_components)
    for cell in range(n_cells):
        squares[cell] = np.sum(cells[cell] ** 2)
        whole += cells[cell]
    whole_square = squares.sum()
    n, m = float(n_own.sum()), float(n_all.sum() - n_own.sum())
    order = np.arange(n_cells)
    found = np.empty(n_permutations + 1)
    for permutation in range(n_permutations + 1):
        total = np.zeros(n_components)
        square, first = 0.0, 0
        for stratum in range(len(n_own)):
            last = first + n_all[stratum]
            for at in range(first, first + n_own[stratum]):
                if permutation > 0:
                    other = rng.integers(at, last)
                    order[at], order[other] = order[other], order[at]
                total += cells[order[at]]
                square += squares[order[at]]
            first = last
        found[permutation] = energy_distance(total, square, whole, whole_square, n, m)
    return found
