import dataclasses
import functools
import logging
import math
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch

from samsvae.config.experiments import Split
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import StateFile, TrainedModel, load_model, save_model
from samsvae.inference.encoding import Encoding
from samsvae.inference.machine import explain_out_of_memory, matmul_precision
from samsvae.inference.objective import elbo
from samsvae.inference.step import Training, check_finite, check_validated
from samsvae.inference.trainer import Trainer, fit
from samsvae.models import build_model
from samsvae.runtime.errors import InputError, Interrupted
from samsvae.screen.canonical import open_screen, write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.splits import split_cells

CPU = torch.device("cpu")
QUICK = {
    "max_steps": 60,
    "batch_size": 64,
    "particles": 2,
    "learning_rate": 3e-3,
    "validate_every": 20,
}
SETTINGS = {"kind": "sams_vae", "combinations": "additive", "n_latent": 4, "n_hidden": 16}


@pytest.fixture(scope="module")
def parts_of(tiny_screen):
    parts = split_cells(Design.of_screen(tiny_screen), Split("random", 0))
    encoding = Encoding.of(Design.of_screen(tiny_screen), "additive")
    return encoding, {
        name: Cells.of(tiny_screen, parts == name, encoding, CPU)
        for name in ("train", "val", "test")
    }


def fitted(parts_of, seed=0, state_file=None, **training):
    encoding, cells = parts_of
    [result] = fit(
        lambda: build_model(SETTINGS, cells["train"].counts.shape[1], len(encoding.names)),
        cells["train"],
        cells["val"],
        Training(**{**QUICK, **training}),
        [seed],
        state_file,
    )
    return result.model, result.history


def test_cells_keep_counts_exactly_in_a_small_type(tiny_screen, parts_of):
    encoding, _ = parts_of
    cells = Cells.of(tiny_screen, np.ones(tiny_screen.n_obs, bool), encoding, CPU)
    assert cells.counts.dtype in (torch.uint8, torch.int16)
    assert (cells.counts.numpy() == tiny_screen.X.toarray()).all()
    design = cells.design[cells.condition]
    assert (design.numpy() == tiny_screen.obsm["dosage"].toarray()).all()
    logs = np.log1p(tiny_screen.X.toarray())
    mean, std = cells.moments(torch.log1p)
    np.testing.assert_allclose(mean, logs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, logs.std(0), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("largest", "dtype"), [(200, torch.uint8), (300, torch.int16)])
def test_cells_come_from_the_file_as_from_memory_whatever_the_block(
    largest, dtype, tiny_screen, parts_of, tmp_path, monkeypatch
):
    """The largest count comes in a late block, when others already lie in a smaller type."""
    encoding, _ = parts_of
    screen = tiny_screen.copy()
    screen.X.data = screen.X.data.clip(max=100)
    screen.X.data[-1] = largest
    write_source_screen(screen, "{}", tmp_path / "screen.h5ad")
    for keep in (
        np.ones(screen.n_obs, bool),
        np.arange(screen.n_obs) % 3 > 0,
        np.arange(screen.n_obs) > screen.n_obs - 9,
        np.zeros(screen.n_obs, bool),
    ):
        whole = Cells.of(screen, keep, encoding, CPU)
        assert (whole.counts.numpy() == screen[keep].X.toarray()).all()
        assert whole.counts.dtype == (dtype if keep[-1] else torch.uint8)
        for at_once in (1, 700, 10**9):
            with monkeypatch.context() as patched, open_screen(tmp_path / "screen.h5ad") as opened:
                patched.setattr("samsvae.inference.cells.LARGEST_BLOCK", at_once)
                streamed = Cells.of(opened, keep, encoding, CPU)
            for field in dataclasses.fields(Cells):
                ours, theirs = (getattr(each, field.name) for each in (streamed, whole))
                if isinstance(theirs, tuple):
                    assert ours == theirs == ()
                    continue
                assert ours.dtype == theirs.dtype
                assert torch.equal(ours, theirs)


