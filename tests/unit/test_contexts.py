"""Effects in contexts, such as cell lines: splits, models, baselines and scores."""

import dataclasses

import numpy as np
import pandas as pd
import pyro
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from samsvae.biology.enrichment import Enrichment
from samsvae.biology.factors import Annotation, factor_tables
from samsvae.config.configuration import validate
from samsvae.config.experiments import Split, splits
from samsvae.evaluation.baselines import additive, from_other_contexts, other_contexts
from samsvae.evaluation.effects import (
    as_compared,
    effects_in_context,
    effects_table,
    in_context,
    read_effects,
    write_effects,
)
from samsvae.evaluation.expression import log_expression
from samsvae.evaluation.observed import observed_effects
from samsvae.evaluation.predicted import in_contexts, predicted_effects
from samsvae.evaluation.samples import counterfactual_cells, sample_cells
from samsvae.evaluation.scores import context_scores
from samsvae.inference.cells import Cells, CellStream
from samsvae.inference.checkpoint import TrainedModel, load_model, save_model
from samsvae.inference.encoding import Covariates, Encoding, sizes_of
from samsvae.inference.iwelbo import StreamedBounds, iwelbo
from samsvae.inference.mask_warmup import estimate_effects, start_masks_at_evidence
from samsvae.inference.posterior import BasalCells
from samsvae.models import build_model
from samsvae.report.sentences import predicted_contexts_in_words
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import write_tsv
from samsvae.screen.canonical import perturbations, write_source_screen
from samsvae.screen.design import Design
from samsvae.screen.splits import (
    TEST,
    TRAIN,
    VAL,
    held_out_pairs,
    split_contexts,
    split_screen,
    split_table,
)
from samsvae.sources.simulated import simulate
from tests.conftest import TINY

CPU = torch.device("cpu")
SETTINGS = {
    "kind": "sams_vae", "combinations": "additive", "covariates": None, "context_effects": True,
    "n_latent": 4, "n_hidden": 8, "embedding": "mean_field", "on_target": False,
    "on_target_prior_scale": 2.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded():
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)


@pytest.fixture(scope="module")
def screen():
    """A screen with three contexts and two batches; some targets act in the first context alone."""
    return simulate(dataclasses.replace(TINY, n_contexts=3, n_batches=2, context_specific=0.25))[0]


def trained_on(screen, parts=None, **changes):
    """An untrained model of the screen with effects in contexts, and its cells."""
    settings = SETTINGS | changes
    trained = np.ones(screen.n_obs, dtype=bool) if parts is None else parts == TRAIN
    contexts = screen.obs["context"].astype(object).where(trained)
    encoding = Encoding.of(Design.of_screen(screen), "additive", (), contexts)
    covariates = Covariates.of(screen.obs, None)
    model = build_model(settings, screen.n_vars, *sizes_of(encoding, covariates)).eval()
    one = TrainedModel(model, settings, list(screen.var_names), encoding, covariates)
    every = np.ones(screen.n_obs, dtype=bool)
    return one, Cells.of(screen, every, encoding, CPU, covariates)


def with_certain_effects(trained):
    """Open every mask, and draw embeddings that the guide is certain of."""
    with torch.no_grad():
        trained.model.mask.logits.fill_(30)
        trained.model.embedding.location.normal_()
        trained.model.embedding.log_scale.fill_(-20)
    return trained.model.embedding.location.detach().numpy()


def no_effects(observed):
    """A prediction of no effect."""
    names, genes = list(observed.obs_names), list(observed.var_names)
    return effects_table(np.zeros(observed.shape), names, genes, {}, "{}")


# Splits


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.4, 0.75, 0.9, 1.0]))
def test_every_perturbation_and_every_context_is_trained_on(seed, fraction):
    pairs = sorted((f"P{t}", f"C{c}") for t in range(7) for c in range(3) if (t, c) != (2, 1))
    held = held_out_pairs(pairs, fraction, seed)
    assert held <= set(pairs)
    left = set(pairs) - held
    assert {t for t, _ in left} == {f"P{t}" for t in range(7)}
    assert {c for _, c in left} == {f"C{c}" for c in range(3)}
    assert len(held) <= len(pairs) - round(fraction * len(pairs))
    if fraction >= 0.75:
        assert len(held) == len(pairs) - round(fraction * len(pairs))
    assert held <= held_out_pairs(pairs, 0.0, seed)


