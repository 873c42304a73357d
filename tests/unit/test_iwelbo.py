import math

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyro import poutine
from pyro.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal
from torch import nn

from samsvae.inference import cells as cells_module
from samsvae.inference import iwelbo as iwelbo_module
from samsvae.inference.cells import Cells, CellStream
from samsvae.inference.encoding import Encoding
from samsvae.inference.iwelbo import (
    MeanBounds,
    StreamedBounds,
    fewer_particles,
    iwelbo,
    log_weights_in_batches,
)
from samsvae.inference.noise import CellNoise, NoiseSpec
from samsvae.inference.objective import elbo, traces
from samsvae.inference.posterior import BasalCells, draw_shifts
from samsvae.models import MODELS, build_model
from samsvae.models.cpa_vae import CpaVae
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import write_tsv
from samsvae.screen.canonical import write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.splits import TEST, TRAIN, VAL, split_table

CPU = torch.device("cpu")
N_GAUSSIAN = 200  # cells of the linear-Gaussian case
CASES = [(kind, "negative_binomial") for kind in MODELS]
CASES += [("sams_vae", "poisson"), ("cpa_vae", "normal"), ("svae_plus", "normal")]


class LinearLikelihood(nn.Module):
    def __init__(self, loadings, noise):
        super().__init__()
        self.loadings, self.noise = loadings, noise

    def forward(self, latent, library_size, own=()):
        mean = latent @ self.loadings.T
        return Normal(mean, torch.full_like(mean, self.noise)).to_event(1)


class LinearGaussian(CpaVae):
    """x ~ N(W (z + shift), noise^2): the exact posterior and marginal are known."""

    def __init__(self, loadings, noise):
        super().__init__(len(loadings), 1, n_latent=loadings.shape[1], n_hidden=2)
        self.loadings, self.noise = loadings, noise
        self.embedding.log_scale.data.fill_(-30.0)
        self.standardise = nn.Identity()
        self.likelihood = LinearLikelihood(loadings, noise)
        self.widening = 1.0

    def cell_guide(self, batch, shift):
        precision = torch.eye(self.n_latent) + self.loadings.T @ self.loadings / self.noise**2
        covariance = torch.linalg.inv(precision)
        location = batch.counts @ self.loadings / self.noise**2 @ covariance
        scale = covariance.diagonal().sqrt() * self.widening
        pyro.sample("basal", Normal(location, scale).to_event(1))


def linear_gaussian(widening):
    torch.manual_seed(0)
    loadings = torch.linalg.qr(torch.randn(6, 2))[0] * 1.5  # orthogonal, so that q can be exact
    model = LinearGaussian(loadings, noise=0.7)
    model.widening = widening
    counts = torch.randint(0, 4, (N_GAUSSIAN, 6))
    cells = Cells(
        counts,
        torch.ones(N_GAUSSIAN),
        torch.zeros(1, 1),
        torch.zeros(N_GAUSSIAN, dtype=torch.long),
    )
    covariance = loadings @ loadings.T + 0.49 * torch.eye(6)
    exact = torch.distributions.MultivariateNormal(torch.zeros(6), covariance).log_prob(
        counts.float()
    )
    return model, cells, exact.numpy()


def test_with_the_exact_posterior_every_weight_is_the_marginal():
    model, cells, exact = linear_gaussian(widening=1.0)
    bound, error = iwelbo(model, cells, particles=3, seed=0)
    np.testing.assert_allclose(bound, exact, atol=1e-3)
    assert (error < 1e-3).all()


def mean_bounds(model, cells, particles, seed):
    means = MeanBounds(particles)
    with torch.no_grad():
        pyro.set_rng_seed(seed)
        shifts = draw_shifts(model, cells.design, particles)
    for _, weights in log_weights_in_batches(model, cells, shifts, seed):
        means.add(weights)
    return means.table().set_index("particles")


def test_elbo_below_iwelbo_below_marginal_and_converging():
    model, cells, exact = linear_gaussian(widening=1.6)
    bound, error = iwelbo(model, cells, 3000, seed=1)
    np.testing.assert_allclose(bound, exact, atol=0.2)
    assert (np.abs(bound - exact) < 4 * error + 1e-3).mean() > 0.98
    curve = mean_bounds(model, cells, 3000, seed=1)
    assert list(curve.index) == [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 3000]
    assert curve["iwelbo"].iloc[-1] == pytest.approx(bound.mean())
    rises, noise = curve["iwelbo"].diff()[1:], curve["standard_error"][1:]
    assert (rises > -3 * noise).all()
    assert (rises[:4] > 0).all()
    assert (curve["iwelbo"] < exact.mean() + 4 * curve["standard_error"]).all()
    pyro.set_rng_seed(0)
    with torch.no_grad():
        lower = elbo(model, cells.batch(torch.arange(N_GAUSSIAN)), 500)
    local = float(lower.reconstruction - lower.kl_local["basal"]) / N_GAUSSIAN
    gap = 2 * (0.5 * (1.6**2 - 1) - math.log(1.6))  # KL of the widened from the exact posterior
    assert local == pytest.approx(exact.mean() - gap, abs=0.05)
    error = curve["standard_error"][1]
    assert curve["iwelbo"][1] == pytest.approx(exact.mean() - gap, abs=4 * error)