def test_an_epoch_visits_every_cell_once_at_most(parts_of):
    _, cells = parts_of
    train = cells["train"]
    marked = dataclasses.replace(train, library_size=torch.arange(len(train)).float())
    batches = marked.random_batches(50, seed=0)
    per_epoch = len(train) // 50
    for _ in range(2):
        drawn = torch.cat([marked.library_size[next(batches)] for _ in range(per_epoch)])
        assert len(drawn.unique()) == 50 * per_epoch
    first = torch.cat([b.counts for b in train.batches(7)])
    assert (first == train.counts.float()).all()


def test_training_raises_the_bound_and_keeps_the_best_step(parts_of):
    model, history = fitted(parts_of)
    validated = history[history["cells"] == "val"]
    assert validated["elbo"].iloc[-1] > validated["elbo"].iloc[0] + 1
    assert list(validated["step"]) == [20, 40, 60]
    terms = history.filter(like="kl_").sum(axis=1)
    np.testing.assert_allclose(history["elbo"], history["reconstruction"] - terms, rtol=1e-6)
    assert not model.training


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(parts_of):
    weights = [fitted(parts_of, seed)[0].state_dict() for seed in (1, 1, 2)]
    assert all((weights[0][k] == weights[1][k]).all() for k in weights[0])
    assert any((weights[0][k] != weights[2][k]).any() for k in weights[0])


@pytest.mark.slow
def test_a_validation_bound_worse_later_restores_earlier_weights(parts_of):
    """A step size that diverges: the kept weights are those of the best evaluation."""
    diverging = {"learning_rate": 0.3, "validate_every": 1, "mask_warmup_fraction": 0}
    model, history = fitted(parts_of, max_steps=40, **diverging)
    validated = history[history["cells"] == "val"]
    best = int(validated["step"].iloc[int(validated["elbo"].argmax())])
    again, _ = fitted(parts_of, max_steps=best, **diverging)
    assert all((model.state_dict()[k] == again.state_dict()[k]).all() for k in model.state_dict())


def test_a_loss_that_is_not_finite_stops_with_step_and_remedy(parts_of):
    with pytest.raises(FloatingPointError, match=r"step 2\b.*kl_embedding.*now 1e\+30.*now null"):
        fitted(parts_of, learning_rate=1e30, gradient_clip=None, max_steps=5, validate_every=5)


def test_a_divergence_names_its_batch_and_keeps_the_last_good_state(
    parts_of, tmp_path, monkeypatch
):
    """Weights thrown out of range at step 9, in the fourth batch of its epoch."""
    _, cells = parts_of
    training = {"max_steps": 12, "validate_every": 4, "batch_size": 100}
    state_file = StateFile(tmp_path / "state.safetensors", "this training")
    take_step = Trainer.take_step

    def broken(self):
        if self.step == 8:
            next(iter(self.training_step.weights.values())).data.fill_(torch.nan)
        return take_step(self)

    monkeypatch.setattr(Trainer, "take_step", broken)
    batches = cells["train"].random_batches(100, 0)
    positions = [next(batches) for _ in range(9)][-1]
    per_epoch = len(cells["train"]) // 100
    largest = int(cells["train"].counts[positions].max())
    message = (
        rf"step 9\b.* {8 % per_epoch + 1} of {per_epoch} in epoch {8 // per_epoch + 1}, "
        rf"100 cells\b.* {largest} \(training cell \d+, gene \d+\)"
    )
    with pytest.raises(InputError, match=message):
        fitted(parts_of, state_file=state_file, **training)
    assert state_file.load()[1]["step"] == 8


@pytest.mark.parametrize("asked_at", [0, 5, 9, 14])
def test_a_training_that_is_asked_to_end_keeps_its_state_at_once(
    asked_at, parts_of, tmp_path, monkeypatch
):
    """Between evaluations too; it goes on with the very next step, to the same weights."""
    training = {"max_steps": 20, "validate_every": 7, "batch_size": 50}
    whole, history = fitted(parts_of, **training)
    state_file = StateFile(tmp_path / "state.safetensors", "this training")
    take_step = Trainer.take_step

    def terminated(self):
        if self.step == asked_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Trainer, "take_step", terminated)
    with pytest.raises(Interrupted, match=rf"SIGTERM\b.*step {asked_at + 1}\b"):
        fitted(parts_of, state_file=state_file, **training)
    monkeypatch.setattr(Trainer, "take_step", take_step)
    assert signal.getsignal(signal.SIGTERM) is before
    assert state_file.load()[1]["step"] == asked_at + 1
    torch.rand(3)
    resumed, rows = fitted(parts_of, state_file=state_file, **training)
    pd.testing.assert_frame_equal(rows, history, check_exact=True)
    for name, tensor in whole.state_dict().items():
        assert (resumed.state_dict()[name] == tensor).all()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nGPU 0 has ..."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_a_device_without_memory_left_explain_out_of_memory(error):
    lower = ["training.batch_size (now 512)", "training.particles (now 5)"]
    with (
        pytest.raises(
            InputError, match=r"training.batch_size \(now 512\).*training.particles \(now 5\)"
        ),
        explain_out_of_memory(CPU, *lower),
    ):
        raise error


