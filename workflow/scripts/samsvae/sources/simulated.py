"""Simulated screens with known truth: gene programmes, SAMS-VAE's own model, SVAE+'s shifts.

Every latent factor drives a named gene programme; every target gene shifts a few factors; pairs
are additive. Counts are negative binomial with log-normal library sizes and gene means:

    z_i = z_i^b + sum_t d_it (m_t * e_t),  z_i^b ~ N(0, I)
    rho_i = softmax(log rho_0 + z_i W)
    x_ig ~ NegativeBinomial(mean l_i rho_ig, inverse dispersion c_g)

By option, as in real screens: batches shift the logits of genes and the depth of their cells, and
control cells are more frequent in one; contexts shift genes, too, and some targets act in the first
alone; each target has several guides, some of them dead; some cells with a guide escape; each
target is a measured gene whose own logit is lowered; cells have a random number of targets, as at a
high multiplicity of infection; and targets have features, which their effects follow more or less.

A simulation of counts is a canonical screen. Gaussian measurements are float32 instead of counts,
each cell with a library size of 1, which models with the likelihood ``normal`` do not use.

Additive simulation, for perturbations t, latent dimensions k, cells i and genes g::

    m_tk ~ Bernoulli(2 / 15)
    e_tk ~ N(5, 0.5) with a random sign
    z_i  = z_i^b + sum_t d_it (m_t * e_t),  z_i^b ~ N(0, I)
    x_i  ~ N(f(z_i), sigma_g^2)

f has four linear layers with orthonormal weights and LeakyReLU(0.2) between them. The paper does
not specify the width of the hidden layers (here the number of genes), the number of control cells
(here that of each perturbation), and which variance the 20 % of noise refer to (here each gene's,
noise included).

SVAE+ simulation, where every perturbation shifts one to three latent dimensions; for cells i::

    z_i ~ N(m_t(i) * mu_t(i), I),  N(0, I) for control cells
    x_i ~ Poisson(l_i rho_i),  rho_i = softmax(f(z_i))

f is the same decoder. Chosen here: the number of shifted dimensions is uniform on 1, 2, 3; effects
have the size of the additive simulation's; logits are scaled to a standard deviation of 1 within a
gene, on average over genes, so that counts are informative about states; library sizes are
log-normal.
"""

from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import (
    BATCH,
    COMPARED_WITH,
    CONTEXT,
    GUIDE,
    PERTURBATION,
    UNIT,
    build_screen,
    describe_cells,
)
from samsvae.screen.design import Design, Guides
from samsvae.screen.labels import CONTROL

