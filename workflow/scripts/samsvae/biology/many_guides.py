"""Quality of a screen whose cells have several perturbations, from marginal effects.

The tables are those of :mod:`samsvae.biology.quality` and :mod:`samsvae.biology.guides`. Where
these compare a condition with control cells, here the cells with a perturbation are compared with
all other cells, whose further perturbations are on average the same, within batches and bins of the
library size.
"""

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.biology.calibration import NULL, depth_ratios, null_row, quantiles
from samsvae.biology.guides import KNOCK_DOWN, change_of_target, mean_ratios
from samsvae.biology.quality import (
    BATCHES,
    CONTEXTS,
    common_shifts,
    compare_contexts,
    table_of_batches,
    table_of_effects,
    table_of_hits,
)
from samsvae.evaluation.agreement import pearson
from samsvae.evaluation.expression import CP10K
from samsvae.evaluation.marginal import Regression, fit, marginal_energy_tests
from samsvae.evaluation.strata import knows_strata
from samsvae.evaluation.stratified import stratified_rank_sum
from samsvae.screen.canonical import BATCH, CONTEXT
from samsvae.screen.labels import components

TARGETING = "targeting"  # kind of a guide
MOST_FAKE = 20  # random groups of cells that are tested as if they had a perturbation


def marginal_screen_effects(
    screen: anndata.AnnData,
    expression: sparse.csr_matrix,
    by_batch: bool,
    fdr: float,
    provenance: str,
) -> anndata.AnnData:
    """Compute marginal effects and tests of each perturbation from all cells of a screen.

    Parameters
    ----------
    screen
        Canonical screen.
    expression
        log2(CP10k + 1), cells x genes.
    by_batch
        Whether effects with batches as covariates, where the screen has these, are used.
    fdr
        False discovery rate below which a gene is differentially expressed.
    provenance
        Provenance record, JSON.

    Returns
    -------
    AnnData
        As of :func:`samsvae.biology.quality.screen_effects`.
    """
    within = by_batch and knows_strata(screen)
    layers: dict[str, np.ndarray] = {}
    for suffix in ("", "_stratified") if within else ("",):
        cells = Regression.of(screen, by_batch=bool(suffix))
        found = fit(expression, cells)
        own = (found.effect, found.standard_error, found.pvalue, found.fdr)
        names = ("ate", "standard_error", "pvalue", "fdr")
        layers |= {f"{name}{suffix}": values for name, values in zip(names, own, strict=True)}
    number = cells.n_cells
    # a perturbation of a whole batch is compared without batches
    used = np.isfinite(layers.get("ate_stratified", layers["ate"])).all(axis=1) & within
    table = table_of_effects(screen, layers, used, number, number, fdr, provenance)
    table.var["n_cells"] = np.asarray((expression > 0).sum(axis=0)).ravel()
    table.var["control_standard_error"] = np.sqrt(found.shared_variance)
    return table


def fake_perturbations(
    screen: anndata.AnnData, cells: Regression, min_cells: int, seed: int
) -> tuple[list[str], sparse.csr_matrix]:
    """Choose groups of cells that share nothing that acts.

    Parameters
    ----------
    screen
        Canonical screen.
    cells
        Regressors of its cells.
    min_cells
        Smallest number of cells of a group.
    seed
        Seed of random groups.

    Returns
    -------
    names : list of str
        Guides without a target; where fewer than two have enough cells, random groups of the
        median number of cells of a perturbation.
    present : csr_matrix
        Cells x groups.
    """
    if "guides" in screen.obsm:
        table = screen.uns["guides"]
        present = sparse.csc_matrix(screen.obsm["guides"])
        untargeted = (table["kind"] != TARGETING).to_numpy()
        usable = np.flatnonzero(untargeted & (present.getnnz(axis=0) >= min_cells))
        if len(usable) > 1:
            return list(table["guide"].iloc[usable]), sparse.csr_matrix(present[:, usable])
    size = int(min(max(np.median(cells.n_cells), min_cells), screen.n_obs // 2))
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(screen.n_obs, size, replace=False) for _ in range(MOST_FAKE)]
    columns = np.repeat(np.arange(MOST_FAKE), size)
    rows = np.concatenate(chosen)
    shape = screen.n_obs, MOST_FAKE
    present = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape)
    return [f"random_{number + 1}" for number in range(MOST_FAKE)], present


