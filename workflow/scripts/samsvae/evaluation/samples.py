"""Posterior and prior predictive samples of cells."""

from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
import pyro
import torch
from scipy import sparse
from torch import Tensor

from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import BasalCells, draw_effects
from samsvae.models.base import PerturbationModel, shift_of_conditions
from samsvae.models.likelihoods import NormalLikelihood
from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design

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
    model, device = trained.model, trained.device
    design = _design(trained, perturbations)
    sizes = torch.as_tensor(library_sizes, dtype=torch.float32, device=device).reshape(-1)
    drawn = []
    for draw in range(cells_per_perturbation):
        own_seed = int(np.random.SeedSequence([seed, draw]).generate_state(1)[0])
        with seeded(own_seed, device):
            drawn.append(_one_cell_each(model, design, sizes, sample_from))
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
    cells = Cells.of(screen, every, trained.encoding, device)
    parts = []
    with seeded(seed, device):
        effects = draw_effects(model, 1)
        for batch in cells.batches(max(1, LARGEST_TENSOR // len(trained.genes))):
            shifts = shift_of_conditions(effects, batch.design).expand(1, -1, -1)
            inferred = BasalCells.from_guide(model, batch, shifts)
            if perturbation is None:
                own = shifts.index_select(-2, batch.condition)
            else:
                given = _design(trained, [perturbation])
                own = shift_of_conditions(effects, given).expand(1, len(batch.counts), -1)
            decoder_input = inferred.decoder_input(own)
            parts.append(_counts_and_latent(model, decoder_input, batch.library_size))
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


def _design(trained: TrainedModel, perturbations: Sequence[str]) -> Tensor:
    try:
        design = trained.encoding.design(perturbations)
    except KeyError as error:
        known = ", ".join(trained.encoding.names[:8])
        raise InputError(
            f"The model has no perturbation {error.args[0]!r}; it has {known}, ..."
        ) from None
    return torch.from_numpy(design).to(trained.device)


def _one_cell_each(
    model: PerturbationModel, design: Tensor, sizes: Tensor, sample_from: str
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Draw one cell for each row of the design matrix: counts, library size and latent state."""
    shift = shift_of_conditions(draw_effects(model, 1, sample_from), design)
    shift = shift.expand(1, len(design), -1)
    decoder_input = BasalCells.from_prior(model, shift, len(design)).decoder_input(shift)
    size = sizes[torch.randint(len(sizes), (len(design),), device=design.device)]
    counts, latent = _counts_and_latent(model, decoder_input, size)
    return counts, size.cpu().numpy(), latent


def _counts_and_latent(
    model: PerturbationModel, decoder_input: Tensor, size: Tensor
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Draw counts given one particle of decoder inputs; return them with the latent state."""
    kind = np.float32 if isinstance(model.likelihood, NormalLikelihood) else np.int32
    counts = model.likelihood(decoder_input, size).sample()[0].cpu().numpy()
    latent = decoder_input[0, :, : model.n_latent].cpu().numpy()
    return sparse.csr_matrix(counts.astype(kind)), latent
