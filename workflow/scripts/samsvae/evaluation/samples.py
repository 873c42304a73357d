"""Posterior and prior predictive samples, cells of baselines, and their export for cell-eval.

cell-eval (Arc Institute, https://github.com/ArcInstitute/cell-eval) compares two files of cells of
the same perturbations and the same genes in the same order. It expects log(1 + CP10k) of at least
0 and below 15, and a column of obs with perturbations, control cells included. The modules
``cell_eval._types._anndata`` and ``cell_eval.utils`` of version 0.8 check these requirements.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pyro
import torch
from anndata.io import sparse_dataset, write_elem
from scipy import sparse
from torch import Tensor

from samsvae.evaluation.expression import CP10K
from samsvae.evaluation.observed import half_of_held_out
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import (
    BasalCells,
    draw_covariates,
    draw_effects,
    draw_on_target,
    looked_up_shifts,
)
from samsvae.models.base import PerturbationModel, own_of_cells
from samsvae.models.likelihoods import NormalLikelihood
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import whole_file
from samsvae.screen.canonical import CONTEXT, counts_in_blocks, has_marginal_effects
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TEST, held_out_cells

LARGEST_TENSOR = 8_000_000  # elements, of cells x genes
SOURCES = ("posterior", "prior")


@torch.no_grad()
@pyro.validation_enabled(False)
def sample_cells(
    trained: TrainedModel,
    perturbations: Sequence[str],
    cells_per_perturbation: int,
    library_sizes: float | Sequence[float] | np.ndarray,
    seed: int,
    sample_from: str = "posterior",
    provenance: str = "{}",
) -> anndata.AnnData:
    """Draw predictive samples of cells under perturbations, observed or not.

    A draw is one cell of each perturbation: all have the same draw of the global variables, each
    has its own basal state from the prior. Every draw has its own seed, so that memory holds the
    counts of one draw beside the sparse result, and a larger sample starts with the smaller one.

    Parameters
    ----------
    trained
        The model.
    perturbations
        Distinct canonical labels: control, or any combination and doses of the model's
        perturbations.
    cells_per_perturbation
        Number of draws.
    library_sizes
        Library size that the decoder takes: one value, or several to resample from.
    seed
        Seed of the draws.
    sample_from
        ``posterior``: global variables from the guide; ``prior``: from the generative model.
    provenance
        Provenance record, JSON.

    Returns
    -------
    AnnData
        Cells x genes, perturbation by perturbation. ``X`` is CSR: int32 counts, or float32 for
        the Normal likelihood. ``obs`` has perturbation, library_size (of the decoder; the sum of
        counts varies around it) and draw; ``obsm["latent"]`` the latent state, float32.

    Raises
    ------
    InputError
        If the model has no such perturbation, or `sample_from` is neither of the two.
    """
    if sample_from not in SOURCES:
        raise InputError(
            f"sample_from: {sample_from!r} is not allowed; allowed: {', '.join(SOURCES)}."
        )
    device = trained.device
    _design(trained, perturbations)  # refuse unknown perturbations
    sizes = torch.as_tensor(np.asarray(library_sizes), dtype=torch.float32, device=device).reshape(
        -1
    )
    drawn = []
    for draw in range(cells_per_perturbation):
        own_seed = int(np.random.SeedSequence([seed, draw]).generate_state(1)[0])
        with seeded(own_seed, device):
            drawn.append(_one_cell_each(trained, perturbations, sizes, sample_from))
    # from draw by draw to perturbation by perturbation
    label, draws = np.indices((len(perturbations), cells_per_perturbation)).reshape(2, -1)
    order = draws * len(perturbations) + label
    names = np.asarray(perturbations, dtype=object)
    return anndata.AnnData(
        X=sparse.vstack([counts for counts, _, _ in drawn], format="csr")[order],
        obs=pd.DataFrame(
            {
                "perturbation": pd.Categorical(names[label]),
                "library_size": np.concatenate([size for _, size, _ in drawn])[order],
                "draw": draws,
            },
            index=pd.Index(
                [f"{names[i]}-{d}" for i, d in zip(label, draws, strict=True)], name="cell"
            ),
        ),
        var=pd.DataFrame(index=pd.Index(trained.genes, name="gene")),
        obsm={"latent": np.concatenate([latent for _, _, latent in drawn])[order]},
        uns={"provenance": provenance},
    )


@torch.no_grad()
@pyro.validation_enabled(False)
def counterfactual_cells(
    trained: TrainedModel,
    screen: anndata.AnnData,
    perturbation: str | None,
    seed: int,
    provenance: str = "{}",
) -> anndata.AnnData:
    """Draw counterfactual samples of measured cells under another perturbation.

    The global variables are drawn once from the guide, a cell's own variables from the guide
    given its counts and its observed perturbation. Its counts are drawn at its own library size.

    Parameters
    ----------
    trained
        The model.
    screen
        Canonical cells, with the model's genes.
    perturbation
        Canonical label, ``control`` for cells without a perturbation; None for the perturbation
        that each cell received, which reconstructs it.
    seed
        Seed of the draws.
    provenance
        Provenance record, JSON.

    Returns
    -------
    AnnData
        The same cells in the same order, otherwise as of :func:`sample_cells`; instead of the
        draw, ``obs`` has the perturbation that the cell ``received``.

    Raises
    ------
    InputError
        If the genes are not the model's, or the model has no such perturbation.
    """
    if list(screen.var_names) != trained.genes:
        genes = set(trained.genes)
        unknown = [gene for gene in screen.var_names if gene not in genes]
        raise InputError(
            f"The {screen.n_vars} genes of the cells are not the {len(trained.genes)} genes of the "
            f"model in the same order (first unknown gene: {next(iter(unknown), 'none')}). Select "
            "the model's genes from the cells, in its order."
        )
    model, device = trained.model, trained.device
    received = screen.obs["perturbation"].astype("category")
    # refuse unknown perturbations
    _design(trained, list(Design.of_screen(screen).labels().categories))
    every = np.ones(screen.n_obs, dtype=bool)
    cells = Cells.of(screen, every, trained.encoding, device, trained.covariates)
    per_batch = max(1, LARGEST_TENSOR // len(trained.genes))
    parts = []
    with seeded(seed, device):
        effects = draw_effects(model, 1)
        # the condition that each cell gets: its own, or the given one in its context
        given, condition, pairs = cells.design, cells.condition, cells.targets
        if perturbation is not None:
            given, condition = _in_contexts(trained, perturbation, screen)
            pairs = trained.encoding.pairs(given)
        on_target = draw_on_target(model, pairs, 1)
        new_shifts = looked_up_shifts(effects, given).expand(1, -1, -1)
        shifts = looked_up_shifts(effects, cells.design).expand(1, -1, -1)
        for number, batch in enumerate(cells.batches(per_batch)):
            inferred = BasalCells.from_guide(model, batch, shifts)
            of_batch = condition[number * per_batch : (number + 1) * per_batch]
            decoder_input = inferred.decoder_input(new_shifts.index_select(-2, of_batch))
            terms = own_of_cells(on_target, of_batch)
            cell = batch.library_size, *batch.covariates
            parts.append(_counts_and_latent(model, decoder_input, *cell, own=terms))
    return anndata.AnnData(
        X=sparse.vstack([counts for counts, _ in parts], format="csr"),
        obs=pd.DataFrame(
            {
                "perturbation": received if perturbation is None else perturbation,
                "library_size": cells.library_size.cpu().numpy(),
                "received": received,
            },
            index=screen.obs_names,
        ),
        var=pd.DataFrame(index=pd.Index(trained.genes, name="gene")),
        obsm={"latent": np.concatenate([latent for _, latent in parts])},
        uns={"provenance": provenance},
    )


def _in_contexts(
    trained: TrainedModel, perturbation: str, screen: anndata.AnnData
) -> tuple[Tensor, Tensor]:
    """Encode a perturbation in the context of each cell: distinct rows, and the row of each."""
    if not trained.encoding.in_contexts:
        condition = torch.zeros(screen.n_obs, dtype=torch.long, device=trained.device)
        return _design(trained, [perturbation]), condition
    contexts = pd.Categorical(screen.obs[CONTEXT].astype(str))
    names = list(contexts.categories)
    condition = torch.tensor(contexts.codes, dtype=torch.long, device=trained.device)
    return _design(trained, [perturbation] * len(names), names), condition


def _design(
    trained: TrainedModel, perturbations: Sequence[str], contexts: Sequence[str] | None = None
) -> Tensor:
    try:
        design = trained.encoding.design(perturbations, contexts)
    except KeyError as error:
        known = ", ".join(trained.encoding.names[:8])
        raise InputError(
            f"The model has no perturbation {error.args[0]!r}; it has {known}, ..."
        ) from None
    return torch.from_numpy(design).to(trained.device)


def _one_cell_each(
    trained: TrainedModel, perturbations: Sequence[str], sizes: Tensor, sample_from: str
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Draw one cell of each perturbation: counts, library size and latent state."""
    model = trained.model
    given, contexts = draw_covariates(trained, len(perturbations))
    design = _design(trained, perturbations, contexts)
    shift = looked_up_shifts(draw_effects(model, 1, sample_from), design)
    shift = shift.expand(1, len(design), -1)
    own = draw_on_target(model, trained.encoding.pairs(design), 1, sample_from)
    decoder_input = BasalCells.from_prior(model, shift, len(design)).decoder_input(shift)
    size = sizes[torch.randint(len(sizes), (len(design),), device=design.device)]
    counts, latent = _counts_and_latent(model, decoder_input, size, *given, own=own)
    return counts, size.cpu().numpy(), latent


