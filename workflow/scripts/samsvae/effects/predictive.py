"""Cells as a trained model imagines them, drawn from its posterior or prior predictive."""

from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
import pyro
import torch
from pyro import poutine
from scipy import sparse
from torch import Tensor

from samsvae.errors import InputError
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.objective import latent_sites
from samsvae.inference.shared_draws import draw_shared
from samsvae.models.base import PerturbationModel
from samsvae.models.likelihoods import NormalLikelihood

LARGEST_TENSOR = 8_000_000  # elements, of cells x genes
SOURCES = ("posterior", "prior")


@torch.no_grad()
def sample_cells(
    trained: TrainedModel,
    perturbations: Sequence[str],
    cells_per_perturbation: int,
    library_sizes: float | Sequence[float] | np.ndarray,
    seed: int,
    sample_from: str = "posterior",
    provenance: str = "{}",
) -> anndata.AnnData:
    """Draw cells under perturbations, whether a cell ever received them or not.

    A draw is one cell of each perturbation: all with the same draw of the shared variables, each
    with a basal state of its own from N(0, I). Draws are made one at a time, each with a seed of
    its own: memory holds the counts of one draw beside the sparse result, and more cells begin
    with the same ones.

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
        Counts per cell that the decoder is given: one number, or several to resample from.
    seed
        Seed of the draws.
    sample_from
        ``posterior``: shared variables from the guide; ``prior``: from the generative model.
    provenance
        What made it, as JSON.

    Returns
    -------
    AnnData
        Cells x genes, perturbation by perturbation. ``X`` is CSR: int32 counts, or float32 for
        the Normal likelihood. ``obs`` has perturbation, library_size (the one given; that of the
        counts varies around it) and draw; ``obsm["latent"]`` the latent state, float32.

    Raises
    ------
    InputError
        If the model does not know a perturbation, or `sample_from` is neither of the two.
    """
    if sample_from not in SOURCES:
        raise InputError(
            f"sample_from: {sample_from!r} is not allowed; allowed: {', '.join(SOURCES)}."
        )
    pyro.enable_validation(False)
    model = trained.model
    device = model.standardise.mean.device
    dosage = _dosage(trained, perturbations)
    sizes = torch.as_tensor(library_sizes, dtype=torch.float32, device=device).reshape(-1)
    drawn = []
    for draw in range(cells_per_perturbation):
        pyro.set_rng_seed(int(np.random.SeedSequence([seed, draw]).generate_state(1)[0]))
        drawn.append(_one_cell_each(model, dosage, sizes, sample_from))
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
def counterfactual_cells(
    trained: TrainedModel,
    screen: anndata.AnnData,
    perturbation: str | None,
    seed: int,
    provenance: str = "{}",
) -> anndata.AnnData:
    """Draw measured cells anew, as they would be had they received another perturbation.

    The shared variables are drawn once from the guide, a cell's latent state from the guide
    given its counts and what it did receive. Its counts are drawn at its own library size.

    Parameters
    ----------
    trained
        The model.
    screen
        Canonical cells, with the model's genes.
    perturbation
        Canonical label, ``control`` for cells as they would be unperturbed; None for what each
        cell received, which reconstructs it.
    seed
        Seed of the draws.
    provenance
        What made it, as JSON.

    Returns
    -------
    AnnData
        The same cells in the same order, otherwise as of :func:`sample_cells`; in place of the
        draw, ``obs`` has what the cell received.

    Raises
    ------
    InputError
        If the genes are not the model's, or the model does not know a perturbation.
    """
    if list(screen.var_names) != trained.genes:
        raise InputError("The genes of the cells are not those of the model.")
    pyro.enable_validation(False)
    pyro.set_rng_seed(seed)
    model = trained.model
    received = screen.obs["perturbation"].astype("category")
    _dosage(trained, list(received.cat.categories))  # refuses what the model does not know
    every = np.ones(screen.n_obs, dtype=bool)
    device = model.standardise.mean.device
    cells = Cells.of(screen, every, trained.encoding, device)
    shared = draw_shared(model.shared_guide, 1)
    guide = poutine.condition(model.guide, data=shared)
    parts = []
    for batch in cells.batches(max(1, LARGEST_TENSOR // len(trained.genes))):
        with pyro.plate("particles", 1, dim=-2):
            [(_, site)] = latent_sites(poutine.trace(guide).get_trace(batch)).items()
        own = batch.dosage[batch.condition]
        given = own if perturbation is None else _dosage(trained, [perturbation])
        state = model.undosed(site["value"], shared, own)
        decoded = model.decoded(state, shared, given)
        parts.append(_counts_and_latent(model, decoded, batch.library_size))
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


def _dosage(trained: TrainedModel, perturbations: Sequence[str]) -> Tensor:
    try:
        dosage = trained.encoding.dosage(perturbations)
    except KeyError as error:
        known = ", ".join(trained.encoding.names[:8])
        raise InputError(
            f"The model knows no perturbation {error.args[0]!r}; it knows {known}, ..."
        ) from None
    return torch.from_numpy(dosage).to(trained.model.standardise.mean.device)


def _one_cell_each(
    model: PerturbationModel, dosage: Tensor, sizes: Tensor, sample_from: str
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Draw one cell for each row of the dosage: its counts, library size and latent state."""
    program = model.shared_guide if sample_from == "posterior" else model.shared_prior
    shared = draw_shared(program, 1)
    state = torch.randn(1, len(dosage), model.n_latent, device=dosage.device)
    decoded = model.decoded(state, shared, dosage)
    size = sizes[torch.randint(len(sizes), (len(dosage),), device=dosage.device)]
    counts, latent = _counts_and_latent(model, decoded, size)
    return counts, size.cpu().numpy(), latent


def _counts_and_latent(
    model: PerturbationModel, decoded: Tensor, size: Tensor
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Draw counts of one particle of decoder inputs, and put the latent state beside them."""
    kind = np.float32 if isinstance(model.likelihood, NormalLikelihood) else np.int32
    counts = model.likelihood(decoded, size).sample()[0].cpu().numpy()
    return sparse.csr_matrix(counts.astype(kind)), decoded[0, :, : model.n_latent].cpu().numpy()