N_DECOYS_PER_PROGRAMME = 4
BATCH_DEPTH = 0.2  # standard deviation of the logarithm of a batch's depth
CONTEXT_EFFECT = 0.5  # standard deviation of a context's shifts of the logits of genes
CONTROL_GUIDES = 8
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
    n_batches: int = 1
    batch_effect: float = 0.3
    batch_imbalance: float = 0.0
    n_contexts: int = 1
    context_specific: float = 0.0
    guides_per_target: int = 1
    dead_guides: float = 0.0
    escapers: float = 0.0
    knock_down: float = 0.0
    guides_per_cell: float = 0.0
    n_features: int = 0
    feature_strength: float = 1.0
    unit: str = "combination"
    compared_with: str = "controls"

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
        free = self.n_genes - self.n_factors * self.programme_size
        if self.knock_down and self.n_perturbations > free:
            raise InputError(
                f"knock_down: {self.n_perturbations} targets are measured genes outside "
                f"programmes; n_genes: {self.n_genes} has {free} of these."
            )
        if self.guides_per_cell > self.n_perturbations:
            raise InputError(
                f"guides_per_cell: {self.guides_per_cell} targets cannot be drawn from "
                f"n_perturbations: {self.n_perturbations}."
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
        dispersions of the genes, and the features of targets, if they have any;
        ``obsm["true_basal"]`` the basal states.
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
    library_size = rng.lognormal(np.log(settings.median_library_size), 0.35, len(design))
    # of their own random numbers, so that the options change nothing else
    other = np.random.default_rng([settings.seed, 1])
    own_gene = _target_genes(other, settings, loadings, log_mean)
    features = np.zeros((settings.n_perturbations, settings.n_features))
    if settings.n_features:
        features, mask, embedding = _effects_of_features(
            np.random.default_rng([settings.seed, 2]), settings
        )
    for target, gene in zip(targets, own_gene, strict=False):
        genes[gene] = target
    batch = _batches(other, settings, design)
    guides, response = _guides(other, settings, design, targets)

    if settings.n_contexts > 1:
        context = other.integers(settings.n_contexts, size=len(design))
        n_specific = round(settings.context_specific * len(targets))
        specific = other.choice(len(targets), n_specific, replace=False)
        response[np.ix_(context > 0, specific)] = 0
    latent = basal.copy()
    latent[:, : settings.n_factors] += response @ (mask * embedding)
    logits = latent @ loadings + log_proportion
    logits[:, own_gene] -= np.log(2) * settings.knock_down * response[:, : len(own_gene)]
    if settings.n_contexts > 1:
        size = settings.n_contexts, settings.n_genes
        logits += other.normal(0, CONTEXT_EFFECT, size)[context]
    if settings.n_batches > 1:
        shifts = other.normal(0, settings.batch_effect, (settings.n_batches, settings.n_genes))
        logits += shifts[batch]
        library_size = library_size * other.lognormal(0, BATCH_DEPTH, settings.n_batches)[batch]
    counts = _counts(rng, logits, library_size, inverse_dispersion)

    screen = build_screen(
        counts,
        Design.of(design, targets),
        cell_names=[f"cell{index}" for index in range(len(design))],
        gene_names=genes,
        where="the simulated screen",
    )
    screen.obsm["true_basal"] = basal.astype(np.float32)
    if settings.unit == PERTURBATION:
        screen.uns |= {UNIT: PERTURBATION, COMPARED_WITH: settings.compared_with}
    if settings.n_batches > 1:
        screen.obs[BATCH] = pd.Categorical([f"batch{number + 1}" for number in batch])
        screen.uns["batch_column"] = BATCH
    if settings.n_contexts > 1:
        screen.obs[CONTEXT] = pd.Categorical([f"context{number + 1}" for number in context])
        screen.uns["context_column"] = CONTEXT
    if guides is not None:
        screen.obs[GUIDE] = guides.names()
        screen.obsm["guides"] = guides.present
        screen.uns["guides"] = guides.table
    if settings.dead_guides or settings.escapers or settings.context_specific:
        screen.obsm["true_response"] = response.astype(np.float32)
    screen.uns["truth"] = {
        "targets": np.array(targets, dtype=object),
        "factors": np.array(factors, dtype=object),
        "mask": mask,
        "embedding": embedding,
        "loadings": loadings,
        "log_proportion": log_proportion,
        "inverse_dispersion": inverse_dispersion,
    }
    if settings.n_features:
        screen.uns["truth"] |= {"features": features}
    if settings.knock_down:
        screen.uns["truth"] |= {"own_gene": own_gene, "knock_down": settings.knock_down}
    return screen, _gene_sets(rng, settings, genes, factors, loadings)


def _target_genes(
    rng: np.random.Generator, settings: Simulation, loadings: np.ndarray, log_mean: np.ndarray
) -> np.ndarray:
    """Choose the measured gene of each target, mostly expressed and in no programme."""
    if not settings.knock_down:
        return np.empty(0, dtype=np.int64)
    free = np.flatnonzero(~loadings[: settings.n_factors].any(axis=0))
    chance = np.exp(log_mean[free])
    return rng.choice(free, settings.n_perturbations, replace=False, p=chance / chance.sum())


def _batches(rng: np.random.Generator, settings: Simulation, design: np.ndarray) -> np.ndarray:
    """Draw the batch of each cell; control cells are more often in the first."""
    n_batches = settings.n_batches
    uniform = rng.integers(n_batches, size=len(design))
    is_control = ~design.any(axis=1)
    excess = is_control & (rng.random(len(design)) < settings.batch_imbalance)
    return np.where(excess, 0, uniform)


def _guides(
    rng: np.random.Generator, settings: Simulation, design: np.ndarray, targets: list[str]
) -> tuple[Guides | None, np.ndarray]:
    """Draw the guides of each cell, and to which perturbations it responds, cells x targets."""
    per_target = settings.guides_per_target
    chosen = rng.integers(per_target, size=design.shape)
    dead = np.zeros(len(targets) * per_target, dtype=bool)
    n_dead = round(settings.dead_guides * len(dead))
    dead[rng.choice(len(dead), n_dead, replace=False)] = True
    alive = ~dead[np.arange(len(targets)) * per_target + chosen]
    response = design * alive * (rng.random(design.shape) >= settings.escapers)
    if per_target == 1:
        return None, response
    names = [f"{target}_g{number + 1}" for target in targets for number in range(per_target)]
    controls = [f"NT_g{number + 1}" for number in range(CONTROL_GUIDES)]
    cells, target = np.nonzero(design)
    guide = target * per_target + chosen[cells, target]
    if settings.guides_per_cell:
        # as frequent as guides with a target, in all cells
        chance = settings.guides_per_cell / settings.n_perturbations / per_target
        untargeted, drawn = np.nonzero(rng.random((len(design), CONTROL_GUIDES)) < chance)
    else:
        untargeted = np.flatnonzero(~design.any(axis=1))
        drawn = rng.integers(CONTROL_GUIDES, size=len(untargeted))
    of_control = len(names) + drawn
    rows, columns = np.concatenate([cells, untargeted]), np.concatenate([guide, of_control])
    table = pd.DataFrame(
        {
            "guide": [*names, *controls],
            "target": [*np.repeat(targets, per_target), *[CONTROL] * CONTROL_GUIDES],
            "kind": ["targeting"] * len(names) + ["non-targeting"] * CONTROL_GUIDES,
        }
    )
    present = sparse.csr_matrix(
        (np.ones(len(rows), dtype=np.int8), (rows, columns)), (len(design), len(table))
    )
    return Guides(table, present), response


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


def _effects_of_features(
    rng: np.random.Generator, settings: Simulation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw features of targets, and masks and embeddings that follow them.

    Two scores of each target and factor are linear in the features, with a fraction
    `feature_strength` of their variance, and else noise. A mask is open where the first score is
    among the largest, so that a target moves `factors_per_perturbation` factors on average. The
    embedding is `effect_size` times the second score.
    """
    shape = settings.n_perturbations, settings.n_factors
    features = rng.normal(size=(settings.n_perturbations, settings.n_features))
    of_features, of_noise = settings.feature_strength**0.5, (1 - settings.feature_strength) ** 0.5
    scores = [
        of_features * features @ rng.normal(size=(settings.n_features, settings.n_factors))
        / settings.n_features**0.5
        + of_noise * rng.normal(size=shape)
        for _ in range(2)
    ]  # fmt: skip
    fraction = min(settings.factors_per_perturbation / settings.n_factors, 1.0)
    mask = (scores[0] >= np.quantile(scores[0], 1 - fraction)).astype(float)
    return features, mask, settings.effect_size * scores[1]


def _design(rng: np.random.Generator, settings: Simulation) -> np.ndarray:
    if settings.guides_per_cell:
        n_all = settings.n_perturbations * settings.cells_per_perturbation
        chance = min(settings.guides_per_cell / settings.n_perturbations, 1.0)
        shape = max(round(n_all / settings.guides_per_cell), 1), settings.n_perturbations
        drawn = (rng.random(shape) < chance).astype(float)
        return np.vstack([np.zeros((settings.n_controls, settings.n_perturbations)), drawn])
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


TRAIN, VAL, TEST = "train", "val", "test"
LEAKY_SLOPE = 0.2


@dataclass(frozen=True)
class LatentSimulation:
    """Simulated cells with their latent truth.

    Attributes
    ----------
    values
        Cells x genes: float32 measurements, or int64 counts.
    design
        Design matrix, cells x perturbations, 0 or 1; all 0 for control cells.
    part
        ``train``, ``val`` or ``test`` of each cell.
    mask
        Perturbations x latent dimensions, 0 or 1.
    embedding
        Perturbations x latent dimensions, in standard deviations of the basal state.
    basal
        Basal states, cells x latent dimensions.
    """

    values: np.ndarray
    design: np.ndarray
    part: np.ndarray
    mask: np.ndarray
    embedding: np.ndarray
    basal: np.ndarray

    @property
    def effects(self) -> np.ndarray:
        """Latent effects m * e, perturbations x latent dimensions."""
        return self.mask * self.embedding


def latent_screen(simulation: LatentSimulation) -> anndata.AnnData:
    """Convert a simulation to a screen.

    Parameters
    ----------
    simulation
        Simulated cells and their truth.

    Returns
    -------
    AnnData
        With ``uns["truth"]``, the mask and the embedding (targets x factors) and their names,
        ``obsm["true_basal"]``, the basal states, and ``obs["part"]``, the part of the split of
        each cell.
    """
    n_targets, n_factors = simulation.mask.shape
    targets = np.array([f"TARGET{index:03d}" for index in range(1, n_targets + 1)], dtype=object)
    design = Design.of(simulation.design, targets)
    cells = [f"cell{index}" for index in range(len(design))]
    genes = [f"GENE{index:03d}" for index in range(1, simulation.values.shape[1] + 1)]
    if np.issubdtype(simulation.values.dtype, np.integer):
        screen = build_screen(simulation.values, design, cells, genes, "the simulated screen")
    else:
        screen = describe_cells(design, np.ones(len(design)), cells, genes)
        screen.X = sparse.csr_matrix(simulation.values)
    screen.obs["part"] = pd.Categorical(simulation.part)
    screen.obsm["true_basal"] = simulation.basal.astype(np.float32)
    screen.uns["truth"] = {
        "targets": targets,
        "factors": np.array([f"FACTOR_{index:02d}" for index in range(1, n_factors + 1)], object),
        "mask": simulation.mask,
        "embedding": simulation.embedding,
    }
    return screen


def single_perturbations(
    n_perturbations: int, cells: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Build the design matrix of single perturbations and control, with equal numbers of cells.

    Returns
    -------
    design, part : ndarray
        Cells x perturbations, and the part of the split of each cell.
    """
    rows = np.vstack([np.zeros(n_perturbations), np.eye(n_perturbations)])
    design = np.concatenate([rows.repeat(number, axis=0) for number in cells.values()])
    part = np.repeat(list(cells), [len(rows) * number for number in cells.values()])
    return design, part


def signed_effects(
    rng: np.random.Generator, shape: tuple[int, int], size: float, spread: float
) -> np.ndarray:
    """Draw N(size, spread) with a random sign."""
    return rng.normal(size, spread, shape) * rng.choice([-1.0, 1.0], shape)


def orthogonal_layers(
    rng: np.random.Generator, n_latent: int, n_genes: int, n_layers: int
) -> list[np.ndarray]:
    """Draw the weights of a decoder, the first K x G and the others G x G.

    Each has orthonormal rows (its shorter side), so that no layer loses information.
    """
    sizes = [n_latent] + [n_genes] * n_layers
    return [_orthonormal(rng, m, n) for m, n in pairwise(sizes)]


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))  # for a uniform (Haar) distribution
    return q.T if rows < columns else q


