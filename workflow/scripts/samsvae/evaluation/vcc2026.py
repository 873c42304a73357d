"""Scores of predicted cells by the rules "vcc2026" of the Virtual Cell Challenge.

The Arc Institute's package cell-eval2 (https://github.com/ArcInstitute/cell-eval2) defines the
rules. Its six metrics compare cells with raw counts: three read profiles of summed counts, the
others tables of differential expression. Predicted and measured cells are compared with the same
measured control cells, and the genes that perturbations target are left out.

Own code, since the locked environment would otherwise need the package's data frames and a second
rank-sum test; tests compare it with numbers of the package. It differs in one respect: all targets
of a combination are left out, where the package knows one target of each perturbation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.evaluation.metrics import FRACTION, Score
from samsvae.evaluation.strata import Strata
from samsvae.evaluation.stratified import discovery_rates, stratified_rank_sum
from samsvae.screen.labels import CONTROL, components

PROFILE_TOTAL = 5e4  # counts of a profile
MILLION = 1e6
LEAST_CPM = 5.0  # of a tested gene, mean over control cells
PSEUDOCOUNT = 1e-9  # CPM
FDR = 0.05
PURITY = 0.9  # fraction of right signs among the leading genes
FEWEST_SIGNIFICANT = 10  # genes of a perturbation whose fold changes are scored
CELLS_PER_BLOCK = 64
LARGEST_BLOCK = 2**24  # distances of perturbations at a time

RETRIEVAL = "pds_cosine"
ERROR = "expr_mse_unbiased_capped_norm"
FIDELITY = "de_wilcoxon_direction_fidelity_yield_raw"
REACH = "de_wilcoxon_direction_reach_raw"
JACCARD = "de_wilcoxon_sig_jaccard"
FOLD_CHANGES = "de_wilcoxon_lfc_nmae"

SCORES: dict[str, Score] = {
    RETRIEVAL: Score(
        "perturbation discrimination",
        "rank of the right measured effect by cosine distance from the predicted one, target genes "
        "left out",
        FRACTION, "higher", 1.0, 0.5,
    ),
    ERROR: Score(
        "profile error",
        "squared error of predicted profiles relative to that of control cells, sampling noise "
        "taken off",
        "", "lower", 0.0, None,
    ),
    FIDELITY: Score(
        "direction fidelity",
        "significant genes with the right sign, relative to the larger number of significant genes",
        FRACTION, "higher", 1.0, None,
    ),
    REACH: Score(
        "direction reach",
        "fraction of the significant genes, as the prediction ranks them, up to which 90 % of the "
        "signs are right",
        FRACTION, "higher", 1.0, None,
    ),
    JACCARD: Score(
        "overlap of DE genes",
        "Jaccard index of the sets of significant genes",
        FRACTION, "higher", 1.0, None,
    ),
    FOLD_CHANGES: Score(
        "error of log fold changes",
        "mean absolute error of log fold changes of significant genes relative to their mean size",
        "", "lower", 0.0, None,
    ),
}  # fmt: skip


def target_columns(screen: anndata.AnnData, names: Sequence[str]) -> np.ndarray:
    """Map each perturbation to its measured target genes.

    Parameters
    ----------
    screen
        Canonical screen. A component of a label is the name of its target gene, or of a single
        perturbation whose gene is in the column ``gene`` of ``obs``.
    names
        Canonical labels; a combination has the targets of all its components.

    Returns
    -------
    ndarray of bool
        Perturbations x genes; a row is empty if no target is measured.
    """
    gene_of: dict[str, str] = {}
    if "gene" in screen.obs:
        known = screen.obs.loc[screen.obs["perturbation"] != CONTROL, ["perturbation", "gene"]]
        gene_of = dict(known.astype(str).drop_duplicates("perturbation").to_numpy().tolist())
    column = {gene: position for position, gene in enumerate(screen.var_names)}
    targets = np.zeros((len(names), screen.n_vars), dtype=bool)
    for row, name in enumerate(names):
        for part in components(name):
            position = column.get(part, column.get(gene_of.get(part, part)))
            if position is not None:
                targets[row, position] = True
    return targets


@dataclass(frozen=True)
class CellStatistics:
    """Profiles and differential expression of groups of cells.

    Attributes
    ----------
    profile
        log(1 + 5e4 fraction of the summed counts), perturbations (control last) x genes.
    sampling
        Jackknife estimate of the squared sampling error of each profile, summed over genes.
    log2fc
        log2 ratio of mean CPM to that of control cells, perturbations x genes; 0 for a gene that
        is not tested.
    pvalue, fdr
        Of the rank-sum test, same shape, and the rate over the tested genes of a perturbation; NaN
        for a gene that is not tested, with at most 5 CPM in control cells.
    """

    profile: np.ndarray
    sampling: np.ndarray
    log2fc: np.ndarray
    pvalue: np.ndarray
    fdr: np.ndarray

    @property
    def effect(self) -> np.ndarray:
        """Difference of profiles from the control cells', perturbations x genes."""
        return self.profile[:-1] - self.profile[-1]


