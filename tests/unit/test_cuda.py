"""What is computed on a CUDA device is what is computed on a CPU. Skipped where there is none."""

import copy
import dataclasses
import shutil

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from samsvae.evaluation.predicted import predicted_effects
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import StateFile, TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.inference.iwelbo import iwelbo
from samsvae.inference.machine import explain_out_of_memory
from samsvae.inference.noise import SampleFromNoise
from samsvae.inference.objective import elbo
from samsvae.inference.posterior import draw_shifts, log_importance_weights
from samsvae.inference.step import Training, TrainingStep
from samsvae.inference.trainer import Trainer, fit
from samsvae.kernels import compile_function, has_triton
from samsvae.kernels.gamma_poisson import log_prob
from samsvae.kernels.random import cell_keys, cell_normals
from samsvae.models import MODELS, build_model
from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL
from tests.unit.test_kernels import assert_accurate, exact, problem, with_gradients

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = {"n_latent": 6, "n_hidden": 32}
QUICK = Training(
    max_steps=40,
    batch_size=64,
    particles=3,
    learning_rate=1e-3,
    validate_every=10,
    mask_warmup_fraction=0.3,
)


@pytest.fixture(autouse=True)
def _seeded():
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)


@pytest.fixture(scope="module")
def encoding(tiny_screen):
    return Encoding.of(Design.of_screen(tiny_screen), "additive")


@pytest.fixture(scope="module")
def cells(tiny_screen, encoding):
    """Training and validation cells on each device."""
    keep = np.arange(tiny_screen.n_obs) % 3 > 0
    return {
        device: [Cells.of(tiny_screen, part, encoding, device) for part in (keep, ~keep)]
        for device in (CPU, CUDA)
    }


def build(cells, kind="sams_vae", **settings):
    shape = cells[CPU][0].counts.shape[1], cells[CPU][0].design.shape[1]
    return build_model({"kind": kind, **SMALL, **settings}, *shape)


def assert_alike(expected, found, tolerance=1e-3):
    """Within rounding, which Adam blows up where a gradient is next to nothing."""
    for name, weights in expected.items():
        error = (found[name].to(weights.device) - weights).norm()
        assert error <= tolerance * weights.norm() + 1e-4, name


@pytest.fixture(scope="module", autouse=True)
def _has_triton():
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("there is no C compiler, which Triton needs")
    assert has_triton(torch.empty(0, device="cuda").device)


def on_cuda(inputs):
    return [each.cuda() for each in inputs]


@pytest.mark.parametrize("genes", [1, 31, 300, 1024, 1187, 5000, 9000])
@pytest.mark.parametrize("is_constant", [True, False])
def test_the_log_probability_is_as_accurate_as_single_precision_allows(genes, is_constant):
    inputs = problem(genes=genes, particles=(3,), cells=20, n_hidden=40, spread=0.3)
    cell_weight = torch.tensor(0.7) if is_constant else torch.randn(3, 20)
    ours = on_cuda(inputs)
    found = with_gradients(log_prob, ours, cell_weight.cuda())
    assert_accurate(found, inputs, cell_weight)
    with torch.no_grad():
        alone = log_prob(*ours)
    assert_accurate([alone, *found[1:]], inputs, cell_weight)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_at_less_precision_gradients_keep_their_direction(precision):
    inputs = problem(genes=300, particles=(3,), cells=40, n_hidden=40, spread=0.3, largest=50.0)
    truth, _ = exact(inputs, torch.tensor(1.0))
    torch.set_float32_matmul_precision(precision)
    try:
        found = with_gradients(log_prob, on_cuda(inputs), torch.tensor(1.0).cuda())
    finally:
        torch.set_float32_matmul_precision("highest")
    for ours, expected in zip(found, truth, strict=True):
        assert (ours.cpu().double() - expected).norm() < 0.02 * expected.norm()


def test_non_finite_logits_give_non_finite_results_in_their_row_alone():
    inputs = problem()
    inputs[3][0, 1, 2], inputs[3][1, 2, 0] = torch.nan, torch.inf
    value, _, by_hidden, *_ = with_gradients(log_prob, on_cuda(inputs), torch.tensor(1.0).cuda())
    assert value.isfinite().logical_not().nonzero().tolist() == [[0, 1], [1, 2]]
    assert torch.equal(by_hidden.isfinite().all(-1), value.isfinite())


