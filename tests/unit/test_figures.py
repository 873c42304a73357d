import importlib

import numpy as np
import pandas as pd
import pytest

from samsvae.figures.style import clustered, model_colours, save_figure, use_style
from samsvae.report import describe, model_table, summarise, with_spread
from samsvae.wording import readable

MODELS = ["sams_vae", "no_change"]
OPTIONS = {"models": MODELS, "evaluation": {"top_genes": 5, "fdr": 0.05}}


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
    table["fdr"], table["trained"] = 0.5, True
    return table


def metrics_table():
    rows = [
        ("s", "sams_vae", 0, "test", "pearson_held_out", 0.9),
        ("s", "sams_vae", 1, "test", "pearson_held_out", 0.8),
        ("s", "no_change", 0, "test", "pearson_held_out", np.nan),
        ("s", "sams_vae", 0, "test", "pearson", 0.1),
        ("s", "no_change", 0, "test", "pearson", 0.4),
        ("s", "sams_vae", 0, "truth", "mask_f1", 0.7),
        ("s", "sams_vae", 0, "truth", "mask_precision", 0.6),
        ("s", "sams_vae", 0, "truth", "mask_recall", 0.9),
        ("s", "sams_vae", 0, "truth", "effect_pearson", 0.95),
    ]
    return pd.DataFrame(rows, columns=["split", "model", "seed", "scope", "metric", "value"])


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


TABLES = {
    ("screen", "few"): split_table(8),
    ("screen", "many"): split_table(200),
    ("split", "singles"): split_table(8),
    ("effects", "few"): effects_table(3),
    ("similarity", "one"): effects_table(1),
    ("similarity", "many"): effects_table(60),
    ("metrics", "with undefined"): metrics_table(),
    ("differential_expression", "some"): de_table(12),
    ("differential_expression", "none"): de_table(0),
    ("enrichment", "both"): enrichment_table(["observed", "sams_vae"]),
    ("enrichment", "observed alone"): enrichment_table(["observed"]),
    ("enrichment", "none"): enrichment_table([]),
}


@pytest.mark.parametrize("case", TABLES, ids="-".join)
def test_figures_cope_with_what_experiments_may_hold(case, tmp_path):
    use_style()
    module = importlib.import_module(f"samsvae.figures.{case[0]}")
    drawn = module.draw(TABLES[case], **OPTIONS)
    width = drawn.get_figwidth()
    assert width <= 7.2
    save_figure(drawn, '{"config": {}}', tmp_path / "a.svg")
    again = module.draw(TABLES[case], **OPTIONS)
    save_figure(again, '{"config": {}}', tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


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
    table = model_table(metrics_table(), MODELS, 5)
    cells = {row[0]["text"]: row[1:] for row in table["rows"]}
    columns = table["columns"][1:]
    held_out, whole = columns.index("r, held-out cells"), columns.index("r, all cells")
    assert cells["SAMS-VAE"][held_out] == {"text": "0.850 ± 0.071", "best": True}
    assert cells["no change"][held_out]["text"] == "–"
    assert cells["no change"][whole]["best"]
    assert not cells["SAMS-VAE"][whole]["best"]
    assert with_spread(float("nan"), 0.1, 3) == "–"


def test_the_ceiling_is_shown_but_never_the_best():
    table = model_table(metrics_table(), MODELS, 5, ["no_change"])
    whole = table["columns"].index("r, all cells")
    rows = {row[0]["text"]: row for row in table["rows"]}
    assert rows["no change"][whole] == {"text": "0.400", "best": False}


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
    said = " ".join(summarise(metrics_table(), config, "e"))
    assert "SAMS-VAE: Pearson r = 0.85" in said
    assert "F1 = 0.70 (precision 0.60, recall 0.90)" in said
    assert "none of the tested ones" in describe(config, "e")
    assert "fractions 0.5" in describe(config, "e")
