"""Cells as a trained model imagines them, drawn from its posterior or prior predictive."""

from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
import pyro
import torch
from scipy import sparse
from torch import Tensor

from samsvae.errors import InputError
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.iwelbo import draw_shared
from samsvae.models.base import PerturbationModel
from samsvae.models.likelihoods import NormalLikelihood

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
    dosage = torch.from_numpy(_dosage(trained, perturbations)).to(device)
    sizes = torch.as_tensor(library_sizes, dtype=torch.float32, device=device).reshape(-1)
    kind = np.float32 if isinstance(model.likelihood, NormalLikelihood) else np.int32
    drawn = []
    for draw in range(cells_per_perturbation):
        pyro.set_rng_seed(int(np.random.SeedSequence([seed, draw]).generate_state(1)[0]))
        counts, size, latent = _one_cell_each(model, dosage, sizes, sample_from)
        drawn.append((sparse.csr_matrix(counts.astype(kind)), size, latent))
    # from draw by draw to perturbation by perturbation
    label, draws = np.indices((len(perturbations), cells_per_perturbation)).reshape(2, -1)
    order = draws * len(perturbations) + label
    names = np.asarray(perturbations, dtype=object)
    cells = anndata.AnnData(
        X=sparse.vstack([counts for counts, _, _ in drawn], format="csr")[order],
        obs=pd.DataFrame(
            {
                "perturbation": pd.Categorical(names[label]),
                "library_size": np.concatenate([size for _, size, _ in drawn])[order],
                "draw": draws,
            },
            index=pd.Index([f"{names[i]}-{d}" for i, d in zip(label, draws, strict=True)]),
        ),
        var=pd.DataFrame(index=pd.Index(trained.genes, name="gene")),
        obsm={"latent": np.concatenate([latent for _, _, latent in drawn])[order]},
    )
    cells.obs.index.name = "cell"
    cells.uns["provenance"] = provenance
    return cells


def _dosage(trained: TrainedModel, perturbations: Sequence[str]) -> np.ndarray:
    try:
        return trained.encoding.dosage(perturbations)
    except KeyError as error:
        known = ", ".join(trained.encoding.names[:8])
        raise InputError(
            f"The model knows no perturbation {error.args[0]!r}; it knows {known}, ..."
        ) from None


def _one_cell_each(
    model: PerturbationModel, dosage: Tensor, sizes: Tensor, sample_from: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one cell for each row of the dosage: its counts, library size and latent state."""
    program = model.shared_guide if sample_from == "posterior" else model.shared_prior
    shared = draw_shared(program, 1)
    state = torch.randn(1, len(dosage), model.n_latent, device=dosage.device)
    decoded = model.decoded(state, shared, dosage)
    size = sizes[torch.randint(len(sizes), (len(dosage),), device=dosage.device)]
    counts = model.likelihood(decoded, size).sample()
    latent = decoded[..., : model.n_latent]
    return counts[0].cpu().numpy(), size.cpu().numpy(), latent[0].cpu().numpy()