def test_replicates_have_the_values_and_gradients_of_each_alone():
    inputs = on_cuda(torch.stack(each) for each in zip(*map(problem, range(3)), strict=True))
    wanted = [each.requires_grad_() for each in inputs[2:]]
    together = torch.vmap(log_prob)(*inputs)
    gradients = torch.autograd.grad(together.sum(), wanted)
    for index in range(3):
        own = [each[index].detach() for each in inputs]
        alone = with_gradients(log_prob, own, torch.tensor(1.0).cuda())
        torch.testing.assert_close(together[index].detach(), alone[0])
        for gradient, expected in zip(gradients, alone[1:], strict=True):
            torch.testing.assert_close(gradient[index], expected, rtol=1e-4, atol=1e-3)


def test_a_cell_has_the_noise_that_it_has_on_a_cpu():
    counts = torch.poisson(torch.full((30, 50), 1.0))
    keys = cell_keys(counts, seed=3)
    assert torch.equal(cell_keys(counts.cuda(), seed=3).cpu(), keys)
    for particles, n_latent in ((1, 1), (7, 10), (100, 101)):
        drawn = cell_normals(keys.cuda(), particles, n_latent).cpu()
        expected = cell_normals(keys, particles, n_latent)
        torch.testing.assert_close(drawn, expected, rtol=2e-6, atol=3e-5)


