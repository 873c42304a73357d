"""Log importance weights of cells, in memory that does not grow with the cells."""

import hashlib
from collections.abc import Iterator

import pyro
import torch
from torch import Tensor

from samsvae.inference.cells import Cells
from samsvae.inference.shared_draws import globals_in_parts
from samsvae.models.base import Batch, PerturbationModel

ROWS_AT_A_TIME = 2048  # particles x cells


@torch.no_grad()
def log_weights(
    model: PerturbationModel, cells: Cells, influence: Tensor, particles: int, seed: int
) -> Iterator[Tensor]:
    """Weigh particles of the cells' own variables against the counts.

    A cell's random numbers follow from the seed and its counts. So its weights do not depend on
    the order of cells, on the other cells or on how they are grouped, but for rounding.

    Parameters
    ----------
    model
        Model and guide.
    cells
        Cells.
    influence
        What :func:`influences` gave for their conditions.
    particles
        Q.
    seed
        Seed of the samples.

    Yields
    ------
    Tensor
        log p(x | z_q, l) + log p(z_q) - log q(z_q | x), in nats, Q x cells of a batch.
    """
    pyro.enable_validation(False)
    for batch in cells.batches(max(1, ROWS_AT_A_TIME // particles)):
        yield weigh(model, batch, influence, noise(batch.counts, particles, model.n_latent, seed))


@torch.no_grad()
def influences(model: PerturbationModel, dosage: Tensor, particles: int, seed: int) -> Tensor:
    """Draw the shared variables from the guide, and keep what they bring to each condition.

    They are drawn once for all cells, and not scored.

    Parameters
    ----------
    model
        Model and guide.
    dosage
        Distinct rows of the design, C x T.
    particles
        Q.
    seed
        Seed of the draws.

    Returns
    -------
    Tensor
        [Q, C, size], or [C, size] where no variable is shared.
    """
    pyro.set_rng_seed(seed)
    done, influence = 0, dosage
    for number, shared in globals_in_parts(model, particles):
        part = model.influence(shared, dosage)
        if part.dim() == dosage.dim():
            return part
        if done == 0:
            influence = part.new_empty(particles, *part.shape[1:])
        influence[done : done + number] = part
        done += number
    return influence


def noise(counts: Tensor, particles: int, n_latent: int, seed: int) -> Tensor:
    """Draw standard normal numbers for each cell from a generator that its counts seed.

    Returns
    -------
    Tensor
        Q x B x K.
    """
    drawn = torch.empty(len(counts), particles, n_latent)
    generator, salt = torch.Generator(), seed.to_bytes(8, "little")
    for cell, own in zip(drawn, counts.cpu().numpy(), strict=True):
        digest = hashlib.blake2b(own.tobytes(), digest_size=8, key=salt).digest()
        cell.normal_(generator=generator.manual_seed(int.from_bytes(digest, "little")))
    return drawn.to(counts.device).transpose(0, 1).contiguous()


def weigh(model: PerturbationModel, batch: Batch, influence: Tensor, noise: Tensor) -> Tensor:
    """Compute the log importance weights of cells, Q x B, from standard normal numbers."""
    own = influence.index_select(-2, batch.condition)
    location, scale = model.encode(batch.counts, own)
    latent = torch.addcmul(location, scale, noise)
    state = model.unperturbed(latent, own)
    counts = model.likelihood(model.perturbed(state, own), batch.library_size)
    log_prior_to_guide = (noise.square() - state.square()).sum(-1) / 2 + scale.log().sum(-1)
    return counts.log_prob(batch.counts) + log_prior_to_guide
