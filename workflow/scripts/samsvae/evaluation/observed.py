"""Observed average treatment effects, differential expression, and split-half ceilings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.evaluation.effects import (
    CONTEXTS,
    GroupMeans,
    GroupSums,
    as_compared,
    effects_table,
    group_means,
    in_context,
    member_matrix,
)
from samsvae.evaluation.expression import (
    LARGEST_BLOCK,
    Expression,
    cp10k,
    expression_in_blocks,
    log_expression,
    n_cells_with_gene,
)
from samsvae.evaluation.marginal import Regression, fit, mean_profiles
from samsvae.evaluation.strata import Strata, knows_strata, strata_of_cells, stratified_effects
from samsvae.evaluation.stratified import gated_tests
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import (
    CONTEXT,
    counts_in_blocks,
    has_marginal_effects,
    perturbations,
)
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TEST, TRAIN, UNUSED, VAL, held_out_cells

PARTS = (TRAIN, VAL, TEST, UNUSED)

HALVED = ("ate", "ate_held_out", "fdr", "t_of_others")  # of observed effects, for a split half

PSEUDOCOUNT = 1.0  # added to mean CP10k before the ratio, as Seurat does


def observed_effects(
    screen: anndata.AnnData,
    parts: pd.Series,
    provenance: str,
    cells: np.ndarray | None = None,
    min_controls: int = 10,
) -> anndata.AnnData:
    """Compute the observed effects of each perturbation.

    Where the screen has marginal effects, they are those of :mod:`samsvae.evaluation.marginal`
    among all cells and among held-out cells, with batches as covariates of the layers
    ``_stratified``; the tests are of held-out cells and of control cells.

    Parameters
    ----------
    screen
        Canonical screen, whose counts may be in a file.
    parts
        Split of each cell, as in split.tsv.
    provenance
        Provenance record, JSON.
    cells
        Boolean, one per cell of the screen; None for all.
    min_controls
        Smallest number of control cells of a batch whose cells are compared.

    Returns
    -------
    AnnData
        Perturbations x genes. ``X`` and layer ``ate``: effect among all cells, as in the paper;
        ``ate_held_out``: among held-out cells alone; ``standard_error`` of `ate`, and
        ``standard_error_held_out`` of `ate_held_out`; ``log2fc``:
        log2 ratio of mean CP10k + 1; ``pvalue`` and ``fdr``: rank-sum test of held-out cells
        against control cells, see :func:`samsvae.evaluation.stratified.gated_tests`, NaN for genes
        that too few cells express; ``t_of_others``: see :func:`t_of_others`, of held-out cells;
        for marginal effects the ratio of the effect, relative to all cells without the
        perturbation, to its standard error.
        Where the screen has batches or contexts, ``ate_stratified``
        and so on are the same within these, but for `log2fc`. ``obs`` has numbers of cells by
        perturbation, ``var`` numbers of cells in which a gene is detected, and the
        ``control_standard_error`` of the control cells' mean, which is part of every
        `standard_error`, and the mean expression of control cells (``control_mean``), of held-out
        ones (``control_mean_held_out``) and training ones (``control_mean_trained``), but not for
        marginal effects; ``uns`` has the number of control cells. Where the screen has contexts,
        these are in ``uns``, and ``ate_held_out`` and ``standard_error_held_out`` in each of them
        are further layers, with numbers of its cells in ``obs``, named by
        :func:`samsvae.evaluation.effects.in_context`; not so for marginal effects.
    """
    cells = np.ones(screen.n_obs, dtype=bool) if cells is None else cells
    labels = screen.obs["perturbation"].astype(str)
    if has_marginal_effects(screen):
        return _marginal_effects(screen, labels, parts, provenance, cells)
    names = sorted(set(labels[cells]) - {CONTROL})
    held_out = np.zeros_like(cells)
    held_out[cells] = held_out_cells(labels[cells], parts[cells])

    is_control = (labels == CONTROL).to_numpy()
    trained_control = cells & is_control & (parts == TRAIN).to_numpy()
    of = _means_in_one_pass(screen, names, cells, held_out, trained_control)
    means, of_held_out = of.all, of.held_out
    ate, standard_error = means.effects()
    ate_held_out, held_out_error = of_held_out.effects()
    linear = np.log2(of.rate + PSEUDOCOUNT)
    tested = held_out | (cells & is_control)
    pvalue, fdr = gated_tests(Expression(screen, tested), Strata.of(labels[tested], names))
    layers = {
        "ate": ate,
        "ate_held_out": ate_held_out,
        "standard_error": standard_error,
        "standard_error_held_out": held_out_error,
        "t_of_others": t_of_others(of_held_out),
        "log2fc": linear[:-1] - linear[-1],
        "pvalue": pvalue,
        "fdr": fdr,
    }
    if knows_strata(screen):
        within = {"all": cells, "held_out": held_out, "tested": tested}
        layers |= _stratified(screen, labels, names, within, min_controls)
    contexts = sorted(set(screen.obs[CONTEXT].astype(str))) if CONTEXT in screen.obs else []
    numbers = []
    for context in contexts:
        inside = held_out & (screen.obs[CONTEXT].astype(str) == context).to_numpy()
        compared = screen, labels, names, inside, cells & is_control, min_controls
        effect, error = _held_out_effects(*compared)
        layers[in_context("ate_held_out", context)] = effect
        layers[in_context("standard_error_held_out", context)] = error
        trained = cells & (parts == TRAIN).to_numpy()
        trained &= (screen.obs[CONTEXT].astype(str) == context).to_numpy()
        for name, chosen in (("n_train", trained), ("n_held_out", inside)):
            counted = labels[chosen].value_counts().reindex(names).fillna(0).astype(int)
            numbers.append(counted.rename(in_context(name, context)))
    labels, parts = labels[cells], parts[cells]
    counted = pd.crosstab(labels, parts).reindex(index=names, columns=list(PARTS))
    obs = counted.fillna(0).astype(int).add_prefix("n_")
    obs.insert(0, "n_cells", means.n_cells[:-1])
    obs["n_held_out"] = labels[held_out[cells]].value_counts().reindex(names).fillna(0).astype(int)
    obs = pd.concat([obs, *numbers], axis=1)
    table = effects_table(
        ate,
        names,
        list(screen.var_names),
        layers,
        provenance,
        obs,
    )
    table.var["n_cells"] = of.n_cells_with_gene
    table.var["control_standard_error"] = means.standard_error[-1].astype(np.float32)
    profiles = {"": means, "_held_out": of_held_out, "_trained": of.trained_control}
    for suffix, own in profiles.items():
        table.var[f"control_mean{suffix}"] = own.mean[-1].astype(np.float32)
    table.uns["n_control_cells"] = int(means.n_cells[-1])
    if contexts:
        table.uns[CONTEXTS] = contexts
    return table


class _Means(NamedTuple):
    """Means of groups of cells, all with control last.

    Attributes
    ----------
    all, held_out, trained_control
        Of log2(CP10k + 1).
    rate
        Mean CP10k of all, groups x genes.
    n_cells_with_gene
        Number of all cells in which each gene is detected.
    """

    all: GroupMeans
    held_out: GroupMeans
    trained_control: GroupMeans
    rate: np.ndarray
    n_cells_with_gene: np.ndarray


def _means_in_one_pass(
    screen: anndata.AnnData,
    names: list[str],
    cells: np.ndarray,
    held_out: np.ndarray,
    trained_control: np.ndarray,
) -> _Means:
    """Average the expression of perturbations among several sets of cells, reading each once.

    All sets are masks of the screen's cells; `cells` contains the others.
    """
    group = pd.Categorical(screen.obs["perturbation"], categories=[*names, CONTROL]).codes
    library_size = screen.obs["library_size"].to_numpy()
    sets = (cells, held_out, trained_control)
    shape = len(names) + 1, screen.n_vars
    sums = [GroupSums(*shape) for _ in sets]
    rate, n_cells_with_gene = np.zeros(shape), np.zeros(screen.n_vars, dtype=int)
    for rows, counts in counts_in_blocks(screen, cells, LARGEST_BLOCK):
        own, linear = group[rows], cp10k(counts, library_size[rows])
        rate += (member_matrix(own, len(rate)) @ linear).toarray()
        linear.data = np.log2(1 + linear.data)
        squares = linear.multiply(linear)
        for part, chosen in zip(sums, sets, strict=True):
            part.add(np.where(chosen[rows], own, -1), linear, squares)
        n_cells_with_gene += np.asarray((counts > 0).sum(axis=0)).ravel()
    of_all, of_held_out, of_trained = (part.means() for part in sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate /= sums[0].n_cells[:, None]
    return _Means(of_all, of_held_out, of_trained, rate, n_cells_with_gene)


def _marginal_effects(
    screen: anndata.AnnData,
    labels: pd.Series,
    parts: pd.Series,
    provenance: str,
    cells: np.ndarray,
) -> anndata.AnnData:
    """Compute marginal effects of some cells, as a table of observed effects."""
    held_out = cells & parts.isin([TEST, UNUSED]).to_numpy()
    tested = held_out | (cells & (labels == CONTROL).to_numpy())
    expression = log_expression(screen)
    ways = {"": False, "_stratified": True} if knows_strata(screen) else {"": False}
    layers: dict[str, np.ndarray] = {}
    for suffix, by_batch in ways.items():
        of_cells = Regression.of(screen, by_batch)
        everything = fit(expression[cells], of_cells[cells])
        test = fit(expression[tested], of_cells[tested])
        unseen = fit(expression[held_out], of_cells[held_out])
        against_rest = replace(of_cells[held_out], compared_with="complement")
        is_same = of_cells.compared_with == "complement"
        specific = unseen if is_same else fit(expression[held_out], against_rest)
        layers |= {
            f"ate{suffix}": everything.effect,
            f"ate_held_out{suffix}": unseen.effect,
            f"standard_error{suffix}": everything.standard_error,
            f"standard_error_held_out{suffix}": unseen.standard_error,
            f"t_of_others{suffix}": _ratio(specific.effect, specific.standard_error),
            f"pvalue{suffix}": test.pvalue,
            f"fdr{suffix}": test.fdr,
        }
    names, has = of_cells.names, sparse.csr_matrix(of_cells.present[cells] != 0, dtype=float)
    rates = cp10k(screen.X[np.flatnonzero(cells)], screen.obs["library_size"].to_numpy()[cells])
    number = of_cells[cells].n_cells
    own = (has.T @ rates).toarray()
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = own / number[:, None]
        others = (np.asarray(rates.sum(axis=0)) - own) / (cells.sum() - number)[:, None]
    layers["log2fc"] = np.log2((mean + PSEUDOCOUNT) / (others + PSEUDOCOUNT))
    in_part = {f"n_{part}": of_cells[cells & (parts == part).to_numpy()].n_cells for part in PARTS}
    obs = pd.DataFrame(
        {"n_cells": number, **in_part, "n_held_out": of_cells[held_out].n_cells}, index=names
    )
    genes = list(screen.var_names)
    table = effects_table(layers["ate"], names, genes, layers, provenance, obs)
    table.var["n_cells"] = n_cells_with_gene(screen, cells)
    table.var["control_standard_error"] = np.sqrt(everything.shared_variance).astype(np.float32)
    table.uns["n_control_cells"] = int((cells & (labels == CONTROL).to_numpy()).sum())
    return table


def t_of_others(means: GroupMeans) -> np.ndarray:
    """Compare each perturbation with all cells of the other perturbations, by Welch's t.

    Parameters
    ----------
    means
        Mean expression by perturbation, control last, which is left out.

    Returns
    -------
    ndarray
        Perturbations x genes; 0 for a gene without variance, NaN for fewer than two cells on
        either side.
    """
    n, mean = means.n_cells[:-1, None], means.mean[:-1]
    variance = n * means.standard_error[:-1] ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.where(n > 0, n * mean, 0.0)
        squares = np.where(n > 0, n * mean**2, 0.0) + np.where(n > 1, (n - 1) * variance, 0.0)
        others = n.sum() - n
        mean_others = (total.sum(axis=0) - total) / others
        within = (squares.sum(axis=0) - squares) / others - mean_others**2
        error = variance / n + np.clip(within, 0, None) / (others - 1)
    t = _ratio(mean - mean_others, np.sqrt(error))
    return np.where((n > 1) & (others > 1), t, np.nan)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide, 0 where the divisor is 0, and NaN where it is unknown."""
    quotient = np.where(np.isnan(whole), np.nan, 0.0)
    return np.divide(part, whole, out=quotient, where=whole > 0)