@pytest.mark.parametrize("kind", ["sams_vae", "cpa_vae"])
def test_a_compiled_step_has_the_gradients_of_the_step_itself(kind, cells):
    """Of two replicates, whose noise is given."""
    step = TrainingStep([build(cells, kind).cuda() for _ in range(2)], cells[CUDA][0], QUICK)
    compiled = compile_function(step._gradients_and_terms)
    for _ in range(2):
        step.positions.random_(len(cells[CUDA][0]))
        step.masks.offset.normal_()
        for noise in step.noise.values():
            noise.uniform_(0.1, 0.9)
        for ours, expected in zip(compiled(), step._gradients_and_terms(), strict=True):
            assert (ours - expected).norm() <= 1e-3 * expected.norm() + 1e-5


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson"])
def test_bounds_and_gradients_are_those_of_the_cpu(kind, likelihood, cells):
    """Given the same random numbers."""
    model = build(cells, kind, likelihood=likelihood)
    model.standardise.fit(*cells[CPU][0].moments(model.standardise.rescale))
    seen = SampleFromNoise(lambda _, spec: spec.draw(CPU))
    positions = torch.arange(50)
    with seen, torch.no_grad():
        elbo(model, cells[CPU][0].batch(positions), 3)
    noise = {name: spec.draw(CPU) for name, spec in seen.specs.items()}
    results = []
    for device in (CPU, CUDA):
        copied = copy.deepcopy(model).to(device)
        with SampleFromNoise(lambda name, _, device=device: noise[name].to(device)):
            bound = elbo(copied, cells[device][0].batch(positions.to(device)), 3)
        loss = bound.loss_at(torch.ones((), device=device))
        loss.backward()
        gradients = {n: p.grad for n, p in copied.named_parameters() if p.grad is not None}
        results.append((loss.detach().cpu(), gradients))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-3)
    assert results[0][1].keys() == results[1][1].keys()
    assert_alike(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", ["sams_vae", "svae_plus", "conditional_vae"])
def test_a_replayed_step_is_the_step_itself(kind, cells, caplog):
    ends = []
    with caplog.at_level("INFO"):
        for cuda_graph in (False, True):
            training = dataclasses.replace(QUICK, cuda_graph=cuda_graph)
            ends += fit(lambda: build(cells, kind), *cells[CUDA], training, seeds=[1])
    assert caplog.text.count("replayed as a CUDA graph") == 1
    assert_alike(ends[0].last_weights, ends[1].last_weights)
    pd.testing.assert_frame_equal(ends[0].history, ends[1].history, rtol=1e-4)


def test_training_reaches_the_bound_that_it_reaches_on_a_cpu(cells):
    training = dataclasses.replace(QUICK, max_steps=400, validate_every=100)
    reached = []
    for device in (CPU, CUDA):
        [fitted] = fit(lambda: build(cells), *cells[device], training, seeds=[1])
        history = fitted.history
        reached.append(history[history["cells"] == "val"].set_index("step")["elbo"])
    rise = reached[0].iloc[-1] - reached[0].iloc[0]
    assert rise > 1
    assert (reached[1] - reached[0]).abs().max() < 0.1 * rise + 0.5


@pytest.fixture
def trainer(cells):
    """Under way in its own stream of random numbers."""
    trainer = Trainer(lambda: build(cells), cells[CUDA][0], QUICK, seeds=[2])
    with trainer.replicates[0].stream():
        yield trainer


def test_a_step_waits_for_nothing(trainer):
    for _ in range(2):
        trainer.take_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            trainer.take_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_does_not_grow_with_steps(trainer):
    peaks = []
    for _ in range(2):
        for _ in range(20):
            trainer.take_step()
        trainer.since_evaluation.clear()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= peaks[0] + 2**20


def test_an_interrupted_training_goes_on_as_if_nothing_had_been(trainer, cells, tmp_path):
    for _ in range(15):
        trainer.take_step()
        if trainer.step == 10:
            trainer.evaluate(cells[CUDA][1])
    state_file = StateFile(tmp_path / "state.safetensors", "this training")
    trainer.save(state_file)
    [whole] = fit(lambda: build(cells), *cells[CUDA], QUICK, seeds=[2])
    [resumed] = fit(lambda: build(cells), *cells[CUDA], QUICK, [2], state_file)
    assert_alike(whole.last_weights, resumed.last_weights)
    pd.testing.assert_frame_equal(whole.history, resumed.history, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sams_vae", "cpa_vae"])
def test_seeds_trained_together_end_as_they_would_alone(kind, cells):
    alone = [fit(lambda: build(cells, kind), *cells[CUDA], QUICK, [seed])[0] for seed in (3, 1)]
    together = fit(lambda: build(cells, kind), *cells[CUDA], QUICK, (3, 1))
    for one, other in zip(alone, together, strict=True):
        assert_alike(one.last_weights, other.last_weights)


def test_importance_weights_are_those_of_the_cpu(cells):
    """Cells draw the same random numbers; shared variables are given."""
    model = build(cells)
    with torch.no_grad():
        shifts = draw_shifts(model, cells[CPU][1].design, 50)
    weights = []
    for device in (CPU, CUDA):
        batch = cells[device][1].batch(torch.arange(len(cells[device][1]), device=device))
        copied = copy.deepcopy(model).to(device)
        weights.append(log_importance_weights(copied, batch, shifts.to(device), seed=0).cpu())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-2)


def test_the_bound_of_a_cell_does_not_depend_on_its_batch(cells, monkeypatch):
    model, held_out = build(cells).cuda(), cells[CUDA][1]
    whole, _ = iwelbo(model, held_out, particles=20, seed=0)
    monkeypatch.setattr("samsvae.inference.iwelbo.LARGEST_BATCH", 1)
    monkeypatch.setattr("samsvae.inference.iwelbo.ROWS_AT_A_TIME", 100)
    np.testing.assert_allclose(iwelbo(model, held_out, particles=20, seed=0)[0], whole, rtol=1e-5)


def test_predicted_effects_are_those_of_the_cpu(cells, tiny_screen, encoding):
    model = build(cells)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    labels = [name for name in tiny_screen.obs["perturbation"].cat.categories if name != CONTROL]
    effects = []
    for device in (CPU, CUDA):
        trained = TrainedModel(
            copy.deepcopy(model).to(device).eval(), {}, list(tiny_screen.var_names), encoding
        )
        effects.append(predicted_effects(trained, labels, draws=2000, seed=0))
    difference = np.abs(effects[0][0] - effects[1][0])
    error = np.hypot(effects[0][1], effects[1][1])
    assert (difference < 6 * error + 1e-4).all()


def test_a_full_card_explain_out_of_memory(cells):
    training = dataclasses.replace(QUICK, batch_size=200, particles=200_000)

    def train_too_much():
        with explain_out_of_memory(CUDA, "batch_size (now 200)"):
            fit(lambda: build(cells), *cells[CUDA], training, seeds=[0])

    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(InputError, match=r"The memory of the GPU \(.*Lower batch_size"):
            train_too_much()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