def marginal_null(
    screen: anndata.AnnData,
    expression: sparse.csr_matrix,
    cells: Regression,
    settings: Mapping[str, Any],
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test guides without a target, or random groups of cells, by the test of perturbations.

    Parameters
    ----------
    screen
        Canonical screen.
    expression
        log2(CP10k + 1), cells x genes.
    cells
        Regressors of its cells.
    settings
        ``min_cells_null`` and ``fdr`` of the configuration.
    seed
        Seed of random groups.

    Returns
    -------
    table, quantiles : DataFrame
        As of :func:`samsvae.biology.calibration.null_calibration`.
    """
    names, present = fake_perturbations(screen, cells, settings["min_cells_null"], seed)
    both = sparse.csr_matrix(sparse.hstack([cells.present, present], format="csr"))
    found = fit(expression, cells.with_groups([*cells.names, *names], both))
    library_size = screen.obs["library_size"].to_numpy(dtype=np.float64)
    groups = cells.with_groups(names, present)
    rows, pooled = [], []
    for at, name in enumerate(names):
        pvalue, rate = (values[len(cells.names) + at] for values in (found.pvalue, found.fdr))
        tested = pvalue[np.isfinite(pvalue)]
        if len(tested):
            depth = depth_ratios(library_size, groups.against_others(name, 0 * cells.stratum))[0]
            number = int(groups.n_cells[at])
            rows.append(null_row(name, number, tested, rate, depth, settings["fdr"]))
            pooled.append(tested)
    return pd.DataFrame(rows, columns=NULL), quantiles(
        np.concatenate(pooled) if pooled else np.empty(0)
    )


def marginal_hits(
    effects: anndata.AnnData,
    states: np.ndarray,
    expression: sparse.csr_matrix,
    counts: sparse.csr_matrix,
    library_size: np.ndarray,
    cells: Regression,
    fdr: float,
    seed: int,
) -> pd.DataFrame:
    """Test whether each perturbation does anything, and say what could have been found.

    See :func:`samsvae.evaluation.marginal.marginal_energy_tests` for the test.

    Parameters
    ----------
    effects
        As of :func:`marginal_screen_effects`.
    states
        Principal components of expression, cells x components.
    expression, counts
        log2(CP10k + 1) and UMI counts, cells x genes.
    library_size
        Of each cell.
    cells
        Regressors of the cells.
    fdr
        False discovery rate of hits.
    seed
        Seed of permutations and halves.

    Returns
    -------
    DataFrame
        As of :func:`samsvae.biology.quality.table_of_hits`; depth is relative to all cells,
        and the halves are of all cells.
    """
    distance, pvalue = marginal_energy_tests(states, cells, fdr, seed)
    # nearly all cells are without any one perturbation
    usual = np.median(library_size)
    ratio = np.array(
        [
            np.median(library_size[own]) / usual if len(own) else np.nan
            for own in map(cells.cells_with, range(len(cells.names)))
        ]
    )
    half = np.random.default_rng(seed).permutation(len(library_size)) % 2 == 0
    first, second = (fit(expression[part], cells[part]).effect for part in (half, ~half))
    halves = pearson(first, second)
    counts = counts.astype(np.float64)
    has = sparse.csr_matrix(cells.present != 0, dtype=np.float64)
    total, size = np.asarray(counts.sum(axis=0)), library_size.sum()
    own, own_size = (has.T @ counts).toarray(), (has.T @ library_size)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = CP10K * own / own_size, CP10K * (total - own) / (size - own_size)
    shifts = common_shifts(*means, effects.var_names)
    return table_of_hits(effects, distance, pvalue, ratio, halves, shifts, fdr)


def marginal_knock_down(
    rows: pd.DataFrame,
    cells: Regression,
    effect: np.ndarray,
    standard_error: np.ndarray,
    screen: anndata.AnnData,
    expression: sparse.csr_matrix,
    kind: str | None,
) -> pd.DataFrame:
    """Compare the expression of target genes with all other cells.

    Parameters
    ----------
    rows
        ``perturbation`` and ``guide`` of each column of `cells`.
    cells
        Regressors of the cells.
    effect, standard_error
        Of each row, rows x genes, log2(CP10k + 1).
    screen
        Canonical screen, with the counts in memory.
    expression
        log2(CP10k + 1), cells x genes.
    kind
        ``knockdown``, ``knockout`` or ``activation``; None if unknown.

    Returns
    -------
    DataFrame
        As of :func:`samsvae.biology.guides.knock_down`.
    """
    genes = screen.var_names
    pairs = [
        (row, gene, genes.get_loc(gene))
        for row, name in enumerate(rows["perturbation"])
        for gene in components(name)
        if gene in genes and cells.n_cells[row]
    ]
    targets = sorted({at for *_, at in pairs})
    counts = sparse.csc_matrix(screen.X[:, targets], dtype=np.float64)
    logs = sparse.csc_matrix(expression[:, targets])
    library_size = screen.obs["library_size"].to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.nan_to_num(np.abs(effect / standard_error))
    found = []
    for row, gene, at in pairs:
        column = [targets.index(at)]
        strata = cells.against_others(cells.names[row], cells.stratum)
        own = sparse.csr_matrix(counts[:, column])
        mean, control, error = (float(v[0, 0]) for v in mean_ratios(own, library_size, strata))
        pvalue = float(stratified_rank_sum(sparse.csr_matrix(logs[:, column]), strata)[0, 0])
        number = int(cells.n_cells[row])
        one = change_of_target(rows.iloc[row], gene, number, mean, control, error, pvalue, kind)
        rank = 1 + int(np.sum(strength[row] > strength[row, at]))
        found.append({**one, "rank": rank, "n_genes": len(genes)})
    return pd.DataFrame(found, columns=KNOCK_DOWN)


def cells_of_guides(
    screen: anndata.AnnData, cells: Regression, min_cells: int
) -> tuple[pd.DataFrame, Regression]:
    """Replace the perturbations of cells by their guides.

    Parameters
    ----------
    screen
        Canonical screen.
    cells
        Regressors of its cells.
    min_cells
        Smallest number of cells of a guide.

    Returns
    -------
    table : DataFrame
        ``perturbation``, ``guide`` and ``n_cells`` of the guides with a target and enough cells;
        empty if the guides of the cells are unknown.
    cells : Regression
        With a column for each of these guides, in the order of the table.
    """
    columns = ["perturbation", "guide", "n_cells"]
    if "guides" not in screen.obsm:
        return pd.DataFrame(columns=columns), cells.with_groups([], cells.present[:, :0])
    known = screen.uns["guides"]
    present = sparse.csc_matrix(screen.obsm["guides"])
    number = present.getnnz(axis=0)
    used = np.flatnonzero((known["kind"] == TARGETING).to_numpy() & (number >= min_cells))
    named = known.iloc[used].assign(n_cells=number[used], column=used)
    named = named.rename(columns={"target": "perturbation"})
    named = named.sort_values(["perturbation", "guide"], kind="stable")
    chosen = sparse.csr_matrix(present[:, named["column"].to_numpy()])
    return named[columns].reset_index(drop=True), cells.with_groups(list(named["guide"]), chosen)


def cells_in_batches(screen: anndata.AnnData, cells: Regression, min_controls: int) -> pd.DataFrame:
    """Count the cells with each perturbation, and the others, in each batch.

    Returns
    -------
    DataFrame
        As of :func:`samsvae.biology.quality.cells_by_batch`; control cells are all cells without
        the perturbation.
    """
    if BATCH not in screen.obs:
        return pd.DataFrame(columns=BATCHES)
    member = pd.get_dummies(screen.obs[BATCH].astype(str), dtype=float)
    has = (cells.present != 0).astype(float)
    number = pd.DataFrame((has.T @ member.to_numpy()).astype(int), cells.names, member.columns)
    others = member.sum().astype(int) - number
    return table_of_batches(number, others, min_controls)


def marginal_effects_by_context(
    screen: anndata.AnnData, expression: sparse.csr_matrix, cells: Regression, fdr: float
) -> pd.DataFrame:
    """Compare the marginal effects of each perturbation between contexts, such as cell lines.

    Returns
    -------
    DataFrame
        As of :func:`samsvae.biology.quality.effects_by_context`.
    """
    if CONTEXT not in screen.obs:
        return pd.DataFrame(columns=CONTEXTS)
    of_cell = screen.obs[CONTEXT].astype(str).to_numpy()
    contexts = sorted(set(of_cell))
    inside = [of_cell == context for context in contexts]
    found = [fit(expression[own], cells[own]) for own in inside]
    number = np.stack([cells[own].n_cells for own in inside])
    effect, error, rate = (
        np.stack([getattr(one, name) for one in found])
        for name in ("effect", "standard_error", "fdr")
    )
    return compare_contexts(cells.names, contexts, number, effect, error, rate, fdr)
