"""Latent effects of perturbations, averaged over the guide."""

import pandas as pd
import torch

from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.noise import seeded
from samsvae.inference.posterior import draw_effects, mask_probability

COLUMNS = ["perturbation", "dimension", "shift", "shift_sd", "mask_probability"]


@torch.no_grad()
def latent_effects(trained: TrainedModel, draws: int, seed: int) -> pd.DataFrame:
    """Average the latent effect of every perturbation over the guide.

    Parameters
    ----------
    trained
        A trained model.
    draws
        Draws from the guide.
    seed
        Seed of the draws.

    Returns
    -------
    DataFrame
        One row per perturbation and latent dimension: shift (posterior mean of the effect at
        dose 1, in basal standard deviations), its standard deviation, and mask_probability
        (empty for a model without a mask). No row for a model without latent effects.
    """
    with seeded(seed, trained.device):
        effects = draw_effects(trained.model, draws)
    if effects is None:
        return pd.DataFrame(columns=COLUMNS)
    probability = mask_probability(trained.model)
    n_latent = effects.shape[-1]
    table = pd.MultiIndex.from_product(
        [trained.encoding.names, range(n_latent)], names=["perturbation", "dimension"]
    ).to_frame(index=False)
    table["shift"] = effects.mean(0).reshape(-1).cpu().numpy()
    table["shift_sd"] = effects.std(0).reshape(-1).cpu().numpy()
    table["mask_probability"] = (
        float("nan") if probability is None else probability.reshape(-1).cpu().numpy()
    )
    return table[COLUMNS]