def test_cells_of_unseen_contexts_are_tested(screen):
    parts = split_screen(screen, Split("unseen_contexts", 1, 0.7))
    obs = screen.obs.assign(part=parts)
    by_pair = obs.groupby(["perturbation", "context"], observed=True)["part"].agg(set)
    control = by_pair.loc["control"]
    assert all(own == {TRAIN, VAL} for own in control)
    tested = by_pair.drop("control", level=0).map(lambda own: own == {TEST})
    assert tested.sum() == len(tested) - round(0.7 * len(tested))
    assert not by_pair.drop("control", level=0)[~tested].map(lambda own: TEST in own).any()
    again = split_screen(screen, Split("unseen_contexts", 1, 0.7))
    np.testing.assert_array_equal(parts, again)
    assert (parts != split_screen(screen, Split("unseen_contexts", 2, 0.7))).any()


def test_all_perturbed_cells_of_a_context_are_left_out(screen):
    parts = split_screen(screen, Split("leave_context_out", 0, context="context2"))
    is_control = (screen.obs["perturbation"] == "control").to_numpy()
    inside = (screen.obs["context"] == "context2").to_numpy()
    np.testing.assert_array_equal(parts == TEST, inside & ~is_control)
    assert set(parts[inside & is_control]) == {TRAIN, VAL}
    obs = screen.obs[parts != TEST].assign(is_val=parts[parts != TEST] == VAL)
    by_pair = obs.groupby(["perturbation", "context"], observed=True)["is_val"].agg(["sum", "size"])
    np.testing.assert_array_equal(by_pair["sum"], (0.2 * by_pair["size"]).round())


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (Split("leave_context_out", 0, context="K562"), ["'K562'", "'context1'"]),
        (Split("unseen_contexts", 0, 1.0), ["unseen_contexts", "36"]),
        (Split("leave_context_out", 0, context="bare"), ["'bare'", "control"]),
        (Split("leave_context_out", 0, context="calm"), ["'calm'", "perturbed"]),
    ],
)
def test_contexts_that_cannot_be_held_out_are_refused(screen, split, said):
    if split.context in ("bare", "calm"):
        is_control = screen.obs["perturbation"] == "control"
        where = np.where(is_control == (split.context == "calm"), split.context, "other")
        screen = screen.copy()
        screen.obs["context"] = pd.Categorical(where)
    with pytest.raises(InputError) as refused:
        split_screen(screen, split)
    for words in said:
        assert words in str(refused.value)


def test_pairs_in_a_context_without_control_cells_are_not_held_out(screen):
    bare = screen.copy()
    is_control = (bare.obs["perturbation"] == "control").to_numpy()
    of_cell = bare.obs["context"].astype(str).to_numpy()
    bare.obs["context"] = pd.Categorical(
        np.where(is_control & (of_cell == "context3"), "context1", of_cell)
    )
    parts = split_screen(bare, Split("unseen_contexts", 0, 0.4))
    assert set(bare.obs["context"][parts == TEST]) == {"context1", "context2"}


def test_every_pair_that_is_kept_has_training_cells():
    """One cell in the only context that is left must not be a validation cell."""
    labels = ["control"] * 40 + ["A"] * 31 + ["B"] * 40
    contexts = ["x", "y"] * 20 + ["x"] * 30 + ["y"] + ["x", "y"] * 20
    design, contexts = Design.of_labels(labels), np.array(contexts)
    for seed in range(20):
        parts = split_contexts(design, contexts, Split("unseen_contexts", seed, 0.5))
        trained = {(label, of) for label, of in zip(np.array(labels)[parts == TRAIN], contexts[parts == TRAIN], strict=True)}  # fmt: skip
        assert {label for label, _ in trained} == {"control", "A", "B"}
        assert {("control", "x"), ("control", "y")} <= trained


