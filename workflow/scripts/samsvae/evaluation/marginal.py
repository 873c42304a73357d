"""Marginal effects of single perturbations in cells with several, by least squares.

At a high multiplicity of infection (MOI) nearly every cell has a combination of its own, so that
no combination has cells enough for an effect. The effect of a single perturbation t is then a
coefficient of the linear model of the expression y of a gene in cell i

    y_i = c + sum_t d_it beta_t + sum_b z_ib gamma_b + s_i delta + error

with d the design matrix, z the batch and s the logarithm of the library size (deeper cells have
both more guides and more genes detected). Compared with ``controls``, all perturbations are in one
model, and beta_t is the difference from a cell without any. Compared with the ``complement``, each
perturbation has a model of its own without the others, and beta_t is the difference from all cells
without t, whose other perturbations are on average those of the cells with t (the default of
SCEPTRE at high MOI, Barry et al. 2024).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import anndata
import numba
import numpy as np
from scipy import linalg, sparse, stats

from samsvae.evaluation.effects import group_means
from samsvae.evaluation.energy import energy_distance
from samsvae.evaluation.expression import expression_in_blocks, log_expression
from samsvae.evaluation.strata import Strata, strata_of_cells
from samsvae.evaluation.stratified import FEWEST_EXPECTED, discovery_rates
from samsvae.screen.canonical import COMPARED_WITH, has_marginal_effects
from samsvae.screen.design import Design

LARGEST_BLOCK = 2**24  # elements of a dense block of cells
FEWEST_CELLS = 2  # with a perturbation, for an error
DEPTH_BINS = 5  # of the strata of the test
COLLINEAR = 1e-10  # smallest pivot of the scaled normal equations


@dataclass(frozen=True)
class Regression:
    """Regressors of cells.

    Attributes
    ----------
    names
        Perturbations.
    present
        Design matrix, cells x perturbations.
    nuisance
        Cells x covariates: an intercept, batches and the logarithm of the library size.
    stratum
        Batch and bin of the library size of each cell, within which errors of the test are alike.
    compared_with
        ``controls`` or ``complement``.
    """

    names: list[str]
    present: sparse.csr_matrix
    nuisance: np.ndarray
    stratum: np.ndarray
    compared_with: str

    @classmethod
    def of(cls, screen: anndata.AnnData, by_batch: bool = True) -> "Regression":
        """Build the regressors of all cells of a screen.

        Parameters
        ----------
        screen
            Canonical screen.
        by_batch
            Whether batches and contexts are covariates.
        """
        design = Design.of_screen(screen)
        depth = np.log(screen.obs["library_size"].to_numpy(dtype=np.float64))
        batch = strata_of_cells(screen, by_batch)
        columns = [np.ones(len(depth)), (depth - depth.mean()) / (depth.std() or 1.0)]
        columns += [(batch == number).astype(float) for number in range(1, batch.max() + 1)]
        limits = np.quantile(depth, np.linspace(0, 1, DEPTH_BINS + 1)[1:-1])
        stratum = batch * DEPTH_BINS + np.searchsorted(limits, depth, side="right")
        present = design.matrix.astype(np.float64)
        how = str(screen.uns[COMPARED_WITH])
        return cls(design.names, present, np.column_stack(columns), stratum, how)

    def __getitem__(self, cells: np.ndarray) -> "Regression":
        """Select some cells; perturbations without any stay."""
        return replace(
            self,
            present=self.present[cells],
            nuisance=self.nuisance[cells],
            stratum=self.stratum[cells],
        )

    def with_groups(self, names: Sequence[str], present: sparse.csr_matrix) -> "Regression":
        """Replace the perturbations by other groups of cells, such as those of guides."""
        return replace(
            self, names=list(names), present=sparse.csr_matrix(present, dtype=np.float64)
        )

    @property
    def n_cells(self) -> np.ndarray:
        """Number of cells with each perturbation."""
        return np.asarray((self.present != 0).sum(axis=0)).ravel()

    def against_others(self, name: str, stratum: np.ndarray) -> Strata:
        """Compare the cells with a perturbation with all cells without it, within strata."""
        group = np.ones(len(stratum), dtype=np.int64)
        group[self.cells_with(self.names.index(name))] = 0
        return Strata(group, stratum, 1)

    def cells_with(self, column: int) -> np.ndarray:
        """Return the indices of the cells with a perturbation."""
        return self._columns.indices[slice(*self._columns.indptr[column : column + 2])]

    @cached_property
    def _columns(self) -> sparse.csc_matrix:
        columns = sparse.csc_matrix(self.present)
        columns.eliminate_zeros()
        return columns


@dataclass(frozen=True)
class Fit:
    """Least-squares effects and tests, each perturbations x genes.

    Attributes
    ----------
    effect
        Coefficients, log2(CP10k + 1) at dose 1; NaN for a perturbation without cells.
    standard_error
        Robust to errors that differ between cells: HC2 (MacKinnon and White 1985). NaN for a
        perturbation with a single cell.
    pvalue
        Of a score test: the coefficient relative to its standard deviation if residuals were
        exchanged between the cells of a stratum, with the skewness of that distribution (Pearson
        type III). HC2 errors do not hold for a gene that few cells express, since the cells with
        a perturbation may all be 0 by chance. NaN for genes that fewer than five cells with the
        perturbation are expected to express, by the cells without it.
    fdr
        By Benjamini-Hochberg over the tested genes of a perturbation.
    shared_variance
        Of each gene, the mean covariance of the effects of two perturbations, whose reference is
        the same; 0 if each is compared with its own complement.
    """

    effect: np.ndarray
    standard_error: np.ndarray
    pvalue: np.ndarray
    fdr: np.ndarray
    shared_variance: np.ndarray


def fit(expression: sparse.csr_matrix, cells: Regression) -> Fit:
    """Estimate and test the marginal effect of each perturbation on each gene.

    A perturbation that the others and the covariates determine (as where every cell has exactly
    one, and none has none) is compared with the complement.

    Own code, since libraries fit one gene at a time, on dense cells.

    Parameters
    ----------
    expression
        Cells x genes, log2(CP10k + 1).
    cells
        Regressors of the same cells.

    Returns
    -------
    Fit
        Effects, their standard errors and tests.
    """
    shared = np.zeros(expression.shape[1])
    if cells.compared_with == "complement":
        parts = _each_alone(expression, cells)
    else:
        parts, estimable, shared = _all_together(expression, cells)
        if not estimable.all():
            rest = np.flatnonzero(~estimable)
            names = [cells.names[at] for at in rest]
            alone = _each_alone(expression, cells.with_groups(names, cells.present[:, rest]))
            for ours, theirs in zip(parts, alone, strict=True):
                ours[rest] = theirs
    with np.errstate(divide="ignore", invalid="ignore"):
        z = parts.effect / np.sqrt(parts.null_variance)
        skewness = parts.null_third_moment / parts.null_variance**1.5
        pvalue = np.minimum(2 * stats.pearson3.sf(np.abs(z), np.sign(z) * skewness), 1.0)
    pvalue[~_testable(expression, cells)] = np.nan
    for values in (parts.variance, pvalue):
        values[cells.n_cells < FEWEST_CELLS] = np.nan
    rate = discovery_rates(pvalue)
    return Fit(parts.effect, np.sqrt(np.clip(parts.variance, 0, None)), pvalue, rate, shared)


def residuals(
    values: np.ndarray, cells: Regression
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Subtract what covariates explain, and, compared with controls, all perturbations.

    Parameters
    ----------
    values
        Cells x variables, such as principal components of expression.
    cells
        Regressors of the same cells.

    Returns
    -------
    list of (rest, coefficient, columns)
        Residuals, cells x variables; what was subtracted for each perturbation, perturbations x
        variables; and the perturbations to compare by these residuals: first those that are
        estimable, then collinear ones, for which covariates alone are subtracted. The coefficient
        is scaled to the variance that the difference of the means of two random groups of residuals
        of the same sizes has: with many regressors coefficients vary more, and residuals less.
    """
    nuisance, present = cells.nuisance, cells.present
    n_cells, n_covariates = nuisance.shape
    alone = values - nuisance @ (_inverse(nuisance.T @ nuisance)[0] @ (nuisance.T @ values))
    nothing = np.zeros((len(cells.names), values.shape[1]))
    own = _size_alone(cells)
    if cells.compared_with == "complement":
        return [(alone, nothing, np.flatnonzero(own > 0))]
    regressors = sparse.csr_matrix(sparse.hstack([nuisance, present], format="csr"))
    inverse, estimable = _inverse((regressors.T @ regressors).toarray())
    estimable = estimable[n_covariates:]
    coefficient = inverse @ (regressors.T @ values)
    number = np.clip(cells.n_cells, 1, n_cells - 1)
    of_means = (1 / number + 1 / (n_cells - number)) * (1 - regressors.shape[1] / n_cells)
    of_coefficients = np.diag(inverse)[n_covariates:]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.nan_to_num(np.sqrt(np.clip(of_means / of_coefficients, 0, 1)))
    return [
        (
            values - regressors @ coefficient,
            coefficient[n_covariates:] * scale[:, None],
            np.flatnonzero(estimable),
        ),
        (alone, nothing, np.flatnonzero(~estimable & (own > 0))),
    ]