@pytest.mark.parametrize("particles", [1, 5, 40])
def test_errors_of_the_mean_bound_are_its_scatter_over_seeds(particles):
    """From groups (1 and 5 of 50 particles) and by the delta method (all 40)."""
    model, cells, _ = linear_gaussian(widening=1.3)
    of_all = 40 if particles == 40 else 50
    rows = [mean_bounds(model, cells, of_all, seed).loc[particles] for seed in range(40)]
    scatter = np.std([row["iwelbo"] for row in rows], ddof=1)
    claimed = np.sqrt(np.mean([row["standard_error"] ** 2 for row in rows]))
    assert 0.65 < claimed / scatter < 1.5  # of forty, the scatter itself is known to 11 %


def any_model(kind, likelihood, screen):
    """A model with random weights, far enough from its start to have effects, and its cells."""
    torch.manual_seed(0)
    combinations = "unique" if kind == "svae_plus" else "additive"
    encoding = Encoding.of(Design.of_screen(screen), combinations)
    settings = {"kind": kind, "likelihood": likelihood, "n_latent": 4, "n_hidden": 16}
    model = build_model(settings, screen.n_vars, len(encoding.names))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval(), encoding


@torch.no_grad()
@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_weights_are_those_of_model_and_guide(kind, likelihood, tiny_screen):
    """Scored site by site by Pyro, at the same draws of global variables and of noise."""
    model, encoding = any_model(kind, likelihood, tiny_screen)
    keep = np.arange(tiny_screen.n_obs) % 40 == 0
    cells = Cells.of(tiny_screen, keep, encoding, CPU)
    pyro.set_rng_seed(5)
    with pyro.plate("particles", 7, dim=-2):
        globals_ = poutine.trace(model.global_guide).get_trace()
    shared = {n: site["value"] for n, site in globals_.nodes.items() if site["type"] == "sample"}
    shared.pop("perturbations", None)
    pyro.set_rng_seed(5)
    shifts = draw_shifts(model, cells.design, 7).expand(7, -1, -1)
    [(_, ours)] = log_weights_in_batches(model, cells, shifts, seed=5)
    batch = cells.batch(torch.arange(len(cells)))

    def both_traces(known):
        conditioned = [poutine.condition(part, data=known) for part in (model.model, model.guide)]
        return traces(*conditioned, batch, 7)

    guide_trace, _ = both_traces(shared)
    [local] = [name for name in guide_trace.nodes if name in ("basal", "latent")]
    base = guide_trace.nodes[local]["fn"].base_dist
    spec = NoiseSpec(False, base.batch_shape, 1)
    shared[local] = base.loc + base.scale * CellNoise(batch.counts, 7, seed=5)(local, spec)
    guide_trace, model_trace = both_traces(shared)
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
    p, q = model_trace.nodes, guide_trace.nodes
    expected = sum(
        (p["counts"]["unscaled_log_prob"], p[local]["unscaled_log_prob"]),
        -q[local]["unscaled_log_prob"],
    )
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5, atol=2e-3)


