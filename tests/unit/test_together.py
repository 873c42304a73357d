"""Seeds trained as one batched program end as they would alone."""

import signal

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from samsvae.inference import step as step_module
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import StateFile
from samsvae.inference.encoding import Encoding
from samsvae.inference.step import Training, TrainingStep
from samsvae.inference.trainer import Trainer, fit
from samsvae.kernels import record_function
from samsvae.models import MODELS, build_model
from samsvae.runtime.errors import InputError, Interrupted
from samsvae.screen.design import Design

SMALL = {"n_latent": 4, "n_hidden": 8}
SEEDS = (3, 1, 4)


@pytest.fixture
def cells(tiny_screen):
    encoding = Encoding.of(Design.of_screen(tiny_screen), "additive")
    keep = np.arange(tiny_screen.n_obs) % 3 > 0
    return [Cells.of(tiny_screen, part, encoding, torch.device("cpu")) for part in (keep, ~keep)]


def alone_and_together(cells, settings, **training):
    def build():
        return build_model(settings, cells[0].counts.shape[1], cells[0].design.shape[1])

    quick = {"max_steps": 30, "batch_size": 32, "particles": 2, "validate_every": 10}
    how = Training(**{**quick, "learning_rate": 3e-3, "gradient_clip": 1.0, **training})
    alone = [fit(build, *cells, how, [seed])[0] for seed in SEEDS]
    return alone, fit(build, *cells, how, SEEDS)


def assert_alike(alone, together):
    """Within rounding, which Adam blows up where a gradient is next to nothing."""
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one.history, other.history, rtol=1e-4)
        of_both = ((one.last_weights, other.last_weights),)
        of_both += ((one.model.state_dict(), other.model.state_dict()),)
        for expected, found in of_both:
            for name, weights in expected.items():
                assert (found[name] - weights).norm() <= 1e-3 * weights.norm() + 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(MODELS))
def test_every_model_ends_as_it_would_alone(kind, cells):
    alone, together = alone_and_together(cells, {"kind": kind, **SMALL})
    assert_alike(alone, together)
    first, second = (fitted.last_weights for fitted in together[:2])
    assert any((first[name] != second[name]).any() for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "training"),
    [
        ({"embedding": "mean_field", "basal_encoder": "mean_field"}, {}),
        ({"likelihood": "poisson"}, {"objective": "iwae"}),
        ({"likelihood": "normal", "n_layers": 2}, {"mask_kl": "exact", "warm_up_steps": 5}),
        ({}, {"objective": "iwae", "learning_rate_schedule": "cosine", "gradient_clip": None}),
    ],
)
def test_options_make_no_difference(settings, training, cells):
    assert_alike(*alone_and_together(cells, {"kind": "sams_vae", **SMALL, **settings}, **training))


RECORDED = [
    *({"kind": kind} for kind in MODELS),
    {"embedding": "mean_field", "basal_encoder": "mean_field"},
    {"likelihood": "poisson"},
    {"likelihood": "normal", "n_layers": 2},
    {"kind": "sams_vae_beta_bernoulli", "rate_guide": "beta"},
]


@pytest.mark.parametrize("seeds", [SEEDS[:1], SEEDS], ids=["alone", "together"])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("settings", RECORDED, ids=str)
def test_a_recorded_step_is_the_step_to_the_bit(settings, objective, seeds, cells, monkeypatch):
    """Also after masks are rotated and started again, and with clipped gradients."""
    if "rate_guide" in settings and len(seeds) > 1:
        pytest.skip("Beta numbers cannot be drawn beforehand")

    def build():
        own = {"kind": "sams_vae", **SMALL, **settings}
        return build_model(own, cells[0].counts.shape[1], cells[0].design.shape[1])

    how = Training(
        max_steps=12, batch_size=32, particles=2, validate_every=6, gradient_clip=1.0,
        objective=objective,
    )  # fmt: skip
    found = []
    for steps in (0, how.max_steps + 1):
        monkeypatch.setattr(step_module, "STEPS_WORTH_RECORDING", steps)
        recorded = []
        monkeypatch.setattr(
            step_module,
            "record_function",
            lambda function, recorded=recorded: (
                recorded.append(record_function(function)) or recorded[-1]
            ),
        )
        found.append(fit(build, *cells, how, seeds))
        assert len(recorded) == (steps == 0)
    for one, other in zip(*found, strict=True):
        pd.testing.assert_frame_equal(one.history, other.history, rtol=0, atol=0)
        for name, weights in one.last_weights.items():
            assert torch.equal(weights, other.last_weights[name]), name


