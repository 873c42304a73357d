"""Quality of a screen before any model: effects, hits, batches and contexts.

All cells are used, since a screen is described here and no model is evaluated. Effects are in
log2(CP10k + 1), against the control cells of the same stratum where the screen has batches.
"""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
from scipy import sparse, stats
from sklearn.decomposition import PCA

from samsvae.biology.calibration import depth_ratios
from samsvae.biology.guides import mean_ratios
from samsvae.evaluation.agreement import pearson
from samsvae.evaluation.effects import effects_in_use, effects_table
from samsvae.evaluation.energy import energy_tests
from samsvae.evaluation.expression import CP10K, Expression, matrices
from samsvae.evaluation.strata import LEFT_OUT, Strata, moments, stratified_effects
from samsvae.evaluation.stratified import gated_tests
from samsvae.screen.canonical import BATCH, CONTEXT, perturbations
from samsvae.screen.labels import CONTROL


def screen_effects(
    screen: anndata.AnnData,
    expression: sparse.csr_matrix | Expression,
    plain: Strata,
    stratified: Strata,
    fdr: float,
    provenance: str,
) -> anndata.AnnData:
    """Compute effects and tests of each perturbation from all cells of a screen.

    Parameters
    ----------
    screen
        Canonical screen.
    expression
        log2(CP10k + 1), cells x genes.
    plain, stratified
        Groups of cells, in one stratum and in several; the same object where there is one stratum.
    fdr
        False discovery rate below which a gene is differentially expressed.
    provenance
        Provenance record, JSON.

    Returns
    -------
    AnnData
        Perturbations x genes. Layers ``ate``, ``standard_error``, ``pvalue`` and ``fdr`` of the
        plain comparison, the same with ``_stratified`` where there are several strata; ``X`` is
        the stratified effect there, and the plain one for a perturbation without cells in a
        compared stratum (``obs["is_stratified"]``). ``obs``: ``n_cells``; ``n_compared`` cells in
        compared strata, ``n_tested`` genes and ``n_de``, of these differentially expressed, by the
        tests that belong to ``X``. ``var``: ``n_cells`` in which a gene is detected, and the
        ``control_standard_error`` of the control cells' mean.
    """
    layers: dict[str, np.ndarray] = {}
    for strata, suffix in ((plain, ""), (stratified, "_stratified")):
        if suffix and stratified is plain:
            break
        effect, error = stratified_effects(expression, strata)
        pvalue, rate = gated_tests(expression, strata)
        found = {"ate": effect, "standard_error": error, "pvalue": pvalue, "fdr": rate}
        layers |= {f"{name}{suffix}": values for name, values in found.items()}
    used = np.zeros(plain.n_groups, dtype=bool)
    if stratified is not plain:
        used = stratified.compared.sum(axis=0) > 0
    compared = np.where(used, stratified.compared.sum(axis=0), plain.compared.sum(axis=0))
    number = plain.sizes.sum(axis=0)[:-1]
    table = table_of_effects(screen, layers, used, number, compared, fdr, provenance)
    is_control = plain.group == plain.n_groups
    detected, variance = [], []
    for part in matrices(expression):
        detected.append(np.asarray((part > 0).sum(axis=0)).ravel())
        variance.append(moments(part[is_control])[1])
    table.var["n_cells"] = np.concatenate(detected)
    table.var["control_standard_error"] = np.sqrt(np.concatenate(variance) / is_control.sum())
    return table


def table_of_effects(
    screen: anndata.AnnData,
    layers: dict[str, np.ndarray],
    used: np.ndarray,
    n_cells: np.ndarray,
    n_compared: np.ndarray,
    fdr: float,
    provenance: str,
) -> anndata.AnnData:
    """Build the table of :func:`screen_effects` from its layers.

    Parameters
    ----------
    screen
        Canonical screen.
    layers
        Plain and, where there are strata, stratified effects and tests.
    used
        Perturbations whose stratified effects are used.
    n_cells, n_compared
        Cells of each perturbation, and those that are compared.
    fdr
        False discovery rate below which a gene is differentially expressed.
    provenance
        Provenance record, JSON.
    """
    chosen = {
        name: np.where(used[:, None], layers.get(f"{name}_stratified", layers[name]), layers[name])
        for name in ("ate", "pvalue", "fdr")
    }
    names = perturbations(screen)
    obs = pd.DataFrame(
        {
            "n_cells": n_cells,
            "n_compared": n_compared,
            "is_stratified": used,
            "n_tested": np.isfinite(chosen["pvalue"]).sum(axis=1),
            "n_de": (chosen["fdr"] < fdr).sum(axis=1),
        },
        index=names,
    )
    return effects_table(chosen["ate"], names, list(screen.var_names), layers, provenance, obs)


