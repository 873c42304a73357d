"""Target knock-down, and agreement of the guides of a perturbation.

All cells are used. Effects are in log2(CP10k + 1), against the control cells of the same stratum
where the screen has batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse, stats

from samsvae.biology.failed_guides import LOW_CONCORDANCE, WEAK, WEAK_EFFECT, WEAK_KNOCK_DOWN
from samsvae.evaluation.expression import CP10K, Expression
from samsvae.evaluation.strata import LEFT_OUT, Strata, blocks_of_groups
from samsvae.evaluation.stratified import stratified_rank_sum
from samsvae.screen.canonical import GUIDE
from samsvae.screen.labels import CONTROL, components

NORMAL = 1.96  # standard errors on either side of an estimate, a 95 % confidence interval
FEWEST_GENES = 5  # significant genes of a perturbation whose guides are compared
ODD_QUANTILE = 0.05  # of the correlations of guides of the same perturbation
SIGN = {"knockdown": -1, "knockout": -1, "activation": 1}  # of the change of the target, expected
KNOCK_DOWN = [
    "perturbation", "guide", "gene", "n_cells", "mean", "control_mean", "ratio", "log2fc", "low",
    "high", "pvalue", "rank", "n_genes", "as_expected",
]  # fmt: skip
GUIDES = [
    "perturbation", "guide", "n_cells", "n_genes", "concordance", "slope", "knock_down", "odd",
    "reason",
]  # fmt: skip


def mean_ratios(
    counts: sparse.csr_matrix, library_size: np.ndarray, strata: Strata
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare the expression of groups with control cells of the same strata.

    Parameters
    ----------
    counts
        UMI counts, cells x genes.
    library_size
        Counts of each cell.
    strata
        Groups and strata of the cells.

    Returns
    -------
    mean, control_mean, standard_error : ndarray
        Groups x genes. Means are counts per 10,000 of all cells together; the control's is weighted
        like the strata of the group. The standard error is that of the log2 ratio by the delta
        method, infinite or NaN where a mean is 0.
    """
    shape = strata.n_groups, counts.shape[1]
    mean, control, variance, control_variance = (np.full(shape, np.nan) for _ in range(4))
    compared = strata.compared
    is_control = strata.group == strata.n_groups

    counts = counts.astype(np.float64)
    of_controls = {}
    for stratum in np.flatnonzero(compared.any(axis=1)):
        cells = np.flatnonzero(is_control & (strata.stratum == stratum))
        own = counts[cells], library_size[cells], np.zeros(len(cells), dtype=np.int64), 1
        rate, variance_of_rate, _ = _rates(*own)
        of_controls[stratum] = rate[0], variance_of_rate[0]
    for groups in blocks_of_groups(np.flatnonzero(compared.sum(axis=0)), compared, shape[1]):
        place = np.full(strata.n_groups + 1, -1)
        place[groups] = np.arange(len(groups))
        inside = np.flatnonzero(place[strata.group] >= 0)
        inside = inside[compared[strata.stratum[inside], strata.group[inside]] > 0]
        rows = place[strata.group[inside]]
        own = counts[inside], library_size[inside], rows, len(groups)
        mean[groups], variance[groups], total = _rates(*own)
        control[groups], control_variance[groups] = 0.0, 0.0
        for stratum in np.flatnonzero(compared[:, groups].any(axis=1)):
            there = strata.stratum[inside] == stratum
            depth = np.bincount(rows[there], library_size[inside][there], minlength=len(groups))
            weight = (depth / total)[:, None]
            rate, variance_of_rate = of_controls[stratum]
            control[groups] += weight * rate
            control_variance[groups] += weight**2 * variance_of_rate
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = variance / mean**2 + control_variance / control**2
    return CP10K * mean, CP10K * control, np.sqrt(relative) / np.log(2)


