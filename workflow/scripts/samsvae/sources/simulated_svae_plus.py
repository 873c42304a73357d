"""A simulation like the one by which SVAE+ was introduced (Lopez et al. 2023).

Every perturbation moves one to three latent dimensions; for cells i::

    z_i ~ N(m_t(i) * mu_t(i), I),  N(0, I) for control cells
    x_i ~ Poisson(l_i rho_i),  rho_i = softmax(f(z_i))

f is the decoder of :mod:`samsvae.sources.simulated_additive`. Chosen here: the number of moved
dimensions is uniform on 1, 2, 3; effects have the size of the additive simulation's; the logits are
scaled to a standard deviation of 1 within a gene, on average over genes, so that counts tell states
apart; library sizes are log-normal.
"""

from dataclasses import dataclass

import anndata
import numpy as np

from samsvae.sources.latent_truth import (
    TEST,
    TRAIN,
    VAL,
    LatentSimulation,
    decode,
    latent_screen,
    orthogonal_layers,
    signed_effects,
    single_perturbations,
)

MOST_MOVED = 3


@dataclass(frozen=True)
class SvaePlusSimulation:
    """Sizes and strengths.

    Attributes
    ----------
    seed
        Seed of the simulation.
    n_latent, n_perturbations, n_genes
        K, T and G.
    effect_size, effect_spread
        Mean and standard deviation of |mu|, in standard deviations of the latent state.
    n_layers
        Layers of the decoder.
    median_library_size, library_size_spread
        Median counts per cell, and standard deviation of their logarithm.
    n_train, n_validation, n_test
        Cells of each perturbation, and of control.
    """

    seed: int = 0
    n_latent: int = 15
    n_perturbations: int = 100
    n_genes: int = 100
    effect_size: float = 5.0
    effect_spread: float = 0.5
    n_layers: int = 4
    median_library_size: float = 1000.0
    library_size_spread: float = 0.3
    n_train: int = 500
    n_validation: int = 100
    n_test: int = 100


def simulate_svae_plus(settings: SvaePlusSimulation) -> LatentSimulation:
    """Simulate Poisson counts under sparse shifts of the latent state."""
    rng = np.random.default_rng(settings.seed)
    shape = (settings.n_perturbations, settings.n_latent)
    n_moved = rng.integers(1, MOST_MOVED + 1, settings.n_perturbations)
    rank = rng.random(shape).argsort(axis=1).argsort(axis=1)
    mask = (rank < n_moved[:, None]).astype(float)
    embedding = signed_effects(rng, shape, settings.effect_size, settings.effect_spread)
    layers = orthogonal_layers(rng, settings.n_latent, settings.n_genes, settings.n_layers)
    dosage, part = single_perturbations(
        settings.n_perturbations,
        {TRAIN: settings.n_train, VAL: settings.n_validation, TEST: settings.n_test},
    )
    basal = rng.normal(size=(len(dosage), settings.n_latent))
    logits = decode(basal + dosage @ (mask * embedding), layers)
    rate = np.exp(logits / logits.std(axis=0).mean())
    library_size = rng.lognormal(
        np.log(settings.median_library_size), settings.library_size_spread, len(dosage)
    )
    mean = library_size[:, None] * rate / rate.sum(axis=1, keepdims=True)
    return LatentSimulation(rng.poisson(mean), dosage, part, mask, embedding, basal)


def simulate_screen(settings: SvaePlusSimulation) -> tuple[anndata.AnnData, dict[str, list[str]]]:
    """Simulate, as a screen with its truth; there are no gene sets."""
    return latent_screen(simulate_svae_plus(settings)), {}