def _counts_and_latent(
    model: PerturbationModel,
    decoder_input: Tensor,
    size: Tensor,
    *covariates: Tensor,
    own: tuple[Tensor, ...] = (),
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Draw counts given one particle of decoder inputs; return them with the latent state."""
    kind = np.float32 if isinstance(model.likelihood, NormalLikelihood) else np.int32
    law = model.likelihood(decoder_input, size, *covariates, own=own)
    counts = law.sample()[0].cpu().numpy()
    latent = decoder_input[0, :, : model.n_latent].cpu().numpy()
    return sparse.csr_matrix(counts.astype(kind)), latent


LARGEST_BLOCK = 2**27  # elements of cells x genes that are written at once, zeros among them
# cell-eval's default names of the column and of control cells
PERTURBATION_COLUMN, CONTROL_LABEL = "target_gene", "non-targeting"


def compared_cells(screen: anndata.AnnData, parts: pd.Series) -> np.ndarray:
    """Select the measured cells to compare predicted cells with.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Split of each cell.

    Returns
    -------
    ndarray of bool
        The held-out cells of tested perturbations, or of all if none is tested, and held-out
        control cells.

    Raises
    ------
    InputError
        If the screen has no counts or marginal effects, or no control cells are held out.
    """
    if not np.issubdtype(screen.X.dtype, np.integer):
        raise InputError(
            "cell-eval compares log-normalised counts, but X of this screen has no counts. Export "
            "cells of a screen with counts."
        )
    if has_marginal_effects(screen):
        raise InputError(
            "cell-eval compares cells of one perturbation each, and this screen has marginal "
            "effects (unit: perturbation), of cells with several. Export cells of a screen with "
            "unit: combination."
        )
    labels = screen.obs["perturbation"].astype(str)
    held_out = held_out_cells(labels, parts)
    if not (held_out & (labels == CONTROL)).any():
        raise InputError(
            f"cell-eval compares effects with held-out cells of {CONTROL!r}, but the split has "
            "none. Add control cells to the screen."
        )
    tested = set(labels[parts == TEST]) - {CONTROL}
    return held_out & labels.isin({*tested, CONTROL}).to_numpy() if tested else held_out


def halves(
    screen: anndata.AnnData, parts: pd.Series, compared: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide cells into halves for the ceiling, where one half predicts the other.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Split of each cell.
    compared
        Cells of :func:`compared_cells`.
    seed
        Seed of the division, as of :func:`samsvae.evaluation.observed.split_half`.

    Returns
    -------
    predicted, real : ndarray of bool
        Perturbations with a single cell are in neither.
    """
    labels = screen.obs["perturbation"].astype(str)
    half = compared & half_of_held_out(labels, parts, seed)
    return half, compared & ~half & labels.isin(set(labels[half])).to_numpy()


def log_normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Transform counts to log(1 + 1e4 x / l), l the cell's own sum, as scanpy does; float32."""
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    expression = sparse.csr_matrix(sparse.diags_array(CP10K / np.maximum(totals, 1)) @ counts)
    expression.data = np.log1p(expression.data)
    return expression.astype(np.float32)


def cells_of_model(
    trained: TrainedModel, names: Sequence[str], number: int, library_sizes: np.ndarray, seed: int
) -> Iterator[anndata.AnnData]:
    """Draw predictive samples of control and of each perturbation, some of these at a time.

    Means of few samples are noisy; use enough to resolve the predicted mean.

    Parameters
    ----------
    trained
        The model.
    names
        Perturbations, without control.
    number
        Number of cells of each.
    library_sizes
        Library sizes to resample from.
    seed
        Seed of the draws.

    Yields
    ------
    AnnData
        As of :func:`to_cell_eval`.
    """
    for block, part in enumerate(_some_at_once([CONTROL, *names], number * len(trained.genes))):
        own = (
            seed if block == 0 else int(np.random.SeedSequence([seed, block]).generate_state(1)[0])
        )
        cells = sample_cells(trained, part, number, library_sizes, own)
        yield to_cell_eval(log_normalised(cells.X), list(cells.obs["perturbation"]), trained.genes)


def _some_at_once(names: Sequence[str], elements: int) -> Iterator[Sequence[str]]:
    """Divide perturbations, each with a number of elements, into blocks of the largest size."""
    step = max(1, LARGEST_BLOCK // elements)
    for start in range(0, len(names), step):
        yield names[start : start + step]


def cells_of_effects(
    effects: anndata.AnnData,
    control: sparse.csr_matrix,
    names: Sequence[str],
    number: int,
    seed: int,
) -> Iterator[anndata.AnnData]:
    """Build cells of a baseline, which predicts mean effects alone, from control cells.

    Control cells are drawn with replacement. Then each gene is shifted until its mean is that of
    the drawn control cells plus the predicted effect: up by the same amount in every cell, down in
    proportion, so that no value falls below 0. A predicted mean below 0 becomes 0. The variance of
    such cells is no prediction.

    Parameters
    ----------
    effects
        Predicted effects, log2(CP10k + 1).
    control
        Counts of training control cells, cells x genes.
    names
        Perturbations, without control.
    number
        Number of cells of each.
    seed
        Seed of the choice of control cells.

    Yields
    ------
    AnnData
        As of :func:`to_cell_eval`, some perturbations at a time, control first.
    """
    rng = np.random.default_rng(seed)
    expression = log_normalised(control)

    def draw() -> sparse.csr_matrix:
        return expression[rng.integers(expression.shape[0], size=number)]

    unchanged = draw()
    control_mean = _means(unchanged)
    for part in _some_at_once([CONTROL, *names], number * effects.n_vars):
        blocks = []
        for name in part:
            if name == CONTROL:
                blocks.append(unchanged)
            else:
                effect = np.log(2) * np.asarray(effects[name].X, dtype=np.float64).ravel()
                blocks.append(_shifted(draw(), control_mean + effect))
        labels = [name for name in part for _ in range(number)]
        yield to_cell_eval(sparse.vstack(blocks, format="csr"), labels, list(effects.var_names))


def measured_cells(screen: anndata.AnnData, chosen: np.ndarray) -> Iterator[anndata.AnnData]:
    """Convert some cells of a screen, whose counts may be in a file, to the form of cell-eval."""
    labels, genes = screen.obs["perturbation"].astype(str), list(screen.var_names)
    for positions, counts in counts_in_blocks(screen, chosen, LARGEST_BLOCK):
        block = to_cell_eval(log_normalised(counts), labels.iloc[positions], genes)
        block.obs_names = screen.obs_names[positions]
        yield block


def to_cell_eval(
    expression: sparse.csr_matrix, perturbation: Sequence[str], genes: Sequence[str]
) -> anndata.AnnData:
    """Convert cells to the form of cell-eval.

    Parameters
    ----------
    expression
        log(1 + CP10k), cells x genes.
    perturbation
        Canonical label of each cell.
    genes
        Gene symbols.

    Returns
    -------
    AnnData
        ``X`` float32 CSR. ``obs`` has ``perturbation``, and ``target_gene`` with ``non-targeting``
        for control cells, cell-eval's default names.

    Raises
    ------
    InputError
        If a perturbation has the name of cell-eval's control cells.
    """
    labels = pd.Series(np.asarray(perturbation, dtype=object))
    if CONTROL_LABEL in set(labels):
        raise InputError(
            f"A perturbation has the name {CONTROL_LABEL!r}, which cell-eval uses for control "
            "cells. Rename it, or set the screen's 'control' to it."
        )
    number = labels.groupby(labels).cumcount().astype(str)
    return anndata.AnnData(
        X=sparse.csr_matrix(expression, dtype=np.float32),
        obs=pd.DataFrame(
            {
                "perturbation": pd.Categorical(labels),
                PERTURBATION_COLUMN: pd.Categorical(labels.replace(CONTROL, CONTROL_LABEL)),
            },
        ).set_axis(pd.Index(labels + "-" + number, name="cell")),
        var=pd.DataFrame(index=pd.Index(genes, name="gene")),
    )


def write_cells(blocks: Iterable[anndata.AnnData], provenance: str, path: str | Path) -> None:
    """Write cells in the form of cell-eval atomically, block by block.

    Parameters
    ----------
    blocks
        As of :func:`to_cell_eval`.
    provenance
        Provenance record, JSON.
    path
        The file.

    Raises
    ------
    InputError
        If there is no block.
    """
    obs: list[pd.DataFrame] = []
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        for block in blocks:
            if not obs:
                block.uns["provenance"] = provenance
                block.X.indptr = block.X.indptr.astype(np.int64)  # all blocks may have 2^31 values
                write_elem(file, "/", block, dataset_kwargs={"compression": "lzf"})
            else:
                sparse_dataset(file["X"]).append(block.X)
            obs.append(block.obs.astype(object))
        if not obs:
            raise InputError("There are no cells to export: the split holds out too few cells.")
        write_elem(file, "obs", pd.concat(obs).astype("category"))


def _means(expression: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(expression.mean(axis=0, dtype=np.float64)).ravel()


def _shifted(expression: sparse.csr_matrix, mean: np.ndarray) -> sparse.csr_matrix:
    """Shift each gene's values to a given mean, without values below 0."""
    now, wanted = _means(expression), np.maximum(mean, 0)
    factor = np.divide(wanted, now, out=np.ones_like(now), where=wanted < now)
    return sparse.csr_matrix(expression.toarray() * factor + np.maximum(wanted - now, 0))


# changes of a gene's rate relative to control cells, by which effects on expression are looked up
CHANGES = np.array(
    [-1, -0.9, -0.75, -0.6, -0.45, -0.3, -0.15, 0, 0.2, 0.5, 1, 1.75, 3, 5, 9, 16, 30]
)
CELLS_OF_CURVE = 2000  # control cells by which the mean effect of a change is computed


@dataclass(frozen=True)
class ControlCells:
    """Control cells whose counts are thinned, or added to, until they have given mean effects.

    Attributes
    ----------
    counts
        Raw counts, cells x genes.
    share
        Expected fraction of counts of each gene, positive.
    shift
        Change of the mean of log2(CP10k + 1) by each of :data:`CHANGES`, changes x genes.
    """

    counts: sparse.csr_matrix
    share: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, counts: sparse.csr_matrix, seed: int = 0) -> "ControlCells":
        """Measure the mean effect of changes of rates, on as many as 2,000 of the cells.

        Smaller changes are nested in larger ones, so that the effect rises with the change.
        """
        rng = np.random.default_rng(seed)
        summed = np.asarray(counts.sum(axis=0), dtype=float).ravel()
        share = np.maximum(summed, 0.5) / max(summed.sum(), 1)
        number = counts.shape[0]
        repeats = rng.permutation(np.arange(max(number, CELLS_OF_CURVE)) % number)[:CELLS_OF_CURVE]
        cells = counts[np.sort(repeats)].toarray()
        size = np.maximum(cells.sum(axis=1), 1)[:, None]

        def mean(changed: np.ndarray) -> np.ndarray:
            return np.asarray(np.log2(1 + CP10K * changed / size).mean(axis=0))

        none = int(np.flatnonzero(CHANGES == 0)[0])
        shift = np.zeros((len(CHANGES), counts.shape[1]))
        changed, start = cells, mean(cells)
        for at in range(none - 1, -1, -1):
            changed = rng.binomial(changed, (1 + CHANGES[at]) / (1 + CHANGES[at + 1]))
            shift[at] = mean(changed) - start
        changed = cells
        for at in range(none + 1, len(CHANGES)):
            more = CHANGES[at] - CHANGES[at - 1]
            changed = changed + rng.poisson(more * share * size)
            shift[at] = mean(changed) - start
        return cls(counts, share, shift)

    def changes(self, effects: np.ndarray) -> np.ndarray:
        """Look up the changes of rates that have given mean effects, perturbations x genes."""
        columns = [
            np.interp(wanted, shift, CHANGES)
            for wanted, shift in zip(effects.T, self.shift.T, strict=True)
        ]
        return np.stack(columns, axis=1)

    def perturbed(
        self, effects: np.ndarray, numbers: Sequence[int], seed: int
    ) -> sparse.csr_matrix:
        """Draw cells with given mean effects, with raw counts.

        Control cells are drawn with replacement. Counts of a gene that decreases are thinned, and
        to those of one that increases Poisson counts are added in proportion to the library size.
        The variance of such cells is no prediction.

        Parameters
        ----------
        effects
            Effects, perturbations x genes, log2(CP10k + 1).
        numbers
            Number of cells of each perturbation.
        seed
            Seed of the draws.

        Returns
        -------
        csr_matrix
            Integer counts, cells x genes, perturbation by perturbation.
        """
        rng = np.random.default_rng(seed)
        blocks = []
        for change, number in zip(self.changes(effects), numbers, strict=True):
            drawn = self.counts[rng.integers(self.counts.shape[0], size=number)]
            cells = drawn.toarray().astype(np.int64)
            size = cells.sum(axis=1, keepdims=True)
            up, down = np.flatnonzero(change > 0), np.flatnonzero(change < 0)
            cells[:, down] = rng.binomial(cells[:, down], 1 + change[down])
            cells[:, up] += rng.poisson(change[up] * self.share[up] * size)
            blocks.append(sparse.csr_matrix(cells.astype(np.int32)))
        return sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
