"""Training cells that stay in the file: what is read, in which order, and what is learnt of them."""

import dataclasses
import itertools
import signal
import weakref

import h5py
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy import stats

from samsvae.config.experiments import Split
from samsvae.config.models import KINDS
from samsvae.inference import step as step_module
from samsvae.inference import streamed
from samsvae.inference.cells import Cells
from samsvae.inference.machine import _limits_of_group, available_memory
from samsvae.inference.mask_warmup import estimate_effects
from samsvae.inference.step import Training, TrainingStep, describe_batch
from samsvae.inference.streamed import BufferPlan, StreamedCells, default_buffer, type_of_counts
from samsvae.inference.task import TrainingTask
from samsvae.inference.trainer import Trainer, fit
from samsvae.kernels import record_function
from samsvae.models import MODELS, build_model
from samsvae.runtime.errors import InputError, Interrupted
from samsvae.runtime.files import read_table, write_tsv
from samsvae.screen.canonical import write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.splits import split_cells, split_table
from samsvae.screen.writing import write_screen_in_blocks
from samsvae.sources.simulated import simulate
from tests.conftest import TINY
from tests.unit.test_config import validated

CPU = torch.device("cpu")
SMALL = {"n_latent": 3, "n_hidden": 8}
HOW = {
    "max_steps": 24, "batch_size": 16, "particles": 2, "learning_rate": 0.01, "validate_every": 8,
    "stream_buffer": 96,
}  # fmt: skip
SEEDS = (3, 1, 4)
# settings of SAMS-VAE with which cells are encoded differently
ENCODED = {
    "plain": {"covariates": []},
    "batch_and_context": {"covariates": None},
    "continuous": {"covariates": ["depth", "batch"]},
    "label": {"covariates": ["perturbation"]},
    "unique": {"combinations": "unique"},
    "on_target": {"on_target": True},
    "in_contexts": {"context_effects": True},
    "unique_in_contexts": {"context_effects": True, "combinations": "unique"},
    "expression": {"perturbation_features": "expression", "embedding": "mean_field"},
    "shuffled": {"shuffle_labels": True},
    "shuffled_in_contexts": {"shuffle_labels": True, "context_effects": True},
    "shuffled_features": {
        "shuffle_labels": True, "perturbation_features": "expression", "embedding": "mean_field",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded():
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)


@pytest.fixture(scope="module")
def screen():
    """Three batches, two contexts, a continuous covariate, and five targets among the genes."""
    screen = simulate(dataclasses.replace(TINY, n_batches=3, n_contexts=2))[0]
    screen.obs["depth"] = np.log(screen.obs["library_size"])
    screen.var_names = [*Design.of_screen(screen).names[:5], *screen.var_names[5:]]
    return screen


@pytest.fixture(scope="module")
def files(screen, tmp_path_factory):
    """Files of the screen and of a split."""
    folder = tmp_path_factory.mktemp("streamed")
    paths = folder / "screen.h5ad", folder / "split.tsv"
    write_source_screen(screen, "{}", paths[0])
    parts = split_cells(Design.of_screen(screen), Split("random", 0))
    write_tsv(split_table(screen, parts), paths[1])
    return paths


def task(files, cells, settings=None, kind="sams_vae", seeds=(0,), **how):
    every = {**KINDS[kind]().model_dump(), "kind": kind, **SMALL, **(settings or {})}
    training = {**HOW, **how, "cells": cells}
    return TrainingTask.read(*files, every, training, list(seeds), "code", CPU)


def both(files, settings=None, kind="sams_vae", **how):
    """The same training with its cells in memory, and streamed."""
    return [task(files, cells, settings, kind, **how) for cells in ("device", "stream")]


def trained(one, seeds=(0,), state_file=None):
    return fit(one.build, one.train, one.validation, one.training, seeds, state_file)


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        pd.testing.assert_frame_equal(one.history, other.history)
        of_both = (one.last_weights, other.last_weights), (one.model.state_dict(), other.model.state_dict())  # fmt: skip
        for expected, found in of_both:
            for name, weights in expected.items():
                assert torch.equal(weights, found[name]), name


class InSameOrder:
    """Loader of cells in memory, in the order in which a plan reads and shuffles them."""

    def __init__(self, plan, seed):
        self.plan, self.size, self.seed, self.step = plan, plan.batch_size, seed, 0

    def __next__(self):
        number, batch = self.plan.buffer_of(self.step)
        self.step += 1
        cells = self.plan.cells_of(number)[self.plan.order(number, self.seed)]
        return torch.from_numpy(cells[batch * self.size : (batch + 1) * self.size])

    def skip(self, number):
        self.step += number


@pytest.fixture
def in_same_order(monkeypatch):
    """Let cells in memory come in the order of a plan."""

    def patch(plan):
        monkeypatch.setattr(
            Cells, "random_batches", lambda self, size, seed: InSameOrder(plan, seed)
        )

    return patch


PLANS = [(100, 10, 30, 7), (103, 10, 30, 7), (64, 64, 10, 8), (97, 10, 1000, 16), (60, 7, 25, 1), (9, 4, 4, 64)]  # fmt: skip


@pytest.mark.parametrize("sizes", PLANS)
def test_every_cell_comes_once_an_epoch_but_for_an_incomplete_batch(sizes):
    plan = BufferPlan(*sizes)
    n_cells, batch, buffer, _ = sizes
    for epoch in range(3):
        numbers = range(epoch * plan.n_buffers, (epoch + 1) * plan.n_buffers)
        read = [plan.cells_of(number) for number in numbers]
        assert [len(cells) for cells in read] == [plan.size(number) for number in numbers]
        assert sorted(np.concatenate(read)) == list(range(n_cells))
        assert max(map(len, read)) <= plan.capacity <= max(buffer, batch) + n_cells % batch
        batches = InSameOrder(plan, seed=5)
        batches.skip(epoch * plan.n_batches)
        seen = torch.cat([next(batches) for _ in range(plan.n_batches)])
        assert len(set(seen.tolist())) == len(seen) == n_cells // batch * batch
        assert batches.plan.buffer_of(batches.step) == (numbers.stop, 0)


def test_the_order_follows_from_epoch_and_seed():
    plan, again = (BufferPlan(500, 10, 50, 4) for _ in range(2))
    numbers = range(3 * plan.n_buffers)
    for number in numbers:
        np.testing.assert_array_equal(plan.cells_of(number), again.cells_of(number))
        np.testing.assert_array_equal(plan.order(number, 1), again.order(number, 1))
        assert (plan.order(number, 1) != plan.order(number, 2)).any()
    read = {tuple(plan.cells_of(number)) for number in numbers}
    assert len(read) == len(numbers)  # no buffer comes again in another epoch


def test_a_buffer_of_all_cells_is_a_full_shuffle():
    """All orders of four cells are as frequent."""
    plan = BufferPlan(4, 2, 100)
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for seed in range(4800):
        batches = InSameOrder(plan, seed)
        counts[tuple(torch.cat([next(batches), next(batches)]).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize(("block", "buffer"), [(1, 512), (16, 512), (64, 2048)])
def test_the_share_of_a_perturbation_in_a_batch_of_a_sorted_file_varies_as_stated(block, buffer):
    """By p (1 - p) (1 / n + 1 / m), less what drawing without replacement takes away."""
    n_cells, batch, share = 40 * buffer, 64, 0.25
    plan = BufferPlan(n_cells, batch, buffer, block)
    is_perturbed = np.arange(n_cells) < share * n_cells
    shares = []
    for number in range(12 * plan.n_buffers):
        order = plan.cells_of(number)[plan.order(number, 0)]
        shares.append(is_perturbed[order[:batch]].mean())
    m = buffer / block
    expected = share * (1 - share) * ((1 / batch - 1 / buffer) + (1 / m) * (1 - 1 / 40))
    n = len(shares)
    low, high = stats.chi2.ppf([1e-3, 1 - 1e-3], n - 1) / (n - 1)
    assert low < np.var(shares, ddof=1) / expected < high


@pytest.mark.parametrize("name", ENCODED)
def test_batches_from_the_file_are_those_from_memory(name, files):
    """To the bit: counts, library sizes, conditions, covariates, targets; in random and full passes."""
    whole, stream = both(files, ENCODED[name])
    assert isinstance(stream.train, StreamedCells)
    assert not isinstance(whole.train, StreamedCells)
    assert (whole.encoding, whole.covariates) == (stream.encoding, stream.covariates)
    assert (whole.genes, whole.screen) == (stream.genes, stream.screen)
    assert len(whole.train) == len(stream.train) > 2 * len(stream.train.counts)
    assert whole.train.counts.dtype == stream.train.counts.dtype == torch.int16
    batches = stream.train.random_batches(16, seed=2)
    pairs = []
    for _ in range(2 * stream.train.plan.n_batches):
        index = next(batches)
        own = whole.train.batch(stream.train.among_all(index))
        pairs.append((own, stream.train.batch(index)))
    passes = [one.train.batches(50) for one in (whole, stream)]
    pairs += zip(*passes, strict=True)
    pairs.append([one.validation.batch(torch.arange(40)) for one in (whole, stream)])
    for expected, found in pairs:
        for part in dataclasses.fields(expected):
            tensors = [getattr(one, part.name) for one in (expected, found)]
            if isinstance(tensors[0], torch.Tensor):
                assert torch.equal(*tensors), part.name
            elif isinstance(tensors[0], tuple):
                assert all(map(torch.equal, *tensors)), part.name
            else:
                assert tensors[0] == tensors[1], part.name
    if whole.features is not None:
        np.testing.assert_array_equal(whole.features.values, stream.features.values)


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_learns_from_the_file_what_it_learns_from_memory(kind, files, in_same_order):
    """To the bit, if cells come in the same order; mask warm-up passes over all cells."""
    whole, stream = both(files, kind=kind)
    from_file = trained(stream)
    in_same_order(stream.train.plan)
    assert_same(trained(whole), from_file)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODED)
def test_every_encoding_learns_from_the_file_what_it_learns_from_memory(name, files, in_same_order):
    whole, stream = both(files, ENCODED[name])
    from_file = trained(stream)
    in_same_order(stream.train.plan)
    assert_same(trained(whole), from_file)


def test_passes_over_the_file_give_moments_and_effects_of_all_cells(files):
    whole, stream = both(files)
    rescale = stream.build().standardise.rescale
    for expected, found in zip(whole.train.moments(rescale), stream.train.moments(rescale)):  # noqa: B905
        assert torch.equal(expected, found)
    model = stream.build()
    expected, found = (estimate_effects(model, one.train) for one in (whole, stream))
    assert torch.equal(expected.effects, found.effects)
    assert torch.equal(expected.standard_error, found.standard_error)


@pytest.mark.parametrize("seeds", [(0,), SEEDS])
@pytest.mark.parametrize("at", [16, 3, 13])
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(
    seeds, at, files, tmp_path, monkeypatch
):
    """To the bit; by an error at an evaluation, or by a signal in the middle of a buffer."""
    one = task(files, "stream", seeds=seeds)
    whole = trained(one, seeds)
    evaluate, step = Trainer.evaluate, Trainer.take_step

    def interrupt(self, validation):
        evaluate(self, validation)
        if self.step == at:
            raise KeyboardInterrupt

    def take_step(self):
        if self.step == at and at % HOW["validate_every"]:
            signal.raise_signal(signal.SIGTERM)
        step(self)

    state_file = one.state_file(tmp_path / "state.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "evaluate", interrupt)
        patched.setattr(Trainer, "take_step", take_step)
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            trained(task(files, "stream", seeds=seeds), seeds, state_file)
    assert 0 < state_file.load()[1]["step"] < HOW["max_steps"]
    assert_same(whole, trained(task(files, "stream", seeds=seeds), seeds, state_file))


def test_a_state_of_cells_in_memory_is_not_resumed_from_the_file(files, tmp_path):
    """Nor are states of other buffers; `auto` is what it comes to on this machine."""
    whole, stream = both(files)
    auto, other = task(files, "auto"), task(files, "stream", stream_buffer=64)
    assert len({one.fingerprint for one in (whole, stream, auto, other)}) == 4
    assert [one.training.cells for one in (whole, stream, auto)] == ["device", "stream", "device"]
    trained(whole, state_file=whole.state_file(tmp_path / "state"))
    assert whole.state_file(tmp_path / "state").load() is not None
    assert stream.state_file(tmp_path / "state").load() is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_seeds_together_end_as_they_would_alone(kind, files):
    """Up to rounding, which Adam blows up where a gradient is next to nothing."""
    alone = [trained(task(files, "stream", kind=kind), [seed])[0] for seed in SEEDS]
    together = trained(task(files, "stream", kind=kind, seeds=SEEDS), SEEDS)
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one.history, other.history, rtol=1e-3)
        for name, weights in one.last_weights.items():
            error = (other.last_weights[name] - weights).norm()
            assert error <= 1e-2 * weights.norm() + 1e-3, name
    assert (alone[0].history["elbo"] != alone[1].history["elbo"]).all()


def test_a_batch_that_diverges_is_described_as_in_memory(files, in_same_order):
    whole, stream = both(files)
    described = describe_batch(stream.train, 16, 0, 13)
    in_same_order(stream.train.plan)
    replayed = whole.train.random_batches(16, 0)
    replayed.skip(12)
    cells = next(replayed)
    counts = whole.train.counts[cells]
    cell, gene = divmod(int(counts.argmax()), counts.shape[1])
    assert f"largest count {counts.max()} (training cell {cells[cell]}, gene {gene})" in described


def test_validation_cells_are_sampled_where_there_are_many(files, monkeypatch):
    """The same ones in every training."""
    every = task(files, "device").validation
    monkeypatch.setattr(streamed, "VALIDATION_CELLS", 20)
    small, again = (task(files, "stream", seeds=(seed,)).validation for seed in (0, 7))
    assert len(small) == 20 < len(every)
    assert torch.equal(small.counts, again.counts)
    rows = {tuple(row) for row in every.counts.tolist()}
    assert {tuple(row) for row in small.counts.tolist()} <= rows


def test_the_buffer_is_limited_in_memory_and_has_cells_enough_to_mix(files):
    assert default_buffer(500, torch.uint8) == 48 * 2**20 // 500
    assert default_buffer(500, torch.int16) == 48 * 2**20 // 1000
    assert default_buffer(8000, torch.uint8) == 32_768
    assert task(files, "stream", stream_buffer=None).train.plan.n_buffers == 1
    assert task(files, "stream", stream_buffer=1).train.plan.batches_of_buffer == 1


def test_a_buffer_that_was_read_is_free_before_the_next_is_read():
    earlier, alive = [], []

    def read(number):
        alive.append([one() is not None for one in earlier])
        tensors = [torch.full((5,), number)]
        earlier.append(weakref.ref(tensors[0]))
        return tensors

    window, own = streamed._Window(read), torch.zeros(6, dtype=torch.long)
    for number in range(3):
        window.fill(number, [own])
        assert own.tolist() == [*[number] * 5, 0]
        window.ahead[number + 1].result()
    assert alive == [[], [False], [False] * 2, [False] * 3]


def test_a_file_in_compressed_blocks_is_read_alike(screen, files, tmp_path):
    """As sources of h5ad files write it, with more than one block of validation."""
    other = tmp_path / "screen.h5ad"
    blocks = ((np.arange(a, min(a + 90, screen.n_obs)), screen.X[a : a + 90]) for a in range(0, screen.n_obs, 90))  # fmt: skip
    names = screen.obs_names, list(screen.var_names)
    write_screen_in_blocks(blocks, Design.of_screen(screen), *names, "{}", other)
    settings = {"covariates": []}
    first, second = (task((path, files[1]), "stream", settings) for path in (files[0], other))
    for one, two in zip(first.train.batches(64), second.train.batches(64), strict=True):
        assert torch.equal(one.counts, two.counts)


def test_measurements_that_are_no_counts_are_streamed_too(screen, tmp_path):
    other, path = screen.copy(), tmp_path / "screen.h5ad"
    other.X.data = np.minimum(other.X.data, 255)
    assert type_of_counts_of(other, path) is torch.uint8
    other.X.data[3] = 300
    assert type_of_counts_of(other, path) is torch.int16
    other.X.data[3] = 70_000
    assert type_of_counts_of(other, path) is torch.int32
    other.X = other.X.astype(np.float32) * 0.3
    assert type_of_counts_of(other, path) is torch.float32
    split = tmp_path / "split.tsv"
    write_tsv(split_table(other, split_cells(Design.of_screen(other), Split("random", 0))), split)
    one = task((path, split), "stream", {"likelihood": "normal"})
    expected = task((path, split), "device", {"likelihood": "normal"})
    found = torch.cat([batch.counts for batch in one.train.batches(100)])
    assert torch.equal(expected.train.counts, found)


def type_of_counts_of(screen, path):
    write_source_screen(screen, "{}", path)
    return type_of_counts(path)


def test_auto_streams_what_takes_more_than_half_of_the_memory(files, monkeypatch, caplog):
    whole = task(files, "device").train
    size = whole.counts.nbytes
    for available, chosen in ((2 * size, "device"), (2 * size - 2, "stream"), (10**12, "device")):
        monkeypatch.setattr(streamed, "available_memory", lambda _, free=available: free)
        with caplog.at_level("INFO"):
            assert task(files, "auto").training.cells == chosen
        said = "streamed from the file" if chosen == "stream" else "in memory"
        assert said in caplog.text
        caplog.clear()
    assert 0 < available_memory(CPU) < 2**50


def test_a_limit_of_the_group_around_a_process_is_a_limit_of_its_own(tmp_path, monkeypatch):
    own = tmp_path / "job" / "step"
    own.mkdir(parents=True)
    (tmp_path / "job" / "memory.max").write_text("4096\n")
    (own / "memory.max").write_text("max\n")
    monkeypatch.setattr("pathlib.Path.read_text", of_group(tmp_path, "0::/job/step\n"))
    assert list(_limits_of_group(tmp_path)) == [4096]


def of_group(folder, name):
    def read_text(path, **_):
        return name if str(path) == "/proc/self/cgroup" else path.read_bytes().decode()

    return read_text


@pytest.mark.parametrize(("key", "value"), [("cells", "disk"), ("cells", None), ("stream_buffer", 0), ("stream_buffer", 2.5)])  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(InputError, match=f"training.{key}"):
        validated(training={key: value})


def test_what_to_lower_when_memory_does_not_suffice(files):
    whole, stream = both(files)
    for one, remedy in ((whole, "training.cells to 'stream'"), (stream, "stream_buffer (now 96")):
        with pytest.raises(InputError) as error, one.explain_out_of_memory(CPU):
            raise MemoryError
        assert remedy in str(error.value)


def test_a_file_that_cannot_be_read_is_named(files, tmp_path):
    path = tmp_path / "screen.h5ad"
    path.write_bytes(files[0].read_bytes())
    one = task((path, files[1]), "stream")
    with h5py.File(path) as file:
        offset = file["X/data"].id.get_chunk_info(0).byte_offset
        size = file["X/data"].id.get_chunk_info(0).size
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * size)
    with pytest.raises(InputError, match=r"screen\.h5ad: cannot be read"):
        trained(one)
    path.unlink()
    with pytest.raises(InputError, match=r"screen\.h5ad"):
        next(one.train.random_batches(16, seed=1))


@pytest.mark.parametrize("change", ["counts", "cells", "genes"])
def test_a_file_that_is_replaced_while_it_is_streamed_is_refused(change, screen, files, tmp_path):
    path = tmp_path / "screen.h5ad"
    path.write_bytes(files[0].read_bytes())
    one = task((path, files[1]), "stream")
    next(one.train.random_batches(16, seed=1))
    other = {"cells": screen[:-9], "genes": screen[:, :-9]}.get(change, screen).copy()
    other.X.data[0] += 1
    write_source_screen(other, "{}", path)
    with pytest.raises(InputError, match=r"screen\.h5ad: the screen was replaced"):
        next(one.train.batches(50))
    with pytest.raises(InputError, match=r"screen\.h5ad: the screen was replaced"):
        trained(one)


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr", "obs/library_size"])
def test_an_array_that_was_cut_short_is_named(name, files, tmp_path):
    path = tmp_path / "screen.h5ad"
    path.write_bytes(files[0].read_bytes())
    with h5py.File(path, "r+") as file:
        values = file[name][:-3]
        del file[name]
        file[name] = values
    with pytest.raises(InputError, match=rf"screen\.h5ad: '{name}' has {len(values):,} values"):
        task((path, files[1]), "stream")


def test_a_split_of_another_screen_and_labels_that_disagree_are_refused(screen, files, tmp_path):
    split = tmp_path / "split.tsv"
    table = read_table(files[1])
    write_tsv(table.iloc[::-1], split)
    with pytest.raises(InputError, match=r"split\.tsv"):
        task((files[0], split), "stream")
    other = screen.copy()
    other.obs["perturbation"] = other.obs["perturbation"].astype(str)
    other.obs.iloc[7, other.obs.columns.get_loc("perturbation")] = "control"
    other.obs.iloc[8, other.obs.columns.get_loc("perturbation")] = other.uns["perturbations"][0]
    write_source_screen(other, "{}", tmp_path / "screen.h5ad")
    for cells in ("stream", "device"):
        with pytest.raises(InputError, match=r"row [78]"):
            task((tmp_path / "screen.h5ad", files[1]), cells)


def test_what_is_missing_is_named_as_in_memory(files, tmp_path):
    said = []
    split = tmp_path / "split.tsv"
    table = read_table(files[1])
    for settings, part in ({"covariates": ["depht"]}, "test"), ({}, "train"), ({}, "val"):
        write_tsv(table.assign(split=table["split"].replace(part, "unused")), split)
        for cells in ("device", "stream"):
            with pytest.raises(InputError) as error:
                trained(task((files[0], split), cells, settings))
            said.append(str(error.value))
    assert said[::2] == said[1::2]
    assert len(set(said)) == 3


@pytest.mark.parametrize(("cells", "n_seeds"), [("device", 1), ("stream", 2)])
@pytest.mark.parametrize("name", ENCODED)
def test_a_recorded_step_reads_cells_however_they_are_encoded(
    name, cells, n_seeds, files, monkeypatch
):
    """To the bit, with buffers that are filled again and priors that are updated."""
    seeds = SEEDS[:1] if "shuffled" in name else SEEDS[:n_seeds]
    monkeypatch.setattr(step_module, "STEPS_BETWEEN_UPDATES", 3)
    recorded, found = [], []

    def record(function):
        recorded.append(record_function(function))
        return recorded[-1]

    monkeypatch.setattr(step_module, "record_function", record)
    for steps in (HOW["max_steps"], HOW["max_steps"] + 1):
        monkeypatch.setattr(step_module, "STEPS_WORTH_RECORDING", steps)
        found.append(trained(task(files, cells, ENCODED[name], seeds=seeds), seeds))
        assert len(recorded) == 1
    assert_same(*found)


def test_a_step_on_a_device_reads_the_buffer_in_place():
    """On a device that holds no values; as a CUDA graph needs it, the memory stays the same."""
    with torch.device("meta"):
        models = [build_model({"kind": "sams_vae", **SMALL}, 20, 5) for _ in SEEDS]
        design = torch.zeros(6, 5)
    plan = BufferPlan(1000, 10, 100)
    file = streamed.CellFile("", np.arange(1000), np.zeros(1000, np.uint8), np.zeros(1000, np.float32), pd.DataFrame(index=range(1000)), streamed.Covariates(), torch.uint8, 20, "")  # fmt: skip
    cells = StreamedCells.of_file(file, plan, design)
    assert len(cells) == 1000
    assert cells.counts.shape == (100, 20)
    memory = cells.counts
    content = torch.zeros(100, 20, dtype=torch.uint8), torch.zeros(100), torch.zeros(100)
    cells.window.read = lambda number: list(content)
    cells.fill(0)
    cells.fill(3)
    assert cells.counts is memory
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.optim, "Adam", lambda *_, **__: None)  # looks at its step size once
        step = TrainingStep(models, cells, Training(batch_size=10))
    loss, terms = step.loss()
    loss.backward()
    assert {term.device.type for term in [loss, *terms.values()]} == {"meta"}
    assert step.masks.kl_weight == 1.0
    assert cells.batch(step.positions[0]).n_cells == 1000
