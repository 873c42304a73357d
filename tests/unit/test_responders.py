"""Responders: the statistics by closed forms, the scores by independent bounds."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from samsvae.biology import responders as responders_module
from samsvae.biology.applied import CellPass
from samsvae.biology.responders import (
    Evidence,
    Groups,
    ModelledCells,
    NullScores,
    Responders,
    fraction_of_responders,
    responder_effects,
    responder_probability,
)
from samsvae.evaluation.expression import log_expression
from samsvae.evaluation.strata import Strata, strata_of_cells, stratified_effects
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Covariates, Encoding, sizes_of
from samsvae.inference.iwelbo import iwelbo, log_weights_in_batches
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import build_model
from samsvae.screen.canonical import perturbations
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL
from samsvae.sources.simulated import Simulation, simulate
from tests.conftest import TINY

CPU = torch.device("cpu")
SMALL = {"kind": "sams_vae", "combinations": "additive", "n_latent": 4, "n_hidden": 8}
SPREADS = [1.5, 2.5, 5.0]


def even(scores):
    return NullScores(scores, np.full(len(scores), 1 / len(scores)))


def scores_of_a_true_model(spread, fraction, n_cells, n_null, seed):
    """Log likelihood ratios of two normal distributions: responders, cells, null cells."""
    rng = np.random.default_rng(seed)
    responds = rng.random(n_cells) < fraction
    scores = spread * rng.normal(size=n_cells) + spread**2 * np.where(responds, 0.5, -0.5)
    return responds, scores, spread * rng.normal(size=n_null) - spread**2 / 2


def test_weighted_quantiles_are_those_of_repeated_scores():
    rng = np.random.default_rng(0)
    scores, times = rng.normal(size=200), rng.integers(1, 6, 200)
    weighted = NullScores(scores, times / times.sum())
    repeated = np.repeat(scores, times)
    assert weighted.median == pytest.approx(np.median(repeated), abs=0.02)
    quartiles = np.quantile(repeated, [0.25, 0.75])
    assert weighted.spread == pytest.approx(np.diff(quartiles)[0] / 1.349, rel=0.03)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.7, 1.0])
def test_the_fraction_is_that_of_the_mixture(spread, fraction):
    _, scores, null = scores_of_a_true_model(spread, fraction, 20_000, 20_000, seed=1)
    found, low, high = fraction_of_responders(scores, even(null))
    # responders below the null's median are not counted
    expected = fraction * (1 - 2 * stats.norm.sf(spread))
    assert found == pytest.approx(expected, abs=0.03)
    assert low <= found <= high
    assert high - low < 0.1


def test_the_interval_holds_the_expected_fraction():
    inside = []
    for seed in range(60):
        _, scores, null = scores_of_a_true_model(3.0, 0.6, 150, 300, seed)
        _, low, high = fraction_of_responders(scores, even(null), seed)
        inside.append(low <= 0.6 * (1 - 2 * stats.norm.sf(3.0)) <= high)
    assert sum(inside) >= stats.binom.ppf(0.001, 60, 0.95)


def test_overlap_is_the_part_of_responders_below_the_median():
    for spread in SPREADS:
        responds, scores, null = scores_of_a_true_model(spread, 0.5, 50_000, 50_000, seed=2)
        below = (scores[responds] < np.median(null)).mean()
        assert even(null).overlap == pytest.approx(below, abs=0.01)


@pytest.mark.parametrize(("n_cells", "n_null", "spread"), [(9, 99, 3), (99, 9, 3), (99, 99, 0.9)])
def test_a_fraction_that_cannot_be_known_is_unknown(n_cells, n_null, spread):
    _, scores, null = scores_of_a_true_model(spread, 0.5, n_cells, n_null, seed=3)
    assert np.isnan(fraction_of_responders(scores, even(null))).all()
    assert np.isnan(responder_probability(scores, even(null), np.nan)).all()


@pytest.mark.parametrize("spread", SPREADS)
def test_probabilities_are_those_of_the_true_mixture(spread):
    fraction = 0.6
    responds, scores, null = scores_of_a_true_model(spread, fraction, 5000, 5000, seed=4)
    found = responder_probability(scores, even(null), fraction)
    odds = fraction / (1 - fraction) * np.exp(scores)
    assert np.abs(found - odds / (1 + odds)).mean() < 0.04
    assert found.mean() == pytest.approx(fraction, abs=0.05)
    assert (np.diff(found[np.argsort(scores)]) >= 0).all()
    assert roc_auc_score(responds, found) > roc_auc_score(responds, scores) - 0.02
    assert (responder_probability(scores, even(null), 0.0)[scores < np.median(null)] == 0).all()


def untrained(screen, covariates=None, **settings):
    """A model whose masks are open, and whose effects differ from 0."""
    settings = SMALL | settings
    genes = list(screen.var_names)
    targets = genes if settings.get("on_target") else ()
    encoding = Encoding.of(Design.of_screen(screen), settings["combinations"], targets)
    covariates = Covariates.of(screen.obs, covariates or [])
    torch.manual_seed(0)
    model = build_model(settings, len(genes), *sizes_of(encoding, covariates)).eval()
    if hasattr(model, "mask"):
        model.mask.logits.data.fill_(3.0)
        model.embedding.network.head.bias.data.normal_()
    return TrainedModel(model, settings, genes, encoding, covariates)


def scored(trained, screen, particles=5, seed=0):
    passed = CellPass(trained, screen, particles, seed)
    blocks = list(passed.blocks())
    return np.concatenate([bound for *_, bound in blocks]), passed.responders(), passed


@pytest.mark.parametrize("kind", ["sams_vae", "cpa_vae", "conditional_vae"])
def test_a_score_is_the_difference_of_two_bounds(tiny_screen, kind):
    trained = untrained(tiny_screen, kind=kind)
    bound, found, _ = scored(trained, tiny_screen)
    own = Cells.of(tiny_screen, np.ones(tiny_screen.n_obs, dtype=bool), trained.encoding, CPU)
    np.testing.assert_allclose(bound, iwelbo(trained.model, own, 5, 0)[0], rtol=1e-5)
    as_control = Cells(
        own.counts, own.library_size, torch.zeros_like(own.design[:1]), 0 * own.condition
    )
    without = iwelbo(trained.model, as_control, 5, 0)[0]
    expected = (bound - without)[found.groups.cell]
    np.testing.assert_allclose(found.score, expected, atol=1e-3)
    assert np.abs(found.score).max() > 0.1


def test_null_cells_are_scored_under_the_label_of_the_perturbation(tiny_screen):
    trained = untrained(tiny_screen)
    _, found, passed = scored(trained, tiny_screen)
    evidence = Evidence(trained, 5, 0)
    is_control = (tiny_screen.obs["perturbation"] == CONTROL).to_numpy()
    [(positions, cells)] = ModelledCells(trained, tiny_screen).blocks(is_control)
    np.testing.assert_array_equal(positions, passed.scores.null_cells)
    name = found.groups.names[0]
    number, nowhere = len(positions), [""] * len(positions)
    expected = evidence.under(cells, [{name: 1.0}] * number, nowhere) - evidence(cells)
    weighted = found.null[0]
    kept = np.isin(expected, weighted.scores)
    assert kept.sum() == len(weighted.scores) > 0
    assert weighted.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("moving", [(), (1,), (0, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("on_target", [False, True])
def test_particles_in_which_nothing_moves_weigh_as_those_of_control(
    tiny_screen, moving, on_target, monkeypatch
):
    screen = tiny_screen.copy()
    name = perturbations(screen)[0]
    screen.var_names = [name, *screen.var_names[1:]]
    trained = untrained(screen, on_target=on_target, on_target_prior_scale=2.0)
    evidence = Evidence(trained, 5, seed=0)
    keep = torch.zeros(5)
    keep[list(moving)] = 1
    evidence.draws.effects.mul_(keep[:, None, None])
    if on_target:
        evidence.draws.on_target.mul_(keep[:, None])
    controls = (screen.obs["perturbation"] == CONTROL).to_numpy()
    [(_, cells), *_] = ModelledCells(trained, screen).blocks(controls)
    conditions, contexts = [{name: 1.0}] * len(cells), [""] * len(cells)
    full = evidence.under(cells, conditions, contexts)
    computed = []

    def counted(model, cells, shifts, *rest):
        computed.append(len(shifts))
        return log_weights_in_batches(model, cells, shifts, *rest)

    of_control = evidence.weights(cells)
    monkeypatch.setattr(responders_module, "log_weights_in_batches", counted)
    partial = evidence.under(cells, conditions, contexts, of_control)
    np.testing.assert_allclose(partial, full, rtol=1e-6)
    # the encoder of a model with on-target effects reads other genes of a cell with a target
    assert sum(computed) == (5 if on_target else len(moving))


def test_null_cells_have_the_batches_of_the_perturbed_cells():
    changes = {"n_batches": 2, "n_controls": 200, "cells_per_perturbation": 80}
    screen = simulate(Simulation(**{**vars(TINY), **changes}))[0]
    name = perturbations(screen)[0]
    own = (screen.obs["perturbation"] == name).to_numpy() & (screen.obs["batch"] == "batch2")
    screen = screen[~own.to_numpy()].copy()
    trained = untrained(screen, ["batch"])
    passed = CellPass(trained, screen, 3, 0)
    list(passed.blocks())
    stratum = passed.scores.stratum
    null = passed.scores._weighted(0, np.arange(200.0), passed.scores.null_cells)
    of_null = pd.Series(null.weights).groupby(
        stratum[passed.scores.null_cells[null.scores.astype(int)]]
    )
    cells = stratum[(screen.obs["perturbation"] == name).to_numpy()]
    assert len(cells) > 0
    fractions = pd.Series(cells).value_counts(normalize=True).sort_index()
    pd.testing.assert_series_equal(of_null.sum(), fractions, check_names=False)


def test_a_perturbation_that_changes_nothing_in_the_model_is_unknown(tiny_screen):
    trained = untrained(tiny_screen)
    trained.model.mask.logits.data[0].fill_(-200.0)
    _, found, passed = scored(trained, tiny_screen)
    name = trained.encoding.names[0]
    at = found.groups.names.index(name)
    assert not passed.scores.acts[at]
    assert (found.score[found.groups.cells_of(at)] == 0).all()
    assert np.isnan(found.fraction[at]).all()
    table = found.table(tiny_screen, 5).set_index("perturbation")
    assert table.loc[name, "overlap"] == 0.5
    assert np.isnan(table.loc[name, "responders"])


def test_perturbations_of_many_guides_are_scored_one_by_one():
    changes = {"guides_per_cell": 2.0, "n_pairs": 0, "unit": "perturbation"}
    screen = simulate(Simulation(**{**vars(TINY), **changes}))[0]
    trained = untrained(screen)
    bound, found, _ = scored(trained, screen)
    matrix = screen.obsm["dosage"]
    assert len(found.score) == matrix.nnz
    assert found.groups.names == list(trained.encoding.names)
    cell = int(np.argmax(np.diff(matrix.indptr)))
    [pair] = np.flatnonzero(found.groups.cell == cell)[:1]
    rows = np.zeros((1, len(trained.encoding.names)), dtype=np.float32)
    rows[0, matrix[cell].indices] = 1
    rows[0, found.groups.group[pair]] = 0
    one = np.arange(screen.n_obs) == cell
    own = Cells.of(screen, one, trained.encoding, CPU)
    without = Cells(own.counts, own.library_size, torch.from_numpy(rows), 0 * own.condition)
    expected = bound[cell] - iwelbo(trained.model, without, 5, 0)[0][0]
    assert found.score[pair] == pytest.approx(expected, abs=1e-3)


def test_effects_among_all_cells_are_the_stratified_effects():
    changes = {"n_batches": 3, "guides_per_target": 2}
    screen = simulate(Simulation(**{**vars(TINY), **changes}))[0]
    groups = Groups.of(screen)
    rng = np.random.default_rng(0)
    probability = rng.random(len(groups.cell))
    null = [even(np.zeros(20))] * len(groups.names)
    found = Responders(groups, 0 * probability, null, np.ones((len(null), 3)), probability)
    every, among = responder_effects(screen, found)
    stratum = strata_of_cells(screen, by_batch=True)
    strata = Strata.of(screen.obs["perturbation"], groups.names, stratum)
    expected, _ = stratified_effects(log_expression(screen), strata)
    np.testing.assert_allclose(every, expected, atol=1e-6)
    # by hand, cell after cell
    expression = log_expression(screen).toarray()
    is_control = (screen.obs["perturbation"] == CONTROL).to_numpy()
    means = np.array([expression[is_control & (stratum == s)].mean(axis=0) for s in range(3)])
    pairs = groups.cells_of(2)
    changes = expression[groups.cell[pairs]] - means[stratum[groups.cell[pairs]]]
    by_hand = np.average(changes, axis=0, weights=probability[pairs])
    np.testing.assert_allclose(among[2], by_hand, atol=1e-6)


def test_tables_have_a_row_of_each_perturbation_and_guide():
    screen = simulate(Simulation(**{**vars(TINY), "guides_per_target": 2}))[0]
    _, found, _ = scored(untrained(screen), screen)
    table = found.table(screen, 5)
    pooled = table[table["guide"] == ""]
    assert list(pooled["perturbation"]) == perturbations(screen)
    singles = table[table["guide"].str.count("_g") == 1]
    number = screen.obs["guide"].astype(str).value_counts()
    assert (singles["n_cells"].to_numpy() == number[singles["guide"]].to_numpy()).all()
    shown = found.densities()
    mass = (shown["density"] * (shown["upper"] - shown["lower"])).groupby(
        [shown["perturbation"], shown["kind"]]
    )
    assert mass.sum().between(0.9, 1.0 + 1e-9).all()


@pytest.mark.slow
def test_a_trained_model_finds_the_cells_that_escape():
    changes = {
        "seed": 0, "n_genes": 200, "n_factors": 4, "n_perturbations": 12, "n_pairs": 0,
        "n_controls": 600, "cells_per_perturbation": 150, "escapers": 0.3, "inert_fraction": 0.25,
        "effect_size": 2.5,
    }  # fmt: skip
    screen = simulate(Simulation(**changes))[0]
    settings = SMALL | {"n_latent": 10, "n_hidden": 64, "embedding": "mean_field"}
    encoding = Encoding.of(Design.of_screen(screen), "additive")
    rng = np.random.default_rng(0)
    in_training = rng.random(screen.n_obs) < 0.8
    train, validation = (
        Cells.of(screen, keep, encoding, CPU) for keep in (in_training, ~in_training)
    )
    training = Training(max_steps=700, batch_size=256, learning_rate=3e-3, validate_every=350)
    sizes = screen.n_vars, len(encoding.names)
    [fitted] = fit(lambda: build_model(settings, *sizes), train, validation, training, [0])
    trained = TrainedModel(fitted.model.eval(), settings, list(screen.var_names), encoding)
    _, found, _ = scored(trained, screen, particles=15)
    reached = screen.obsm["true_response"].any(axis=1)
    truth = screen.uns["truth"]
    strength = np.linalg.norm(truth["mask"] * truth["embedding"], axis=1)
    by_name = dict(zip(truth["targets"], strength, strict=True))
    errors, areas = [], []
    for group, name in enumerate(found.groups.names):
        pairs = found.groups.cells_of(group)
        true = reached[found.groups.cell[pairs]]
        if by_name[name] == 0:
            assert np.isnan(found.fraction[group, 0]), name
        elif by_name[name] >= 2.5:
            areas.append(roc_auc_score(true, found.score[pairs]))
            errors.append(found.fraction[group, 0] - true.mean())
    assert len(areas) >= 4
    assert np.mean(areas) >= 0.9
    assert np.abs(errors).max() <= 0.15
    assert abs(np.mean(errors)) <= 0.1
