"""A simulation of SAMS-VAE's own model with Gaussian measurements.

For perturbations t, latent dimensions k, cells i and genes g::

    m_tk ~ Bernoulli(2 / 15)
    e_tk ~ N(5, 0.5) with a random sign
    z_i  = z_i^b + sum_t d_it (m_t * e_t),  z_i^b ~ N(0, I)
    x_i  ~ N(f(z_i), sigma_g^2)

f has four linear layers with orthonormal weights and LeakyReLU(0.2) between them. The paper leaves
open: the width of the hidden layers (here the number of genes), control cells (here as many as of
each perturbation), and whose variance the noise is 20 % of (here each gene's, noise included).
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


@dataclass(frozen=True)
class AdditiveSimulation:
    """Sizes and strengths.

    Attributes
    ----------
    seed
        Seed of the simulation.
    n_latent, n_perturbations, n_genes
        K, T and G.
    mask_probability
        Probability that a perturbation moves a latent dimension.
    effect_size, effect_spread
        Mean and standard deviation of |e|, in standard deviations of the basal state.
    n_layers
        Layers of the decoder.
    noise_fraction
        Share of each gene's variance that is noise.
    n_train, n_validation, n_test
        Cells of each perturbation, and of control.
    """

    seed: int = 0
    n_latent: int = 15
    n_perturbations: int = 100
    n_genes: int = 100
    mask_probability: float = 2 / 15
    effect_size: float = 5.0
    effect_spread: float = 0.5
    n_layers: int = 4
    noise_fraction: float = 0.2
    n_train: int = 500
    n_validation: int = 100
    n_test: int = 100


def simulate_additive(settings: AdditiveSimulation) -> LatentSimulation:
    """Simulate Gaussian measurements under additive sparse shifts of the latent state."""
    rng = np.random.default_rng(settings.seed)
    shape = (settings.n_perturbations, settings.n_latent)
    mask = (rng.random(shape) < settings.mask_probability).astype(float)
    embedding = signed_effects(rng, shape, settings.effect_size, settings.effect_spread)
    layers = orthogonal_layers(rng, settings.n_latent, settings.n_genes, settings.n_layers)
    dosage, part = single_perturbations(
        settings.n_perturbations,
        {TRAIN: settings.n_train, VAL: settings.n_validation, TEST: settings.n_test},
    )
    basal = rng.normal(size=(len(dosage), settings.n_latent))
    mean = decode(basal + dosage @ (mask * embedding), layers)
    odds = settings.noise_fraction / (1 - settings.noise_fraction)
    deviation = np.sqrt(odds * mean.var(axis=0))
    values = (mean + deviation * rng.normal(size=mean.shape)).astype(np.float32)
    return LatentSimulation(values, dosage, part, mask, embedding, basal)


def simulate_screen(settings: AdditiveSimulation) -> tuple[anndata.AnnData, dict[str, list[str]]]:
    """Simulate, as a screen with its truth; there are no gene sets."""
    return latent_screen(simulate_additive(settings)), {}