def cell_statistics(
    counts: sparse.csr_matrix, labels: Sequence[str] | np.ndarray, names: Sequence[str]
) -> CellStatistics:
    """Summarise cells by perturbation.

    Parameters
    ----------
    counts
        Raw integer counts, cells x genes.
    labels
        Perturbation of each cell, or control; cells of others are left out.
    names
        Perturbations.
    """
    strata = Strata.of(pd.Series(np.asarray(labels, dtype=object)), names)
    n_groups, n_genes = len(names) + 1, counts.shape[1]
    profile, sampling = np.zeros((n_groups, n_genes)), np.zeros(n_groups)
    order = np.argsort(strata.group, kind="stable")
    starts = np.searchsorted(strata.group[order], np.arange(n_groups + 1))
    for group in range(n_groups):
        cells = order[starts[group] : starts[group + 1]]
        profile[group], sampling[group] = _profile(counts[cells])
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    rates = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    # a division, so that equal fractions are equal numbers, and ties stay ties
    rates.data /= np.repeat(total / MILLION, np.diff(rates.indptr))
    kept = strata.group >= 0
    member = sparse.csr_matrix(
        (np.ones(kept.sum()), (strata.group[kept], np.flatnonzero(kept))),
        shape=(n_groups, counts.shape[0]),
    )
    number = np.maximum(np.asarray(member.sum(axis=1)), 1)
    mean = (member @ rates).toarray() / number.reshape(-1, 1)
    tested = mean[-1] > LEAST_CPM
    log2fc = np.log2((mean[:-1] + PSEUDOCOUNT) / (mean[-1] + PSEUDOCOUNT))
    pvalue = stratified_rank_sum(rates, strata)
    pvalue[:, ~tested] = np.nan
    log2fc[:, ~tested] = 0
    return CellStatistics(profile, sampling, log2fc, pvalue, discovery_rates(pvalue))


def _profile(counts: sparse.csr_matrix) -> tuple[np.ndarray, float]:
    """Compute the profile of a group of cells, and the jackknife estimate of its squared error."""
    number, n_genes = counts.shape
    summed = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    total = summed.sum()
    if total == 0:
        return np.zeros(n_genes), 0.0
    profile = np.log1p(PROFILE_TOTAL * summed / total)
    if number < 2:
        return profile, 0.0
    left = total - np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    first, second = np.zeros(n_genes), np.zeros(n_genes)
    for start in range(0, number, CELLS_PER_BLOCK):
        rows = slice(start, start + CELLS_PER_BLOCK)
        others = summed - counts[rows].toarray()
        share = others / np.maximum(left[rows, None], 1)
        deviation = np.log1p(PROFILE_TOTAL * share) - profile
        first += deviation.sum(axis=0)
        second += np.einsum("ij,ij->j", deviation, deviation)
    return profile, max((number - 1) / number * float((second - first**2 / number).sum()), 0.0)