@pytest.mark.slow
def test_each_seed_stops_when_its_own_validation_bound_has_ceased_to_rise(cells):
    def build():
        return build_model({"kind": "cpa_vae", **SMALL}, *shape)

    shape = (cells[0].counts.shape[1], cells[0].design.shape[1])
    how = Training(max_steps=60, batch_size=32, learning_rate=0.2, validate_every=2, patience=2)
    for fitted in fit(build, *cells, how, SEEDS):
        validated = fitted.history[fitted.history["cells"] == "val"].set_index("step")["elbo"]
        best = validated.idxmax()
        assert validated.index[-1] == min(best + 4, 60)
        # no earlier evaluation had already waited in vain
        assert all(
            validated.loc[: step + 4].idxmax() > step for step in validated.loc[: best - 1].index
        )


@pytest.mark.slow
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(cells, tmp_path, monkeypatch):
    """To the last bit, whether a seed had been at its end or not."""

    def build():
        return build_model({"kind": "sams_vae", **SMALL}, *shape)

    shape = (cells[0].counts.shape[1], cells[0].design.shape[1])
    how = Training(
        max_steps=60, batch_size=32, particles=2, learning_rate=0.2, validate_every=4, patience=2,
        mask_warmup_fraction=0,
    )  # fmt: skip
    whole = fit(build, *cells, how, SEEDS)
    ends = sorted({fitted.history["step"].max() for fitted in whole})
    assert len(ends) > 1
    evaluate, step = Trainer.evaluate, Trainer.take_step
    # at an evaluation without warning, before and after a seed has come to its end; or between
    # evaluations by a signal
    for interrupted_at in (8, ends[0] + 4, 10):

        def interrupt(self, validation, at=interrupted_at):
            evaluate(self, validation)
            if self.step == at:
                raise KeyboardInterrupt

        def take_step(self, at=interrupted_at):
            if self.step == at and at % how.validate_every:
                signal.raise_signal(signal.SIGTERM)
            step(self)

        state_file = StateFile(tmp_path / f"{interrupted_at}.safetensors", "this training")
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "evaluate", interrupt)
            patched.setattr(Trainer, "take_step", take_step)
            with pytest.raises((KeyboardInterrupt, Interrupted)):
                fit(build, *cells, how, SEEDS, state_file)
        if interrupted_at == 10:
            assert state_file.load()[1]["step"] == 11
        resumed = fit(build, *cells, how, SEEDS, state_file)
        for one, other in zip(whole, resumed, strict=True):
            pd.testing.assert_frame_equal(one.history, other.history)
            for name, weights in one.last_weights.items():
                assert torch.equal(weights, other.last_weights[name])
            for name, weights in one.model.state_dict().items():
                assert torch.equal(weights, other.model.state_dict()[name])


def test_what_cannot_be_trained_together_is_refused(cells):
    settings = {"kind": "sams_vae_beta_bernoulli", "rate_guide": "beta", **SMALL}
    model = build_model(settings, cells[0].counts.shape[1], cells[0].design.shape[1])
    with pytest.raises(InputError, match="Beta"):
        fit(lambda: model, *cells, Training(max_steps=2), SEEDS)


@pytest.mark.parametrize("kind", list(MODELS))
def test_a_joint_step_waits_for_no_device_and_stays_on_it(kind, monkeypatch):
    """On a device that holds no values, reading one or mixing devices would be an error."""
    pyro.enable_validation(False)
    monkeypatch.setattr(torch.optim, "Adam", lambda *_, **__: None)  # looks at its step size once
    with torch.device("meta"):
        models = [build_model({"kind": kind, **SMALL}, 20, 5) for _ in SEEDS]
        nobody = Cells(
            torch.zeros(100, 20, dtype=torch.uint8),
            torch.zeros(100),
            torch.zeros(6, 5),
            torch.zeros(100, dtype=torch.long),
        )
        step = TrainingStep(models, nobody, Training(batch_size=10))
    loss, terms = step.loss()
    loss.backward()
    step.clip_gradients(1.0)
    assert {term.device.type for term in [loss, *terms.values()]} == {"meta"}
    assert {len(term) for term in terms.values()} == {len(SEEDS)}