def test_a_context_with_few_held_out_controls_is_compared_with_all_of_its_own(screen):
    """Not with those of other contexts, whose expression differs."""
    split = Split("unseen_contexts", 0, 0.7)
    parts = pd.Series(split_screen(screen, split), index=screen.obs_names)
    n_val = ((screen.obs["perturbation"] == "control") & (parts == VAL)).groupby(
        [screen.obs["context"], screen.obs["batch"]], observed=True
    )
    assert n_val.sum().max() < 10
    observed = as_compared(observed_effects(screen, parts, "{}", min_controls=10), None)
    expression = log_expression(screen).toarray()
    obs = screen.obs
    [(name, context), *_] = sorted(set(zip(obs["perturbation"][parts == TEST], obs["context"][parts == TEST], strict=True)))  # fmt: skip
    total, number = 0, 0
    for batch in ("batch1", "batch2"):
        inside = (obs["context"] == context) & (obs["batch"] == batch)
        control = (inside & (obs["perturbation"] == "control")).to_numpy()
        own = (inside & (obs["perturbation"] == name)).to_numpy()
        if control.sum() >= 10:
            difference = expression[own].mean(axis=0) - expression[control].mean(axis=0)
            total, number = total + own.sum() * difference, number + own.sum()
    found = observed.to_df(in_context("ate_held_out", context)).loc[name]
    np.testing.assert_allclose(found, total / number, atol=1e-5)
    scores = context_scores(observed, no_effects(observed))
    assert (~scores["trained"].astype(bool)).sum() == 11


def test_names_of_contexts_may_have_slashes(screen, tmp_path):
    named = screen.copy()
    named.obs["context"] = named.obs["context"].cat.rename_categories(
        {"context1": "K562 / day 3", "context2": "50%", "context3": "50%2F"}
    )
    parts = pd.Series(split_screen(named, Split("unseen_contexts", 0, 0.7)), index=named.obs_names)
    observed = observed_effects(named, parts, "{}", min_controls=1)
    write_effects(observed, tmp_path / "observed.h5ad")
    again = read_effects(tmp_path / "observed.h5ad")
    assert list(again.uns["contexts"]) == ["50%", "50%2F", "K562 / day 3"]
    for context in again.uns["contexts"]:
        one, other = (effects_in_context(each, context) for each in (observed, again))
        np.testing.assert_array_equal(one.layers["ate_held_out"], other.layers["ate_held_out"])
        assert list(other.obs) == ["n_train", "n_held_out"]
    scores = context_scores(again, no_effects(again))
    assert set(scores["context"]) == set(again.uns["contexts"])


def test_two_effects_of_one_name_are_refused():
    design = Design.of_labels(["A", "A in B", "control"] * 8)
    contexts = pd.Series(["C", "B in C"] * 12)
    with pytest.raises(InputError, match="A in B in C"):
        Encoding.of(design, "additive", (), contexts)


def test_a_single_context_cannot_be_split(screen):
    one = screen[screen.obs["context"] == "context1"].copy()
    with pytest.raises(InputError, match="context1"):
        split_screen(one, Split("unseen_contexts", 0, 0.5))


def test_splits_are_named_by_context():
    experiment = {"split": {"kind": "leave_context_out", "seeds": [0], "contexts": ["K 562", "B"]}}
    assert list(splits(experiment)) == [
        "leave_context_out-K_562-seed0", "leave_context_out-B-seed0",
    ]  # fmt: skip


SCREENS = {
    "lines": {"source": "simulated", "n_contexts": 2},
    "one": {"source": "simulated"},
    "many": {
        "source": "simulated", "n_contexts": 2, "unit": "perturbation", "guides_per_cell": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"screen": "one", "split": {"kind": "unseen_contexts", "fractions": [0.5]}}, ["unseen_contexts", "screens.one"]),
        ({"screen": "one", "models": ["in_contexts"]}, ["'in_contexts'", "context_column"]),
        ({"screen": "one", "models": ["others"]}, ["'others'", "context_column"]),
        ({"split": {"kind": "unseen_contexts"}}, ["'fractions' is missing"]),
        ({"split": {"kind": "leave_context_out"}}, ["'contexts' is missing"]),
        ({"split": {"kind": "random", "contexts": ["a"]}}, ["split.contexts", "'random'"]),
        ({"split": {"kind": "leave_context_out", "contexts": ["a b", "a-b"]}}, ["'a b'", "'a-b'"]),
        ({"screen": "one", "models": ["chosen"]}, ["'chosen--context_effects-True'", "context_column"]),
        ({"models": ["wide"]}, ["wide--dispersion-gene-batch.dispersion", "'poisson'"]),
        ({"split": {"kind": "leave_context_out", "contexts": ["x" * 300]}}, ["too long"]),
        ({"models": ["spread"]}, ["models.spread.dispersion", "'normal'"]),
        ({"models": ["blind"]}, ["models.blind.covariates", "'context'"]),
        ({"screen": "many", "split": {"kind": "unseen_contexts", "fractions": [0.5]}}, ["screens.many.unit"]),
        ({"screen": "many", "models": ["others"]}, ["screens.many.unit"]),
    ],
)  # fmt: skip
def test_faults_of_contexts_are_told_before_anything_runs(change, said):
    with pytest.raises(InputError) as refused:
        validate(configured(change))
    for words in said:
        assert words in str(refused.value)