def test_another_error_is_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(CPU, "x"):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([[math.nan, 1.0]], r"step 7: reconstruction\b"),
        ([[-9.0, 1.0], [-99.0, 2.0], [math.inf, 3.0]], r"step 9: reconstruction\b.*-10 to -101\b"),
        ([[-9.0, 1.0], [-8.0, math.inf]], r"step 8: kl_basal\b.*training.learning_rate"),
    ],
)
def test_a_divergence_names_step_term_and_likely_cause(terms, message):
    with pytest.raises(FloatingPointError, match=message):
        check_finite(np.array(terms), ["reconstruction", "kl_basal"], 7, Training(), str)
    with pytest.raises(FloatingPointError, match="step 1: reconstruction") as first_step:
        check_finite(np.array([[math.nan]]), ["reconstruction"], 1, Training(), str)
    assert "learning_rate" not in str(first_step.value)  # no update was made yet
    check_finite(np.array([[-3.0, 4.0]]), ["reconstruction", "kl_basal"], 7, Training(), str)


def test_a_validation_bound_that_is_not_finite_stops():
    with pytest.raises(FloatingPointError, match=r"step 40: kl_mask\b.*validation"):
        check_validated({"elbo": -1.0, "kl_mask": math.nan}, 40, Training())


def test_training_stops_early_when_the_validation_bound_has_ceased_to_rise(parts_of):
    _, history = fitted(
        parts_of,
        learning_rate=0.3,
        max_steps=400,
        validate_every=5,
        patience=3,
        mask_warmup_fraction=0,
    )
    validated = history[history["cells"] == "val"]
    best = int(validated["step"].iloc[int(validated["elbo"].argmax())])
    assert validated["step"].iloc[-1] == best + 15 < 400


def test_the_learning_rate_warms_up_and_falls_as_asked():
    training = Training(max_steps=100, learning_rate=1.0, warm_up_steps=10)
    assert [training.learning_rate_at(step) for step in (0, 4, 9, 99)] == [0.1, 0.5, 1.0, 1.0]
    cosine = Training(max_steps=100, learning_rate=1.0, learning_rate_schedule="cosine")
    rates = [cosine.learning_rate_at(step) for step in range(101)]
    assert rates[0] == 1
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert rates == sorted(rates, reverse=True)


def test_the_learning_rate_of_a_step_is_the_one_applied(parts_of):
    """Adam's first step moves a parameter by the learning rate."""
    encoding, cells = parts_of
    sizes = cells["train"].counts.shape[1], len(encoding.names)
    training = Training(learning_rate=0.01, warm_up_steps=4, weight_decay=0, gradient_clip=None)
    trainer = Trainer(lambda: build_model(SETTINGS, *sizes), cells["train"], training, seeds=[0])
    concentration = trainer.training_step.weights["likelihood.log_concentration"]
    before = concentration.detach().clone()
    trainer.take_step()
    moved = (concentration - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.0025), rtol=0.01, atol=0)