def _stratified(
    screen: anndata.AnnData,
    labels: pd.Series,
    names: list[str],
    chosen: Mapping[str, np.ndarray],
    min_controls: int,
) -> dict[str, np.ndarray]:
    """Compute effects and tests within batches, for the chosen cells of each comparison."""
    ate, error = stratified_effects(*_compared(screen, labels, names, chosen["all"], min_controls))
    controls = chosen["all"] & (labels == CONTROL).to_numpy()
    if CONTEXT not in screen.obs:  # no other control cells than held-out ones
        controls = controls & chosen["held_out"]
    held_out, held_out_error = _held_out_effects(
        screen, labels, names, chosen["held_out"], controls, min_controls
    )
    pvalue, fdr = gated_tests(*_compared(screen, labels, names, chosen["tested"], min_controls))
    return {
        "ate_stratified": ate,
        "ate_held_out_stratified": held_out,
        "standard_error_stratified": error,
        "standard_error_held_out_stratified": held_out_error,
        "pvalue_stratified": pvalue,
        "fdr_stratified": fdr,
    }


def _held_out_effects(
    screen: anndata.AnnData,
    labels: pd.Series,
    names: list[str],
    held_out: np.ndarray,
    controls: np.ndarray,
    min_controls: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute effects of held-out cells within batches.

    A perturbation whose batches have too few held-out control cells is compared with all
    `controls` there: those of a context that is held out are trained on.
    """
    effect, error = stratified_effects(*_compared(screen, labels, names, held_out, min_controls))
    missing = np.isnan(effect).all(axis=1)
    if missing.any() and (controls & ~held_out).any():
        stratum = strata_of_cells(screen, by_batch=True)
        there = np.isin(stratum, stratum[held_out & (labels != CONTROL).to_numpy()])
        cells = held_out | (controls & there)
        others = stratified_effects(*_compared(screen, labels, names, cells, min_controls))
        effect, error = (
            np.where(missing[:, None], of_all, of_held_out)
            for of_all, of_held_out in zip(others, (effect, error), strict=True)
        )
    return effect, error


def _compared(
    screen: anndata.AnnData,
    labels: pd.Series,
    names: list[str],
    cells: np.ndarray,
    min_controls: int,
) -> tuple[Expression, Strata]:
    """Return the expression of some cells, and their perturbations and batches."""
    stratum = strata_of_cells(screen, by_batch=True)
    strata = Strata.of(labels[cells], names, stratum[cells], min_controls)
    return Expression(screen, cells), strata


def training_effects(
    screen: anndata.AnnData, train: np.ndarray, names: Sequence[str], min_controls: int | None
) -> np.ndarray:
    """Compute the effects of perturbations among training cells.

    Parameters
    ----------
    screen
        Canonical screen.
    train
        Boolean, the training cells.
    names
        Perturbations that have such cells.
    min_controls
        Smallest number of control cells of a batch whose cells are compared, for effects within
        batches and contexts where the screen has them and the perturbation has cells in such a
        batch; None for the differences of means of all cells.

    Returns
    -------
    ndarray
        Perturbations x genes, log2(CP10k + 1).
    """
    profiles = mean_profiles(screen, train, names)
    effects: np.ndarray = profiles[:-1] - profiles[-1]
    if min_controls is None or not knows_strata(screen) or has_marginal_effects(screen):
        return effects
    within = effects_within_batches(screen, train, names, min_controls)
    return np.where(np.isfinite(within), within, effects)


def effects_within_batches(
    screen: anndata.AnnData, cells: np.ndarray, names: Sequence[str], min_controls: int
) -> np.ndarray:
    """Compute effects of some cells within batches and contexts; NaN where none is compared."""
    labels = screen.obs["perturbation"].astype(str)[cells]
    strata = Strata.of(labels, names, strata_of_cells(screen, by_batch=True)[cells], min_controls)
    return stratified_effects(Expression(screen, cells), strata)[0]


def half_of_held_out(labels: pd.Series, parts: pd.Series, seed: int) -> np.ndarray:
    """Select half of each perturbation's held-out cells, and of the held-out control cells.

    Parameters
    ----------
    labels, parts
        Perturbation and split of each cell.
    seed
        Seed of the choice.

    Returns
    -------
    ndarray of bool
        The selected cells; the smaller half of an odd number.
    """
    cells = np.random.default_rng(seed).permutation(np.flatnonzero(held_out_cells(labels, parts)))
    shuffled = labels.iloc[cells]
    position = shuffled.groupby(shuffled, observed=True).cumcount()
    number = shuffled.groupby(shuffled, observed=True).transform("size")
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[cells[(position < number // 2).to_numpy()]] = True
    return chosen


def split_half(
    screen: anndata.AnnData,
    parts: pd.Series,
    seed: int,
    provenance: str,
    how: str | None = None,
    min_controls: int = 10,
    required: bool = True,
) -> anndata.AnnData:
    """Compute the split-half ceiling: effects among half of the held-out cells as a prediction.

    Its score is that of a second experiment with half as many cells as are held out. With few
    cells, a model that averages over noise can exceed it.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Split of each cell, as in split.tsv.
    seed
        Seed of the selection of cells.
    provenance
        Provenance record, JSON.
    how
        Whether effects are ``plain``, or else within batches, where the screen has them.
    min_controls
        Smallest number of control cells of a batch whose cells are compared.
    required
        Whether fewer than two held-out control cells are an error. Otherwise no perturbation has
        an effect then.

    Returns
    -------
    AnnData
        Perturbations x genes. ``X``: effect among the selected half; the layers :data:`HALVED` are
        of the other cells. A perturbation with fewer than two held-out cells has 0 in ``X`` and
        NaN in the layers. ``var`` has the mean expression of all other control cells
        (``control_mean``), of held-out ones among these (``control_mean_held_out``), and of the
        selected ones (``control_mean_trained``), but not for marginal effects.

    Raises
    ------
    InputError
        If fewer than two control cells are held out, and it is required.
    """
    names = perturbations(screen)
    labels = screen.obs["perturbation"].astype(str)
    if has_marginal_effects(screen):
        return _marginal_half(screen, parts, seed, provenance, how)
    half = half_of_held_out(labels, parts, seed)
    means = group_means(expression_in_blocks(screen, half), names, screen.n_vars)
    if required and not means.n_cells[-1]:
        raise InputError(
            f"The ceiling 'split_half' needs at least two held-out cells of {CONTROL!r}; the split "
            "has fewer. Remove it from the experiment's 'models'."
        )
    others = as_compared(
        observed_effects(screen, parts, provenance, ~half, min_controls=min_controls), how
    )
    effect = means.effects()[0]
    if how != "plain" and knows_strata(screen):
        fewest = max(min_controls // 2, 1)
        within, _ = stratified_effects(*_compared(screen, labels, names, half, fewest))
        effect = np.where(np.isfinite(within), within, effect)
    halved = (means.n_cells[:-1] > 0) & (means.n_cells[-1] > 0)
    layers = {name: np.asarray(others.layers[name]) for name in HALVED}
    table = effects_table(
        np.where(halved[:, None], effect, 0.0),
        names,
        list(screen.var_names),
        {name: np.where(halved[:, None], layer, np.nan) for name, layer in layers.items()},
        provenance,
        others.obs,
    )
    for name in ("control_mean", "control_mean_held_out"):
        table.var[name] = others.var[name]
    table.var["control_mean_trained"] = means.mean[-1].astype(np.float32)
    return table


def _marginal_half(
    screen: anndata.AnnData,
    parts: pd.Series,
    seed: int,
    provenance: str,
    how: str | None,
) -> anndata.AnnData:
    """Compute the split-half ceiling of marginal effects: a random half of held-out cells."""
    held_out = np.flatnonzero(parts.isin([TEST, UNUSED]))
    half = np.zeros(screen.n_obs, dtype=bool)
    half[np.random.default_rng(seed).permutation(held_out)[: len(held_out) // 2]] = True
    within = how != "plain" and knows_strata(screen)
    expression = log_expression(screen, half)
    effect = fit(expression, Regression.of(screen, by_batch=False)[half]).effect
    if within:
        stratified = fit(expression, Regression.of(screen)[half]).effect
        effect = np.where(np.isfinite(stratified), stratified, effect)
    others = as_compared(observed_effects(screen, parts, provenance, ~half), how)
    halved = np.isfinite(effect).all(axis=1)[:, None]
    layers = {name: np.asarray(others.layers[name]) for name in HALVED}
    return effects_table(
        np.where(halved, effect, 0.0),
        list(others.obs_names),
        list(screen.var_names),
        {name: np.where(halved, layer, np.nan) for name, layer in layers.items()},
        provenance,
        others.obs,
    )
