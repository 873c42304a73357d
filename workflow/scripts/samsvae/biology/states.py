"""Latent states of cells: classification of perturbations from basal states, and maps."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.model_selection import StratifiedKFold

from samsvae.biology import ALL, OTHER
from samsvae.biology.similarity import (
    LATENT,
    OBSERVED,
    effect_matrix,
    effects_of_strongest,
    latent_shifts,
)
from samsvae.evaluation.expression import CP10K
from samsvae.runtime.errors import InputError
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TRAIN

if TYPE_CHECKING:
    from samsvae.inference.checkpoint import TrainedModel

FOLDS = 5
FEWEST_CELLS = 10  # of a perturbation that is classified
CLASSIFIED = 300  # perturbations, at most, since each has 20 classifiers of its own
SMALLEST_VARIANCE = 0.01  # over cells, of a dimension in use, in basal variances
COLUMNS = [
    "state", "labels", "perturbation", "accuracy", "standard_error", "chance", "n_cells",
    "n_dimensions", "mean_accuracy",
]  # fmt: skip


def classify_states(
    states: Mapping[str, np.ndarray], labels: np.ndarray, seed: int
) -> pd.DataFrame:
    """Classify the perturbation of cells from their latent states, with true and shuffled labels.

    The classifier is a linear discriminant with a shrunken covariance (Ledoit and Wolf 2004) and
    equal priors of classes, in five-fold cross-validation. Each perturbation is classified against
    as many random control cells, with an accuracy by chance of 1/2; in addition all perturbations
    and control are classified together, with equal numbers of cells, without perturbations of less
    than half the median number of cells.

    Inactive dimensions are left out: those whose posterior means have a variance of at most 0.01
    over all cells, a hundredth of the prior's (active units of Burda et al. 2016). Their posterior
    is close to the prior; a discriminant is invariant to scale and would amplify their noise.

    Parameters
    ----------
    states
        Cells x K by kind of state, such as ``basal`` and ``total``; cells that the model was not
        trained on.
    labels
        Perturbation of each cell. Those with fewer than ten cells are left out, and of more than
        300 those with fewest cells (of equal numbers, the last by name).
    seed
        Seed of the sampled cells and of the permuted labels; folds do not depend on it.

    Returns
    -------
    DataFrame
        One row per state, labels (``true`` or ``shuffled``) and perturbation: accuracy as a mean
        over classes, its binomial standard error, chance, and the numbers of cells and active
        dimensions. The perturbation ``all`` means all of them together. Without active dimensions
        the accuracy is chance. mean_accuracy is the mean over single perturbations, or that of
        ``all``.
    """
    number = pd.Series(labels).value_counts()
    classes = sorted(number.index[number >= FEWEST_CELLS])
    perturbed = [name for name in classes if name != CONTROL]
    most = sorted(perturbed, key=lambda name: -number[name])[:CLASSIFIED]
    classes = sorted({CONTROL}.intersection(classes).union(most))
    tasks = [(name, [CONTROL, name]) for name in classes if name != CONTROL]
    if CONTROL not in classes or not tasks:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    in_use = {
        state: values[:, values.var(axis=0) > SMALLEST_VARIANCE] for state, values in states.items()
    }
    common = [name for name in classes if number[name] >= number[classes].median() / 2]
    for index, (name, told_apart) in enumerate([*tasks, (ALL, common)]):
        rng = np.random.default_rng([seed, index])
        size = min(number[told_apart])
        cells = np.concatenate(
            [rng.choice(np.flatnonzero(labels == one), size, replace=False) for one in told_apart]
        )
        true = labels[cells]
        shuffled = rng.permutation(true)
        rows += [
            {
                "state": state,
                "labels": kind,
                "perturbation": name,
                **_accuracy(values[cells], given, index),
                "chance": 1 / len(told_apart),
                "n_cells": len(cells),
                "n_dimensions": values.shape[1],
            }
            for state, values in in_use.items()
            for kind, given in (("true", true), ("shuffled", shuffled))
        ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    alike = ["state", "labels", table["perturbation"] == ALL]
    return table.assign(mean_accuracy=table.groupby(alike)["accuracy"].transform("mean"))


def classify_basal_state(
    trained: "TrainedModel", screen: anndata.AnnData, parts: pd.Series, seed: int
) -> pd.DataFrame:
    """Classify the perturbation of held-out cells from posterior mean latent states.

    See :func:`samsvae.inference.posterior.cell_states`: posterior mean basal states may differ in
    their variance between perturbations, but not in their mean, which a linear discriminant uses.

    Parameters
    ----------
    trained
        The model.
    screen
        Canonical screen.
    parts
        Split of each cell.
    seed
        Seed of everything random.

    Returns
    -------
    DataFrame
        As of :func:`classify_states`, and whether the basal state is meant to be independent of
        the perturbation (``claimed``): in models with an encoder of the basal state. The state of
        SVAE+ minus the effect, and that of the conditional VAE, are classified for comparison.
    """
    keep = (parts != TRAIN).to_numpy()
    from samsvae.inference.posterior import cell_states  # torch, which other maps do without

    states = cell_states(trained, screen, keep, seed)
    labels = screen.obs["perturbation"].to_numpy(dtype=object)[keep]
    table = classify_states({"basal": states.basal, "total": states.total}, labels, seed)
    return table.assign(claimed=trained.model.infers_basal_state)


def _accuracy(values: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """Cross-validated accuracy; classes are of the same size, so that it is a mean over them."""
    n_classes = len(set(labels))
    if values.shape[1] == 0:
        return {"accuracy": 1 / n_classes, "standard_error": 0.0}
    given = np.unique(labels, return_inverse=True)[1]
    cells = np.asarray(values, dtype=np.float64)
    right = np.zeros(len(labels), dtype=bool)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(cells, given):
        guess = discriminate(cells[train], given[train], cells[test])
        right[test] = guess == given[test]
    accuracy = float(right.mean())
    return {
        "accuracy": accuracy,
        "standard_error": float(np.sqrt(accuracy * (1 - accuracy) / len(labels))),
    }


def discriminate(train: np.ndarray, classes: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predict classes by a linear discriminant with shrunken covariances and equal priors.

    This is scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")``, whose
    validation of its arguments takes ten times longer than the arithmetic of a few cells.

    Parameters
    ----------
    train, test
        Cells x K, float64.
    classes
        Class of each cell of `train`, 0, 1, ...

    Returns
    -------
    ndarray of int
        Class of each cell of `test`.
    """
    groups = [train[classes == one] for one in range(classes.max() + 1)]
    means = np.stack([group.mean(axis=0) for group in groups])
    covariance = np.mean([shrunken_covariance(group) for group in groups], axis=0)
    weights = np.linalg.lstsq(covariance, means.T)[0]
    offsets = np.sum(means * weights.T, axis=1) / 2
    return np.argmax(test @ weights - offsets, axis=1)


