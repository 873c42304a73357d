"""The library changes nothing of the process that calls it."""

import random

import numpy as np
import pyro
import pytest
import torch

from samsvae.biology.factors import latent_effects
from samsvae.evaluation.predicted import factor_effects, predicted_effects
from samsvae.evaluation.samples import counterfactual_cells, sample_cells
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.inference.iwelbo import iwelbo
from samsvae.inference.posterior import cell_states, mask_probability
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import build_model
from samsvae.screen.design import Design

SETTINGS = {"kind": "sams_vae", "combinations": "additive", "n_latent": 3, "n_hidden": 8}
HOW = Training(max_steps=4, batch_size=20, particles=2, validate_every=2, matmul_precision="tf32")


@pytest.fixture(scope="module")
def cells(tiny_screen):
    encoding = Encoding.of(Design.of_screen(tiny_screen), "additive")
    keep = np.arange(tiny_screen.n_obs) % 5 == 0
    return encoding, [
        Cells.of(tiny_screen, part, encoding, torch.device("cpu")) for part in (keep, ~keep)
    ]


@pytest.fixture(scope="module")
def trained(tiny_screen, cells):
    encoding, _ = cells
    model = build_model(SETTINGS, tiny_screen.n_vars, len(encoding.names)).eval()
    return TrainedModel(model, SETTINGS, list(tiny_screen.var_names), encoding)


def train(trained, cells, screen, seeds):
    sizes = screen.n_vars, len(cells[0].names)
    return fit(lambda: build_model(SETTINGS, *sizes), *cells[1], HOW, seeds)


CALLS = {
    "fit": lambda *given: train(*given, seeds=[0]),
    "fit replicates": lambda *given: train(*given, seeds=[0, 1]),
    "iwelbo": lambda trained, cells, _: iwelbo(trained.model, cells[1][0], 5, seed=0),
    "predicted effects": lambda trained, *_: predicted_effects(trained, ["TARGET01"], 5, seed=0),
    "sampled effects": lambda trained, *_: predicted_effects(
        trained, ["TARGET01"], 5, seed=0, estimator="sampled"
    ),
    "factor effects": lambda trained, *_: factor_effects(
        trained, np.ones((len(trained.encoding.names), 3)), 5, seed=0
    ),
    "latent effects": lambda trained, *_: latent_effects(trained, 5, seed=0),
    "mask probability": lambda trained, *_: mask_probability(trained.model),
    "samples": lambda trained, *_: sample_cells(trained, ["TARGET01"], 2, 100, seed=0),
    "counterfactuals": lambda trained, _, screen: counterfactual_cells(
        trained, screen[:9].copy(), "control", seed=0
    ),
    "states": lambda trained, _, screen: cell_states(
        trained, screen, np.arange(screen.n_obs) < 9, seed=0
    ),
}


def state_of_process():
    name, keys, *position = np.random.get_state()  # noqa: NPY002 - the global one is meant
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (name, keys.tolist(), *position),
        "python": random.getstate(),
        "matmul": torch.get_float32_matmul_precision(),
        "validation": {k: v for k, v in pyro.settings.get().items() if k.startswith("validate")},
        "gradients": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_seeds_and_switches_as_they_were(
    name, validates, trained, cells, tiny_screen
):
    with pyro.validation_enabled(validates):
        torch.manual_seed(11)
        before = state_of_process()
        CALLS[name](trained, cells, tiny_screen)
        assert state_of_process() == before


@pytest.mark.parametrize("name", CALLS)
def test_a_result_does_not_depend_on_what_was_drawn_before(name, trained, cells, tiny_screen):
    def drawn(seed):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        return CALLS[name](trained, cells, tiny_screen)

    first, second = (flat(drawn(seed)) for seed in (1, 2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def flat(result):
    """Arrays of a result."""
    if isinstance(result, list):
        return [w.numpy() for each in result for w in each.last_weights.values()]
    if isinstance(result, tuple):
        return list(result)
    if hasattr(result, "obsm"):
        return [result.X.toarray(), result.obsm["latent"]]
    if hasattr(result, "basal"):
        return [result.basal, result.total]
    if hasattr(result, "effects"):
        return [result.effects, result.size]
    return [np.asarray(result)]