class MixtureGaussian(LinearGaussian):
    """The same with a learnt Gaussian-mixture prior of the basal state; nothing else is written."""

    def __init__(self, loadings, noise, locations, probabilities):
        super().__init__(loadings, noise)
        self.locations = nn.Parameter(locations)
        self.log_odds = nn.Parameter(probabilities.log())

    def cell_prior(self, shift):
        components = Normal(self.locations, torch.tensor(0.5)).to_event(1)
        mixture = MixtureSameFamily(Categorical(logits=self.log_odds), components)
        return pyro.sample("basal", mixture) + shift


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_a_learnt_mixture_prior_needs_no_code_outside_its_family(shift):
    """The marginal is a mixture of Normals: its bound, effects and samples are exact."""
    torch.manual_seed(1)
    loadings = torch.linalg.qr(torch.randn(6, 2))[0] * 1.5
    locations, probabilities = torch.tensor([[-2.0, 0.5], [1.0, 1.0]]), torch.tensor([0.3, 0.7])
    model = MixtureGaussian(loadings, 0.7, locations, probabilities)
    model.embedding.location.data.fill_(shift)
    model.widening = 2.0
    cells = Cells(
        torch.randint(-3, 4, (N_GAUSSIAN, 6)),
        torch.ones(N_GAUSSIAN),
        torch.ones(1, 1),
        torch.zeros(N_GAUSSIAN, dtype=torch.long),
    )
    marginal = MixtureSameFamily(
        Categorical(probabilities),
        MultivariateNormal(
            (locations + shift) @ loadings.T,
            0.25 * loadings @ loadings.T + 0.49 * torch.eye(6),
        ),
    )
    exact = marginal.log_prob(cells.counts.float()).numpy()
    bound, error = iwelbo(model, cells, 5000, seed=1)
    assert (error < 0.5).all()
    assert (np.abs(bound - exact) < 4 * error + 2e-3).mean() > 0.97
    assert abs((bound - exact).mean()) < 0.02
    # samples of its prior predictive have the mixture's mean
    with torch.no_grad():
        control = torch.zeros(20_000, 1, 2)
        basal = BasalCells.from_prior(model, control, 1)
        given = basal.decoder_input(control + shift)[:, 0]
    expected = probabilities @ locations + shift
    torch.testing.assert_close(given.mean(0), expected, rtol=0, atol=0.05)


def test_bounds_depend_neither_on_batches_nor_on_the_order_of_cells(tiny_screen, monkeypatch):
    model, encoding = any_model("sams_vae", "negative_binomial", tiny_screen)
    keep = np.arange(tiny_screen.n_obs) % 4 == 0
    bound, error = iwelbo(model, Cells.of(tiny_screen, keep, encoding, CPU), 20, seed=3)
    order = np.random.default_rng(0).permutation(tiny_screen.n_obs)
    shuffled = Cells.of(tiny_screen[order].copy(), keep[order], encoding, CPU)
    monkeypatch.setattr(iwelbo_module, "ROWS_AT_A_TIME", 70)
    apart, _ = iwelbo(model, shuffled, 20, seed=3)
    same_cell = np.searchsorted(np.flatnonzero(keep), order[keep[order]])
    np.testing.assert_allclose(apart, bound[same_cell], rtol=1e-5)
    other, _ = iwelbo(model, shuffled, 20, seed=4)
    assert np.median(np.abs(other - apart)) > 0.1 * np.median(error)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_weights_do_not_depend_on_what_shares_a_batch(kind, likelihood, tiny_screen, monkeypatch):
    """In batches of one condition, their shifts are computed once; as here, in none."""
    model, encoding = any_model(kind, likelihood, tiny_screen)
    keep = np.arange(tiny_screen.n_obs) % 3 == 0
    cells = Cells.of(tiny_screen, keep, encoding, CPU)
    shifts = draw_shifts(model, cells.design, 6).expand(6, -1, -1)
    monkeypatch.setattr(iwelbo_module, "ROWS_AT_A_TIME", 6 * 40)
    found = []
    for smallest in (0, 2):
        monkeypatch.setattr(iwelbo_module, "SMALLEST_PART", smallest)
        weights = np.full((6, len(cells)), np.nan)
        for here, part in log_weights_in_batches(model, cells, shifts, seed=2):
            assert (len(cells.condition[here].unique()) == 1) == (smallest == 0)
            weights[:, here] = part
        found.append(weights)
    np.testing.assert_allclose(*found, rtol=1e-5, atol=2e-3)


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 25))
def test_every_cell_is_in_one_batch_and_frequent_conditions_have_their_own(condition, size):
    condition = torch.tensor(condition, dtype=torch.long)
    batches = list(iwelbo_module._by_condition(condition, size))
    assert sorted(torch.cat([*batches, condition[:0]]).tolist()) == list(range(len(condition)))
    assert all(0 < len(batch) <= size for batch in batches)
    for batch in batches:
        frequent = torch.bincount(condition)[condition[batch]] >= size / 4
        assert not frequent.any() or len(condition[batch].unique()) == 1