N_COMPONENTS = 50
LARGEST_COVARIANCE = 4000  # genes of a covariance matrix that is diagonalised as a whole
LARGEST_DENSE = 2**28  # elements of expression that are faster to multiply when they are dense
LARGEST_FITTED = 2**29  # elements, zeros among them, of the cells that components are fitted to


def principal_components(expression: Expression, seed: int) -> np.ndarray:
    """Compute the first 50 principal components of expression, or as many as there are.

    Of a large screen, they are those of randomly chosen cells, and all cells are projected.

    Parameters
    ----------
    expression
        log2(CP10k + 1), cells x genes.
    seed
        Seed of the choice, and of the iterative solver that is used for many genes.

    Returns
    -------
    ndarray
        Cells x components, float32.
    """
    n_cells, n_genes = expression.shape
    n_components = min(N_COMPONENTS, n_cells - 1, n_genes - 1)
    solver = "covariance_eigh" if n_genes <= LARGEST_COVARIANCE else "arpack"
    model = PCA(n_components, svd_solver=solver, random_state=seed)
    n_fitted = min(n_cells, max(LARGEST_FITTED // n_genes, n_components + 1))
    fitted = np.ones(n_cells, dtype=bool)
    if n_fitted < n_cells:
        fitted[np.random.default_rng(seed).permutation(n_cells)[n_fitted:]] = False
    blocks, first = [], 0
    for block in expression.by_cells():
        chosen = fitted[first : first + block.shape[0]]
        first += block.shape[0]
        blocks.append((block if chosen.all() else block[chosen]).astype(np.float32))
    cells = sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
    if n_fitted == n_cells:
        dense = n_cells * n_genes <= LARGEST_DENSE
        return np.asarray(model.fit_transform(cells.toarray() if dense else cells))
    model.fit(cells)
    return np.concatenate(
        [model.transform(block.astype(np.float32)) for block in expression.by_cells()]
    )


POWER = 0.8
HITS = [
    "perturbation", "n_cells", "n_compared", "e_distance", "pvalue", "fdr", "is_hit", "n_de",
    "n_tested", "detectable_effect", "split_half", "depth_ratio", "depth_difference",
    "common_shift", "composition_gene", "first_gene",
]  # fmt: skip
DIFFERENT_DEPTH = 1.25  # ratio of median library sizes that could be taken for an effect
LARGE_SHIFT = 0.1  # log2 ratio that the genes share
FEWEST_COUNTS = 1.0  # CP10k of control cells, of a gene that tells of a common shift


def hits(
    effects: anndata.AnnData,
    components_of_cells: np.ndarray,
    expression: Expression,
    strata: Strata,
    fdr: float,
    seed: int,
) -> pd.DataFrame:
    """Test whether each perturbation does anything, and say what could have been found.

    Parameters
    ----------
    effects
        As of :func:`screen_effects`.
    components_of_cells
        Principal components of expression, cells x components.
    expression
        Of all cells.
    strata
        Groups of cells by perturbation.
    fdr
        False discovery rate of hits.
    seed
        Seed of permutations and halves.

    Returns
    -------
    DataFrame
        As of :func:`table_of_hits`.
    """
    distance, pvalue = energy_tests(components_of_cells, strata, fdr=fdr, seed=seed)
    library_size = expression.library_size
    ratio = depth_ratios(library_size, strata)
    halves = split_half_correlations(expression, strata, seed)
    means = [mean_ratios(part.counts, library_size, strata)[:2] for part in expression.parts()]
    mean, control_mean = np.concatenate(means, axis=2)
    shifts = common_shifts(mean, control_mean, effects.var_names)
    return table_of_hits(effects, distance, pvalue, ratio, halves, shifts, fdr)


def common_shifts(mean: np.ndarray, control_mean: np.ndarray, genes: pd.Index) -> pd.DataFrame:
    """Find perturbations by which one gene pushes all others up or down.

    Counts are relative: if a gene takes a larger part of them, all others have less, though nothing
    else changes. Such a shift is common to the genes, while the depth of the cells is the same.

    Parameters
    ----------
    mean, control_mean
        CP10k of all cells of a perturbation together, and of the cells that it is compared with,
        perturbations x genes.
    genes
        Symbols of the genes.

    Returns
    -------
    DataFrame
        ``common_shift``, the median log2 ratio over genes with at least 1 CP10k in control cells;
        ``composition_gene``, the gene whose change of share explains most of a shift of more than
        0.1, None if none does.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(mean / control_mean)
        ratio[~((control_mean >= FEWEST_COUNTS) & np.isfinite(ratio))] = np.nan
        change = np.nan_to_num(mean - control_mean)
        found = np.abs(change).argmax(axis=1)
        rows = np.arange(len(mean))
        left, left_before = (1 - m[rows, found] / CP10K for m in (mean, control_mean))
        explained = np.log2(left / left_before)
    shift = np.full(len(mean), np.nan)
    known = np.isfinite(ratio).any(axis=1)
    shift[known] = np.nanmedian(ratio[known], axis=1)
    by_one = (np.abs(shift) > LARGE_SHIFT) & (np.abs(shift - explained) < np.abs(shift) / 2)
    gene = np.where(by_one, genes.to_numpy(dtype=object)[found], None)
    return pd.DataFrame({"common_shift": shift, "composition_gene": gene})


def table_of_hits(
    effects: anndata.AnnData,
    distance: np.ndarray,
    pvalue: np.ndarray,
    depth_ratio: np.ndarray,
    split_half: np.ndarray,
    shifts: pd.DataFrame,
    fdr: float,
) -> pd.DataFrame:
    """Sort perturbations by the strength of their effects.

    Parameters
    ----------
    effects
        As of :func:`screen_effects`.
    distance, pvalue
        E-distance of each perturbation, and the p-value of its permutation test.
    depth_ratio
        Median library size of each perturbation relative to control cells.
    split_half
        Correlation of the effects of two halves of the cells of each perturbation.
    shifts
        Of each perturbation, as of :func:`common_shifts`.
    fdr
        False discovery rate of hits.

    Returns
    -------
    DataFrame
        Sorted by decreasing strength: E-distance with the p-value of its permutation test and the
        false discovery rate over perturbations, ``is_hit``; differentially expressed and tested
        genes; the ``detectable_effect``; ``split_half``, the correlation of effects of two halves
        of the cells, each against its own half of the control cells; the median library size
        relative to control cells, and whether it differs by more than a quarter
        (``depth_difference``); the columns of :func:`common_shifts`; and the gene of largest effect
        per standard error.
    """
    rate = np.full_like(pvalue, np.nan)
    known = np.isfinite(pvalue)
    rate[known] = stats.false_discovery_control(pvalue[known]) if known.any() else 1.0
    error = effects_in_use(effects, "standard_error")
    tested = np.isfinite(effects_in_use(effects, "pvalue"))
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.nan_to_num(np.abs(np.asarray(effects.X) / error), posinf=0.0)
    first = effects.var_names.to_numpy(dtype=object)[strength.argmax(axis=1)]
    table = pd.DataFrame(
        {
            "perturbation": list(effects.obs_names),
            "n_cells": effects.obs["n_cells"].to_numpy(),
            "n_compared": effects.obs["n_compared"].to_numpy(),
            "e_distance": distance,
            "pvalue": pvalue,
            "fdr": rate,
            "is_hit": rate < fdr,
            "n_de": effects.obs["n_de"].to_numpy(),
            "n_tested": effects.obs["n_tested"].to_numpy(),
            "detectable_effect": detectable_effects(error, tested, fdr),
            "split_half": split_half,
            "depth_ratio": depth_ratio,
            "depth_difference": np.maximum(depth_ratio, 1 / depth_ratio) > DIFFERENT_DEPTH,
            **shifts,
            "first_gene": np.where(strength.any(axis=1), first, None),
        }
    )
    by = ["fdr", "n_de", "e_distance"]
    return table.sort_values(by, ascending=[True, False, False], kind="stable")[HITS]


def detectable_effects(standard_error: np.ndarray, tested: np.ndarray, fdr: float) -> np.ndarray:
    """Compute the smallest effect that is found with 80 % power in a tested gene of median noise.

    Parameters
    ----------
    standard_error
        Perturbations x genes, log2(CP10k + 1).
    tested
        Boolean, perturbations x genes: those that enough cells express.
    fdr
        Significance, divided by the number of tested genes (Bonferroni).

    Returns
    -------
    ndarray
        log2(CP10k + 1), of each perturbation; NaN without tested genes or standard errors.
    """
    number = tested.sum(axis=1)
    result = np.full(len(standard_error), np.nan)
    for row in np.flatnonzero(number):
        distance = stats.norm.isf(fdr / 2 / number[row]) + stats.norm.ppf(POWER)
        result[row] = distance * np.median(standard_error[row, tested[row]])
    return result


def split_half_correlations(expression: Expression, strata: Strata, seed: int) -> np.ndarray:
    """Correlate the effects of two halves of each perturbation's cells.

    The halves are compared with disjoint halves of the control cells, since effects against the
    same control cells are correlated by their noise.

    Returns
    -------
    ndarray
        Pearson correlation over genes, of each perturbation; NaN with fewer than four cells.
    """
    cells = np.random.default_rng(seed).permutation(len(strata.group))
    keys = pd.DataFrame({"group": strata.group[cells], "stratum": strata.stratum[cells]})
    half = np.empty(len(cells), dtype=np.int64)
    half[cells] = keys.groupby(["group", "stratum"]).cumcount().to_numpy() % 2
    effects = []
    for number in range(2):
        group = np.where(half == number, strata.group, LEFT_OUT)
        own = Strata(group, strata.stratum, strata.n_groups, max(strata.min_controls // 2, 1))
        effects.append(stratified_effects(expression, own)[0])
    correlation = pearson(*effects)
    return np.where(strata.compared.sum(axis=0) >= 4, correlation, np.nan)


NO_VARIANCE = 1e-12  # of the sum of squares, by rounding
BATCHES = [
    "perturbation", "batch", "n_cells", "n_control_cells", "fraction", "control_fraction",
    "compared",
]  # fmt: skip


def cells_by_batch(screen: anndata.AnnData, min_controls: int) -> pd.DataFrame:
    """Count the cells of each perturbation and the control cells in each batch.

    Returns
    -------
    DataFrame
        ``perturbation``, ``batch``, ``n_cells``, ``n_control_cells``, ``fraction`` of the
        perturbation's cells, ``control_fraction``, and whether they are ``compared``; empty
        without batches.
    """
    if BATCH not in screen.obs:
        return pd.DataFrame(columns=BATCHES)
    counts = pd.crosstab(screen.obs["perturbation"].astype(str), screen.obs[BATCH].astype(str))
    controls = counts.loc[[CONTROL]]
    others = counts.drop(index=CONTROL)
    return table_of_batches(others, others * 0 + controls.to_numpy(), min_controls)


def table_of_batches(
    n_cells: pd.DataFrame, n_controls: pd.DataFrame, min_controls: int
) -> pd.DataFrame:
    """Build the table of :func:`cells_by_batch`.

    Parameters
    ----------
    n_cells, n_controls
        Cells of each perturbation, and those that they are compared with, perturbations x batches.
    min_controls
        Smallest number of the latter of a batch that is compared.
    """
    shown = {
        "n_cells": n_cells,
        "n_control_cells": n_controls,
        "fraction": n_cells.div(n_cells.sum(axis=1), axis=0),
        "control_fraction": n_controls.div(n_controls.sum(axis=1), axis=0),
    }
    pairs = pd.MultiIndex.from_product([n_cells.index, n_cells.columns])
    pairs.names = ["perturbation", "batch"]
    columns = {name: table.to_numpy().ravel() for name, table in shown.items()}
    long = pd.DataFrame(columns, index=pairs).reset_index()
    long["compared"] = (long["n_control_cells"] >= min_controls) & (long["n_cells"] > 0)
    return long.sort_values(["perturbation", "batch"], kind="stable")[BATCHES]


def batch_effects(
    controls: sparse.csr_matrix, batch: np.ndarray, context: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compare the control cells of batches by analysis of variance, within contexts.

    Own code, since libraries have no analysis of variance of sparse cells within strata.

    Parameters
    ----------
    controls
        log2(CP10k + 1) of control cells, cells x genes.
    batch, context
        Of each control cell.

    Returns
    -------
    pvalue, variance : ndarray
        Of each gene: of the F-test of equal means of batches, and the fraction of the variance
        that is between batches, corrected for chance (omega squared, Hays 1963), not below 0. NaN
        for a gene without variance, and for all where no context has two batches.
    """
    n_cells, n_genes = controls.shape
    if not n_cells:
        return np.full(n_genes, np.nan), np.full(n_genes, np.nan)
    cells = pd.DataFrame({"context": context, "batch": batch})
    groups, contexts = (
        cells.groupby(by).ngroup().to_numpy() for by in (["context", "batch"], ["context"])
    )

    def explained(codes: np.ndarray) -> tuple[np.ndarray, int]:
        number = np.bincount(codes)
        rows = np.arange(n_cells)
        member = sparse.csr_matrix((np.ones(n_cells), (codes, rows)), (len(number), n_cells))
        sums = (member @ controls).toarray()
        return np.sum(sums**2 / number[:, None], axis=0), len(number)

    (of_groups, n_groups), (of_contexts, n_contexts) = explained(groups), explained(contexts)
    squares = np.asarray(controls.multiply(controls).sum(axis=0)).ravel()
    between, within = of_groups - of_contexts, squares - of_groups
    degrees, left = n_groups - n_contexts, n_cells - n_groups
    known = (degrees > 0) & (left > 0) & (within > NO_VARIANCE * squares)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_cell = within / left
        statistic = between / degrees / of_cell
        variance = (between - degrees * of_cell) / (between + within + of_cell)
        pvalue = stats.f.sf(statistic, degrees, left)
    return np.where(known, pvalue, np.nan), np.where(known, np.clip(variance, 0, 1), np.nan)


CONTEXTS = [
    "perturbation", "context", "n_cells", "n_tested", "n_de", "correlation", "n_heterogeneous",
]  # fmt: skip


def effects_by_context(
    screen: anndata.AnnData, expression: Expression, strata: Strata, fdr: float
) -> pd.DataFrame:
    """Compare the effects of each perturbation between contexts, such as cell lines.

    Parameters
    ----------
    screen
        Canonical screen.
    expression
        log2(CP10k + 1), cells x genes.
    strata
        Groups of cells by perturbation; a stratum lies within a context.
    fdr
        False discovery rate below which a gene is differentially expressed, or heterogeneous.

    Returns
    -------
    DataFrame
        One row per perturbation and context with cells that are compared: ``n_de`` of ``n_tested``
        genes; the ``correlation`` of its effect with the mean effect in the other contexts
        (weighted by their inverse variances); and ``n_heterogeneous``, of the perturbation, genes
        whose effects differ between contexts by Cochran's Q test. Empty without contexts.
    """
    if CONTEXT not in screen.obs:
        return pd.DataFrame(columns=CONTEXTS)
    of_cell = screen.obs[CONTEXT].astype(str).to_numpy()
    contexts = sorted(set(of_cell))
    own = [
        replace(strata, group=np.where(of_cell == context, strata.group, LEFT_OUT))
        for context in contexts
    ]
    effect, error = (
        np.stack(values)
        for values in zip(*(stratified_effects(expression, part) for part in own), strict=True)
    )
    rate = np.stack([gated_tests(expression, part)[1] for part in own])
    number = np.stack([part.compared.sum(axis=0) for part in own])
    return compare_contexts(perturbations(screen), contexts, number, effect, error, rate, fdr)


def compare_contexts(
    names: list[str],
    contexts: list[str],
    n_cells: np.ndarray,
    effect: np.ndarray,
    error: np.ndarray,
    rate: np.ndarray,
    fdr: float,
) -> pd.DataFrame:
    """Build the table of :func:`effects_by_context`.

    Parameters
    ----------
    names, contexts
        Perturbations and contexts.
    n_cells
        Compared cells, contexts x perturbations.
    effect, error, rate
        Effects, standard errors and false discovery rates, contexts x perturbations x genes.
    fdr
        False discovery rate below which a gene is differentially expressed, or heterogeneous.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(np.isfinite(error) & (error > 0), 1 / error**2, 0.0)
    known = np.nan_to_num(effect)
    total = weight.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.sum(weight * known, axis=0) / total
        statistic = np.sum(weight * (known - mean) ** 2, axis=0)
        others = (total * mean - weight * known) / (total - weight)
    degrees = (weight > 0).sum(axis=0) - 1
    tested = np.isfinite(rate).any(axis=0) & (degrees > 0)
    pvalue = np.where(tested, stats.chi2.sf(statistic, np.maximum(degrees, 1)), np.nan)
    differs = np.zeros(len(names), dtype=int)
    for row, values in enumerate(pvalue):
        finite = values[np.isfinite(values)]
        if len(finite):
            differs[row] = int((stats.false_discovery_control(finite) < fdr).sum())
    rows = [
        {
            "perturbation": name,
            "context": context,
            "n_cells": int(n_cells[at, row]),
            "n_tested": int(np.isfinite(rate[at, row]).sum()),
            "n_de": int((rate[at, row] < fdr).sum()),
            "correlation": _correlation(effect[at, row], others[at, row]),
            "n_heterogeneous": differs[row],
        }
        for row, name in enumerate(names)
        for at, context in enumerate(contexts)
        if n_cells[at, row]
    ]
    return pd.DataFrame(rows, columns=CONTEXTS)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    known = np.isfinite(first) & np.isfinite(second)
    if known.sum() < 2 or not np.ptp(first[known]) or not np.ptp(second[known]):
        return np.nan
    return float(np.corrcoef(first[known], second[known])[0, 1])
