import importlib
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from samsvae.biology.enrichment import pathway_agreement
from samsvae.evaluation.differential_expression import scores_by_strength
from samsvae.figures.style import clustered, model_colours, save_figure, use_style
from samsvae.figures.text import readable
from samsvae.report.sections import SHOWN_FIGURES
from samsvae.report.sentences import condition_tables, describe, sentences

MODELS = ["sams_vae", "no_change"]
PERTURBATION = "samsvae.figures.effects:draw_perturbation"  # no entry of the report
OPTIONS = {"models": MODELS, "evaluation": {"top_genes": 5, "fdr": 0.05}}


def function_of(figure):
    """The function that draws a figure of the report, or that of a single perturbation."""
    entry = SHOWN_FIGURES.get(figure)
    module, _, function = (entry.function if entry else PERTURBATION).partition(":")
    return getattr(importlib.import_module(module), function)


def split_table(n_perturbations):
    labels = ["control"] * 30 + [f"P{i}" for i in range(n_perturbations) for _ in range(5)]
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "cell": [f"c{i}" for i in range(len(labels))],
            "perturbation": labels,
            "library_size": rng.integers(100, 5000, len(labels)),
            "split": rng.choice(["train", "val", "test"], len(labels)),
        }
    )


def effects_table(n_perturbations):
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [MODELS, [f"P{i}" for i in range(n_perturbations)], [f"g{i}" for i in range(20)]],
        names=["model", "perturbation", "gene"],
    )
    table = index.to_frame(index=False)
    table["observed"] = rng.normal(size=len(table))
    table["predicted"] = np.where(table["model"] == "no_change", 0.0, table["observed"] / 2)
    table["observed_held_out"] = table["observed"]
    table["fdr"] = np.where(table["gene"].isin(["g0", "g1"]), 1e-4, 0.5)
    table["trained"] = True
    return table


def summary_table(fractions=(np.nan,)):
    rows = [
        (fraction, scope, metric, model, value + (0 if np.isnan(fraction) else fraction), verdict)
        for fraction in fractions
        for scope, metric, model, value, verdict in [
            ("test", "pearson_held_out", "sams_vae", 0.85, "best"),
            ("test", "pearson_held_out", "noise_ceiling", 0.9, "ceiling"),
            ("test", "pearson", "sams_vae", 0.1, "worse"),
            ("test", "pearson", "no_change", 0.4, "best"),
            ("test", "iwelbo", "sams_vae", -120.456, "best"),
            ("truth", "mask_f1", "sams_vae", 0.7, "best"),
        ]
    ]
    columns = ["fraction", "scope", "metric", "model", "value", "verdict"]
    table = pd.DataFrame(rows, columns=columns)
    table["low"], table["high"] = table["value"] - 0.01, table["value"] + 0.01
    table.loc[table["model"] == "no_change", ["low", "high"]] = np.nan
    table["tested_over"] = np.where(table["verdict"] == "worse", "seeds", None)
    return table


def differences_table(over, fractions=(np.nan,)):
    rows = [
        (fraction, "test", metric, over, "sams_vae", "no_change", 0.3, 0.1, 0.5, "sams_vae")
        for fraction in fractions
        for metric in ("pearson_held_out", "median_de_auroc", "iwelbo")
    ]
    columns = [
        "fraction",
        "scope",
        "metric",
        "over",
        "first",
        "second",
        "difference",
        "low",
        "high",
        "better",
    ]
    return pd.DataFrame(rows, columns=columns)


def perturbation_table(n, tested):
    index = pd.MultiIndex.from_product(
        [["pearson_held_out", "de_auroc"], MODELS, [0, 1], [f"P{i}" for i in range(n)]],
        names=["metric", "model", "seed", "perturbation"],
    )
    table = index.to_frame(index=False)
    table["tested"] = tested
    table["value"] = np.random.default_rng(1).uniform(size=len(table))
    table.loc[table["model"] == "no_change", "value"] = np.nan
    return table


def fractions_table(models):
    index = pd.MultiIndex.from_product(
        [["pearson", "pearson_top5", "iwelbo_relative"], models, [0.0, 0.5, 1.0]],
        names=["metric", "model", "fraction"],
    )
    table = index.to_frame(index=False).assign(scope="test")
    table["value"] = np.linspace(0, 1, len(table))
    return table.assign(low=table["value"] - 0.1, high=np.nan)


def particles_table(seeds, scopes=("val", "test")):
    index = pd.MultiIndex.from_product(
        [["s"], MODELS, seeds, scopes, [1, 2, 5, 10, 25, 50, 100]],
        names=["split", "model", "seed", "scope", "particles"],
    )
    table = index.to_frame(index=False)
    table["iwelbo"] = -190 + np.log(table["particles"]) + table["seed"]
    return table.assign(n_cells=10, standard_error=0.2)


