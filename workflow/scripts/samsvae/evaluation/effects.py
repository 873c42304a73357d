"""Means of groups of cells, and tables of effects (perturbations x genes), log2(CP10k + 1)."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.evaluation import UNITS
from samsvae.evaluation.agreement import pearson
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import whole_file
from samsvae.screen.labels import CONTROL, file_name

CONTEXTS = "contexts"  # of observed effects, in uns


@dataclass(frozen=True)
class GroupMeans:
    """Mean expression of each perturbation's cells.

    Attributes
    ----------
    mean
        Perturbations (control last) x genes.
    standard_error
        Standard error of the mean, same shape; NaN for fewer than two cells.
    n_cells
        Number of cells in each group.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    n_cells: np.ndarray

    def effects(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute the difference from control and its standard error, perturbations x genes."""
        difference = self.mean[:-1] - self.mean[-1]
        return difference, np.sqrt(self.standard_error[:-1] ** 2 + self.standard_error[-1] ** 2)


def group_means(
    blocks: Iterable[tuple[sparse.csr_matrix, pd.Series]], names: Sequence[str], n_genes: int
) -> GroupMeans:
    """Average expression by perturbation, control last.

    Parameters
    ----------
    blocks
        Expression, cells x genes, and the canonical label of each cell.
    names
        Perturbations; a group without cells gets NaN.
    n_genes
        G.
    """
    groups = [*names, CONTROL]
    sums = GroupSums(len(groups), n_genes)
    for expression, labels in blocks:
        codes = pd.Categorical(labels, categories=groups).codes
        sums.add(codes, expression, expression.multiply(expression))
    return sums.means()


def member_matrix(group: np.ndarray, n_groups: int) -> sparse.csr_matrix:
    """Mark the cells of each group, groups x cells; a cell with -1 is in none."""
    known = np.flatnonzero(group >= 0)
    return sparse.csr_matrix(
        (np.ones(len(known)), (group[known], known)), shape=(n_groups, len(group))
    )


class GroupSums:
    """Sums of the expression of groups of cells, and of its squares, added up block by block.

    Parameters
    ----------
    n_groups, n_genes
        Shape of the sums.
    """

    def __init__(self, n_groups: int, n_genes: int) -> None:
        self.total, self.squares = (np.zeros((n_groups, n_genes)) for _ in range(2))
        self.n_cells = np.zeros(n_groups)

    def add(
        self, group: np.ndarray, expression: sparse.csr_matrix, squares: sparse.csr_matrix
    ) -> None:
        """Add a block of cells.

        Parameters
        ----------
        group
            Group of each cell, -1 for none.
        expression, squares
            Expression and its squares, cells x genes.
        """
        member = member_matrix(group, len(self.n_cells))
        self.n_cells += np.asarray(member.sum(axis=1)).ravel()
        self.total += (member @ expression).toarray()
        self.squares += (member @ squares).toarray()

    def means(self) -> GroupMeans:
        """Compute means and their standard errors."""
        number = self.n_cells[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self.total / number
            variance = np.clip(self.squares / number - mean**2, 0, None) / (number - 1)
            variance[self.n_cells < 2] = np.nan
        return GroupMeans(mean, np.sqrt(variance), self.n_cells.astype(int))


def effects_table(
    effects: np.ndarray,
    perturbations: Sequence[str],
    genes: Sequence[str],
    layers: Mapping[str, np.ndarray],
    provenance: str,
    obs: pd.DataFrame | None = None,
) -> anndata.AnnData:
    """Build the AnnData object of effects.

    Parameters
    ----------
    effects
        Average treatment effects, perturbations x genes, log2(CP10k + 1).
    perturbations, genes
        Names of rows and columns.
    layers
        Further matrices of that shape.
    provenance
        Provenance record, JSON.
    obs
        Annotations of perturbations.

    Returns
    -------
    AnnData
        float32.
    """
    table = anndata.AnnData(
        X=effects.astype(np.float32),
        obs=(pd.DataFrame() if obs is None else obs).reindex(pd.Index(perturbations)),
        var=pd.DataFrame(index=pd.Index(genes, name="gene")),
    )
    table.obs.index.name = "perturbation"
    for name, layer in layers.items():
        table.layers[name] = layer.astype(
            np.float64 if name.startswith(("pvalue", "fdr")) else np.float32
        )
    table.uns["units"] = UNITS
    table.uns["provenance"] = provenance
    return table


def write_effects(table: anndata.AnnData, path: str | Path) -> None:
    """Write effects atomically."""
    with whole_file(path) as temporary:
        table.write_h5ad(temporary, compression="lzf")


def read_effects(path: str | Path) -> anndata.AnnData:
    """Read effects that :func:`write_effects` wrote."""
    return anndata.read_h5ad(path)


def read_observed(path: str | Path, how: str | None) -> anndata.AnnData:
    """Read observed effects as they are compared with predictions.

    Parameters
    ----------
    path
        A file of observed effects.
    how
        As for :func:`as_compared`.
    """
    return as_compared(read_effects(path), how)


def as_compared(observed: anndata.AnnData, how: str | None) -> anndata.AnnData:
    """Choose between plain effects and those within batches.

    Parameters
    ----------
    observed
        Observed effects, changed in place.
    how
        ``plain`` for the paper's effects; else ``X`` and the layers ``ate``, ``ate_held_out``,
        ``standard_error``, ``pvalue`` and ``fdr`` are those within batches, where the screen has
        batches and a perturbation has cells in one with control cells; an effect of held-out cells
        alone needs held-out control cells there, too, and is plain otherwise; but missing where
        the screen has contexts, since a plain effect would be a difference between contexts.
    """
    if how == "plain" or "ate_stratified" not in observed.layers:
        return observed
    known = np.isfinite(np.asarray(observed.layers["ate_stratified"])).all(axis=1)
    for name in [layer for layer in observed.layers if layer.endswith("_stratified")]:
        plain = name.removesuffix("_stratified")
        within = np.asarray(observed.layers[name])
        own = known & np.isfinite(within).all(axis=1) if plain.endswith("held_out") else known
        instead = np.asarray(observed.layers[plain])
        if plain.endswith("held_out") and CONTEXTS in observed.uns:
            instead = np.full_like(instead, np.nan)
        observed.layers[plain] = np.where(own[:, None], within, instead)
    observed.X = np.asarray(observed.layers["ate"])
    return observed


def in_context(name: str, context: str) -> str:
    """Name a layer, or a column of numbers of cells, in one context.

    A slash would be a folder in a file of HDF5: it is written as ``%2F``.
    """
    return f"{name} in {context.replace('%', '%25').replace('/', '%2F')}"


def effects_in_context(effects: anndata.AnnData, context: str) -> anndata.AnnData:
    """Select observed or predicted effects in one context.

    Parameters
    ----------
    effects
        Effects with layers named by :func:`in_context`. Predicted effects without any are the same
        in all contexts.
    context
        The context.

    Returns
    -------
    AnnData
        ``X``, layers ``ate_held_out`` and ``standard_error_held_out``, and numbers of cells, of
        this context.
    """
    suffix = in_context("", context)
    layers = {
        name.removesuffix(suffix): np.asarray(effects.layers[name])
        for name in effects.layers
        if name.endswith(suffix)
    }
    columns = [name for name in effects.obs if name.endswith(suffix)]
    obs = effects.obs[columns].rename(columns=lambda name: name.removesuffix(suffix))
    X = layers.pop("effect", np.asarray(effects.X))
    return anndata.AnnData(X, obs=obs, var=effects.var[[]], layers=layers)


def effects_in_use(effects: anndata.AnnData, layer: str) -> np.ndarray:
    """Return a layer of a screen's effects, stratified for perturbations where ``X`` is.

    Parameters
    ----------
    effects
        As of :func:`samsvae.biology.quality.screen_effects`.
    layer
        ``ate``, ``standard_error``, ``pvalue`` or ``fdr``.
    """
    plain = np.asarray(effects.layers[layer])
    if f"{layer}_stratified" not in effects.layers:
        return plain
    used = effects.obs["is_stratified"].to_numpy(dtype=bool)
    return np.where(used[:, None], np.asarray(effects.layers[f"{layer}_stratified"]), plain)


def measured_genes(observed: anndata.AnnData) -> list[str]:
    """List the genes that are detected in at least one cell."""
    return list(observed.var_names[observed.var["n_cells"] > 0])


def truth_of(observed: anndata.AnnData, predicted: anndata.AnnData) -> anndata.AnnData:
    """Choose the observed effects to compare predictions with.

    Parameters
    ----------
    observed
        Observed effects.
    predicted
        Predicted effects, in the same order.

    Returns
    -------
    AnnData
        `observed`; for predictions from held-out cells, which carry the effects among the other
        cells as layers, `predicted` itself.
    """
    return predicted if "ate" in predicted.layers else observed


LARGEST_PART = 2**21  # rows of a table of effects that are in memory at once


def long_tables(
    observed: anndata.AnnData,
    screen: anndata.AnnData,
    predicted: Mapping[str, anndata.AnnData],
    fdr: float,
) -> Iterator[pd.DataFrame]:
    """Join observed and predicted effects in long tables, model by model and block by block.

    Parameters
    ----------
    observed
        Observed effects of a split.
    screen
        Observed effects of all cells, as of :func:`samsvae.biology.quality.screen_effects`.
    predicted
        Predicted effects of the same perturbations and genes, by model.
    fdr
        False discovery rate below which a gene is differentially expressed.

    Yields
    ------
    DataFrame
        One row per perturbation of a block and gene, for one model: observed and predicted effect
        in log2(CP10k + 1), ``observed_held_out`` among held-out cells alone and its fdr,
        ``screen_effect`` among all cells, within batches where the screen has them, and
        ``screen_fdr``; and whether the perturbation has training cells (``trained``). By
        perturbation: n_de and screen_n_de, numbers of differentially expressed genes, and
        pearson_of_perturbation, the correlation of observed and predicted effects over genes; by
        model: pearson, over all perturbations and genes.
    """
    screen = screen[observed.obs_names, observed.var_names]
    screen_fdr = effects_in_use(screen, "fdr").astype(np.float32)
    screen_n_de = screen.obs["n_de"].to_numpy(dtype=np.int32)
    trained = observed.obs["n_train"].to_numpy() > 0
    n_perturbations, n_genes = observed.shape
    step = max(1, LARGEST_PART // n_genes)
    for model, effects in predicted.items():
        aligned = effects[observed.obs_names, observed.var_names]
        truth = truth_of(observed, aligned)
        ate, guess = (np.asarray(m, np.float64) for m in (truth.layers["ate"], aligned.X))
        known = np.isfinite(ate)
        of_model = float(pearson(ate[known], guess[known]))
        of_each = pearson(ate, guess)
        n_de = np.asarray(np.sum(np.asarray(truth.layers["fdr"]) < fdr, axis=1), dtype=np.int32)
        del ate, guess, known
        matrices = {
            "observed": np.asarray(truth.layers["ate"]),
            "observed_held_out": np.asarray(truth.layers["ate_held_out"]),
            "fdr": np.asarray(truth.layers["fdr"]),
            "predicted": np.asarray(aligned.X),
        }
        for start in range(0, n_perturbations, step):
            rows = np.arange(start, min(start + step, n_perturbations))
            yield pd.DataFrame(
                {
                    # from codes, since strings of millions of rows would fill the memory
                    "model": pd.Categorical([model], categories=list(predicted)).repeat(
                        len(rows) * n_genes
                    ),
                    "perturbation": pd.Categorical.from_codes(
                        np.repeat(rows, n_genes), observed.obs_names
                    ),
                    "gene": pd.Categorical.from_codes(
                        np.tile(np.arange(n_genes), len(rows)), observed.var_names
                    ),
                    "trained": np.repeat(trained[rows], n_genes),
                    "screen_effect": np.asarray(screen.X[rows]).ravel(),
                    "screen_fdr": screen_fdr[rows].ravel(),
                    "screen_n_de": np.repeat(screen_n_de[rows], n_genes),
                    **{name: matrix[rows].ravel() for name, matrix in matrices.items()},
                    "n_de": np.repeat(n_de[rows], n_genes),
                    "pearson_of_perturbation": np.repeat(of_each[rows], n_genes),
                    "pearson": of_model,
                }
            )


def long_table(
    observed: anndata.AnnData,
    screen: anndata.AnnData,
    predicted: Mapping[str, anndata.AnnData],
    fdr: float,
) -> pd.DataFrame:
    """Concatenate the tables of :func:`long_tables`."""
    return pd.concat(long_tables(observed, screen, predicted, fdr), ignore_index=True)


def rows_of_perturbation(path: str | Path, name: str) -> pd.DataFrame:
    """Read the rows of a perturbation from a table of :func:`long_table`.

    Raises
    ------
    InputError
        If the table has no such perturbation.
    """
    rows = pd.read_parquet(path, filters=[("perturbation", "==", name)])
    if rows.empty:
        known = pd.read_parquet(path, columns=["perturbation"])["perturbation"].unique()
        near = difflib.get_close_matches(name, map(str, known), n=3, cutoff=0.3)
        raise InputError(
            f"The screen has no perturbation {name!r} (similar: {', '.join(near) or 'none'}). "
            "tables/perturbations.tsv lists all, with the names of their figures."
        )
    return rows


def strongest_genes(effect: np.ndarray, chosen: np.ndarray, genes: pd.Index, most: int) -> str:
    """List the chosen genes of largest absolute effect, each with its effect.

    Parameters
    ----------
    effect
        Effect on each gene, log2(CP10k + 1).
    chosen
        Boolean, the genes to choose from.
    genes
        Gene symbols.
    most
        Largest number of genes.

    Returns
    -------
    str
        For instance ``KLF1 +1.20, GATA1 −0.85``; empty if none is chosen.
    """
    order = np.argsort(np.where(chosen, -np.abs(effect), np.inf), kind="stable")
    named = order[: min(most, int(chosen.sum()))]
    return ", ".join(f"{genes[gene]} {_signed(effect[gene])}" for gene in named)


def _signed(effect: float) -> str:
    return f"{effect:+.2f}".replace("-", "−")


MOST_NAMED = 6


UNKNOWN = "unknown"


def _fractions_in_words(responders: pd.DataFrame) -> dict[str, str]:
    """Write the fraction of responders of each perturbation, as in ``0.77 (0.73 to 0.81)``."""
    pooled = responders[responders["guide"].fillna("") == ""].dropna(subset="responders")
    columns = pooled[["perturbation", "responders", "low", "high"]]
    return {
        str(name): f"{fraction:.2f} ({low:.2f} to {high:.2f})"
        for name, fraction, low, high in columns.itertuples(index=False)
    }


def list_perturbations(
    screen: anndata.AnnData, fdr: float, responders: pd.DataFrame | None = None
) -> pd.DataFrame:
    """List perturbations by decreasing number of differentially expressed genes.

    Parameters
    ----------
    screen
        Effects of all cells, as of :func:`samsvae.biology.quality.screen_effects`.
    fdr
        False discovery rate below which a gene is differentially expressed.
    responders
        A table of responders; None without a trained model.

    Returns
    -------
    DataFrame
        perturbation, n_cells, n_compared (of these, in batches with control cells), responders
        (their fraction by the reference model, with the ends of a 95 % interval, or "unknown"),
        n_de (differentially expressed genes), raised and lowered (the strongest of these genes,
        with their effect, log2(CP10k + 1)), figure (its file).
    """
    effects = np.asarray(screen.X, dtype=np.float64)
    is_de = effects_in_use(screen, "fdr") < fdr
    fractions = {} if responders is None else _fractions_in_words(responders)
    rows = [
        {
            "perturbation": name,
            "n_cells": screen.obs["n_cells"].iloc[row],
            "n_compared": screen.obs["n_compared"].iloc[row],
            **({} if responders is None else {"responders": fractions.get(name, UNKNOWN)}),
            "n_de": int(own.sum()),
            "raised": strongest_genes(effect, own & (effect > 0), screen.var_names, MOST_NAMED),
            "lowered": strongest_genes(effect, own & (effect < 0), screen.var_names, MOST_NAMED),
            "figure": f"figures/perturbations/{file_name(name)}.svg",
        }
        for row, (name, effect, own) in enumerate(
            zip(screen.obs_names, effects, is_de, strict=True)
        )
    ]
    return pd.DataFrame(rows).sort_values("n_de", ascending=False, kind="stable")
