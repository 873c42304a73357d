"""A trained model applied to cells, its own or those of another file: states, bounds, responders.

:func:`load` is the front door for notebooks; :func:`write_cells` writes ``cells.h5ad``.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import torch
from anndata.io import write_elem
from scipy import sparse

from samsvae.biology.responders import (
    Evidence,
    ModelledCells,
    Responders,
    ResponderScores,
    responder_effects,
)
from samsvae.evaluation.effects import effects_table, write_effects
from samsvae.evaluation.predicted import LIBRARY_SIZE, predicted_effects
from samsvae.evaluation.samples import sample_cells
from samsvae.inference.checkpoint import TrainedModel, load_model, restrict_genes
from samsvae.inference.posterior import CellStates, effects_for_states, states_of
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import whole_file, write_tsv
from samsvae.runtime.script import Progress
from samsvae.screen.canonical import (
    COMPARED_WITH,
    UNIT,
    describe_cells,
    has_marginal_effects,
    library_sizes,
    open_screen,
    perturbations,
)
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL, doses
from samsvae.screen.validation import check_counts, check_names, refuse_empty_cells

FEWEST_GENES = 0.5  # fraction of a model's genes that cells must have
MIN_CELLS_GUIDE = 10
FEWEST_DRAWS = 2
MOST_NAMED = 5
LIBRARY_SIZE_COLUMN = "library_size_column"  # in uns, where library sizes are a column's
STATES = ("X_basal", "X_latent", "X_shift")
BOUND, SCORE, PROBABILITY = "bound", "responder_score", "responder_probability"

logger = logging.getLogger(__name__)


def fit_to_cells(trained: TrainedModel, screen: anndata.AnnData) -> tuple[TrainedModel, list[str]]:
    """Restrict a model to the genes that cells have, and list what else the cells lack.

    Parameters
    ----------
    trained
        The model.
    screen
        Canonical screen, whose counts may be in a file. Its genes may be in any order; further
        genes are ignored.

    Returns
    -------
    trained : TrainedModel
        With the genes of the screen.
    notes : list of str
        What is missing: genes, perturbations that the model does not know, covariates.

    Raises
    ------
    InputError
        If the screen has less than half of the model's genes.
    """
    notes = []
    names = set(screen.var_names)
    missing = [gene for gene in trained.genes if gene not in names]
    n_genes = len(trained.genes)
    if n_genes - len(missing) < FEWEST_GENES * n_genes:
        raise InputError(
            f"Only {n_genes - len(missing):,} of the model's {n_genes:,} genes are among the "
            f"{screen.n_vars:,} genes of the cells, and at least half are needed. Missing are "
            f"{_some(missing)}; a gene of the cells is {next(iter(screen.var_names), 'none')!r}. "
            "Name genes as the screen did that the model was trained on (gene_symbol_column)."
        )
    if missing:
        notes.append(
            f"{len(missing):,} of the model's {n_genes:,} genes are not measured and left out of "
            f"encoder, decoder and library sizes: {_some(missing)}."
        )
    covariates = trained.covariates
    for name, levels in covariates.levels.items():
        if name not in screen.obs:
            notes.append(f"The cells have no {name}, which the model takes as unknown.")
        elif new := sorted(set(screen.obs[name].astype(str)) - set(levels)):
            notes.append(f"The model was not trained on {name} {_some(new)}.")
    notes += [
        f"The cells have no {name}; the mean over training cells is taken."
        for name in covariates.scaling
        if name not in screen.obs
    ]
    labels, conditions = Design.of_screen(screen).conditions()
    unknown = [
        label
        for label, condition in zip(labels.categories, conditions, strict=True)
        if not trained.encoding.knows(condition)
    ]
    if unknown:
        number = int(labels.isin(unknown).sum())
        notes.append(
            f"{number:,} cells have a perturbation that the model does not know, and get neither "
            f"bound nor score, and states without it: {_some(unknown)}."
        )
    return restrict_genes(trained, names), notes


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more


class CellPass:
    """One pass over the cells of a screen.

    Parameters
    ----------
    trained
        The model, whose genes are all in the screen.
    screen
        Canonical screen, whose counts may be in a file.
    particles
        Particles of the bounds.
    seed
        Seed of all draws.
    """

    def __init__(
        self, trained: TrainedModel, screen: anndata.AnnData, particles: int, seed: int
    ) -> None:
        self.trained, self.seed = trained, seed
        self.modelled = ModelledCells(trained, screen)
        self.scores = ResponderScores(Evidence(trained, particles, seed), self.modelled, seed)

    def blocks(self) -> Iterator[tuple[np.ndarray, CellStates, np.ndarray]]:
        """Iterate over cells in order; yields positions, states, and bounds in nats."""
        effects = effects_for_states(self.trained.model, self.seed)
        progress = Progress("cell", self.modelled.screen.n_obs, " cells")
        for positions, cells in self.modelled.blocks():
            states = states_of(self.trained.model, cells, effects)
            yield positions, states, self.scores.add(positions, cells)
            progress.update(len(positions))

    def responders(self) -> Responders:
        """Estimate responders from the scores of all blocks."""
        return self.scores.finish()


def write_cells(
    trained: TrainedModel,
    source: str | Path,
    output: str | Path,
    particles: int,
    seed: int,
    provenance: str,
    factors: Mapping[str, pd.DataFrame] | None = None,
) -> tuple[Responders, list[str]]:
    """Write the cells of a screen with what a model infers of them, in constant memory.

    Parameters
    ----------
    trained
        The model.
    source
        File of a canonical screen, as of :func:`fit_to_cells`.
    output
        The file: the screen, and in ``obsm`` ``X_basal``, ``X_latent`` and ``X_shift`` (posterior
        mean latent states without and with the effect of the perturbation, and their difference,
        in basal standard deviations); in ``obs`` ``bound`` (IWELBO, nats), ``responder_score``
        (nats) and ``responder_probability``. Where effects are those of single perturbations,
        scores and probabilities are matrices of ``obsm``, cells x perturbations.
    particles
        Particles of the bounds.
    seed
        Seed of all draws.
    provenance
        Provenance record, JSON.
    factors
        Tables of latent factors, for ``uns["factors"]``.

    Returns
    -------
    responders : Responders
        Responders of the screen.
    notes : list of str
        As of :func:`fit_to_cells`.
    """
    with open_screen(source, names=False) as screen, whole_file(output) as temporary:
        trained, notes = fit_to_cells(trained, screen)
        shutil.copyfile(source, temporary)
        cells = CellPass(trained, screen, particles, seed)
        bound = np.empty(screen.n_obs, dtype=np.float32)
        shape = screen.n_obs, trained.model.n_latent
        with h5py.File(temporary, "r+") as file:
            states = [_empty_array(file["obsm"], name, shape) for name in STATES]
            for positions, found, of_cells in cells.blocks():
                own = slice(positions[0], positions[-1] + 1)
                bound[own] = of_cells
                given = (found.basal, found.total, found.total - found.basal)
                for dataset, values in zip(states, given, strict=True):
                    dataset[own] = values
            responders = cells.responders()
            columns, matrices = _annotations(bound, responders, has_marginal_effects(screen))
            _write_columns(file["obs"], columns)
            for name, matrix in matrices.items():
                write_elem(file["obsm"], name, matrix, dataset_kwargs={"compression": "lzf"})
            write_elem(file["uns"], "provenance", provenance)
            if factors:
                tables = {name: _storable(table) for name, table in factors.items()}
                write_elem(file["uns"], "factors", tables)
    return responders, notes


def _storable(table: pd.DataFrame) -> pd.DataFrame:
    """Fill missing text, which an AnnData file cannot hold."""
    text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    filled = {name: table[name].astype(object).fillna("").astype(str) for name in text}
    return table.reset_index(drop=True).assign(
        **{name: values.to_numpy() for name, values in filled.items()}
    )


def _empty_array(group: h5py.Group, name: str, shape: tuple[int, int]) -> h5py.Dataset:
    """Create a dense array of an AnnData file, to be filled."""
    rows = max(1, min(shape[0], 2**16 // max(1, shape[1])))
    dataset = group.create_dataset(
        name, shape, np.float32, chunks=(rows, max(1, shape[1])), compression="lzf"
    )
    dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return dataset


def _write_columns(obs: h5py.Group, columns: Mapping[str, np.ndarray]) -> None:
    """Add columns to the obs of an AnnData file."""
    order = [str(name) for name in obs.attrs["column-order"]]
    for name, values in columns.items():
        write_elem(obs, name, values)
    obs.attrs["column-order"] = np.array(
        [*order, *(name for name in columns if name not in order)], dtype=h5py.string_dtype()
    )


def _annotations(
    bound: np.ndarray, responders: Responders, marginal: bool
) -> tuple[dict[str, np.ndarray], dict[str, sparse.csr_matrix]]:
    """Arrange bounds, scores and probabilities as columns of obs and matrices of obsm."""
    groups, found = (
        responders.groups,
        {SCORE: responders.score, PROBABILITY: responders.probability},
    )
    if marginal:
        shape = len(bound), len(groups.names)
        return {BOUND: bound}, {
            name: sparse.csr_matrix((values, (groups.cell, groups.group)), shape, np.float32)
            for name, values in found.items()
        }
    columns = {BOUND: bound}
    for name, values in found.items():
        columns[name] = np.full(len(bound), np.nan, dtype=np.float32)
        columns[name][groups.cell] = values
    return columns, {}


def write_results(
    trained: TrainedModel,
    source: str | Path,
    output: Mapping[str, str | Path],
    settings: Mapping[str, Any],
    seed: int,
    provenance: str,
    factors: Mapping[str, pd.DataFrame] | None = None,
) -> list[str]:
    """Write the cells of a screen with what a model infers of them, and tables of responders.

    Parameters
    ----------
    trained, source, seed, provenance, factors
        As of :func:`write_cells`.
    output
        Files: ``cells``, ``responders`` (as of :meth:`Responders.table`), ``scores`` (as of
        :meth:`Responders.densities`) and ``responder_effects`` (perturbations x genes, effects
        among all cells with a layer of those among responders; empty where effects are those of
        single perturbations).
    settings
        ``cell_particles`` and ``min_cells_guide`` of the configuration.

    Returns
    -------
    list of str
        What cells and model lack, as of :func:`fit_to_cells`.
    """
    how = settings["cell_particles"], seed, provenance, factors
    responders, notes = write_cells(trained, source, output["cells"], *how)
    for note in notes:
        logger.warning(note)
    with open_screen(source, names=False) as screen:
        table = responders.table(screen, settings["min_cells_guide"])
        names, genes = responders.groups.names, list(screen.var_names)
        marginal = has_marginal_effects(screen)
        empty = np.full((len(names), len(genes)), np.nan)
        effects = (empty, empty) if marginal else responder_effects(screen, responders)
    for column, values in zip(("effect_size", "responder_effect_size"), effects, strict=True):
        size = pd.Series(np.sqrt(np.square(values).mean(axis=1)), names)
        table[column] = table["perturbation"].map(size).where(table["guide"] == "")
    write_tsv(table, output["responders"])
    write_tsv(responders.densities(), output["scores"])
    among = {"responders": effects[1]}
    write_effects(
        effects_table(effects[0], names, genes, among, provenance), output["responder_effects"]
    )
    return notes


def known_perturbations(trained: TrainedModel, screen: anndata.AnnData) -> list[str]:
    """List the perturbations of a screen that a model knows."""
    return [name for name in perturbations(screen) if trained.encoding.knows(doses(name))]


class ScreenModel:
    """A trained model, for notebooks.

    Parameters
    ----------
    trained
        The model.

    Examples
    --------
    >>> import samsvae
    >>> model = samsvae.load("results/.../seed0/model.safetensors")  # doctest: +SKIP
    >>> model.effects(["KLF1", "KLF1+MAP2K6"])  # doctest: +SKIP
    """

    def __init__(self, trained: TrainedModel) -> None:
        self.trained = trained

    def __repr__(self) -> str:
        """Describe the model in a line."""
        return (
            f"<{self.trained.settings['kind']}: {len(self.genes):,} genes, "
            f"{len(self.perturbations):,} perturbations, {self.trained.model.n_latent} latent "
            "dimensions>"
        )

    @property
    def genes(self) -> list[str]:
        """Genes of the model, in its order."""
        return self.trained.genes

    @property
    def perturbations(self) -> list[str]:
        """Perturbations that the model was trained on; any of them can be combined."""
        return list(self.trained.encoding.names)

    def effects(
        self,
        perturbations: str | Sequence[str] | None = None,
        draws: int = 100,
        seed: int = 0,
        library_sizes: Sequence[float] = (LIBRARY_SIZE,),
    ) -> pd.DataFrame:
        """Predict average treatment effects.

        Parameters
        ----------
        perturbations
            Canonical labels, such as ``KLF1`` or the pair ``KLF1+MAP2K6``; None for all single
            perturbations of the model.
        draws
            Number of draws of masks, embeddings and basal states.
        seed
            Seed of the draws.
        library_sizes
            Library sizes of the cells whose effects are predicted, equally frequent.

        Returns
        -------
        DataFrame
            Perturbations x genes, log2(CP10k + 1).

        Raises
        ------
        InputError
            If the model has no such perturbation.
        """
        names = self.perturbations if perturbations is None else _listed(perturbations)
        self._check(names)
        if draws < FEWEST_DRAWS or not len(library_sizes) or min(library_sizes) <= 0:
            raise InputError(
                f"draws: {draws} and library_sizes: {list(library_sizes)[:MOST_NAMED]} are not "
                f"possible. Set at least {FEWEST_DRAWS} draws and one library size above 0."
            )
        how = draws, seed, "integrated", None, library_sizes
        found, _ = predicted_effects(self.trained, names, *how)
        return pd.DataFrame(found, pd.Index(names, name="perturbation"), self.genes)

    def sample(
        self,
        perturbations: str | Sequence[str],
        cells: int = 100,
        library_sizes: float | Sequence[float] = LIBRARY_SIZE,
        seed: int = 0,
    ) -> anndata.AnnData:
        """Draw posterior predictive cells; see :func:`samsvae.evaluation.samples.sample_cells`.

        Parameters
        ----------
        perturbations
            Canonical labels, ``control`` among them by choice.
        cells
            Number of cells of each perturbation.
        library_sizes
            Library size of the cells: one value, or several to resample from.
        seed
            Seed of the draws.
        """
        if cells < 1:
            raise InputError(f"cells: {cells} is not possible; set at least 1.")
        return sample_cells(self.trained, _listed(perturbations), cells, library_sizes, seed)

    def encode(
        self,
        cells: anndata.AnnData,
        perturbation_column: str = "perturbation",
        particles: int = 25,
        seed: int = 0,
        control: str = CONTROL,
    ) -> anndata.AnnData:
        """Infer the states, bounds and responders of cells.

        Parameters
        ----------
        cells
            Raw counts in ``X``, cells x genes, in any order of genes. What is missing is logged:
            genes of the model, and perturbations that it does not know.
        perturbation_column
            Column of ``obs`` with canonical labels, such as ``A`` or ``A+B``. Without this column
            all cells are taken as control cells.
        particles
            Particles of the bounds.
        seed
            Seed of all draws.
        control
            Label of control cells.

        Returns
        -------
        AnnData
            A copy of the cells, with ``obsm`` and ``obs`` as of :func:`write_cells`;
            ``uns["responders"]`` is the table of
            :meth:`samsvae.biology.responders.Responders.table`. States, bounds and scores of a
            cell do not depend on the other cells; fractions and probabilities do.

        Raises
        ------
        InputError
            If X has no raw counts, a label is missing, or most of the model's genes are missing.
        """
        _check_particles(particles)
        screen = _as_screen(cells, perturbation_column, control)
        trained = self._fitted(screen)
        found = CellPass(trained, screen, particles, seed)
        blocks = list(found.blocks())
        responders = found.responders()
        bound = np.concatenate([bound for _, _, bound in blocks]).astype(np.float32)
        columns, matrices = _annotations(bound, responders, has_marginal_effects(screen))
        made = cells.copy()
        basal, total = (
            np.concatenate([getattr(states, name) for _, states, _ in blocks])
            for name in ("basal", "total")
        )
        for name, values in zip(STATES, (basal, total, total - basal), strict=True):
            made.obsm[name] = values
        for name, values in columns.items():
            made.obs[name] = values
        for name, matrix in matrices.items():
            made.obsm[name] = matrix
        made.uns["responders"] = responders.table(screen, MIN_CELLS_GUIDE)
        return made

    def log_likelihood(
        self,
        cells: anndata.AnnData,
        perturbation_column: str = "perturbation",
        particles: int = 100,
        seed: int = 0,
        control: str = CONTROL,
    ) -> pd.Series:
        """Estimate the importance-weighted bound on the log-likelihood of each cell, in nats.

        Parameters
        ----------
        cells, perturbation_column, seed, control
            As of :meth:`encode`.
        particles
            Number of importance samples; the bound rises with it.

        Returns
        -------
        Series
            By cell; NaN where the model does not know the perturbation.
        """
        _check_particles(particles)
        screen = _as_screen(cells, perturbation_column, control)
        trained = self._fitted(screen)
        evidence, modelled = Evidence(trained, particles, seed), ModelledCells(trained, screen)
        bound = np.concatenate([evidence(block) for _, block in modelled.blocks()])
        bound[~modelled.is_known] = np.nan
        return pd.Series(bound, cells.obs_names, name=BOUND)

    def _fitted(self, screen: anndata.AnnData) -> TrainedModel:
        """Restrict the model to the genes of a screen, and log what else this lacks."""
        trained, notes = fit_to_cells(self.trained, screen)
        for note in notes:
            logger.warning(note)
        return trained

    def _check(self, names: Sequence[str]) -> None:
        for name in names:
            if not self.trained.encoding.knows(doses(name)):
                raise InputError(
                    f"The model has no perturbation {name!r}; it has {_some(self.perturbations)}."
                )


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _check_particles(particles: int) -> None:
    if particles < 1:
        raise InputError(f"particles: {particles} is not possible; set at least 1.")


def load(path: str | Path, device: torch.device | str = "cpu") -> ScreenModel:
    """Load a trained model.

    Parameters
    ----------
    path
        A file ``model.safetensors`` of a run.
    device
        Device of the model, such as ``cuda``.
    """
    return ScreenModel(load_model(path, device))


def _as_screen(cells: anndata.AnnData, perturbation_column: str, control: str) -> anndata.AnnData:
    """Bring cells into the canonical form, by their counts and the labels of a column."""
    where = "The cells"
    if cells.n_obs == 0 or cells.X is None:
        raise InputError(
            f"{where} have no counts in X. Set cells.X to raw counts, for instance "
            f"cells.layers['counts'] (layers: {', '.join(cells.layers) or 'none'})."
        )
    if cells.isbacked:
        raise InputError(f"{where} are in a file (backed mode). Load them: cells.to_memory().")
    if perturbation_column in cells.obs:
        column = cells.obs[perturbation_column]
        if column.isna().any():
            raise InputError(
                f"{where}: obs[{perturbation_column!r}] of {int(column.isna().sum()):,} cell(s) is "
                f"missing (first: {cells.obs_names[int(np.argmax(column.isna()))]!r}). Label them, "
                "or leave them out."
            )
        labels = column.astype(str).to_numpy(dtype=object)
        labels[labels == control] = CONTROL
    else:
        logger.warning("The cells have no column %r; all are control cells.", perturbation_column)
        labels = np.full(cells.n_obs, CONTROL, dtype=object)
    if not (labels == CONTROL).any():
        logger.warning("No cell is a control cell (%r): responders are unknown.", control)
    counts = sparse.csr_matrix(cells.X)
    counts.sum_duplicates()
    check_names(cells.obs_names, "cell", where)
    check_names(list(cells.var_names), "gene", where)
    checked = check_counts(counts, where)
    sizes, declared = library_sizes(checked), {}
    refuse_empty_cells(np.flatnonzero(sizes == 0), where)
    if LIBRARY_SIZE_COLUMN in cells.uns and "library_size" in cells.obs:
        sizes = cells.obs["library_size"].to_numpy()
        declared[LIBRARY_SIZE_COLUMN] = str(cells.uns[LIBRARY_SIZE_COLUMN])
    declared |= {key: str(cells.uns[key]) for key in (UNIT, COMPARED_WITH) if key in cells.uns}
    covariates = cells.obs.drop(columns=["perturbation", "library_size"], errors="ignore")
    names = cells.obs_names, list(cells.var_names)
    design = Design.of_labels(list(labels))
    screen = describe_cells(design, sizes, *names, covariates, declared=declared)
    screen.X = checked
    return screen
