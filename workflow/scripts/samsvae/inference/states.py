"""Where a trained model sees each cell: its basal state, and its state with perturbation."""

from dataclasses import dataclass

import anndata
import numpy as np
import pyro
import torch
from pyro import poutine

from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.objective import latent_sites
from samsvae.inference.shared_draws import draw_globals

DRAWS = 20
LARGEST_TENSOR = 4_000_000  # elements, of draws x cells x genes


@dataclass(frozen=True)
class CellStates:
    """Latent states of cells, cells x K, in basal standard deviations.

    Attributes
    ----------
    basal
        Without the effect of the cell's perturbation.
    total
        With it, before the decoder.
    """

    basal: np.ndarray
    total: np.ndarray


@torch.no_grad()
def cell_states(
    trained: TrainedModel, screen: anndata.AnnData, keep: np.ndarray, seed: int
) -> CellStates:
    """Infer the latent states of some cells.

    They are posterior means by the guide: the location of a cell's own variable given its counts,
    averaged over draws of the shared variables. Where the guide is correlated, the encoder takes
    the effect of the cell's perturbation as an input beside the counts, so that it can take this
    effect out of the counts. If a model were true and its guide exact, the posterior means of the
    basal states under one perturbation would have mean zero, as those under any other, by the law
    of total expectation; their spread may differ, since counts tell more of some states.

    Parameters
    ----------
    trained
        The model.
    screen
        Canonical cells, with the model's genes.
    keep
        Boolean, one per cell of the screen.
    seed
        Seed of the draws.

    Returns
    -------
    CellStates
        For SVAE+, whose cell state is one with the effect in it, the basal state is what is left
        without the effect. For the conditional VAE, whose decoder takes the perturbation beside
        the state, both are this state.
    """
    pyro.enable_validation(False)
    pyro.set_rng_seed(seed)
    model = trained.model
    device = model.standardise.mean.device
    shared = draw_globals(model, DRAWS)
    guide = poutine.condition(model.guide, data=shared)
    cells = Cells.of(screen, keep, trained.encoding, device)
    basal, total = [], []
    for batch in cells.batches(max(1, LARGEST_TENSOR // (DRAWS * len(trained.genes)))):
        with pyro.plate("particles", DRAWS, dim=-2):
            [(_, site)] = latent_sites(poutine.trace(guide).get_trace(batch)).items()
        own = batch.dosage[batch.condition]
        location = site["fn"].mean.expand_as(site["value"])
        state = model.undosed(location, shared, own)
        basal.append(state.mean(0).cpu().numpy())
        decoded = model.decoded(state, shared, own)[..., : model.n_latent]
        total.append(decoded.mean(0).cpu().numpy())
    return CellStates(np.concatenate(basal), np.concatenate(total))
