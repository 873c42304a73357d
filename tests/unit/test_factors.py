"""Latent factors: what each does, who uses it, which groups share it."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from samsvae.biology import factors, similarity
from samsvae.biology.enrichment import Enrichment, factor_enrichment, factor_genes
from samsvae.biology.factors import (
    Annotation,
    factor_groups,
    factor_tables,
    factor_usage,
    group_sharing,
    inferred_masks,
    members_of,
    read_annotation,
    target_genes,
)
from samsvae.biology.similarity import similarity_table
from samsvae.evaluation.predicted import FactorEffects, factor_effects, predicted_effects
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.encoding import Encoding
from samsvae.models import build_model
from samsvae.screen.canonical import write_source_screen
from samsvae.screen.gene_sets import write_gmt

NAMES = ("A", "B", "C", "D")
GENES = [f"g{index}" for index in range(30)]
SHIFTS = {("A", 0): 2.0, ("B", 0): -0.5, ("B", 2): 1.0, ("C", 2): 3.0}


def trained(kind="sams_vae"):
    """A model whose masks and embeddings are as in SHIFTS, all but certain."""
    torch.manual_seed(0)
    settings = {"kind": kind, "n_latent": 3, "n_hidden": 8, "combinations": "additive"}
    if kind == "sams_vae":
        settings |= {"embedding": "mean_field"}
    model = build_model(settings, len(GENES), len(NAMES))
    model.standardise.fit(torch.zeros(len(GENES)), torch.ones(len(GENES)))
    if kind == "sams_vae":
        with torch.no_grad():
            model.mask.logits.fill_(-40)
            model.embedding.location.zero_()
            for parameter in model.embedding.parameters():
                if parameter is not model.embedding.location:
                    parameter.fill_(-20)  # scales of nearly 0
            for (name, dimension), shift in SHIFTS.items():
                model.mask.logits[NAMES.index(name), dimension] = 40
                model.embedding.location[NAMES.index(name), dimension] = shift
    return TrainedModel(model.eval(), settings, GENES, Encoding(NAMES))


def shifts():
    matrix = np.zeros((len(NAMES), 3))
    for (name, dimension), shift in SHIFTS.items():
        matrix[NAMES.index(name), dimension] = shift
    return matrix


def nothing_known(**known):
    return Annotation(
        **(
            {
                "perturbation_groups": {},
                "target_genes": {},
                "gene_sets": {},
                "measured": frozenset(GENES),
            }
            | known
        )
    )


def test_a_factor_of_one_perturbation_does_what_the_perturbation_does():
    one = np.zeros((len(NAMES), 3))
    one[2, 2] = 3.0
    found = factor_effects(trained(), one, draws=50, seed=1)
    effect, error = predicted_effects(trained(), ["C"], draws=50, seed=1)
    assert found.dimensions.tolist() == [2]
    assert found.size == pytest.approx([3.0], abs=1e-3)
    np.testing.assert_allclose(found.effects, effect, atol=1e-5)
    np.testing.assert_allclose(found.standard_error, error, atol=1e-5)


def test_a_factor_is_pushed_as_far_as_its_perturbations_do_and_the_way_they_mostly_do():
    found = factor_effects(trained(), shifts(), draws=20, seed=0)
    assert found.dimensions.tolist() == [0, 2]
    np.testing.assert_allclose(found.size, [1.25, 2.0], atol=1e-3)
    assert (found.standard_error > 0).all()
    assert np.abs(found.effects).max() > 0
    more = factor_effects(trained(), shifts(), draws=2000, seed=3)
    distance = np.abs(found.effects - more.effects) / np.hypot(
        found.standard_error, more.standard_error
    )
    assert np.quantile(distance, 0.9) < 3


def test_tables_of_a_model_say_what_its_factors_are():
    groups = {"FIRST": ["A", "B"], "ELSEWHERE": ["X"]}
    tables = factor_tables(
        trained(), nothing_known(perturbation_groups=groups), Enrichment(), 50, 10, seed=0
    )
    assert tables.factors["dimension"].tolist() == [0, 2]
    assert tables.factors["perturbations"].tolist() == ["A;B", "C;B"]
    assert tables.factors["fraction_positive"].tolist() == [0.5, 1.0]
    assert tables.factors["size"].to_numpy() == pytest.approx([1.25, 2.0], abs=1e-3)
    assert set(tables.groups["group"]) == {"FIRST"}
    assert tables.latents.drop_duplicates("perturbation")["group"].tolist() == [
        "FIRST",
        "FIRST",
        "",
        "",
    ]
    assert tables.genes.groupby("dimension").size().tolist() == [30, 30]
    assert tables.enrichment.empty


def test_a_model_without_a_mask_has_latent_effects_alone():
    tables = factor_tables(trained("cpa_vae"), nothing_known(), Enrichment(), 5, 5, seed=0).tables()
    assert len(tables.pop("latents")) == len(NAMES) * 3
    assert all(table.empty and len(table.columns) for table in tables.values())


def latents_of(used):
    index = pd.MultiIndex.from_product(
        [used.index, used.columns], names=["perturbation", "dimension"]
    )
    table = index.to_frame(index=False)
    table["mask_probability"] = np.where(used.to_numpy().ravel(), 0.9, 0.1)
    table["shift"], table["shift_sd"] = np.where(used.to_numpy().ravel(), 1.0, 0.0), 0.1
    return table


def random_masks(rng, n=40, dimensions=6, share=0.15):
    used = rng.random((n, dimensions)) < share
    names = [f"P{index:02d}" for index in range(n)]
    return pd.DataFrame(used, index=pd.Index(names, name="perturbation"))


def random_groups(rng, used, n_groups=5, size=6):
    members = np.zeros((len(used), n_groups), dtype=bool)
    for group in range(n_groups):
        members[rng.choice(len(used), size, replace=False), group] = True
    return pd.DataFrame(members, index=used.index, columns=[f"G{g}" for g in range(n_groups)])


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_masks_and_usage_are_read_back_from_the_table(seed):
    used = random_masks(np.random.default_rng(seed), 8, 4, 0.3)
    assert (inferred_masks(latents_of(used)).to_numpy() == used.to_numpy()).all()
    usage = factor_usage(latents_of(used)).set_index("dimension")
    assert usage["n_perturbations"].to_dict() == used.sum()[used.any()].to_dict()


def test_a_group_that_shares_a_factor_is_found_and_its_p_value_is_the_hypergeometric_one():
    rng = np.random.default_rng(0)
    used, members = random_masks(rng), random_groups(rng, random_masks(rng))
    used.loc[members["G0"], 0] = True
    table = factor_groups(used, members, seed=0)
    first = table.iloc[0]
    assert (first["dimension"], first["group"], first["overlap"]) == (0, "G0", 6)
    assert max(first["fdr"], first["fdr_permuted"]) < 0.01
    for _, row in table.iterrows():
        a, b = used[row["dimension"]], members[row["group"]]
        contingency = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        exact = stats.fisher_exact(contingency, alternative="greater").pvalue
        assert row["pvalue"] == pytest.approx(exact)
        assert row["overlap"] == len([n for n in row["perturbations"].split(";") if n])
    assert (table["fdr_permuted"].diff().dropna() >= 0).all()
    shared = group_sharing(used, members, seed=0).set_index("group")
    assert shared["pvalue"].idxmin() == "G0"
    assert shared.loc["G0", "fdr"] < 0.05


@pytest.mark.slow
def test_random_groups_are_rarely_said_to_share_a_factor():
    rng = np.random.default_rng(1)
    false = {"fdr": 0, "fdr_permuted": 0}
    pvalues = []
    for repeat in range(20):
        used, members = random_masks(rng), random_groups(rng, random_masks(rng))
        table = factor_groups(used, members, repeat, permutations=100)
        for kind in false:
            false[kind] += bool((table[kind] < 0.05).any())
        pvalues += list(group_sharing(used, members, repeat)["pvalue"])
    # 20 times 5 % is 1; five or more are seen once in 400 times
    assert max(false.values()) <= 4
    assert np.mean(np.array(pvalues) <= 0.05) < 0.1


def test_sharing_among_few_perturbations_is_counted_out():
    used = pd.DataFrame(
        [[1, 0], [1, 0], [1, 1], [0, 1], [0, 0]], index=list("ABCDE"), dtype=bool
    ).rename_axis("perturbation")
    members = pd.DataFrame(
        {"G": [1, 1, 1, 0, 0], "ALONE": [1, 0, 0, 0, 0]}, index=used.index, dtype=bool
    )
    table = group_sharing(used, members, seed=0)
    assert table["group"].tolist() == ["G"]
    shared = {
        pair: int((used.loc[pair[0]] & used.loc[pair[1]]).sum())
        for pair in combinations("ABCDE", 2)
    }
    means = [
        np.mean([shared[p] for p in combinations(three, 2)]) for three in combinations("ABCDE", 3)
    ]
    row = table.iloc[0]
    assert row["shared_factors"] == 1.0
    assert row["expected_shared_factors"] == pytest.approx(np.mean(means))
    assert row["pvalue"] == pytest.approx(np.mean([mean >= 1 for mean in means]))


def test_nobody_in_a_known_group_and_no_factor_in_use():
    used = random_masks(np.random.default_rng(0))
    nobody = members_of({"G": ["X"]}, list(used.index), {})
    assert factor_groups(used, nobody, 0).empty
    assert group_sharing(used, nobody, 0).empty
    unused = used & False
    somebody = members_of({"G": ["P00", "P01"]}, list(used.index), {})
    assert factor_groups(unused, somebody, 0).empty
    assert group_sharing(unused, somebody, 0)["pvalue"].tolist() == [1.0]


def test_guides_and_pairs_belong_where_their_genes_do(tiny_screen, tmp_path):
    screen = tiny_screen.copy()
    assert target_genes(written(screen, tmp_path / "a.h5ad")) == {}
    screen.obs["gene"] = screen.obs["perturbation"].astype(str).str.replace("TARGET", "GENE")
    genes = target_genes(written(screen, tmp_path / "b.h5ad"))
    assert genes["TARGET01"] == "GENE01"
    assert "control" not in genes
    groups = {"BY_GENE": ["GENE01"], "BY_NAME": ["TARGET02", "TARGET03"]}
    names = ["TARGET01", "TARGET02", "TARGET02+TARGET03", "TARGET02+TARGET04"]
    inside = members_of(groups, names, genes)
    assert inside["BY_GENE"].tolist() == [True, False, False, False]
    assert inside["BY_NAME"].tolist() == [False, True, True, False]


def written(screen, path):
    write_source_screen(screen, "{}", path)
    return path


def planted(rng, n_factors=4, size=12, n_genes=120):
    """Effects of factors, each on a programme of its own, with noise elsewhere, and the programmes."""
    genes = [f"g{index}" for index in range(n_genes)]
    effects = rng.normal(0, 0.02, (n_factors, n_genes))
    sets = {}
    for factor in range(n_factors):
        own = slice(factor * size, (factor + 1) * size)
        effects[factor, own] += rng.choice([-1, 1], size) * rng.uniform(0.3, 0.6, size)
        sets[f"PROGRAMME_{factor}"] = genes[own]
    error = np.full(effects.shape, 0.005)
    return FactorEffects(np.arange(n_factors), np.ones(n_factors), effects, error), genes, sets


def test_the_programme_of_each_factor_is_found():
    found, genes, sets = planted(np.random.default_rng(0))
    table = factor_enrichment(factor_genes(found, genes), {"programmes": sets}, n_top=15)
    best = table.sort_values("pvalue").groupby("dimension").first()
    assert best["set"].tolist() == list(sets)
    assert (best["fdr"] < 1e-6).all()
    assert (best["overlap"] == 12).all()
    np.testing.assert_allclose(table["fdr"], stats.false_discovery_control(table["pvalue"]))
    for factor, row in best.iterrows():
        own = [genes.index(gene) for gene in row["genes"].split(";")]
        assert row["mean_effect"] == pytest.approx(found.effects[factor, own].mean())


def test_permuted_gene_sets_are_found_no_more_often_than_promised():
    rng = np.random.default_rng(2)
    found, genes, sets = planted(rng)
    table = factor_genes(found, genes)
    any_found = []
    for _ in range(30):
        renamed = dict(zip(genes, rng.permutation(genes), strict=True))
        permuted = {name: [renamed[gene] for gene in members] for name, members in sets.items()}
        any_found.append((factor_enrichment(table, {"p": permuted}, 15)["fdr"] < 0.05).any())
    # 30 times 5 % is 1.5; six or more are seen once in 300 times
    assert np.sum(any_found) <= 5


def test_genes_that_are_not_told_apart_from_zero_are_not_chosen():
    found, genes, sets = planted(np.random.default_rng(0))
    uncertain = FactorEffects(
        found.dimensions, found.size, found.effects, np.full(found.effects.shape, 1.0)
    )
    assert factor_enrichment(factor_genes(uncertain, genes), {"p": sets}, 15).empty
    ranked = factor_genes(found, genes).query("dimension == 1")
    assert ranked["rank"].tolist() == list(range(1, len(genes) + 1))
    assert (ranked["effect"].abs().diff().dropna() <= 0).all()


def test_moments_of_draws_in_parts_are_those_of_all():
    draws = torch.randn(70, 4, 3, generator=torch.Generator().manual_seed(0)) * 2 + 5
    parts = [(len(part), part) for part in draws.split(32)]
    mean, std = factors._mean_and_std(parts)
    torch.testing.assert_close(mean, draws.mean(0))
    torch.testing.assert_close(std, draws.std(0))
    assert factors._mean_and_std([(5, None)]) is None


def test_the_strongest_of_many_perturbations_are_compared(monkeypatch):
    rng = np.random.default_rng(0)
    names = [f"P{number}" for number in range(8)]
    effects = pd.MultiIndex.from_product(
        [["sams"], names, GENES], names=["model", "perturbation", "gene"]
    ).to_frame(index=False)
    strength = dict(zip(names, rng.permutation(8) + 1.0, strict=True))
    effects["screen_effect"] = rng.normal(size=len(effects)) * effects["perturbation"].map(strength)
    effects["predicted"] = effects["screen_effect"]
    given = effects.astype({"perturbation": "category"}), pd.DataFrame(columns=["model"])
    every = similarity_table(*given, pd.Series(0.0, GENES))
    monkeypatch.setattr(similarity, "MOST_COMPARED", 3)
    found = similarity_table(*given, pd.Series(0.0, GENES))
    kept = [name for name in names if strength[name] > 5]
    assert set(found["first"]) == set(found["second"]) == set(kept)
    pair = ["kind", "model", "first", "second"]
    both = found.astype(dict.fromkeys(pair, str)).merge(
        every.astype(dict.fromkeys(pair, str)), on=pair, validate="one_to_one"
    )
    assert len(both) == len(found) == 2 * 6
    np.testing.assert_allclose(both["similarity_x"], both["similarity_y"], rtol=1e-6)


def test_similarity_in_data_and_in_latent_space():
    rng = np.random.default_rng(0)
    names = ["A", "B", "A+B", "INERT"]
    effects = pd.MultiIndex.from_product(
        [["sams", "no_change"], names, GENES], names=["model", "perturbation", "gene"]
    ).to_frame(index=False)
    effects["observed"] = rng.normal(size=len(effects))
    effects.loc[effects["model"] == "no_change", "observed"] = effects["observed"][
        : 4 * 30
    ].to_numpy()
    effects["predicted"] = np.where(effects["model"] == "sams", effects["observed"] * 2, 0.0)
    used = pd.DataFrame(
        [[1, 0], [0, 1], [0, 0]],
        index=pd.Index(["A", "B", "INERT"], name="perturbation"),
        dtype=bool,
    )
    latents = latents_of(used).assign(model="sams")
    latents.loc[~latents["mask_probability"].gt(0.5), "shift"] = 0.01  # of a closed mask
    effects["screen_effect"] = effects["observed"]
    table = similarity_table(effects, latents, pd.Series(0.0, GENES))
    assert set(table.groupby(["kind", "model"], observed=True).groups) == {
        ("observed", "observed"), ("predicted", "sams"), ("latent", "sams"),
    }  # fmt: skip
    value = table.set_index(["kind", "first", "second"])["similarity"]
    for kind in ("observed", "predicted"):
        a, b = (effects.query("model == 'sams' and perturbation == @n")["observed"] for n in "AB")
        assert value[kind, "A", "B"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    latent = value["latent"]
    assert latent["A", "B"] == 0
    assert latent["A+B", "B"] == pytest.approx(np.sqrt(0.5), abs=1e-6)
    assert latent["A", "A"] == pytest.approx(1)
    assert latent["INERT", "INERT"] == 0


def test_effects_of_nothing_are_not_similar_by_their_control_cells():
    """Few control cells, 20 perturbations without an effect, and two with the same one."""
    rng = np.random.default_rng(1)
    genes = [f"g{i}" for i in range(3000)]
    names = [f"P{i:02d}" for i in range(20)]
    true = np.zeros((20, 3000))
    true[:2] = rng.normal(0, 0.5, 3000)
    control = rng.normal(0, 1, (60, 3000))
    cells = [effect + rng.normal(0, 1, (60, 3000)) for effect in true]
    effect = np.array([own.mean(axis=0) for own in cells]) - control.mean(axis=0)
    table = pd.DataFrame(effect, names, genes).rename_axis("perturbation")
    table = table.reset_index().melt("perturbation", var_name="gene", value_name="screen_effect")
    table = table.assign(model="no_change", predicted=0.0)
    error = pd.Series(control.std(axis=0, ddof=1) / np.sqrt(60), genes)
    mean = {}
    for how, noise in (("shared", 0 * error), ("without", error)):
        found = similarity_table(table, pd.DataFrame(columns=["model"]), noise)
        value = found.set_index(["first", "second"])["similarity"]
        others = found[(found["first"] != found["second"]) & (found["first"] != "P00")]
        mean[how] = others["similarity"].mean()
        assert value["P00", "P01"] > 0.8
        assert value["P05", "P05"] == pytest.approx(1)
    assert mean["shared"] > 0.4
    assert abs(mean["without"]) < 0.08


def test_what_is_known_is_read_from_files(tiny_screen, tmp_path):
    screen = written(tiny_screen.copy(), tmp_path / "screen.h5ad")
    write_gmt({"G": ["TARGET01", "TARGET02"]}, tmp_path / "groups.gmt", "known")
    known = read_annotation(screen, None, tmp_path / "groups.gmt", {}, Enrichment())
    assert known.perturbation_groups == {"G": ["TARGET01", "TARGET02"]}
    assert known.gene_sets == {}
