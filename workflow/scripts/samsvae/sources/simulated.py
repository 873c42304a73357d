"""Simulator of realistic screens with known truth.

Every latent factor drives a named gene programme; every target gene shifts a few factors; pairs
are additive. Counts are negative binomial with log-normal library sizes and gene means:

    z_i = z_i^b + sum_t d_it (m_t * e_t),  z_i^b ~ N(0, I)
    rho_i = softmax(log rho_0 + z_i W)
    x_ig ~ NegativeBinomial(mean l_i rho_ig, inverse dispersion c_g)
"""

from dataclasses import dataclass
from itertools import combinations

import anndata
import numpy as np

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import build_screen
from samsvae.screen.design import Design

N_DECOYS_PER_PROGRAMME = 4
N_NUISANCE_FACTORS = 2  # basal variation without perturbation effects, such as the cell cycle


@dataclass(frozen=True)
class Simulation:
    """Parameters of a simulated screen; the configuration's schema describes each field."""

    seed: int = 0
    n_genes: int = 300
    n_factors: int = 6
    n_perturbations: int = 24
    n_pairs: int = 12
    n_controls: int = 600
    cells_per_perturbation: int = 120
    programme_size: int = 20
    factors_per_perturbation: float = 1.3
    inert_fraction: float = 0.125
    effect_size: float = 2.0
    median_library_size: float = 1500.0

    def __post_init__(self) -> None:
        possible = self.n_perturbations * (self.n_perturbations - 1) // 2
        if self.n_pairs > possible:
            raise InputError(
                f"n_pairs: {self.n_pairs} pairs cannot be drawn from n_perturbations: "
                f"{self.n_perturbations}; at most {possible}."
            )
        if self.n_factors * self.programme_size > self.n_genes:
            raise InputError(
                f"n_genes: {self.n_genes} genes cannot hold n_factors: {self.n_factors} disjoint "
                f"programmes of programme_size: {self.programme_size}."
            )


def simulate(settings: Simulation) -> tuple[anndata.AnnData, dict[str, list[str]]]:
    """Simulate a screen.

    Parameters
    ----------
    settings
        Parameters and seed.

    Returns
    -------
    screen : AnnData
        Canonical screen. ``uns["truth"]`` holds the mask and the embedding (targets x factors),
        the loadings (all factors x genes), the baseline log-proportions and the inverse
        dispersions of the genes; ``obsm["true_basal"]`` the basal states.
    gene_sets : dict of list of str
        Programmes of the factors, and decoys: random sets of the same size.
    """
    rng = np.random.default_rng(settings.seed)
    genes = [f"GENE{index:03d}" for index in range(1, settings.n_genes + 1)]
    targets = [f"TARGET{index:02d}" for index in range(1, settings.n_perturbations + 1)]
    factors = [f"PROGRAMME_{index:02d}" for index in range(1, settings.n_factors + 1)]

    log_mean = rng.normal(0, 1.2, settings.n_genes)
    log_proportion = log_mean - np.log(np.exp(log_mean).sum())
    inverse_dispersion = rng.lognormal(np.log(4), 0.5, settings.n_genes)
    loadings = _loadings(rng, settings, log_mean)
    mask, embedding = _effects(rng, settings)

    design = _design(rng, settings)
    n_all = settings.n_factors + N_NUISANCE_FACTORS
    basal = rng.normal(size=(len(design), n_all))
    latent = basal.copy()
    latent[:, : settings.n_factors] += design @ (mask * embedding)
    library_size = rng.lognormal(np.log(settings.median_library_size), 0.35, len(design))
    counts = _counts(rng, latent @ loadings + log_proportion, library_size, inverse_dispersion)

    screen = build_screen(
        counts,
        Design.of(design, targets),
        cell_names=[f"cell{index}" for index in range(len(design))],
        gene_names=genes,
        where="the simulated screen",
    )
    screen.obsm["true_basal"] = basal.astype(np.float32)
    screen.uns["truth"] = {
        "targets": np.array(targets, dtype=object),
        "factors": np.array(factors, dtype=object),
        "mask": mask,
        "embedding": embedding,
        "loadings": loadings,
        "log_proportion": log_proportion,
        "inverse_dispersion": inverse_dispersion,
    }
    return screen, _gene_sets(rng, settings, genes, factors, loadings)


