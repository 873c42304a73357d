"""Draws of the variables that all cells share."""

from collections.abc import Callable, Iterator

import pyro
from pyro import poutine
from torch import Tensor

from samsvae.inference.objective import latent_sites
from samsvae.models.base import PerturbationModel

LARGEST_DRAW = 500_000  # elements, of draws x perturbations x latent dimensions


def draw_globals(model: PerturbationModel, draws: int) -> dict[str, Tensor]:
    """Draw the variables that all cells share from the guide, [draws, ...] by site."""
    return draw_shared(model.shared_guide, draws)


def draw_shared(program: Callable[[], None], draws: int) -> dict[str, Tensor]:
    """Draw from a model's `shared_guide` or `shared_prior`, [draws, ...] by site."""
    with pyro.plate("particles", draws, dim=-2):
        trace = poutine.trace(program).get_trace()
    return {name: site["value"] for name, site in latent_sites(trace).items()}


def globals_in_parts(
    model: PerturbationModel, draws: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Draw as :func:`draw_globals`, a part of the draws at a time, in bounded memory.

    Yields
    ------
    tuple
        How many draws the part has, and the variables by site.
    """
    at_once = max(1, LARGEST_DRAW // (model.n_perturbations * model.n_latent))
    for first in range(0, draws, at_once):
        number = min(at_once, draws - first)
        yield number, draw_globals(model, number)