def de_table(n_de):
    return pd.DataFrame(
        {
            "split": "s",
            "model": MODELS * 4,
            "seed": 0,
            "n_de": n_de,
            "auroc": np.linspace(0.5, 1, 8),
        }
    )


def enrichment_table(models):
    rows = [
        ("s", model, 0, "hallmark", method, f"P{p}", f"HALLMARK_SET_{s}", 1.5 - s, 0.01 * (s + 1), 0.04, "g1")
        for model in models
        for method in ("preranked", "over_representation")
        for p in range(3)
        for s in range(4)
    ]  # fmt: skip
    columns = [
        "split",
        "model",
        "seed",
        "gene_sets",
        "method",
        "perturbation",
        "set",
        "score",
        "pvalue",
        "fdr",
        "genes",
    ]
    return pd.DataFrame(rows, columns=columns)


def strength_table(n_de):
    table = de_table(n_de).assign(
        perturbation=[f"P{i // 2}" for i in range(8)], n_held_out=np.repeat([10, 40, 90, 500], 2),
        sign_agreement=0.9, slope=0.5,
    )  # fmt: skip
    return scores_by_strength(table)


def combinations_table(n):
    index = pd.MultiIndex.from_product([MODELS, [f"A+B{i}" for i in range(n)]])
    table = index.to_frame(index=False, name=["model", "perturbation"])
    table["effect_size"], table["departure_size"] = 0.5, np.linspace(0, 0.4, 2 * n)
    table["noise_size"] = 0.1
    table["n_departing"], table["predicted_departure_size"] = 3, 0.2
    table["departure_correlation"] = np.where(table["model"] == "no_change", np.nan, 0.3)
    return table


def agreement_table(models):
    return pathway_agreement(enrichment_table(models).assign(seed=0), 0.05)


def latents_table(n_perturbations, dimensions=4, masked=True, groups=0):
    index = pd.MultiIndex.from_product(
        [MODELS[:1], [f"P{i}" for i in range(n_perturbations)], range(dimensions)],
        names=["model", "perturbation", "dimension"],
    )
    table = index.to_frame(index=False)
    rng = np.random.default_rng(0)
    table["shift"] = rng.normal(size=len(table))
    table["mask_probability"] = rng.uniform(size=len(table)) if masked else np.nan
    number = table["perturbation"].str[1:].astype(int)
    table["group"] = [f"PATHWAY_{n % groups}" if groups and n % 3 else None for n in number]
    return table


def dots_table(n_rows, names):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "model": MODELS[0],
            "dimension": rng.integers(0, 40, n_rows),
            names: [f"SET_{i}" for i in rng.integers(0, 30, n_rows)],
            "pvalue": rng.uniform(0, 0.01, n_rows),
            "fdr": rng.uniform(0, 0.3, n_rows),
        }
    ).drop_duplicates(["dimension", names])
    return table.assign(gene_sets="s", mean_effect=0.1, overlap=2, group_size=4)


def similarity_table(n_perturbations, kinds):
    names = [f"P{i}" for i in range(n_perturbations)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    table = pd.DataFrame(
        [(kind, model, *pair) for kind, model in kinds for pair in pairs],
        columns=["kind", "model", "first", "second"],
    )
    table["similarity"] = np.random.default_rng(0).uniform(-1, 1, len(table))
    table.loc[table["first"] == table["second"], "similarity"] = 1.0
    return table.assign(strength=1.0)


def basal_table(n_perturbations):
    index = pd.MultiIndex.from_product(
        [MODELS[:1], ["basal", "total"], ["true", "shuffled"], [*range(n_perturbations), "all"]],
        names=["model", "state", "labels", "perturbation"],
    )
    table = index.to_frame(index=False).assign(accuracy=0.5, claimed=False)
    return table.assign(chance=np.where(table["perturbation"] == "all", 0.1, 0.5))


def state_table(**covariates):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(200, 2)), columns=["x", "y"])
    table["state"] = ["basal", "total"] * 100
    table["shown_as"] = rng.choice(["control", "P1", "P2", "other perturbations"], 200)
    return table.assign(perturbation="P", cell="c", **covariates)


def recovery_table(masked):
    thresholds = pd.DataFrame(
        {"measure": "f1", "threshold": [0.1, 0.5, 0.9], "density": [1, 0.1, 0]}
    )
    states = pd.DataFrame(
        {"measure": "correlation", "state": ["basal", "total"] * 2, "factor": list("aabb")}
    )
    parts = [thresholds, states] if masked else [states]
    return pd.concat(parts).assign(split="s", model=MODELS[0], seed=0, value=0.5)