def configured(change):
    models = {
        "in_contexts": {"kind": "sams_vae", "context_effects": True},
        "blind": {"kind": "sams_vae", "context_effects": True, "covariates": ["batch"]},
        "others": {"kind": "other_contexts"},
        "chosen": {"kind": "sams_vae", "grid": {"context_effects": [True, False]}},
        "wide": {
            "kind": "cpa_vae",
            "likelihood": "poisson",
            "grid": {"dispersion": ["gene", "gene-batch"]},
        },
        "spread": {"kind": "cpa_vae", "dispersion": "gene-batch", "likelihood": "normal"},
        "additive": {"kind": "additive"},
    }
    own = {"screen": "lines", "split": {"kind": "random"}, "models": ["additive"], **change}
    return {"screens": SCREENS, "models": models, "experiments": {"own": own}}


def test_contexts_are_allowed_where_a_screen_has_them():
    split = {"kind": "leave_context_out", "contexts": ["context1", "context2"]}
    chosen = {"split": split, "models": ["in_contexts", "others"]}
    validate(configured(chosen))
    validate(configured({"screen": "many", "models": ["in_contexts"], "split": split}))


# Models


def test_a_cell_has_the_shared_effect_and_that_of_its_context(screen):
    trained, cells = trained_on(screen)
    encoding = trained.encoding
    names, contexts = encoding.names, ["context1", "context2", "context3"]
    assert encoding.in_contexts == tuple((t, c) for t in range(8) for c in contexts)
    assert encoding.effects[:9] == (*names, f"{names[0]} in context1")
    assert encoding.shared_effects == [t for t in range(8) for _ in contexts]
    design = cells.design[cells.condition].numpy()
    dosage = screen.obsm["dosage"].toarray()
    np.testing.assert_array_equal(design[:, :8], dosage)
    for column, (t, context) in enumerate(encoding.in_contexts, start=8):
        inside = (screen.obs["context"] == context).to_numpy()
        np.testing.assert_array_equal(design[:, column], dosage[:, t] * inside)


def test_contexts_without_training_cells_have_no_effect_of_their_own(screen):
    labels = screen.obs["perturbation"].astype(str)
    parts = np.full(screen.n_obs, TRAIN, dtype=object)
    has_first = labels.str.contains("TARGET01").to_numpy()
    has_second = labels.str.contains("TARGET02").to_numpy()
    of_context = screen.obs["context"].to_numpy()
    parts[has_first & (of_context == "context3")] = TEST
    parts[has_second & (of_context != "context1")] = TEST
    trained, _ = trained_on(screen, parts)
    own = [context for t, context in trained.encoding.in_contexts if t == 0]
    assert own == ["context1", "context2"]
    assert not [context for t, context in trained.encoding.in_contexts if t == 1]
    row = trained.encoding.design(["TARGET01"], ["context3"])
    assert row.sum() == 1


def test_effects_in_a_context_are_shared_ones_and_its_own(screen):
    """The latent shift, read from counterfactual cells with common random numbers."""
    trained, _ = trained_on(screen)
    embedding = with_certain_effects(trained)
    few = screen[:40].copy()
    given = {
        name: counterfactual_cells(trained, few, name, seed=0).obsm["latent"]
        for name in ("control", "TARGET03")
    }
    column = {pair: 8 + at for at, pair in enumerate(trained.encoding.in_contexts)}
    expected = embedding[2] + embedding[[column[2, c] for c in few.obs["context"]]]
    np.testing.assert_allclose(given["TARGET03"] - given["control"], expected, atol=1e-4)
    received = counterfactual_cells(trained, few, None, seed=0)
    assert list(received.obs["perturbation"]) == list(few.obs["perturbation"])