def _loadings(rng: np.random.Generator, settings: Simulation, log_mean: np.ndarray) -> np.ndarray:
    """Draw disjoint programmes of mostly expressed genes, and broad nuisance factors."""
    chance = np.exp(0.5 * log_mean)
    chosen = rng.choice(
        settings.n_genes,
        size=(settings.n_factors, settings.programme_size),
        replace=False,
        p=chance / chance.sum(),
    )
    loadings = np.zeros((settings.n_factors + N_NUISANCE_FACTORS, settings.n_genes))
    for factor, genes in enumerate(chosen):
        # most genes of a programme have positive loadings
        sign = np.where(rng.random(len(genes)) < 0.8, 1.0, -1.0)
        loadings[factor, genes] = sign * rng.uniform(0.3, 0.7, len(genes))
    loadings[settings.n_factors :] = rng.normal(0, 0.1, (N_NUISANCE_FACTORS, settings.n_genes))
    return loadings


def _effects(rng: np.random.Generator, settings: Simulation) -> tuple[np.ndarray, np.ndarray]:
    shape = (settings.n_perturbations, settings.n_factors)
    mask = np.zeros(shape)
    n_inert = int(settings.inert_fraction * settings.n_perturbations)
    for target in range(settings.n_perturbations - n_inert):
        n_moved = min(1 + rng.poisson(settings.factors_per_perturbation - 1), settings.n_factors)
        first = target % settings.n_factors  # so that every factor has a target
        others = rng.permutation([f for f in range(settings.n_factors) if f != first])
        mask[target, [first, *others[: n_moved - 1]]] = 1
    size = rng.normal(settings.effect_size, 0.15 * settings.effect_size, shape)
    return mask, size * rng.choice([-1.0, 1.0], shape)


def _design(rng: np.random.Generator, settings: Simulation) -> np.ndarray:
    pairs = list(combinations(range(settings.n_perturbations), 2))
    chosen = sorted(rng.choice(len(pairs), settings.n_pairs, replace=False))
    members: list[tuple[int, ...]] = [()] * settings.n_controls
    singles = [(target,) for target in range(settings.n_perturbations)]
    for group in [*singles, *(pairs[index] for index in chosen)]:
        members += [group] * settings.cells_per_perturbation
    design = np.zeros((len(members), settings.n_perturbations))
    for cell, group in enumerate(members):
        design[cell, list(group)] = 1
    return design


def _counts(
    rng: np.random.Generator,
    log_proportion: np.ndarray,
    library_size: np.ndarray,
    inverse_dispersion: np.ndarray,
) -> np.ndarray:
    proportion = np.exp(log_proportion - log_proportion.max(axis=1, keepdims=True))
    proportion /= proportion.sum(axis=1, keepdims=True)
    mean = library_size[:, None] * proportion
    return rng.poisson(rng.gamma(inverse_dispersion, mean / inverse_dispersion))


def _gene_sets(
    rng: np.random.Generator,
    settings: Simulation,
    genes: list[str],
    factors: list[str],
    loadings: np.ndarray,
) -> dict[str, list[str]]:
    sets = {
        name: [genes[g] for g in np.flatnonzero(loadings[factor])]
        for factor, name in enumerate(factors)
    }
    for decoy in range(1, N_DECOYS_PER_PROGRAMME * settings.n_factors + 1):
        chosen = rng.choice(settings.n_genes, settings.programme_size, replace=False)
        sets[f"DECOY_{decoy:02d}"] = [genes[g] for g in sorted(chosen)]
    return sets
