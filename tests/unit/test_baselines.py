"""The baselines and the ceiling that are more than a mean."""

import logging
import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from samsvae.biology.quality import screen_effects
from samsvae.evaluation.baselines import additive, bilinear, mean_effect, training_mean
from samsvae.evaluation.effects import long_table
from samsvae.evaluation.expression import log_expression
from samsvae.evaluation.observed import half_of_held_out, observed_effects, split_half
from samsvae.evaluation.scores import effect_scores
from samsvae.evaluation.strata import Strata
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import build_screen
from samsvae.screen.design import Design
from samsvae.screen.splits import held_out_cells

GENES = [f"G{i:02d}" for i in range(30)]
LABELS = ["control", *GENES[:12], "G00+G01", "G02+G03", "G04+G05", "G06+ABSENT", "ABSENT"]
CELLS_EACH = 20


def screen_of_responding_genes(seed=0, strength=2.0, labels=tuple(LABELS)):
    """Every target lowers itself and moves other genes in a way that similar targets share."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(3, len(GENES)))
    rates = {}
    for label in labels:
        shift = np.zeros(len(GENES))
        for part in label.split("+"):
            if part in GENES:
                shift += strength * direction[GENES.index(part) % 3]
                shift[GENES.index(part)] -= 1
        rates[label] = 40 * np.exp(0.3 * shift)
    names = np.repeat(list(labels), CELLS_EACH)
    counts = rng.poisson(np.array([rates[name] for name in names])) + 1
    cells = [f"c{i}" for i in range(len(names))]
    return build_screen(sparse.csr_matrix(counts), Design.of_labels(names), cells, GENES)


@pytest.fixture(scope="module")
def screen():
    return screen_of_responding_genes()


@pytest.fixture(scope="module")
def train(screen):
    return ~screen.obs["perturbation"].isin(["G04+G05", "G11"]).to_numpy()


def by_scikit_learn(screen, train, names, n_components, ridge):
    """The same model by two ridge regressions, one for each side."""
    logs = pd.DataFrame(log_expression(screen)[train].toarray(), columns=GENES)
    profiles = logs.groupby(screen.obs["perturbation"].to_numpy()[train].astype(str)).mean()
    scores = pd.DataFrame(
        PCA(n_components, svd_solver="full").fit_transform(profiles.T), index=GENES
    )
    effects = profiles - profiles.loc["control"]
    known = [name for name in effects.index if "ABSENT" not in name]
    effects = effects.loc[known]

    def representation(name):
        return scores.reindex(name.split("+")).fillna(0).sum().to_numpy()

    of_genes = Ridge(alpha=ridge, fit_intercept=False).fit(scores, (effects - effects.mean()).T)
    of_both = Ridge(alpha=ridge, fit_intercept=False)
    of_both.fit([representation(name) for name in known], of_genes.coef_)
    found = of_both.predict([representation(name) for name in names]) @ scores.to_numpy().T
    return found + effects.mean().to_numpy()


@pytest.mark.parametrize(("n_components", "ridge"), [(10, 0.1), (3, 5.0)])
def test_bilinear_equals_two_ridge_regressions(screen, train, n_components, ridge):
    names = ["G00", "G11", "G04+G05", "G06+ABSENT", "ABSENT"]
    found = bilinear(screen, train, names, n_components=n_components, ridge=ridge)
    expected = by_scikit_learn(screen, train, names, n_components, ridge)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_bilinear_sums_the_parts_of_a_pair_and_knows_nothing_of_an_unmeasured_target(
    screen, train, caplog
):
    caplog.set_level(logging.INFO)
    names = ["G04", "G05", "G04+G05", "G06", "G06+ABSENT", "ABSENT", "G04@0.5"]
    found = dict(zip(names, bilinear(screen, train, names), strict=True))
    mean = found["ABSENT"]
    np.testing.assert_allclose(found["G04+G05"] - mean, found["G04"] + found["G05"] - 2 * mean)
    np.testing.assert_allclose(found["G06+ABSENT"], found["G06"])
    np.testing.assert_allclose(2 * (found["G04@0.5"] - mean), found["G04"] - mean)
    assert re.search(r"\b1 target gene.*\bABSENT\b", caplog.text)
    assert "ABSENT" in caplog.text


def test_bilinear_of_infinite_penalty_is_the_mean_effect(screen, train):
    found = bilinear(screen, train, ["G00", "G11"], ridge=1e12)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_bilinear_refuses_a_screen_whose_targets_are_not_measured(tiny_screen):
    everything = np.ones(tiny_screen.n_obs, dtype=bool)
    with pytest.raises(InputError, match=r"only 0 training perturbation.*60 measured genes"):
        bilinear(tiny_screen, everything, ["TARGET01"])


def test_the_training_mean_is_the_effect_of_a_perturbations_own_training_cells(screen, train):
    names = ["G00", "G00+G01", "G04+G05", "G11"]
    found = dict(zip(names, training_mean(screen, train, names), strict=True))
    logs = pd.DataFrame(log_expression(screen).toarray(), columns=GENES)[train]
    means = logs.groupby(screen.obs["perturbation"].astype(str).to_numpy()[train]).mean()
    for name in names[:2]:
        np.testing.assert_allclose(found[name], means.loc[name] - means.loc["control"])
    others = mean_effect(screen, train, names)[0]  # of those without training cells
    np.testing.assert_allclose(found["G04+G05"], others)
    np.testing.assert_allclose(found["G11"], others)
    np.testing.assert_allclose(found["G00"], additive(screen, train, ["G00"])[0])
    assert np.abs(found["G00+G01"] - additive(screen, train, ["G00+G01"])[0]).max() > 0.1


@pytest.fixture(scope="module")
def parts(screen):
    """Half of each perturbation's cells are tested; of one a single cell, of another none."""
    found = pd.Series(np.tile(["train", "test"], screen.n_obs // 2), index=screen.obs_names)
    labels = screen.obs["perturbation"].astype(str)
    for name, number in (("G10", 1), ("G11", 0)):
        own = labels.index[labels == name]
        found[own] = "train"
        found[own[:number]] = "test"
    return found


def test_half_of_the_held_out_cells_is_chosen_anew_by_each_seed(screen, parts):
    labels = screen.obs["perturbation"].astype(str)
    half = half_of_held_out(labels, parts, seed=0)
    held_out = held_out_cells(labels, parts)
    assert not (half & ~held_out).any()
    chosen, there = labels[half].value_counts(), labels[held_out].value_counts()
    for name in set(labels):
        assert chosen.get(name, 0) == there.get(name, 0) // 2
    np.testing.assert_array_equal(half, half_of_held_out(labels, parts, seed=0))
    assert (half != half_of_held_out(labels, parts, seed=1)).any()


def test_the_ceiling_is_measured_by_one_half_and_judged_by_the_other(screen, parts):
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    half = half_of_held_out(screen.obs["perturbation"].astype(str), parts, seed=3)
    ceiling = split_half(screen, parts, 3, "{}")
    logs = log_expression(screen).toarray()

    def effect(cells):
        own = logs[cells & (labels == "G07")].mean(0)
        return own - logs[cells & (labels == "control")].mean(0)

    row = ceiling.obs_names.get_loc("G07")
    test = (parts == "test").to_numpy()
    np.testing.assert_allclose(ceiling.X[row], effect(half), atol=1e-5)
    np.testing.assert_allclose(ceiling.layers["ate_held_out"][row], effect(test & ~half), atol=1e-5)
    np.testing.assert_allclose(ceiling.layers["ate"][row], effect(~half), atol=1e-5)


def test_the_ceiling_is_scored_by_the_cells_that_it_has_not_seen(screen, parts):
    observed = observed_effects(screen, parts, "{}")
    ceiling = split_half(screen, parts, 0, "{}")
    scores = effect_scores(observed, ceiling[::-1], 5, 0.05)
    row = ceiling["G07"]
    expected = np.corrcoef(row.X.ravel(), row.layers["ate_held_out"].ravel())[0, 1]
    assert scores.by_perturbation.loc["G07", "pearson_held_out"] == pytest.approx(
        expected, abs=1e-5
    )
    assert scores.differential_expression.set_index("perturbation").loc["G07", "n_held_out"] == 5
    strata = Strata.of(screen.obs["perturbation"], list(observed.obs_names))
    whole = screen_effects(screen, log_expression(screen), strata, strata, 0.05, "{}")
    table = long_table(observed, whole, {"ceiling": ceiling, "observed": observed}, 0.05)
    seen = table[(table["model"] == "ceiling") & (table["perturbation"] == "G07")]
    np.testing.assert_array_equal(seen["observed"], row.layers["ate"].ravel())


def test_a_perturbation_that_cannot_be_halved_counts_nowhere(screen, parts):
    observed = observed_effects(screen, parts, "{}")
    ceiling = split_half(screen, parts, 0, "{}")
    assert np.isfinite(ceiling.X).all()
    scores = effect_scores(observed, ceiling, 5, 0.05).by_perturbation
    for name in ("G10", "G11"):
        assert scores.loc[name].isna().all()
    assert scores.drop(["G10", "G11"])[["pearson", "pearson_held_out"]].notna().all(axis=None)


def test_the_ceiling_needs_control_cells_to_halve(screen, parts):
    without = parts.mask((screen.obs["perturbation"] == "control").to_numpy(), "train")
    with pytest.raises(InputError, match=r"'split_half' .*'control'"):
        split_half(screen, without, 0, "{}")


def test_of_cells_alike_the_halves_predict_each_other_no_better_than_chance():
    """Without any effect, the correlation of two independent halves is 0 on average."""
    correlations = []
    for seed in range(6):
        null = screen_of_responding_genes(
            seed, strength=0.0, labels=("control", *LABELS[-1:], "N1", "N2", "N3")
        )
        test = pd.Series("test", index=null.obs_names)
        ceiling = split_half(null, test, seed, "{}")
        correlations += [
            np.corrcoef(x, y)[0, 1]
            for x, y in zip(ceiling.X, ceiling.layers["ate_held_out"], strict=True)
        ]
    assert np.mean(correlations) == pytest.approx(0, abs=0.25)