LATENT_KINDS = [("observed", "observed"), ("latent", MODELS[0]), ("predicted", MODELS[0])]
TABLES = {
    ("screen", "few"): split_table(8),
    ("screen", "many"): split_table(200),
    ("split", "singles"): split_table(8),
    ("effects", "few"): effects_table(3),
    ("similarity", "one"): similarity_table(1, LATENT_KINDS),
    ("similarity", "many"): similarity_table(60, LATENT_KINDS),
    ("similarity", "observed alone"): similarity_table(5, LATENT_KINDS[:1]),
    ("factors", "few"): latents_table(8, groups=2),
    ("factors", "many"): latents_table(700, 60, groups=12),
    ("factors", "one"): latents_table(1),
    ("factors", "pairs of their own"): pd.concat(
        [latents_table(4), latents_table(9).assign(model=MODELS[1])]
    ),
    ("factors", "no mask"): latents_table(8, masked=False),
    ("factors", "none in use"): latents_table(8).assign(mask_probability=0.1),
    ("factor_groups", "many"): dots_table(300, "group"),
    ("factor_groups", "none"): dots_table(0, "group"),
    ("factor_enrichment", "many"): dots_table(300, "set"),
    ("factor_enrichment", "one"): dots_table(1, "set"),
    ("factor_enrichment", "none"): dots_table(5, "set").assign(fdr=0.9),
    ("basal", "many"): basal_table(300),
    ("basal", "none"): basal_table(3)[:0],
    ("state_map", "no covariate"): state_table(),
    ("state_map", "covariates"): state_table(batch=["a", "b"] * 100, mito=np.linspace(0, 1, 200)),
    ("recovery", "masked"): recovery_table(True),
    ("recovery", "no mask"): recovery_table(False),
    ("metrics", "with undefined"): summary_table(),
    ("metrics", "fractions"): summary_table([0.0, 0.5]),
    ("paired_differences", "seeds"): differences_table("seeds"),
    ("paired_differences", "fractions"): differences_table("splits", [0.0, 0.5]),
    ("paired_differences", "nothing repeated"): differences_table("seeds").assign(low=np.nan),
    ("perturbations", "tested"): perturbation_table(300, True),
    ("perturbations", "none tested"): perturbation_table(3, False),
    ("fractions", "all"): fractions_table(MODELS),
    ("fractions", "one model"): fractions_table(MODELS[:1]),
    ("iwelbo_particles", "seeds"): particles_table([0, 1, 2]),
    ("iwelbo_particles", "validation alone"): particles_table([0], ["val"]),
    ("differential_expression", "some"): de_table(12),
    ("differential_expression", "none"): de_table(0),
    ("volcanoes", "few"): effects_table(3),
    ("volcanoes", "many"): effects_table(20),
    ("volcanoes", "none"): effects_table(2).assign(fdr=1.0),
    ("perturbation", "one"): effects_table(1),
    ("perturbation", "untested"): effects_table(1).assign(fdr=np.nan, observed_held_out=np.nan),
    ("de_by_strength", "some"): strength_table([1, 5, 20, 50, 500, 3, 0, 2]),
    ("de_by_strength", "none"): strength_table(0),
    ("combinations", "few"): combinations_table(2),
    ("combinations", "many"): combinations_table(60),
    ("combinations", "none"): combinations_table(0),
    ("pathway_agreement", "both"): agreement_table(["observed", "sams_vae"]),
    ("pathway_agreement", "observed alone"): agreement_table(["observed"]),
    ("pathway_map", "both"): enrichment_table(["observed", "sams_vae"]),
    ("pathway_map", "observed alone"): enrichment_table(["observed"]),
    ("pathway_map", "none"): enrichment_table([]),
    ("enrichment", "both"): enrichment_table(["observed", "sams_vae"]),
    ("enrichment", "observed alone"): enrichment_table(["observed"]),
    ("enrichment", "none"): enrichment_table([]),
}


@pytest.mark.parametrize("case", TABLES, ids="-".join)
def test_figures_cope_with_what_experiments_may_hold(case, tmp_path):
    use_style()
    draw = function_of(case[0])
    drawn = draw(TABLES[case], **OPTIONS)
    width = drawn.get_figwidth()
    assert width <= 7.2
    save_figure(drawn, "caption", '{"config": {}}', [tmp_path / "a.svg"])
    again = draw(TABLES[case], **OPTIONS)
    save_figure(again, "caption", '{"config": {}}', [tmp_path / "b.svg"])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    # text is drawn as it is, so a label in matplotlib's notation of formulas would show it
    assert "mathdefault" not in (tmp_path / "a.svg").read_text()