def test_sampled_cells_are_of_all_contexts(screen):
    trained, _ = trained_on(screen, n_latent=2)
    with_certain_effects(trained)
    with torch.no_grad():  # contexts far apart
        trained.model.embedding.location.zero_()
        for at, (t, context) in enumerate(trained.encoding.in_contexts):
            if t == 0:
                trained.model.embedding.location[8 + at] = 100.0 * int(context[-1])
    latent = sample_cells(trained, ["TARGET01"], 300, 500.0, seed=0).obsm["latent"][:, 0]
    found = pd.Series((latent / 100).round()).value_counts(normalize=True).sort_index()
    expected = screen.obs["context"].value_counts(normalize=True).sort_index()
    np.testing.assert_array_equal(found.index, [1, 2, 3])
    np.testing.assert_allclose(found, expected, atol=0.09)


def test_pooled_effects_are_the_mean_of_those_in_contexts(screen):
    trained, _ = trained_on(screen)
    with_certain_effects(trained)
    names = perturbations(screen)[:3]
    weights = np.random.default_rng(0).dirichlet(np.ones(6), size=3)
    how = trained, names, 3000, 0, "integrated"
    pooled, error = predicted_effects(*how, weights)
    of_context = np.array(trained.covariates.contexts)
    total = 0
    for context, own in in_contexts(trained, weights).items():
        np.testing.assert_allclose(own.sum(axis=1), 1)
        assert (own[:, of_context != context] == 0).all()
        share = weights[:, of_context == context].sum(axis=1)
        total = total + share[:, None] * predicted_effects(*how, own)[0]
    assert (np.abs(total - pooled) < 8 * error + 2e-3).all()