def _rates(
    counts: sparse.csr_matrix, library_size: np.ndarray, group: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute counts per library size of groups of cells, their variance, and the total size."""
    n_cells = np.bincount(group, minlength=n_groups)[:, None]
    total = np.bincount(group, library_size, minlength=n_groups)
    shape, cells = (n_groups, len(group)), np.arange(len(group))
    member = sparse.csr_matrix((np.ones(len(group)), (group, cells)), shape)
    weighted = sparse.csr_matrix((library_size, (group, cells)), shape)
    rate = (member @ counts).toarray() / total[:, None]
    squares = (member @ counts.multiply(counts)).toarray()
    products = (weighted @ counts).toarray()
    depths = np.bincount(group, library_size**2, minlength=n_groups)[:, None]
    residual = np.clip(squares - 2 * rate * products + rate**2 * depths, 0, None)
    variance = residual * n_cells / np.maximum(n_cells - 1, 1) / total[:, None] ** 2
    return rate, variance, total


@dataclass(frozen=True)
class Groups:
    """Groups of cells with a guide or perturbation, and their effects.

    Attributes
    ----------
    rows
        ``perturbation`` and ``guide`` of each group; the guide is empty for all of a perturbation.
    strata
        Groups and strata of the cells.
    effect, standard_error
        Groups x genes, log2(CP10k + 1).
    """

    rows: pd.DataFrame
    strata: Strata
    effect: np.ndarray
    standard_error: np.ndarray


def knock_down(
    groups: Groups, expression: Expression, genes: pd.Index, kind: str | None
) -> pd.DataFrame:
    """Compare the expression of target genes with control cells.

    Parameters
    ----------
    groups
        Of perturbations or of guides.
    expression
        Of all cells.
    genes
        Symbols of the genes.
    kind
        ``knockdown``, ``knockout`` or ``activation``; None if unknown.

    Returns
    -------
    DataFrame
        One row per group and target gene that is measured: CP10k of its cells together (``mean``)
        and of control cells, their ``ratio``, ``log2fc`` with its 95 % confidence interval
        (``low``, ``high``), the p-value of the stratified rank-sum test, the ``rank`` of the target
        among ``n_genes`` genes by absolute effect per standard error, and ``as_expected``, whether
        the sign is that of the kind of perturbation.
    """
    rows, strata = groups.rows, groups.strata
    pairs = [
        (row, gene, genes.get_loc(gene))
        for row, name in enumerate(rows["perturbation"])
        for gene in components(name)
        if gene in genes
    ]
    targets = sorted({at for *_, at in pairs})
    changes: dict[tuple[int, int], list[float]] = {}
    for part in expression.parts():
        own = [at for at in targets if part.genes.start <= at < part.genes.stop]
        columns = [at - part.genes.start for at in own]
        values = [
            *mean_ratios(part.counts[:, columns], expression.library_size, strata),
            stratified_rank_sum(part.log[:, columns], strata),
        ]
        column = {at: number for number, at in enumerate(own)}
        for row, _, at in pairs:
            if at in column:
                changes[row, at] = [value[row, column[at]] for value in values]
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.nan_to_num(np.abs(groups.effect / groups.standard_error))
    n_compared = strata.compared.sum(axis=0)
    found = []
    for row, gene, at in pairs:
        number = int(n_compared[row])
        mean, control, error, pvalue = changes[row, at]
        change = change_of_target(rows.iloc[row], gene, number, mean, control, error, pvalue, kind)
        found.append(change)
        found[-1] |= {
            "rank": 1 + int(np.sum(strength[row] > strength[row, at])),
            "n_genes": len(genes),
        }
    return pd.DataFrame(found, columns=KNOCK_DOWN)


def change_of_target(
    group: Mapping[str, Any],
    gene: str,
    n_cells: int,
    mean: float,
    control_mean: float,
    error: float,
    pvalue: float,
    kind: str | None,
) -> dict[str, Any]:
    """Describe the change of a target gene in a group of cells, as of :func:`knock_down`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(mean, control_mean)
        log2fc = np.log2(ratio)
    return {
        "perturbation": group["perturbation"],
        "guide": group["guide"],
        "gene": gene,
        "n_cells": n_cells,
        "mean": mean,
        "control_mean": control_mean,
        "ratio": ratio,
        "log2fc": log2fc,
        "low": log2fc - NORMAL * error,
        "high": log2fc + NORMAL * error,
        "pvalue": pvalue,
        "as_expected": None if kind is None else bool(np.sign(log2fc) == SIGN[kind]),
    }


def guide_groups(screen: anndata.AnnData, min_cells: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Group the cells of each perturbation by their guides.

    Parameters
    ----------
    screen
        Canonical screen.
    min_cells
        Smallest number of cells of a guide.

    Returns
    -------
    group : ndarray of int
        Index of each cell's row of the table; the number of rows for control cells, -1 for others.
    table : DataFrame
        ``perturbation``, ``guide`` (all guides of the cells, joined) and ``n_cells``; empty if the
        guides of the cells are unknown.
    """
    columns = ["perturbation", "guide"]
    is_control = (screen.obs["perturbation"] == CONTROL).to_numpy()
    if GUIDE not in screen.obs:
        return np.where(is_control, 0, LEFT_OUT), pd.DataFrame(columns=[*columns, "n_cells"])
    pairs = screen.obs[["perturbation", GUIDE]].astype(str).set_axis(columns, axis=1)
    counted = pairs[~is_control].value_counts(sort=False)
    table = counted[counted >= min_cells].sort_index().rename("n_cells").reset_index()
    keys = pd.MultiIndex.from_frame(table[columns])
    group = keys.get_indexer(pd.MultiIndex.from_frame(pairs))
    group[is_control] = len(table)
    return group, table


def compare_guides(
    table: pd.DataFrame, effect: np.ndarray, changes: pd.DataFrame, significant: pd.DataFrame
) -> pd.DataFrame:
    """Compare the effect of each guide with the other guides of its perturbation.

    Parameters
    ----------
    table
        Guides, as of :func:`guide_groups`.
    effect
        Effects of guides, guides x genes.
    changes
        Change of the targets in the cells of each guide, as of :func:`knock_down`.
    significant
        Boolean, differentially expressed genes of all cells of a perturbation, perturbations x
        genes.

    Returns
    -------
    DataFrame
        Perturbations whose guides agree most come first. For each guide the ``concordance``,
        Spearman correlation of its effect with the mean effect of the other guides over the
        ``n_genes`` significant genes (NaN for fewer than five); ``slope``, the regression slope on
        that mean effect, near 0 for a guide without effect; ``knock_down``, the log2 ratio of its
        (first) target; and whether it is ``odd``: its concordance is below the 5th percentile of
        pairs of guides of the same perturbation, its slope is below one half, or its knock-down is
        less than half the median of the others (``reason``).
    """
    limit = _lowest_usual(table, effect, significant)
    by_guide = changes.drop_duplicates(["perturbation", "guide"]).set_index(
        ["perturbation", "guide"]
    )
    guides = pd.MultiIndex.from_frame(table[["perturbation", "guide"]])
    knocked_down = by_guide["log2fc"].reindex(guides).to_numpy(dtype=float)
    found = []
    for name, own in table.groupby("perturbation", sort=False):
        rows = own.index.to_numpy()
        chosen = significant.loc[name].to_numpy()
        for row in rows:
            others = rows[rows != row]
            one = {"n_genes": int(chosen.sum()), "knock_down": knocked_down[row]}
            reasons = []
            if len(others) and chosen.sum() >= FEWEST_GENES:
                weights = table["n_cells"].to_numpy()[others]
                rest = np.average(effect[others][:, chosen], axis=0, weights=weights)
                guide = effect[row, chosen]
                one["concordance"] = _spearman(guide, rest)
                one["slope"] = float(guide @ rest / (rest @ rest)) if rest.any() else np.nan
                if one["concordance"] < limit:
                    reasons.append(LOW_CONCORDANCE)
                if one["slope"] < WEAK:
                    reasons.append(WEAK_EFFECT)
            if len(others) and np.isfinite(knocked_down[row]):
                usual = float(np.nanmedian(knocked_down[others]))
                if np.isfinite(usual) and usual != 0 and knocked_down[row] / usual < WEAK:
                    reasons.append(WEAK_KNOCK_DOWN)
            found.append(
                {**own.loc[row], **one, "odd": bool(reasons), "reason": ", ".join(reasons)}
            )
    compared = pd.DataFrame(found).reindex(columns=GUIDES)
    agreement = compared.groupby("perturbation")["concordance"].transform("median")
    order = agreement.sort_values(ascending=False, kind="stable").index
    return compared.loc[order]


def _lowest_usual(table: pd.DataFrame, effect: np.ndarray, significant: pd.DataFrame) -> float:
    """Find the 5th percentile of correlations of pairs of guides of the same perturbation."""
    found = []
    for name, own in table.groupby("perturbation", sort=False):
        chosen = significant.loc[name].to_numpy()
        rows = own.index.to_numpy()
        if chosen.sum() >= FEWEST_GENES:
            found += [
                _spearman(effect[a, chosen], effect[b, chosen])
                for number, a in enumerate(rows)
                for b in rows[number + 1 :]
            ]
    return float(np.nanquantile(found, ODD_QUANTILE)) if found else np.nan


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    ranks = stats.rankdata(first), stats.rankdata(second)
    spread = [rank.std() for rank in ranks]
    return float(np.corrcoef(*ranks)[0, 1]) if min(spread) > 0 else np.nan