def vcc_scores(
    predicted: CellStatistics,
    measured: CellStatistics,
    targets: np.ndarray,
    gate: CellStatistics | None = None,
) -> dict[str, float]:
    """Compute the six metrics, averaged over perturbations.

    Parameters
    ----------
    predicted, measured
        Statistics of the same perturbations and genes. Those of predicted cells are relative to
        the measured control cells, those of half of the measured cells to their own.
    targets
        Boolean, the target genes of each perturbation, perturbations x genes.
    gate
        Statistics whose significant genes and sizes of log fold changes are taken for
        :data:`FOLD_CHANGES`, those of all cells if halves are compared; `measured` if None.

    Returns
    -------
    dict of float
        By the names of :data:`SCORES`; NaN where no perturbation has a value.
    """
    gate = measured if gate is None else gate
    values = {
        RETRIEVAL: retrieval(predicted.effect, measured.effect, targets),
        FIDELITY: direction_fidelity(predicted, measured, targets),
        REACH: direction_reach(predicted, measured, targets),
        JACCARD: jaccard(predicted, measured, targets),
        FOLD_CHANGES: fold_change_error(predicted, measured, targets, gate),
    }
    means = {name: _mean(of_metric) for name, of_metric in values.items()}
    return {
        name: profile_error(predicted, measured, targets) if name == ERROR else means[name]
        for name in SCORES
    }


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def retrieval(predicted: np.ndarray, measured: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Score the rank of the right measured effect by cosine distance: 1 if it is the nearest.

    The targets of all perturbations are left out of all effects, so that a prediction of the
    targets alone retrieves nothing. Ties are at their middle rank; an effect of 0 is as far from
    all.
    """
    genes = ~targets.any(axis=0)
    predicted, measured = predicted[:, genes], measured[:, genes]
    length, measured_length = (np.linalg.norm(each, axis=1) for each in (predicted, measured))
    others = len(measured) - 1
    if not others:
        return np.full(1, np.nan)
    rank = np.empty(len(predicted))
    step = max(1, LARGEST_BLOCK // len(measured))
    for start in range(0, len(predicted), step):
        rows = np.arange(start, min(start + step, len(predicted)))
        norms = length[rows, None] * measured_length
        cosine = np.divide(
            predicted[rows] @ measured.T, norms, out=np.zeros_like(norms), where=norms > 0
        )
        distance = np.clip(1 - cosine, 0, 2)
        right = distance[np.arange(len(rows)), rows][:, None]
        tied = (distance == right).sum(axis=1) - 1
        rank[rows] = (distance < right).sum(axis=1) + tied / 2
    return 1 - rank / others


def profile_error(
    predicted: CellStatistics, measured: CellStatistics, targets: np.ndarray
) -> float:
    """Compute the squared error of predicted profiles relative to that of the control profile.

    Both are sums over perturbations of squared distances per gene, from which the sampling errors
    of the two profiles are taken off. That of predicted cells is at most as large as that of the
    measured ones, and in total at most the sum of squares of predicted profiles about their mean,
    so that nothing is gained by cells that vary more than their sums.
    """
    n_genes = (~targets).sum(axis=1)
    weight = np.divide(1.0, n_genes, out=np.zeros(len(targets)), where=n_genes > 0)
    noise = measured.sampling[:-1]
    claimed = np.minimum(predicted.sampling[:-1], noise)
    total = claimed @ weight
    if total > 0:
        claimed = claimed * min(1.0, _spread(predicted.profile[:-1], targets, weight) / total)

    def squared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.einsum("ij,ij->i", first - second, np.where(targets, 0, first - second))

    profile = measured.profile[:-1]
    error = squared(predicted.profile[:-1], profile) - claimed - noise
    size = squared(profile, measured.profile[-1]) - noise - measured.sampling[-1]
    return float((error @ weight) / (size @ weight))


def _spread(profile: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> float:
    """Sum squares of profiles about their mean over perturbations, without target genes."""
    weights = np.where(targets, 0.0, weight[:, None])
    deviation = profile - profile.mean(axis=0)
    total = weights.sum(axis=0)
    first, second = (weights * deviation).sum(axis=0), (weights * deviation**2).sum(axis=0)
    known = ((~targets).sum(axis=0) > 1) & (total > 0)
    return float(np.maximum(second[known] - first[known] ** 2 / total[known], 0).sum())


def significant(statistics: CellStatistics, targets: np.ndarray) -> np.ndarray:
    """Mark the significant genes of each perturbation, without its targets."""
    with np.errstate(invalid="ignore"):
        return np.asarray((statistics.fdr < FDR) & ~targets)


def _signs(predicted: CellStatistics, measured: CellStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Mark genes tested on both sides whose measured effect has a sign, and right signs of them."""
    both = np.isfinite(predicted.fdr) & np.isfinite(measured.fdr) & (measured.log2fc != 0)
    return both, both & (np.sign(predicted.log2fc) == np.sign(measured.log2fc))


def direction_fidelity(
    predicted: CellStatistics, measured: CellStatistics, targets: np.ndarray
) -> np.ndarray:
    """Compute the fraction of significant genes whose predicted sign is right.

    Relative to the larger of the numbers of genes significant in prediction and measurement; NaN
    if both are 0.
    """
    known, right = _signs(predicted, measured)
    called = significant(predicted, targets) & known
    larger = np.maximum(called.sum(axis=1), significant(measured, targets).sum(axis=1))
    return _ratio((called & right).sum(axis=1), larger)


def direction_reach(
    predicted: CellStatistics, measured: CellStatistics, targets: np.ndarray
) -> np.ndarray:
    """Compute how far down the prediction's ranking of truly significant genes signs are right.

    The deepest rank up to which 90 % of the signs are right, as a fraction of the number of
    significant genes; NaN without any. The prediction ranks by false discovery rate, then p-value,
    then size of the log fold change, and last by position of the gene.
    """
    known, right = _signs(predicted, measured)
    true = significant(measured, targets)
    depth = np.zeros(len(targets))
    for row in range(len(targets)):
        genes = np.flatnonzero(true[row] & np.isfinite(predicted.fdr[row]))
        size = -np.abs(predicted.log2fc[row, genes])
        order = np.lexsort((size, predicted.pvalue[row, genes], predicted.fdr[row, genes]))
        ranked = genes[order]
        number, hits = np.cumsum(known[row, ranked]), np.cumsum(right[row, ranked])
        pure = hits / np.maximum(number, 1) >= PURITY
        depth[row] = number[pure].max(initial=0)
    return _ratio(depth, true.sum(axis=1))


def jaccard(predicted: CellStatistics, measured: CellStatistics, targets: np.ndarray) -> np.ndarray:
    """Compute the Jaccard index of the sets of significant genes; 1 if both are empty."""
    first, second = significant(predicted, targets), significant(measured, targets)
    union = (first | second).sum(axis=1)
    return np.where(union > 0, (first & second).sum(axis=1) / np.maximum(union, 1), 1.0)


def fold_change_error(
    predicted: CellStatistics,
    measured: CellStatistics,
    targets: np.ndarray,
    gate: CellStatistics,
) -> np.ndarray:
    """Compute the mean absolute error of log fold changes relative to their mean absolute value.

    Over the genes that are significant in `gate`; NaN for a perturbation with fewer than ten.
    """
    genes = significant(gate, targets)
    error = np.abs(predicted.log2fc - measured.log2fc)
    values = _ratio((error * genes).sum(axis=1), (np.abs(gate.log2fc) * genes).sum(axis=1))
    values[genes.sum(axis=1) < FEWEST_SIGNIFICANT] = np.nan
    return values


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