def test_a_step_that_cannot_be_captured_is_taken_all_the_same(parts_of, caplog):
    caplog.set_level(logging.INFO)
    _, cells = parts_of
    weights = []
    for captured in (False, True):
        sizes = cells["train"].counts.shape[1], cells["train"].design.shape[1]
        build = functools.partial(build_model, SETTINGS, *sizes)
        trainer = Trainer(build, cells["train"], Training(**QUICK), seeds=[0])
        trainer.training_step.steps_to_capture = 0 if captured else -1
        for _ in range(3):
            trainer.take_step()
        weights.append(trainer.training_step.weights)
    assert all((weights[0][k] == weights[1][k]).all() for k in weights[0])
    assert caplog.text.count("not replayed as a CUDA graph") == 1


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_a_lower_matmul_precision_gives_nearly_the_same_bound(precision, parts_of):
    encoding, cells = parts_of
    torch.manual_seed(0)
    settings = {**SETTINGS, "n_hidden": 64}
    model = build_model(settings, cells["train"].counts.shape[1], len(encoding.names))
    batch = cells["train"].batch(torch.arange(200))

    def bound_and_gradient(name):
        torch.manual_seed(1)
        model.zero_grad()
        with matmul_precision(name):
            loss = elbo(model, batch, 3).loss
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return loss.detach(), gradient

    (exact, gradient), (rough, rough_gradient) = map(bound_and_gradient, ("float32", precision))
    torch.testing.assert_close(rough, exact, rtol=3e-3, atol=0)
    assert torch.cosine_similarity(rough_gradient, gradient, dim=0) > 0.999
    assert torch.get_float32_matmul_precision() == "highest"


def test_training_needs_cells(parts_of):
    _, cells = parts_of
    val = cells["val"]
    nobody = Cells(val.counts[:0], val.library_size[:0], val.design, val.condition[:0])
    with pytest.raises(InputError, match="validation"):
        fit(lambda: None, cells["train"], nobody, Training(max_steps=1), [0])


def test_the_last_evaluation_is_at_the_last_step(parts_of):
    history = fitted(parts_of, max_steps=25, validate_every=10)[1]
    assert history.loc[history["cells"] == "val", "step"].tolist() == [10, 20, 25]


@pytest.mark.slow
@pytest.mark.parametrize("interrupted_at", [7, 21, 45])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    interrupted_at, parts_of, tmp_path, monkeypatch
):
    """Broken off at any step, within an epoch too: weights and history to the last bit."""
    training = {"max_steps": 60, "validate_every": 7, "batch_size": 50, "warm_up_steps": 20}
    training |= {"learning_rate_schedule": "cosine", "mask_warmup_fraction": 0.3}
    whole, history = fitted(parts_of, **training)
    state_file = StateFile(tmp_path / "state.safetensors", "this training")
    take_step = Trainer.take_step

    def interrupted(self):
        if self.step == interrupted_at:
            raise KeyboardInterrupt
        return take_step(self)

    monkeypatch.setattr(Trainer, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(parts_of, state_file=state_file, **training)
    monkeypatch.setattr(Trainer, "take_step", take_step)
    torch.rand(5)  # the generator has gone elsewhere meanwhile
    resumed, rows = fitted(parts_of, state_file=state_file, **training)
    pd.testing.assert_frame_equal(rows, history, check_exact=True)
    for name, tensor in whole.state_dict().items():
        assert (resumed.state_dict()[name] == tensor).all()


def test_the_state_of_another_training_or_a_broken_one_is_not_taken_up(tmp_path):
    path = tmp_path / "state.safetensors"
    assert StateFile(path, "a").load() is None
    StateFile(path, "a").save({"x": torch.ones(2)}, {"step": 3})
    assert StateFile(path, "b").load() is None
    tensors, values = StateFile(path, "a").load()
    assert (tensors["x"] == 1).all()
    assert values == {"step": 3}
    path.write_bytes(path.read_bytes()[:20])
    assert StateFile(path, "a").load() is None
    StateFile(path, "a").remove()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["sams_vae", "cpa_vae"])
def test_a_checkpoint_gives_back_the_same_model(kind, tmp_path):
    settings = {**SETTINGS, "kind": kind, "combinations": "unique"}
    model = build_model(settings, 5, 2)
    model.standardise.fit(torch.rand(5), torch.rand(5))
    trained = TrainedModel(model, settings, list("abcde"), Encoding(("A", "A+B"), "unique"))
    save_model(trained, '{"made": "here"}', tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert (loaded.genes, loaded.encoding, loaded.settings) == (
        trained.genes,
        trained.encoding,
        settings,
    )
    for name, tensor in model.state_dict().items():
        assert (loaded.model.state_dict()[name] == tensor).all()