def test_a_figure_is_the_same_every_time_in_either_form_with_its_caption_and_origin(tmp_path):
    use_style()
    for name in "ab":
        drawn = function_of("split")(split_table(8), **OPTIONS)
        paths = [tmp_path / f"{name}{suffix}" for suffix in (".svg", ".pdf")]
        save_figure(drawn, "What it shows.", '{"code_digest": "c0de"}', paths)
    for suffix in (".svg", ".pdf"):
        first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
        assert first == second
        assert b"What it shows." in first
        assert b"c0de" in first


def test_names_of_many_perturbations_do_not_run_into_each_other():
    use_style()
    few = enrichment_table(["observed", *MODELS])
    table = pd.concat(
        few.assign(perturbation=few["perturbation"] + f"TARGET{number:02d}+TARGET{number:02d}")
        for number in range(14)
    )
    drawn = function_of("pathway_map")(table, **OPTIONS)
    drawn.canvas.draw()
    lowest = drawn.axes[2]
    boxes = [label.get_window_extent() for label in lowest.get_xticklabels()]
    assert len(boxes) == 40
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
    plt.close(drawn)


def test_similar_rows_become_neighbours():
    rows = np.array([[0, 0], [9, 9], [0, 0.1], [9, 9.1]])
    order = clustered(rows)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    assert clustered(rows[:1]) == [0]


def test_names_are_spelt_as_the_field_spells_them():
    assert readable("sams_vae_correlated") == "SAMS-VAE correlated"
    assert readable("cpa_vae") == "CPA-VAE"
    assert readable("no_change") == "no change"
    assert len(set(model_colours(list("abcdef")).values())) == 6


def test_report_marks_the_best_and_says_what_is_undefined():
    [table] = condition_tables(summary_table(), MODELS, 5)
    cells = {row[0]["text"]: row[1:] for row in table["rows"]}
    columns = table["columns"][1:]
    held_out, whole = columns.index("r, held-out cells"), columns.index("r, all cells")
    assert cells["SAMS-VAE"][held_out] == {
        "text": "0.850",
        "interval": "[0.840, 0.860]",
        "verdict": "best",
    }
    assert cells["no change"][held_out]["text"] == "–"
    assert cells["no change"][whole] == {"text": "0.400", "interval": "", "verdict": "best"}
    assert cells["SAMS-VAE"][whole]["verdict"] == "worse"
    assert cells["noise ceiling"][held_out] == {
        "text": "0.900",
        "interval": "[0.890, 0.910]",
        "verdict": "ceiling",
    }
    assert cells["SAMS-VAE"][columns.index("IWELBO, test cells")]["text"] == "−120.46"


def test_report_has_a_table_for_each_fraction():
    tables = condition_tables(summary_table([0.5, 0.0]), MODELS, 5)
    assert [table["title"] for table in tables] == ["Fraction 0", "Fraction 0.5"]
    assert tables[1]["rows"][0][1]["text"] == "1.350"


@pytest.mark.parametrize(
    ("verdict", "over", "said"),
    [
        ("tied", "splits", "Not told apart from it: no change 0.400. Tested over splits."),
        ("worse", "cells", "Behind it: no change 0.400. Tested over cells."),
        ("untested", None, "Not tested, since nothing was repeated: no change 0.400."),
    ],
)
def test_report_says_how_surely_a_model_is_the_best(verdict, over, said):
    table = summary_table()
    rival = table.iloc[[0]].assign(model="no_change", value=0.4, verdict=verdict, tested_over=over)
    assert said in " ".join(sentences(pd.concat([table, rival]), 5))


def test_report_says_in_words_what_was_run_and_found():
    config = {
        "screens": {"x": {"source": "simulated"}},
        "training": {"max_steps": 3000},
        "models": {"sams_vae": {"kind": "sams_vae"}, "no_change": {"kind": "no_change"}},
        "experiments": {
            "e": {
                "screen": "x",
                "split": {"kind": "unseen_combinations", "seeds": [0], "fractions": [0.5]},
                "models": MODELS,
                "seeds": [0, 1],
            }
        },
    }
    said = " ".join(sentences(summary_table(), 5))
    assert (
        "For SAMS-VAE, predicted effects agree best with those among held-out cells: 0.850" in said
    )
    assert "effects without noise would reach about 0.900" in said
    assert "recovered best: 0.700 (F1)" in said
    assert "none of the tested ones" in describe(config, "e")
    assert "fractions 0.5" in describe(config, "e")