def shrunken_covariance(cells: np.ndarray) -> np.ndarray:
    """Estimate a covariance by the shrinkage of Ledoit and Wolf (2004) of scaled dimensions, K x K.

    Parameters
    ----------
    cells
        Cells x K.
    """
    n, n_dimensions = cells.shape
    centred = cells - cells.mean(axis=0)
    scale = centred.std(axis=0)
    scale[scale == 0] = 1
    scaled = centred / scale
    empirical = scaled.T @ scaled / n
    mean_variance = np.trace(empirical) / n_dimensions
    # distance from a multiple of the identity, and the part of it that is due to sampling
    distance = np.sum(empirical**2) - n_dimensions * mean_variance**2
    squared_norms = np.sum(scaled**2, axis=1)
    sampling = (np.mean(squared_norms**2) - np.sum(empirical**2)) / n
    shrinkage = min(sampling / distance, 1) if distance > 0 else 0.0
    shrunken = (1 - shrinkage) * empirical + shrinkage * mean_variance * np.eye(n_dimensions)
    return shrunken * np.outer(scale, scale)


FEWEST_MAPPED = 5  # below which a graph has no two eigenvectors to start a layout with
N_NEIGHBOURS = 15
MIN_DISTANCE = 0.3
SHOWN_PERTURBATIONS = 7


