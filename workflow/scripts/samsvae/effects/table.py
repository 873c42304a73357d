"""Files of effects: perturbations x genes, the same for data, models and baselines."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from samsvae.errors import InputError
from samsvae.files import whole_file

UNITS = "log2(CP10k + 1)"


def effects_table(
    effects: np.ndarray,
    perturbations: Sequence[str],
    genes: Sequence[str],
    layers: Mapping[str, np.ndarray],
    provenance: str,
    obs: pd.DataFrame | None = None,
) -> anndata.AnnData:
    """Lay out effects.

    Parameters
    ----------
    effects
        Average treatment effects, perturbations x genes, log2(CP10k + 1).
    perturbations, genes
        Names of rows and columns.
    layers
        More matrices of that shape.
    provenance
        What made it, as JSON.
    obs
        What is known of each perturbation.

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
        table.layers[name] = layer.astype(np.float64 if name in ("pvalue", "fdr") else np.float32)
    table.uns["units"] = UNITS
    table.uns["provenance"] = provenance
    return table


def write_effects(table: anndata.AnnData, path: str | Path) -> None:
    """Write effects, whole or not at all."""
    with whole_file(path) as temporary:
        table.write_h5ad(temporary, compression="lzf")


def read_effects(path: str | Path) -> anndata.AnnData:
    """Read what :func:`write_effects` wrote."""
    return anndata.read_h5ad(path)


def measured_genes(observed: anndata.AnnData) -> list[str]:
    """Name the genes that a cell shows; one that no cell shows was not measured."""
    return list(observed.var_names[observed.var["n_cells"] > 0])


def truth_of(observed: anndata.AnnData, predicted: anndata.AnnData) -> anndata.AnnData:
    """Choose what predicted effects are compared with.

    Parameters
    ----------
    observed
        Observed effects.
    predicted
        Predicted effects, in the same order.

    Returns
    -------
    AnnData
        `observed`; for predictions made of held-out cells, which bring the effects among the
        other cells as layers, `predicted` itself.
    """
    return predicted if "ate" in predicted.layers else observed


def long_table(observed: anndata.AnnData, predicted: Mapping[str, anndata.AnnData]) -> pd.DataFrame:
    """Put observed and predicted effects side by side.

    Parameters
    ----------
    observed
        Observed effects.
    predicted
        Predicted effects of the same perturbations and genes, by model.

    Returns
    -------
    DataFrame
        One row per model, perturbation and gene: observed and predicted effect in
        log2(CP10k + 1), ``observed_held_out`` among held-out cells alone, its fdr, and whether
        the perturbation has training cells (``trained``).
    """
    shape = observed.shape
    names = {
        # codes from the start, since names of millions of rows would fill the memory
        "perturbation": pd.Categorical.from_codes(
            np.repeat(np.arange(shape[0]), shape[1]), observed.obs_names
        ),
        "gene": pd.Categorical.from_codes(
            np.tile(np.arange(shape[1]), shape[0]), observed.var_names
        ),
        "trained": np.repeat(observed.obs["n_train"].to_numpy() > 0, shape[1]),
    }
    parts = []
    for model, effects in predicted.items():
        aligned = effects[observed.obs_names, observed.var_names]
        own = pd.Categorical([model], categories=list(predicted)).repeat(observed.X.size)
        truth = truth_of(observed, aligned)
        values = {
            "observed": np.asarray(truth.layers["ate"]).ravel(),
            "observed_held_out": np.asarray(truth.layers["ate_held_out"]).ravel(),
            "fdr": np.asarray(truth.layers["fdr"]).ravel(),
            "predicted": np.asarray(aligned.X).ravel(),
        }
        parts.append(pd.DataFrame({"model": own, **names, **values}))
    return pd.concat(parts, ignore_index=True)


def rows_of_perturbation(path: str | Path, name: str) -> pd.DataFrame:
    """Read one perturbation's rows of a table that :func:`long_table` made.

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