def test_a_saved_model_has_its_effects_in_contexts(screen, tmp_path):
    trained, _ = trained_on(screen)
    save_model(trained, "{}", tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert again.encoding == trained.encoding
    assert again.model.shared_effects == trained.model.shared_effects
    names = perturbations(screen)[:2]
    effects = [predicted_effects(one, names, 10, seed=0)[0] for one in (trained, again)]
    np.testing.assert_array_equal(*effects)


def test_streamed_bounds_know_the_context_of_a_cell(screen, tmp_path):
    trained, _ = trained_on(screen)
    with_certain_effects(trained)
    parts = np.random.default_rng(0).choice([TRAIN, VAL, TEST], screen.n_obs)
    paths = tmp_path / "screen.h5ad", tmp_path / "split.tsv"
    write_source_screen(screen, "{}", paths[0])
    write_tsv(split_table(screen, parts), paths[1])
    own = trained.encoding, CPU, trained.covariates
    bounds = StreamedBounds(trained.model, CellStream.of(*paths, [TEST], *own), 20, seed=3)
    table = pd.concat(bounds.tables(), ignore_index=True)
    cells = Cells.of(screen, parts == TEST, *own)
    expected, _ = iwelbo(trained.model, cells, 20, seed=3)
    np.testing.assert_allclose(table["iwelbo"], expected, rtol=1e-5)
    shared = cells.design.clone()
    shared[:, 8:] = 0
    without, _ = iwelbo(trained.model, dataclasses.replace(cells, design=shared), 20, seed=3)
    assert np.abs(without - expected).max() > 0.01


def test_members_of_groups_are_counted_among_perturbations_not_effects_in_contexts(screen):
    trained, _ = trained_on(screen)
    with_certain_effects(trained)
    with torch.no_grad():
        trained.model.mask.logits.fill_(-30)
        trained.model.mask.logits[:3, 0] = 30
        trained.model.mask.logits[8:, 1] = 30
    names = list(trained.encoding.names)
    known = Annotation({"GROUP": names[:3]}, {}, {}, frozenset())
    groups = factor_tables(trained, known, Enrichment(), 10, 2, seed=0).groups
    [row] = groups[groups["dimension"] == 0].to_dict("records")
    assert row["pvalue"] == pytest.approx(stats.hypergeom.sf(2, 8, 3, 3))


def test_effects_in_contexts_are_differences_from_their_median(screen):
    """Least squares within contexts by statsmodels; contexts are weighted by their precision."""
    trained, cells = trained_on(screen)
    found = estimate_effects(trained.model, cells)
    design = cells.design[cells.condition].double().numpy()[:, 8:]
    others = cells.covariates[0].double().numpy()
    none = torch.zeros(1, len(cells.design), 4)
    batch = cells.batch(torch.arange(len(cells)))
    states = BasalCells.from_guide(trained.model, batch, none, at_means=True)
    states = states.latent_state(torch.zeros(1, 1, 4))[0].detach().double().numpy()
    for axis in range(4):
        # a level of each covariate is the reference
        everything = sm.add_constant(np.column_stack([design, others[:, [0, 2, 3]]]))
        fitted = sm.OLS(states[:, axis], everything).fit()
        within = fitted.params[1:25].reshape(8, 3)
        weight = 1 / fitted.bse[1:25].reshape(8, 3) ** 2
        for row in range(8):
            order = np.argsort(within[row])
            share = np.cumsum(weight[row, order]) / weight[row].sum()
            median = within[row, order[np.argmax(share >= 0.5)]]
            assert float(found.effects[row, axis]) == pytest.approx(median, rel=1e-3, abs=1e-6)
            own = found.effects[8 + 3 * row : 11 + 3 * row, axis].numpy()
            np.testing.assert_allclose(own, within[row] - median, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_masks_open_in_the_one_context_in_which_a_target_acts():
    """From the states of an encoder that is not trained: strong effects, many cells."""
    opened = {"specific": 0, "elsewhere": 0, "shared": 0}
    for seed in range(2):
        settings = dataclasses.replace(
            TINY, seed=seed, n_contexts=4, context_specific=0.5, n_pairs=0, n_controls=2000,
            cells_per_perturbation=400, effect_size=4.0, inert_fraction=0.0,
        )  # fmt: skip
        screen = simulate(settings)[0]
        design, response = screen.obsm["dosage"].toarray(), screen.obsm["true_response"]
        second = (screen.obs["context"] == "context2").to_numpy()
        is_specific = design[second].any(axis=0) & ~response[second].any(axis=0)
        assert is_specific.sum() == 4
        trained, cells = trained_on(screen, context_mask_prior=0.01)
        start_masks_at_evidence(trained.model, cells)
        is_open = (trained.model.mask.logits > 0).any(dim=1).numpy()
        for at, (t, context) in enumerate(trained.encoding.in_contexts):
            kind = "specific" if is_specific[t] and context == "context1" else "elsewhere"
            opened[kind] += is_open[8 + at]
        opened["shared"] += (is_open[:8] == ~is_specific).sum()
    assert opened["specific"] >= 7  # of 8
    assert opened["elsewhere"] <= 4  # of 56
    assert opened["shared"] >= 15  # of 16


# Baselines and scores


def test_the_other_contexts_predict_by_their_mean(screen):
    """By hand: differences of means within context and batch, weighted by perturbed cells."""
    train = np.random.default_rng(1).random(screen.n_obs) < 0.7
    expression, obs = log_expression(screen).toarray(), screen.obs
    names = perturbations(screen)
    predicted = from_other_contexts(screen, train, names, 1)
    found = predicted["context2"]
    for row in (0, 5, len(names) - 1):
        means = []
        for context in ("context1", "context3"):
            total, number = 0, 0
            for batch in ("batch1", "batch2"):
                own = train & ((obs["context"] == context) & (obs["batch"] == batch)).to_numpy()
                cells = expression[own & (obs["perturbation"] == names[row]).to_numpy()]
                control = expression[own & (obs["perturbation"] == "control").to_numpy()]
                if len(cells):
                    total = total + len(cells) * (cells.mean(axis=0) - control.mean(axis=0))
                    number += len(cells)
            means.append(total / number)
        np.testing.assert_allclose(found[row], np.mean(means, axis=0), atol=1e-6)
    pooled = other_contexts(screen, train, names, 1)
    number = pd.crosstab(obs["perturbation"][~train], obs["context"][~train]).loc[names]
    weight = number.div(number.sum(axis=1), axis=0)
    expected = sum(weight[[c]].to_numpy() * predicted[c] for c in weight)
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_a_perturbation_without_cells_elsewhere_is_predicted_without_effect(screen):
    train = (screen.obs["context"] == "context1").to_numpy()
    found = from_other_contexts(screen, train, perturbations(screen), 1)
    assert (found["context1"] == 0).all()
    assert (found["context2"] != 0).any()


def test_baselines_compare_within_batches_as_observed_effects_do(screen):
    """Perturbed cells of one context: differences between contexts are no effects."""
    is_control = (screen.obs["perturbation"] == "control").to_numpy()
    train = is_control | (screen.obs["context"] == "context1").to_numpy()
    names = [name for name in perturbations(screen) if "+" not in name]
    within = additive(screen, train, names, 1)
    inside = train & (screen.obs["context"] == "context1").to_numpy()
    expected = additive(screen[inside].copy(), np.ones(inside.sum(), bool), names, 1)
    np.testing.assert_allclose(within, expected, atol=1e-6)
    plain = additive(screen, train, names, None)
    assert np.abs(plain - within).max() > 0.3


def test_effects_are_scored_in_each_context(screen):
    parts = pd.Series(
        split_screen(screen, Split("unseen_contexts", 0, 0.7)), index=screen.obs_names
    )
    observed = observed_effects(screen, parts, "{}", min_controls=1)
    names, genes = perturbations(screen), list(screen.var_names)
    assert list(observed.uns["contexts"]) == ["context1", "context2", "context3"]
    truth = observed.layers[in_context("ate_held_out", "context2")]
    guess = np.nan_to_num(truth) + 0.1
    table = effects_table(
        np.zeros(truth.shape), names, genes, {in_context("effect", "context2"): guess}, "{}"
    )
    scores = context_scores(observed, table).set_index(["perturbation", "context"])
    second = scores.xs("context2", level="context")
    np.testing.assert_allclose(second["rmse_held_out"], 0.1, atol=1e-5)
    np.testing.assert_allclose(second["pearson_held_out"], 1, atol=1e-5)
    first = scores.xs("context1", level="context")
    own = observed.to_df(in_context("ate_held_out", "context1")).loc[first.index]
    np.testing.assert_allclose(first["rmse_held_out"], np.sqrt((own**2).mean(axis=1)), rtol=1e-5)
    obs = screen.obs.assign(part=parts)
    trained = obs[obs["part"] == TRAIN].groupby(["perturbation", "context"], observed=True).size()
    assert all(row["trained"] == (pair in trained.index) for pair, row in scores.iterrows())
    assert (~scores["trained"].astype(bool)).sum() == 11
    # of a tested pair all cells are held out
    pair = scores.index[~scores["trained"].astype(bool)][0]
    is_own = (screen.obs["perturbation"] == pair[0]) & (screen.obs["context"] == pair[1])
    assert scores.loc[pair, "n_held_out"] == is_own.sum()


def test_without_layers_effects_are_the_same_in_all_contexts(screen):
    names, genes = perturbations(screen), list(screen.var_names)
    values = np.random.default_rng(0).normal(size=(len(names), len(genes)))
    table = effects_table(values, names, genes, {}, "{}")
    one = effects_in_context(table, "context3")
    np.testing.assert_allclose(one.X, values, rtol=1e-6)


def test_a_screen_without_contexts_has_no_scores_in_contexts(tiny_screen):
    parts = pd.Series(split_screen(tiny_screen, Split("random", 0)), index=tiny_screen.obs_names)
    observed = observed_effects(tiny_screen, parts, "{}")
    assert not [layer for layer in observed.layers if " in " in layer]
    assert context_scores(observed, observed[:, ::-1]).empty


def test_the_report_says_what_is_predicted_in_contexts():
    scores = pd.DataFrame(
        {
            "model": ["sams_vae", "sams_vae", "additive", "additive"],
            "perturbation": "A", "context": ["K562", "RPE1"] * 2,
            "trained": [True, False] * 2, "explained": [0.9, 0.5, 0.8, np.nan],
        }
    )  # fmt: skip
    seen, unseen = predicted_contexts_in_words(scores)
    assert "SAMS-VAE 90 %, additive 80 %" in seen
    assert "(effects beyond noise: 1)" in seen
    assert "SAMS-VAE 50 %" in unseen
    assert "additive" not in unseen
    assert predicted_contexts_in_words(scores[:0]) == []