@pytest.fixture
def files(tiny_screen, tmp_path, monkeypatch):
    """A screen and a split of it, to be read 37 cells at a time; cells are named by numbers."""
    screen = tiny_screen.copy()
    screen.obs_names = [f"{number:05d}" for number in range(screen.n_obs)]
    parts = np.random.default_rng(0).choice([TRAIN, VAL, TEST], screen.n_obs)
    parts[100:200] = TRAIN  # whole blocks without a cell to stream
    screen_file, split_file = tmp_path / "screen.h5ad", tmp_path / "split.tsv"
    write_source_screen(screen, "{}", screen_file)
    write_tsv(split_table(screen, parts), split_file)
    monkeypatch.setattr(cells_module, "LARGEST_STREAMED_BLOCK", 37 * screen.n_vars)
    return screen, parts, screen_file, split_file


def test_streamed_cells_are_the_cells(files):
    screen, parts, *paths = files
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    keep = np.isin(parts, [VAL, TEST])
    whole = Cells.of(screen, keep, encoding, CPU)
    stream = CellStream.of(*paths, [VAL, TEST], encoding, CPU)
    tables, blocks = zip(*stream.blocks(), strict=True)
    assert stream.n_cells == len(whole) == sum(len(cells) for cells in blocks)
    assert max(len(cells) for cells in blocks) <= 37
    expected = split_table(screen[keep], parts[keep])
    pd.testing.assert_frame_equal(pd.concat(tables, ignore_index=True), expected, check_dtype=False)
    for name in ("counts", "library_size"):
        together = torch.cat([getattr(cells, name) for cells in blocks])
        assert torch.equal(together, getattr(whole, name).to(together.dtype))
    design = torch.cat([cells.design[cells.condition] for cells in blocks])
    assert torch.equal(design, whole.design[whole.condition])


def test_streamed_bounds_are_those_of_the_cells(files):
    screen, parts, *paths = files
    model, encoding = any_model("sams_vae", "negative_binomial", screen)
    stream = CellStream.of(*paths, [VAL, TEST], encoding, CPU)
    bounds = StreamedBounds(model, stream, 20, seed=3)
    table = pd.concat(bounds.tables(), ignore_index=True)
    keep = np.isin(parts, [VAL, TEST])
    assert list(table["cell"]) == list(screen.obs_names[keep])
    bound, error = iwelbo(model, Cells.of(screen, keep, encoding, CPU), 20, seed=3)
    np.testing.assert_allclose(table["iwelbo"], bound, rtol=1e-5)
    np.testing.assert_allclose(table["standard_error"], error, rtol=1e-2, atol=1e-3)
    means = bounds.by_particles().set_index(["scope", "particles"])["iwelbo"]
    for part, of_part in table.groupby("split"):
        assert means[part, 20] == pytest.approx(of_part["iwelbo"].mean())


def test_a_split_of_another_screen_is_refused(files):
    screen, parts, screen_file, split_file = files
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    table = split_table(screen, parts)
    for other in (table[:-1], table[::-1], pd.concat([table, table[:1]])):
        write_tsv(other, split_file)
        with pytest.raises(InputError, match="not those of the screen"):
            CellStream.of(screen_file, split_file, [VAL, TEST], encoding, CPU)


def test_cells_without_one_to_evaluate_have_no_bound(files):
    screen, _, *paths = files
    model, encoding = any_model("cpa_vae", "negative_binomial", screen)
    bounds = StreamedBounds(model, CellStream.of(*paths, ["unused"], encoding, CPU), 5, seed=0)
    [table] = bounds.tables()
    assert len(table) == len(bounds.by_particles()) == 0
    assert {"cell", "split", "iwelbo"} < set(table.columns)


def test_numbers_of_particles_are_round_and_end_with_all():
    assert fewer_particles(1) == [1]
    assert fewer_particles(100) == [1, 2, 5, 10, 25, 50, 100]
    assert fewer_particles(60) == [1, 2, 5, 10, 25, 50, 60]


@given(
    arrays(float, st.tuples(st.integers(1, 12), st.integers(1, 4)), elements=st.floats(-2e3, 2e3))
)
def test_mean_bounds_are_averages_over_groups_of_particles(weights):
    """Against logaddexp, however far apart weights are; more particles never lower the bound."""
    bounds = MeanBounds(len(weights))
    for cell in weights.T:
        bounds.add(cell[:, None])
        bounds.add(cell[:, None][:, :0])  # a block of cells may hold none of a part
    table = bounds.table()
    for q, mean in zip(table["particles"], table["iwelbo"], strict=True):
        groups = weights[: len(weights) // q * q].reshape(-1, q, weights.shape[1])
        expected = (np.logaddexp.reduce(groups, axis=1) - np.log(q)).mean()
        np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e-9)
    q = table["particles"]
    told = (len(weights) // q > 1) | (q >= 10)
    assert (np.isfinite(table["standard_error"]) == told).all()
    assert (table["n_cells"] == weights.shape[1]).all()