def decode(latent: np.ndarray, layers: list[np.ndarray]) -> np.ndarray:
    """Decode latent states [N, K] by linear layers with LeakyReLU(0.2) between them."""
    hidden = latent @ layers[0]
    for weights in layers[1:]:
        hidden = np.where(hidden > 0, hidden, LEAKY_SLOPE * hidden) @ weights
    return hidden


@dataclass(frozen=True)
class LatentSettings:
    """Parameters that both simulations of latent shifts have.

    Attributes
    ----------
    seed
        Seed of the simulation.
    n_latent, n_perturbations, n_genes
        K, T and G.
    effect_size, effect_spread
        Mean and standard deviation of |e|, in standard deviations of the basal state.
    n_layers
        Layers of the decoder.
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
    n_train: int = 500
    n_validation: int = 100
    n_test: int = 100


def simulate_decoded(
    settings: LatentSettings, mask: np.ndarray, rng: np.random.Generator
) -> LatentSimulation:
    """Simulate cells under sparse shifts of the latent state.

    Parameters
    ----------
    settings
        Parameters of the simulation.
    mask
        Perturbations x latent dimensions, 0 or 1.
    rng
        Generator of everything random.

    Returns
    -------
    LatentSimulation
        Its values are the decoder's output, without noise.
    """
    embedding = signed_effects(rng, mask.shape, settings.effect_size, settings.effect_spread)
    layers = orthogonal_layers(rng, settings.n_latent, settings.n_genes, settings.n_layers)
    design, part = single_perturbations(
        settings.n_perturbations,
        {TRAIN: settings.n_train, VAL: settings.n_validation, TEST: settings.n_test},
    )
    basal = rng.normal(size=(len(design), settings.n_latent))
    decoded = decode(basal + design @ (mask * embedding), layers)
    return LatentSimulation(decoded, design, part, mask, embedding, basal)


@dataclass(frozen=True)
class AdditiveSimulation(LatentSettings):
    """Parameters of the additive simulation.

    Attributes
    ----------
    mask_probability
        Probability that a perturbation shifts a latent dimension.
    noise_fraction
        Fraction of each gene's variance that is noise.
    """

    mask_probability: float = 2 / 15
    noise_fraction: float = 0.2


def simulate_additive(settings: AdditiveSimulation) -> LatentSimulation:
    """Simulate Gaussian measurements under additive sparse shifts of the latent state."""
    rng = np.random.default_rng(settings.seed)
    shape = (settings.n_perturbations, settings.n_latent)
    mask = (rng.random(shape) < settings.mask_probability).astype(float)
    simulation = simulate_decoded(settings, mask, rng)
    mean = simulation.values
    odds = settings.noise_fraction / (1 - settings.noise_fraction)
    std = np.sqrt(odds * mean.var(axis=0))
    values = (mean + std * rng.normal(size=mean.shape)).astype(np.float32)
    return replace(simulation, values=values)


def additive_screen(settings: AdditiveSimulation) -> tuple[anndata.AnnData, dict[str, list[str]]]:
    """Simulate a screen with its truth by the additive model, without gene sets."""
    return latent_screen(simulate_additive(settings)), {}


MOST_MOVED = 3


@dataclass(frozen=True)
class SvaePlusSimulation(LatentSettings):
    """Parameters of the SVAE+ simulation.

    Attributes
    ----------
    median_library_size, library_size_spread
        Median counts per cell, and standard deviation of their logarithm.
    """

    median_library_size: float = 1000.0
    library_size_spread: float = 0.3


def simulate_svae_plus(settings: SvaePlusSimulation) -> LatentSimulation:
    """Simulate Poisson counts under sparse shifts of the latent state."""
    rng = np.random.default_rng(settings.seed)
    shape = (settings.n_perturbations, settings.n_latent)
    n_moved = rng.integers(1, MOST_MOVED + 1, settings.n_perturbations)
    rank = rng.random(shape).argsort(axis=1).argsort(axis=1)
    mask = (rank < n_moved[:, None]).astype(float)
    simulation = simulate_decoded(settings, mask, rng)
    logits = simulation.values
    rate = np.exp(logits / logits.std(axis=0).mean())
    library_size = rng.lognormal(
        np.log(settings.median_library_size), settings.library_size_spread, len(logits)
    )
    mean = library_size[:, None] * rate / rate.sum(axis=1, keepdims=True)
    return replace(simulation, values=rng.poisson(mean))


def svae_plus_screen(settings: SvaePlusSimulation) -> tuple[anndata.AnnData, dict[str, list[str]]]:
    """Simulate a screen with its truth by the model of SVAE+, without gene sets."""
    return latent_screen(simulate_svae_plus(settings)), {}