FEW_PERMUTATIONS = 199  # at first, of a perturbation
N_PERMUTATIONS = 999  # of one that exceeds nearly all of these


def marginal_energy_tests(
    values: np.ndarray, cells: Regression, fdr: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Test the energy distance of the cells with each perturbation from all other cells.

    The distance is that of :func:`samsvae.evaluation.energy.energy_tests`. What the covariates
    explain of the values is subtracted before and, compared with controls, what the other
    perturbations do. Permutations exchange cells of the same stratum. Their number grows while the
    p-value is small: 199, 999, and as many as a significant rate over perturbations needs.

    Parameters
    ----------
    values
        Cells x variables, such as principal components of expression.
    cells
        Regressors of the same cells.
    fdr
        False discovery rate over perturbations that p-values should be able to reach.
    seed
        Seed of the permutations.

    Returns
    -------
    distance, pvalue : ndarray
        Of each perturbation; NaN for one with fewer than two cells, or than two others, and for
        one that the covariates determine, such as that of a whole batch.
    """
    order = np.argsort(cells.stratum, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    number = np.bincount(cells.stratum)
    edges = np.concatenate([[0], np.cumsum(number)])
    rng = np.random.default_rng(seed)
    most = max(int(np.ceil(len(cells.names) / fdr)), N_PERMUTATIONS)
    stages = np.array([FEW_PERMUTATIONS, N_PERMUTATIONS, most])
    distance, pvalue = (np.full(len(cells.names), np.nan) for _ in range(2))
    dose = cells._columns.data
    for residual, own, columns in residuals(values, cells):
        rest = np.ascontiguousarray(residual[order])
        for at in columns:
            span = slice(*cells._columns.indptr[at : at + 2])
            members = place[cells._columns.indices[span]]
            if 2 <= len(members) <= len(order) - 2:
                shift = np.outer(dose[span], own[at])
                rest[members] += shift
                distance[at], pvalue[at] = _one_against_others(rest, members, edges, stages, rng)
                rest[members] -= shift
    return distance, pvalue


@numba.njit(cache=True)
def _one_against_others(
    values: np.ndarray,
    members: np.ndarray,
    edges: np.ndarray,
    stages: np.ndarray,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Compute the energy distance of members from all others, and the p-value by permutations.

    `edges` are the first cells of strata, in which cells are consecutive.
    """
    n_cells, n_values = values.shape
    whole = np.zeros(n_values)
    squares = np.empty(n_cells)
    for cell in range(n_cells):
        squares[cell] = np.sum(values[cell] ** 2)
        whole += values[cell]
    whole_square = squares.sum()
    n_own = np.zeros(len(edges) - 1, dtype=np.int64)
    total, square = np.zeros(n_values), 0.0
    for cell in members:
        n_own[np.searchsorted(edges, cell, side="right") - 1] += 1
        total += values[cell]
        square += squares[cell]
    n, m = float(len(members)), float(n_cells - len(members))
    observed = energy_distance(total, square, whole, whole_square, n, m)
    limit = observed - 1e-9 * abs(observed)  # equal distances differ by rounding
    order = np.arange(n_cells)
    done, reached = 0, 0
    for stage in stages:
        while done < stage:
            total[:] = 0
            square = 0.0
            for stratum in range(len(n_own)):
                first, last = edges[stratum], edges[stratum + 1]
                for at in range(first, first + n_own[stratum]):
                    other = rng.integers(at, last)
                    order[at], order[other] = order[other], order[at]
                    total += values[order[at]]
                    square += squares[order[at]]
            reached += energy_distance(total, square, whole, whole_square, n, m) >= limit
            done += 1
        # a p-value above 0.1 stays so, and one above 0 of 999 needs no more permutations
        if 10 * reached > done or (reached > 0 and done >= stages[1]):
            break
    return observed, (1 + reached) / (1 + done)


class _Estimates(NamedTuple):
    """Effects, their HC2 variances, and moments under the null, each perturbations x genes."""

    effect: np.ndarray
    variance: np.ndarray
    null_variance: np.ndarray
    null_third_moment: np.ndarray


def _each_alone(expression: sparse.csr_matrix, cells: Regression) -> _Estimates:
    """Regress expression on one perturbation at a time and the covariates.

    Frisch and Waugh: the coefficient is that of the perturbation's residuals, after a regression
    on the covariates, on those of the expression.
    """
    nuisance, present = cells.nuisance, cells.present
    inverse = _inverse(nuisance.T @ nuisance)[0]
    of_genes = inverse @ np.asarray(expression.T @ nuisance).T
    of_present = inverse @ np.asarray(present.T @ nuisance).T
    size = _size_alone(cells)
    product = (present.T @ expression).toarray() - np.asarray(present.T @ nuisance) @ of_genes
    used = size > 0
    size = np.where(used, size, np.inf)
    effect = product / size[:, None]
    sums = _Sums(cells, expression.shape[1])
    variance = np.zeros_like(effect)
    for rows in _blocks(expression):
        covariates = nuisance[rows]
        leverage = np.sum(covariates @ inverse * covariates, axis=1)
        residual = expression[rows].toarray() - covariates @ of_genes
        own = present[rows].toarray() - covariates @ of_present
        weight = own / size
        sums.add(rows, weight, residual, degrees=nuisance.shape[1])
        corrected = weight**2 / np.clip(1 - leverage[:, None] - own * weight, COLLINEAR, None)
        # the square of the residual minus the perturbation's own part
        variance += corrected.T @ residual**2
        variance -= 2 * effect * ((corrected * own).T @ residual)
        variance += effect**2 * np.sum(corrected * own**2, axis=0)[:, None]
    effect[~used] = variance[~used] = np.nan
    return _Estimates(effect, variance, *sums.moments())


def _size_alone(cells: Regression) -> np.ndarray:
    """Sum the squares of each perturbation that covariates do not explain; 0 if they do."""
    product = np.asarray(cells.present.T @ cells.nuisance)
    inverse = _inverse(cells.nuisance.T @ cells.nuisance)[0]
    whole = np.asarray(cells.present.multiply(cells.present).sum(axis=0)).ravel()
    rest = whole - np.sum(product @ inverse * product, axis=1)
    return np.where(rest > np.sqrt(COLLINEAR) * whole, rest, 0.0)


def _all_together(
    expression: sparse.csr_matrix, cells: Regression
) -> tuple[_Estimates, np.ndarray, np.ndarray]:
    """Regress expression on all perturbations and the covariates.

    Returns
    -------
    estimates : _Estimates
        Of all perturbations.
    estimable : ndarray of bool
        Perturbations that the others and the covariates do not determine.
    shared_variance : ndarray
        Of each gene, as for :class:`Fit`.
    """
    n_covariates = cells.nuisance.shape[1]
    regressors = sparse.csr_matrix(sparse.hstack([cells.nuisance, cells.present], format="csr"))
    inverse, estimable = _inverse((regressors.T @ regressors).toarray())
    coefficient = inverse @ (regressors.T @ expression).toarray()
    effect = coefficient[n_covariates:]
    sums = _Sums(cells, expression.shape[1])
    variance = np.zeros_like(effect)
    for rows in _blocks(expression):
        block = regressors[rows]
        weight = np.asarray(block @ inverse)
        leverage = np.asarray(block.multiply(weight).sum(axis=1)).ravel()
        residual = expression[rows].toarray() - np.asarray(block @ coefficient)
        weight = weight[:, n_covariates:]
        sums.add(rows, weight, residual, degrees=int(estimable.sum()))
        # a cell that determines a coefficient alone has no residual
        scale = np.where(leverage < 1 - COLLINEAR, 1 - leverage, np.inf)
        variance += (weight**2).T @ (residual**2 / scale[:, None])
    own = inverse[n_covariates:, n_covariates:]
    n_pairs = max(len(own) * (len(own) - 1), 1)
    shared = max((own.sum() - np.trace(own)) / n_pairs, 0.0) * sums.residual_variance()
    return _Estimates(effect, variance, *sums.moments()), estimable[n_covariates:], shared


class _Sums:
    """Moments of a weighted sum of residuals that are exchanged within strata."""

    def __init__(self, cells: Regression, n_genes: int) -> None:
        n_strata = int(cells.stratum.max(initial=0)) + 1
        self.stratum = cells.stratum
        self.number = np.bincount(cells.stratum, minlength=n_strata)
        self.degrees = 0
        shape = len(cells.names), n_strata
        self.of_weights = [np.zeros(shape), np.zeros(shape)]
        self.of_residuals = [np.zeros((n_genes, n_strata)), np.zeros((n_genes, n_strata))]

    def add(self, rows: slice, weight: np.ndarray, residual: np.ndarray, degrees: int) -> None:
        """Add a block of cells."""
        self.degrees = degrees
        own = self.stratum[rows]
        member = np.zeros((len(own), len(self.number)))
        member[np.arange(len(own)), own] = 1
        for values, sums in ((weight.T, self.of_weights), (residual.T, self.of_residuals)):
            power = values * values
            for total in sums:
                total += power @ member
                power *= values

    def residual_variance(self) -> np.ndarray:
        """Return the variance of the residuals of each gene."""
        total: np.ndarray = self.of_residuals[0].sum(axis=1)
        return total / max(self.number.sum() - self.degrees, 1)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return variance and third moment, perturbations x genes."""
        n_cells = self.number.sum()
        number = np.maximum(self.number, 1)
        correction = n_cells / max(n_cells - self.degrees, 1)
        variance = self.of_weights[0] @ (self.of_residuals[0] / number).T * correction
        return variance, self.of_weights[1] @ (self.of_residuals[1] / number).T


def _blocks(expression: sparse.csr_matrix) -> Iterator[slice]:
    """Divide cells into blocks that fit in memory when dense."""
    size = max(1, LARGEST_BLOCK // max(expression.shape[1], 1))
    for first in range(0, expression.shape[0], size):
        yield slice(first, first + size)


def _inverse(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Invert the matrix of normal equations, and find the coefficients that it determines."""
    scale = np.sqrt(np.diag(gram))
    scale = np.where(scale > 0, scale, 1.0)
    scaled = gram / np.outer(scale, scale)
    try:
        factor = linalg.cholesky(scaled, lower=True)
        if np.diag(factor).min() ** 2 > COLLINEAR:
            identity = np.eye(len(gram))
            inverse = linalg.cho_solve((factor, True), identity)
            return inverse / np.outer(scale, scale), np.ones(len(gram), dtype=bool)
    except linalg.LinAlgError:
        pass
    values, vectors = linalg.eigh(scaled)
    kept = values > COLLINEAR * len(gram)
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    determined = 1 - np.sum(vectors[:, kept] ** 2, axis=1) < np.sqrt(COLLINEAR)
    return inverse / np.outer(scale, scale), determined & (np.diag(gram) > 0)


def _testable(expression: sparse.csr_matrix, cells: Regression) -> np.ndarray:
    """Choose the genes to test by the cells without the perturbation, perturbations x genes."""
    has = sparse.csr_matrix(cells.present != 0, dtype=np.float64)
    detected = sparse.csr_matrix(expression != 0, dtype=np.float64)
    with_it = (has.T @ detected).toarray()
    n_with = cells.n_cells[:, None].astype(float)
    n_without = expression.shape[0] - n_with
    without = np.asarray(detected.sum(axis=0)) - with_it
    fraction = without / np.maximum(n_without, 1)
    return np.asarray(np.minimum(n_with, n_without) * fraction >= FEWEST_EXPECTED)


def mean_profiles(screen: anndata.AnnData, cells: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Average the expression of some cells by perturbation.

    Parameters
    ----------
    screen
        Canonical screen.
    cells
        Boolean, one per cell of the screen.
    names
        Perturbations that have such cells.

    Returns
    -------
    ndarray
        Perturbations (control last) x genes, log2(CP10k + 1). Where the screen has marginal
        effects, the mean of control cells plus these (of all cells, if there are no control cells).
    """
    if not has_marginal_effects(screen):
        return group_means(expression_in_blocks(screen, cells), names, screen.n_vars).mean
    regression = Regression.of(screen, by_batch=False)[cells]
    expression = log_expression(screen, cells)
    effect = fit(expression, regression).effect
    chosen = effect[[regression.names.index(name) for name in names]]
    without = np.diff(regression.present.indptr) == 0
    reference = expression[without] if without.any() else expression
    control = np.asarray(reference.mean(axis=0)).ravel()
    return np.vstack([chosen + control, control])