def map_and_cluster(
    states: np.ndarray, seed: int, n_neighbours: int = N_NEIGHBOURS
) -> pd.DataFrame:
    """Compute UMAP and Leiden clusters of latent states from one graph of nearest neighbours.

    These are :func:`scanpy.pp.neighbors`, :func:`scanpy.tl.umap` (McInnes et al. 2018) and
    :func:`scanpy.tl.leiden` (Traag et al. 2019), with Euclidean distances between latent states
    and a resolution of 1.

    Parameters
    ----------
    states
        Cells x K.
    seed
        Seed of the neighbours, the layout and the clusters.
    n_neighbours
        Neighbours of a cell in the graph, at most.

    Returns
    -------
    DataFrame
        ``x`` and ``y`` of each cell, without units, and its cluster ``leiden``: 0 is the largest.

    Raises
    ------
    InputError
        If there are fewer than five cells.
    """
    if len(states) < FEWEST_MAPPED:
        raise InputError(
            f"State map: {len(states)} cells are too few for UMAP ({FEWEST_MAPPED} at least). Set "
            "evaluation.mapped_cells to 0 for no map, or to more cells."
        )
    import scanpy  # seconds, in which it compiles

    cells = anndata.AnnData(states.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        n_neighbours = min(n_neighbours, len(states) - 1)
        scanpy.pp.neighbors(cells, n_neighbours, use_rep="X", random_state=seed)
        scanpy.tl.umap(cells, min_dist=MIN_DISTANCE, random_state=seed)
        scanpy.tl.leiden(cells, flavor="igraph", directed=False, n_iterations=2, random_state=seed)
    clusters = cells.obs["leiden"].astype(int)
    largest_first = {name: rank for rank, name in enumerate(clusters.value_counts().index)}
    return pd.DataFrame(
        {
            "x": cells.obsm["X_umap"][:, 0].astype(float).round(4),
            "y": cells.obsm["X_umap"][:, 1].astype(float).round(4),
            "leiden": clusters.map(largest_first).to_numpy(),
        }
    )


def shown_as(labels: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Group cells for display: control, perturbations of largest latent effect, and others.

    Parameters
    ----------
    labels
        Perturbation of each cell.
    total
        States with the perturbation, cells x K.

    Returns
    -------
    ndarray of str
        For each cell ``control``, one of seven perturbations, or ``other perturbations``.
    """
    means = pd.DataFrame(total).groupby(labels).mean()
    origin = means.loc[CONTROL] if CONTROL in means.index else means.mean()
    distance = ((means - origin) ** 2).sum(axis=1).drop(CONTROL, errors="ignore")
    farthest = set(distance.sort_values(ascending=False, kind="stable").index[:SHOWN_PERTURBATIONS])
    return np.array([name if name in farthest | {CONTROL} else OTHER for name in labels], object)


def state_map(
    trained: "TrainedModel", screen: anndata.AnnData, parts: pd.Series, most_cells: int, seed: int
) -> pd.DataFrame:
    """Compute UMAPs and clusters of basal and total states of held-out cells.

    Parameters
    ----------
    trained
        The model.
    screen
        Canonical screen.
    parts
        Split of each cell.
    most_cells
        Largest number of cells, drawn at random.
    seed
        Seed of the cells, the layout and the clusters.

    Returns
    -------
    DataFrame
        One row per state (``basal``, ``total``) and cell: its perturbation, what :func:`shown_as`
        calls it, the other columns of the screen's ``obs`` but for library sizes, and the columns
        of :func:`samsvae.biology.states.cell_cycle_scores` (where ``obs`` does not have them)
        and of :func:`map_and_cluster`.
    """
    cells = np.flatnonzero(parts != TRAIN)
    if len(cells) > most_cells:
        cells = np.sort(np.random.default_rng(seed).choice(cells, most_cells, replace=False))
    keep = np.zeros(screen.n_obs, dtype=bool)
    keep[cells] = True
    from samsvae.inference.posterior import cell_states  # torch, which other maps do without

    states = cell_states(trained, screen, keep, seed)
    known = screen.obs[keep].drop(columns=["library_size", "part"], errors="ignore")
    known.insert(0, "cell", known.index)
    known["shown_as"] = shown_as(known["perturbation"].to_numpy(dtype=object), states.total)
    scores = cell_cycle_scores(screen, cells, seed)
    known = known.join(scores[scores.columns.difference(known.columns, sort=False)])
    known = known.reset_index(drop=True)
    maps = [
        known.assign(state=name).join(map_and_cluster(values, seed))
        for name, values in (("basal", states.basal), ("total", states.total))
    ]
    return pd.concat(maps, ignore_index=True)


MAPPED_COMPONENTS = 30  # of observed effects, at most
MAP = ["kind", "model", "perturbation", "strength", "x", "y", "leiden"]


def perturbation_map(effects: pd.DataFrame, latents: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Compute UMAPs and Leiden clusters of perturbations by observed and by latent effects.

    Parameters
    ----------
    effects
        A table of :func:`samsvae.evaluation.effects.long_table`.
    latents
        A table of :func:`samsvae.biology.factors.latent_effects`, with a column ``model``; the
        first model is shown.
    seed
        Seed of the neighbours, the layout and the clusters.

    Returns
    -------
    DataFrame
        One row per kind (``observed``: principal components of effects on genes; ``latent``:
        masked latent effects) and perturbation: ``strength``, the standard deviation of its
        observed effect over genes, and the columns of :func:`map_and_cluster`, with a quarter of
        the perturbations as neighbours, at most 15. Of more than 1,000 perturbations those of
        largest strength are mapped. Empty for fewer than five perturbations.
    """
    first = effects_of_strongest(effects[effects["model"] == effects["model"].iloc[0]])
    observed = effect_matrix(first, "screen_effect").dropna()
    if len(observed) < FEWEST_MAPPED:
        return pd.DataFrame(columns=MAP)
    import scanpy  # seconds, in which it compiles

    values = observed.to_numpy(dtype=np.float32)
    n_components = min(MAPPED_COMPONENTS, min(values.shape) - 1)
    matrices = {
        (OBSERVED, OBSERVED): scanpy.pp.pca(values, n_comps=n_components, random_state=seed)
    }
    if len(latents):
        model = latents["model"].iloc[0]
        shifts = latent_shifts(latents[latents["model"] == model], list(observed.index))
        matrices[LATENT, model] = shifts.to_numpy()
    n_neighbours = min(N_NEIGHBOURS, max(len(observed) // 4, 3))
    known = pd.DataFrame(
        {"perturbation": observed.index.astype(str), "strength": observed.std(axis=1).to_numpy()}
    )
    maps = [
        known.assign(kind=kind, model=model).join(map_and_cluster(matrix, seed, n_neighbours))
        for (kind, model), matrix in matrices.items()
    ]
    return pd.concat(maps, ignore_index=True)[MAP]


FEWEST_MARKERS = 10  # of each phase, below which a score says more of genes than of the phase

# Tirosh et al. 2016 (doi:10.1126/science.aad0501): 43 genes of S and 54 of G2 and M, human; three
# have another symbol since: MLF1IP is CENPU, FAM64A is PIMREG, HN1 is JPT1
S_GENES = [
    "ATAD2", "BLM", "BRIP1", "CASP8AP2", "CCNE2", "CDC45", "CDC6", "CDCA7", "CENPU", "CHAF1B",
    "CLSPN", "DSCC1", "DTL", "E2F8", "EXO1", "FEN1", "GINS2", "GMNN", "HELLS", "MCM2", "MCM4",
    "MCM5", "MCM6", "MLF1IP", "MSH2", "NASP", "PCNA", "POLA1", "POLD3", "PRIM1", "RAD51",
    "RAD51AP1", "RFC2", "RPA2", "RRM1", "RRM2", "SLBP", "TIPIN", "TYMS", "UBR7", "UHRF1", "UNG",
    "USP1", "WDR76",
]  # fmt: skip
G2M_GENES = [
    "ANLN", "ANP32E", "AURKA", "AURKB", "BIRC5", "BUB1", "CBX5", "CCNB2", "CDC20", "CDC25C",
    "CDCA2", "CDCA3", "CDCA8", "CDK1", "CENPA", "CENPE", "CENPF", "CKAP2", "CKAP2L", "CKAP5",
    "CKS1B", "CKS2", "CTCF", "DLGAP5", "ECT2", "FAM64A", "G2E3", "GAS2L3", "GTSE1", "HJURP",
    "HMGB2", "HMMR", "HN1", "JPT1", "KIF11", "KIF20B", "KIF23", "KIF2C", "LBR", "MKI67", "NCAPD2",
    "NDC80", "NEK2", "NUF2", "NUSAP1", "PIMREG", "PSRC1", "RANGAP1", "SMC4", "TACC3", "TMPO",
    "TOP2A", "TPX2", "TTK", "TUBB4B", "UBE2C",
]  # fmt: skip


def cell_cycle_scores(screen: anndata.AnnData, cells: np.ndarray, seed: int) -> pd.DataFrame:
    """Score S and G2/M marker genes in cells, and assign each cell a phase.

    This is :func:`scanpy.tl.score_genes_cell_cycle` on log(1 + counts per 10,000): the mean of the
    markers minus that of control genes of the same abundance, drawn at random.

    Parameters
    ----------
    screen
        Canonical screen, whose counts may be in a file.
    cells
        Positions of the cells, ascending.
    seed
        Seed of the control genes.

    Returns
    -------
    DataFrame
        ``phase`` (``G1``, ``S`` or ``G2M``), ``S_score`` and ``G2M_score`` of each cell, in natural
        log units; without a column where fewer than ten markers of S or of G2/M are measured, or
        where most genes are markers.
    """
    s_genes, g2m_genes = ([g for g in of if g in screen.var_names] for of in (S_GENES, G2M_GENES))
    n_markers = len(s_genes) + len(g2m_genes)
    if min(len(s_genes), len(g2m_genes)) < FEWEST_MARKERS or n_markers > screen.n_vars / 2:
        return pd.DataFrame(index=screen.obs_names[cells])
    import scanpy  # seconds, in which it compiles

    counts = sparse.csr_matrix(screen.X[cells]).astype(np.float32)
    expression = anndata.AnnData(
        counts, pd.DataFrame(index=screen.obs_names[cells]), pd.DataFrame(index=screen.var_names)
    )
    scanpy.pp.normalize_total(expression, target_sum=CP10K)
    scanpy.pp.log1p(expression)
    scanpy.tl.score_genes_cell_cycle(
        expression, s_genes=s_genes, g2m_genes=g2m_genes, random_state=seed
    )
    scores = expression.obs[["S_score", "G2M_score"]].round(4)
    scores.insert(0, "phase", expression.obs["phase"].astype(str))
    return scores
