import base64
import copy
import html
import importlib
import json
import re
import zipfile

import anndata
import numpy as np
import pandas as pd
import pytest

from samsvae.biology.failed_guides import judge_guides
from samsvae.evaluation.scores import ENERGY, VARIANCE
from samsvae.evaluation.vcc2026 import ERROR, JACCARD, RETRIEVAL, SCORES
from samsvae.figures import caption_as_html, read_caption, readable_set
from samsvae.figures.latents import draw_similarity
from samsvae.figures.style import nothing_to_show, save_figure, use_style
from samsvae.report import answers, browser, soundness
from samsvae.report import page as page_module
from samsvae.report.answers import EFFECTS as EFFECTS_
from samsvae.report.answers import MECHANISMS, MODELS, NEXT, SOUND, five_answers
from samsvae.report.browser import (
    EFFECT_STEP,
    LOG_STEP,
    MISSING,
    browser_data,
    pack_effects,
)
from samsvae.report.page import (
    MOST_ROWS,
    as_json,
    figure_entry,
    table_entry,
    write_archive,
    write_report,
)
from samsvae.report.sections import (
    BATCHES,
    CELLS,
    CONTEXTS,
    COUNTS,
    FRACTIONS,
    GENE_SETS,
    GROUPS,
    GUIDES,
    INTERVALS,
    MARGINAL,
    MASKS,
    REFERENCES,
    SECTIONS,
    SHOWN_FIGURES,
    STATE_MAP,
    TRAINING,
    TRUTH,
    Figure,
    Table,
    figure_options,
    figures_of,
    sections_of,
    tables_of,
)
from samsvae.report.sentences import (
    basal_in_words,
    cells_in_words,
    changes_in_words,
    combinations_in_words,
    coverage_in_words,
    masks_in_words,
    missed_in_words,
    pathways_in_words,
    responders_in_words,
    run_times,
    spread_in_words,
    vcc_in_words,
    verdicts_in_words,
)
from samsvae.report.soundness import (
    batch_differences_in_words,
    batch_shifts_in_words,
    batches_in_words,
    contexts_in_words,
    guides_in_words,
    hits_in_words,
    null_in_words,
    odd_guides,
    quality_in_words,
    targets_in_words,
)
from samsvae.runtime.provenance import provenance
from tests.browser import visit
from tests.conftest import ROOT

CAPTIONS = ROOT / "workflow/report"
VERDICT = "SAMS-VAE is significantly better."
CONFIG = {
    "screens": {"mine": {"source": "h5ad"}},
    "models": {"sams_vae": {"kind": "sams_vae"}, "no_change": {"kind": "no_change"}},
    "training": {"max_steps": 3000},
    "evaluation": {"top_genes": 5, "significance": 0.05, "fdr": 0.05},
    "experiments": {
        name: {
            "screen": "mine",
            "split": {"kind": "random", "seeds": seeds},
            "models": ["sams_vae", "no_change"],
            "seeds": [0],
        }
        for name, seeds in {"first": [0], "second": [0, 1]}.items()
    },
}
PROPERTIES = {"first": [COUNTS, TRAINING, GENE_SETS, GUIDES, BATCHES], "second": [TRAINING]}
TRICKY = "</script><b>&amp;"
AGREEMENT = pd.DataFrame(
    [("m", "over_representation", "JAK2", "HALLMARK_TNFA", True), ("m", "over_representation", "A", "HALLMARK_TNFA", False),
     ("m", "over_representation", "B", "Cell Cycle", True), ("m", "preranked", "B", "Other", True),
     ("m", "over_representation", "C", None, None)],
    columns=["model", "method", "perturbation", "top_observed", "same_top"],
).assign(n_observed=1, gene_sets="hallmark", n_sets=50)  # fmt: skip
BASAL = pd.DataFrame(
    [
        ("sams_vae", 0, "basal", "true", "all", 0.04, 0.025, True),
        ("sams_vae", 1, "basal", "true", "all", 0.05, 0.025, True),
        ("sams_vae", 0, "basal", "shuffled", "all", 0.9, 0.025, True),
        ("sams_vae", 0, "basal", "true", "A", 0.9, 0.5, True),
        ("sams_vae", 0, "total", "true", "all", 0.9, 0.025, True),
        ("svae_plus", 0, "basal", "true", "all", 0.9, 0.025, False),
    ],
    columns=[
        "model", "seed", "state", "labels", "perturbation", "accuracy", "chance", "claimed",
    ],
)  # fmt: skip
MISSED = pd.DataFrame(
    {"model": ["sams_vae"] * 3 + ["no_change"] * 3, "perturbation": ["A", "B", "C"] * 2,
     "explained": [0.9, 0.3, np.nan, 0.0, -0.1, np.nan], "effect_size": 0.2}
)  # fmt: skip
COMBINATIONS = pd.DataFrame(
    {"model": ["m", "m", "n", "n"], "perturbation": ["A+B", "A+C"] * 2, "non_additivity": [0.1, 0.2] * 2,
     "n_non_additive": [0, 3] * 2, "non_additive_genes": ["", "HBZ −0.50, CLC +0.20"] * 2}
)  # fmt: skip
HITS = pd.DataFrame(
    [("JAK2", 0.001, True, 31, 0.9, False), ("B", 0.002, True, 3, 0.7, True),
     ("CAV1", 0.4, False, 0, 1.0, False), ("FEW", np.nan, False, 0, 1.0, False)],
    columns=["perturbation", "pvalue", "is_hit", "n_de", "depth_ratio", "depth_difference"],
).assign(n_cells=40, n_tested=100, fdr=0.01, e_distance=[9.0, 5.0, 0.0, np.nan], common_shift=[-0.41, 0.0, 0.2, 0.0], composition_gene=["HBG2", None, None, None])  # fmt: skip
NULL = pd.DataFrame(
    {"fake_target": ["NT1", "NT2"], "fraction_p05": [0.04, 0.06], "lambda": [0.9, 1.1],
     "n_significant": [0, 1], "pvalue": 1.0}
)  # fmt: skip
CHANGES = pd.DataFrame(
    {"perturbation": ["JAK2", "B", "JAK2"], "guide": ["", "", "g1"], "gene": ["JAK2", "B", "JAK2"],
     "low": [-2.0, -0.1, -9.0], "high": [-1.0, 0.2, -8.0], "pvalue": [0.001, 0.5, 0.1],
     "log2fc": [-1.5, 0.1, -8.5]}
)  # fmt: skip
OF_GUIDES = pd.DataFrame(
    {"perturbation": ["JAK2", "JAK2"], "guide": ["g1", "g2"], "odd": [False, True],
     "reason": ["", "weak effect"], "concordance": [0.9, 0.2], "n_cells": [40, 9],
     "slope": [1.0, 0.1], "knock_down": [-2.0, -2.0]}
)  # fmt: skip
OF_BATCHES = pd.DataFrame(
    {"perturbation": ["JAK2", "B"], "batch": ["b1", "b1"], "n_cells": [30, 8],
     "fraction": [0.45, 0.8], "control_fraction": [0.4, 0.4], "compared": [True, False]}
)  # fmt: skip
QUALITY = {
    "hits": HITS, "null_calibration": NULL, "knock_down": CHANGES, "guides": OF_GUIDES,
    "batches": OF_BATCHES,
}  # fmt: skip
RESPONDERS = pd.DataFrame(
    {"perturbation": ["JAK2", "B", "CAV1", "JAK2"], "guide": ["", "", "", "g1"],
     "responders": [0.8, 0.6, np.nan, 0.1], "low": 0.1, "high": 0.9, "overlap": 0.1, "n_cells": 40}
)  # fmt: skip
ENRICHMENT = pd.DataFrame(
    {"model": ["observed", "observed", "sams_vae"], "method": "over_representation",
     "perturbation": ["JAK2", "JAK2", "JAK2"], "set": ["HALLMARK_HYPOXIA", "HALLMARK_UV", "HALLMARK_TNFA"],
     "pvalue": [0.1, 0.001, 0.001], "fdr": [0.2, 0.01, 0.01]}
)  # fmt: skip
PERTURBATIONS = (
    "perturbation\tn_de\traised\tlowered\nJAK2\t31\tG1 +1.20, G2 +0.10\tG3 −2.00\nCAV1\t0\t\t\n"
)
WARNINGS = "severity\tname\tmessage\nwarning\tlow counts\tthe median cell has 186 counts.\n"
RANKING = pd.DataFrame(
    {"fraction": np.nan, "model": ["no_change", "sams_vae"], "score": [0.0, 0.9], "low": [-0.1, 0.8],
     "high": [0.1, 1.0], "difference_high": [-0.4, 0.0], "rank": [2, 1], "probability_best": [0.1, 0.9], "n_metrics": 14,
     "n_perturbations": 3, "n_splits": 1, "n_seeds": 3, "reference": "mean_effect"}
)  # fmt: skip
GENES = ["G1", "G2", "G3"]
EFFECTS = np.array([[1.2344, 0.1, -2.0], [0.0, 0.0, 0.1], [np.nan, 0.0, 0.0], [0.2, 0.3, 0.4]])
NAMES = ["JAK2", "B", "CAV1", "FEW"]
PVALUES = np.array([[1e-12, 0.5, 0.0], [1, 1, 0.2], [np.nan, 1, 1], [0.3, 0.2, 0.1]])
PREDICTED = pd.DataFrame(
    {"model": ["sams_vae", "sams_vae", "no_change"], "perturbation": ["JAK2", "JAK2", "JAK2"],
     "gene": ["G1", "G3", "G1"], "predicted": [1.0, -1.5, 0.0]}
)  # fmt: skip
SIMILARITY = pd.DataFrame(
    {"kind": ["observed"] * 3 + ["predicted"], "model": ["observed"] * 3 + ["sams_vae"],
     "first": ["JAK2"] * 4, "second": ["JAK2", "B", "CAV1", "B"], "similarity": [1.0, 0.2, -0.4, 0.9]}
).astype({"kind": "category", "first": "category"})  # fmt: skip


def screen_effects():
    layers = {"standard_error": np.full((4, 3), 0.1), "pvalue": PVALUES, "fdr": PVALUES}
    obs, var = pd.DataFrame(index=NAMES), pd.DataFrame(index=GENES)
    return anndata.AnnData(EFFECTS, obs, var, layers=layers)


OPTIONS = {"reference": "control cells"}
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" width="100pt" height="50pt"/>'


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def similarity_table():
    """Similarities of all pairs of three perturbations, the last of which is listed first."""
    names = [TRICKY, "B", "JAK2"]
    pairs = [(first, second) for place, first in enumerate(names) for second in names[place:]]
    rows = pd.DataFrame(pairs, columns=["first", "second"])
    order = {name: 2 - place for place, name in enumerate(names)}
    return rows.assign(
        kind="observed", model="observed", correlation=np.nan,
        similarity=[1.0, 0.25, -0.5, 1.0, np.nan, 1.0],
        first_order=rows["first"].map(order), second_order=rows["second"].map(order),
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The files that the report reads, of two experiments."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "screens/mine").mkdir(parents=True)
    anndata.AnnData(np.ones((3, 7), np.float32)).write_h5ad(folder / "screens/mine/screen.h5ad")
    for name in CONFIG["experiments"]:
        split = folder / name / "random-seed0"
        cells = pd.DataFrame({"perturbation": ["control"] * 4 + ["A"] * 3 + ["A+B"] * 5})
        write(split / "split.tsv", cells.to_csv(sep="\t"))
        write(split / "split.json", provenance({}, "c0de", screen="da7a"))
        for figure in figures_of(PROPERTIES[name]):
            for suffix in (".svg", ".pdf"):
                write(folder / name / f"figures/{figure.name}{suffix}", DRAWING)
    use_style()
    drawn = draw_similarity(similarity_table(), models=[])
    save_figure(drawn, "caption", "{}", [folder / "first/figures/similarity.svg"])
    for name in CONFIG["experiments"]:
        for section in sections_of(PROPERTIES[name]):
            for table in section.entries:
                if isinstance(table, Table):
                    rows = pd.DataFrame({"model": ["no_change", "sams_vae", "sams_vae"], "perturbation": ["JAK2", "B", TRICKY], "pvalue": 0.5, "n_de": range(3)})  # fmt: skip
                    rows = rows.assign(**{table.first.removeprefix("-") or "place": range(3)})
                    write(folder / name / "tables" / table.name, rows.to_csv(sep="\t", index=False))
        write(folder / name / "tables/perturbations.tsv", PERTURBATIONS)
        write(folder / name / "tables/warnings.tsv", WARNINGS)
        write(
            folder / name / "tables/pathway_agreement.tsv", AGREEMENT.to_csv(sep="\t", index=False)
        )
        for table, rows in QUALITY.items():
            write(folder / name / f"tables/{table}.tsv", rows.to_csv(sep="\t", index=False))
        write(folder / name / "tables/responders.tsv", RESPONDERS.to_csv(sep="\t", index=False))
        write(folder / name / "tables/missed_effects.tsv", MISSED.to_csv(sep="\t", index=False))
        write(folder / name / "tables/basal.tsv", BASAL.to_csv(sep="\t", index=False))
        write(folder / name / "tables/combinations.tsv", COMBINATIONS.to_csv(sep="\t", index=False))
        write(folder / name / "tables/ranking.tsv", RANKING.to_csv(sep="\t", index=False))
        write(folder / name / "tables/enrichment.tsv", ENRICHMENT.to_csv(sep="\t", index=False))
        if COUNTS in PROPERTIES[name]:
            screen_effects().write_h5ad(folder / name / "screen_effects.h5ad")
            PREDICTED.to_parquet(folder / name / "tables/effects.parquet")
            SIMILARITY.to_parquet(folder / name / "tables/similarity.parquet")
        summary = "fraction\tscope\tmetric\tmodel\tvalue\tlow\thigh\tverdict\ttested_over\n\ttest\tpearson_held_out\tsams_vae\t0.8\t\t\tbest\t\n"
        write(folder / name / "tables/summary.tsv", summary)
        write(folder / name / "tables/verdict.tsv", f"fraction\tverdict\n\t{VERDICT}\n")
    for job, seconds in (("a", 30.5), ("b", 4000)):
        write(folder / f"benchmarks/train/first/{job}.tsv", f"s\th:m:s\tmax_rss\n{seconds}\t0\t-\n")
    return folder


@pytest.fixture(scope="module")
def report(results):
    path = results / "report.html"
    captions = [CAPTIONS / f"{name}.rst" for name in SHOWN_FIGURES]
    findings = results / "findings.txt"
    write_report(CONFIG, PROPERTIES, captions, CAPTIONS / "report.html.j2", path, findings)
    return path


def test_every_figure_has_a_function_and_a_caption_that_is_read_either_way():
    for name, figure in SHOWN_FIGURES.items():
        module, _, function = figure.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        for reference in REFERENCES.values():
            caption = CAPTIONS / f"{name}.rst"
            options = {"reference": reference, "test": "t-test"}
            assert len(read_caption(caption, options)) > 50
            assert "\n" not in read_caption(caption, options)
            assert "system-message" not in caption_as_html(caption, options)
    shown = [e.name for s in SECTIONS for e in s.entries if isinstance(e, Figure)]
    assert len(shown) == len(set(shown))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("HALLMARK_INTERFERON_GAMMA_RESPONSE", "interferon gamma response"),
        ("HALLMARK_G2M_CHECKPOINT", "G2M checkpoint"),
        ("HALLMARK_IL6_JAK_STAT3_SIGNALING", "IL6 JAK STAT3 signaling"),
        ("HALLMARK_KRAS_SIGNALING_DN", "KRAS signaling down"),
        ("HALLMARK_PI3K_AKT_MTOR_SIGNALING", "PI3K AKT mTOR signaling"),
        ("Activation of AKT2", "Activation of AKT2"),
    ],
)
def test_names_of_gene_sets_are_words_with_their_abbreviations(name, words):
    assert readable_set(name) == words


def test_captions_name_the_cells_that_perturbations_are_compared_with():
    for name in ("hits", "knock_down", "volcanoes", "perturbation", "batches"):
        for marginal, reference in REFERENCES.items():
            options = figure_options(CONFIG, "first", [MARGINAL] if marginal else [])
            caption = read_caption(CAPTIONS / f"{name}.rst", options)
            assert reference in caption
            assert REFERENCES[not marginal] not in caption
            if name in ("volcanoes", "perturbation"):
                assert ("score test" in caption) == marginal
                assert ("rank-sum test" in caption) != marginal


def test_an_experiment_shows_what_it_has_the_data_for():
    every = [
        COUNTS, BATCHES, CONTEXTS, GUIDES, TRAINING, GENE_SETS, FRACTIONS, TRUTH, MASKS, GROUPS,
            STATE_MAP, INTERVALS, CELLS,
    ]  # fmt: skip
    assert {f.name for f in figures_of(every)} == set(SHOWN_FIGURES)
    assert all(figure.needs == () for figure in figures_of([]))
    for lacking in every:
        kept = figures_of([one for one in every if one != lacking])
        assert {f.name for f in kept} == {
            n for n, f in SHOWN_FIGURES.items() if lacking not in f.needs
        }
    assert set(tables_of([TRAINING])) < set(tables_of(every))


def test_the_page_tells_of_every_stage_what_its_experiments_have(report):
    text = report.read_text()
    assert text.count("<figure ") == sum(len(figures_of(p)) for p in PROPERTIES.values())
    assert "12 cells and 7 genes; 2 perturbations, 1 of them combinations" in text
    assert "4 control cells" in text
    said = text.index("For SAMS-VAE, predicted effects agree best")
    assert text.index('id="effects"') < text.index(VERDICT) < said
    assert "da7a" in text
    assert "c0de" in text
    assert TRICKY not in text
    assert json.dumps(TRICKY).replace("<", "\\u003c") in text
    assert 'id="expression"' in text


def test_an_experiment_may_name_a_candidate_of_a_grid(results, tmp_path):
    config = copy.deepcopy(CONFIG)
    config["models"]["sams_vae"]["grid"] = {"n_latent": [2, 4]}
    for experiment in config["experiments"].values():
        experiment["models"] = ["sams_vae--n_latent-2", "no_change"]
    captions = [CAPTIONS / f"{name}.rst" for name in SHOWN_FIGURES]
    page = results / "candidate.html"
    write_report(
        config, PROPERTIES, captions, CAPTIONS / "report.html.j2", page, tmp_path / "f.txt"
    )
    assert "12 cells and 7 genes" in page.read_text()


def test_the_page_says_in_words_what_perturbations_do(report):
    text = report.read_text()
    for said in (
        "1 of 2 perturbations significantly change the expression of at least one gene; those with the most changed genes are JAK2 (31).",
        "each perturbation under its first: TNFA (JAK2, A); Cell Cycle (B).",
        "Predicted effects rank the same gene set first, significant or not: m for 2 of 3.",
        "which were tested: 50 of hallmark.",
        "1 of 2 combinations is significantly non-additive for at least one gene, most genes in A+C (HBZ −0.50, CLC +0.20).",
    ):
        assert said in text
    assert (
        "A median of 70 % respond. Estimated cells that do not respond, by their fraction: B 40 % (16 "
        in text
    )
    assert "For 2 of 3 perturbations it can be told which cells respond" in text
    unknown = responders_in_words(RESPONDERS.assign(responders=np.nan))
    assert "for any of 3 perturbations" in unknown[0]
    assert responders_in_words(RESPONDERS[:0]) == []
    assert "Of 2 perturbations with an effect on held-out cells beyond noise" in text
    assert "SAMS-VAE of 1 (median 60 %)" in text
    assert missed_in_words(MISSED)[1].endswith("predicted by no change.")
    assert len(missed_in_words(MISSED.assign(explained=np.nan))) == 1
    factors = pd.DataFrame({"model": ["sams_vae"]})
    assert masks_in_words(factors, ["sams_vae"]) == []
    assert "mean field" in masks_in_words(factors, ["sams_vae", "mean_field"])[0]
    nothing = perturbations_without_change()
    assert changes_in_words(nothing) == [
        "0 of 1 perturbations significantly change the expression of at least one gene."
    ]
    assert pathways_in_words(AGREEMENT[4:]) == [
        "No gene set is significantly over-represented among the genes of largest effect."
    ]
    assert combinations_in_words(COMBINATIONS[:0]) == []
    assert combinations_in_words(COMBINATIONS[:1])[0].startswith("0 of 1 combinations")


def test_the_page_says_first_whether_the_screen_is_sound(results, report):
    text = report.read_text()
    told = quality_in_words(results / "first/tables", PROPERTIES["first"], "knockdown", 0.05)
    assert "2 of 3 perturbations are hits, which change expression as a whole" in told[0]
    assert "strongest are JAK2, B" in told[0]
    assert told[1].endswith("the tests are calibrated.")
    assert "1 is lowered and 0 raised" in told[2]
    assert "g2 (weak effect)" in told[3]
    assert "80 % of the cells of B are in batch b1, and 40 % of control cells" in told[4]
    assert "8 cells are in batches without enough control cells" in told[4]
    assert "B (0.70)" in told[5]
    assert "JAK2 (HBG2, others −0.41)" in told[6]
    assert "CAV1" not in told[6]
    for reservation in (
        "1 of 3 perturbations are not hits",
        "1 of 2 measured targets do not change as expected",
        "1 guide may have failed",
        "effects that ignore batches are confounded",
        "1 perturbation changes the composition of counts",
    ):
        assert reservation in told[-1]
    assert "Is the screen sound?" in text
    assert text.index("change expression") < text.index("significantly change the expression")
    assert quality_in_words(results / "second/tables", PROPERTIES["second"], None, 0.05) == []


def test_words_on_marginal_effects_name_what_these_are_relative_to(results, tmp_path):
    has = [*PROPERTIES["first"], MARGINAL]
    told = " ".join(quality_in_words(results / "first/tables", has, "knockdown", 0.05))
    assert "40 % of other cells" in told
    assert "groups of cells without a common target" in told
    assert "control cells" not in told
    labels = ["control", "A", "A+B", "A+B+C", "B"]
    cells = pd.DataFrame({"cell": labels, "perturbation": labels, "split": "train"})
    cells.to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    anndata.AnnData(np.ones((5, 7))).write_h5ad(tmp_path / "screen.h5ad")
    said = cells_in_words(tmp_path / "split.tsv", tmp_path / "screen.h5ad", has)
    assert said.startswith(
        "5 cells and 7 genes; 3 perturbations, each in a median of 3 cells, and 1.8 in a perturbed"
    )
    assert "1 control cells" in said


def test_sections_of_a_screen_without_effects_say_that_they_show_noise(results, report):
    assert "what this section shows is noise" not in report.read_text()
    hits = results / "first/tables/hits.tsv"
    kept = hits.read_text()
    hits.write_text(HITS.assign(is_hit=False).to_csv(sep="\t", index=False))
    captions = [CAPTIONS / f"{name}.rst" for name in SHOWN_FIGURES]
    page, findings = results / "noise.html", results / "noise.txt"
    write_report(CONFIG, PROPERTIES, captions, CAPTIONS / "report.html.j2", page, findings)
    hits.write_text(kept)
    assert page.read_text().count("what this section shows is noise") >= 4
    said = findings.read_text().split("Is the screen sound?\n- ")[1]
    assert said.startswith("The screen cannot tell models apart")


def test_a_screen_without_effects_is_called_that_in_its_first_sentence():
    said, reservation = hits_in_words(HITS.assign(is_hit=False), 0.05)
    assert said.startswith("Nothing reproducible was found: none of 3 perturbations")
    assert reservation == ""
    untested, _ = hits_in_words(HITS.assign(pvalue=np.nan, is_hit=False), 0.05)
    assert untested.startswith("No perturbation could be tested")
    inflated = NULL.assign(**{"lambda": [1.5, 1.6]})
    assert "inflated" in null_in_words(inflated)[0]
    assert null_in_words(inflated)[1]
    assert null_in_words(NULL)[1] == ""
    assert targets_in_words(CHANGES, "knockout")[1] == ""
    contexts = pd.DataFrame(
        {
            "perturbation": ["A", "A", "B", "B"],
            "context": list("xyxy"),
            "n_heterogeneous": [3, 3, 0, 0],
        }
    )
    assert "1 of 2 perturbations differ between the 2 contexts" in contexts_in_words(contexts)[0]
    assert contexts_in_words(contexts)[1]
    assert contexts_in_words(contexts.assign(n_heterogeneous=0))[1] == ""
    assert "knock-out need not" in targets_in_words(CHANGES, "knockout")[0]
    assert "2 of 2" in targets_in_words(CHANGES, "activation")[1]


def test_words_on_intervals_are_of_the_level_and_of_each_model():
    columns = ["model", "genes", "level", "mean_coverage", "mean_calibrated_coverage"]
    rows = [
        ("sams_vae", "tested", 0.9, 0.842, 0.901),
        ("sams_vae", "significant", 0.9, 0.731, 0.869),
        ("sams_vae", "tested", 0.99, 0.999, 0.999),
        ("cpa_vae", "tested", 0.9, 0.6, np.nan),
    ]
    assert coverage_in_words(pd.DataFrame(rows, columns=columns)) == [
        "90 % intervals cover this fraction of the effects observed in test cells, sampling noise "
        "included: SAMS-VAE 84 %, calibrated 90 % (of significantly changed genes 73 %, calibrated "
        "87 %); CPA-VAE 60 %, not calibrated."
    ]
    assert coverage_in_words(pd.DataFrame(columns=columns)) == []


def test_words_on_predicted_cells_name_models_and_metrics_without_scale():
    columns = ["model", "metric", "mean_scaled"]
    rows = [("sams_vae", RETRIEVAL, 1.2), ("sams_vae", ERROR, 0.6), ("no_change", RETRIEVAL, 0.0)]
    rows += [("no_change", ERROR, -0.5), ("no_change", JACCARD, np.nan)]
    table = pd.DataFrame(rows, columns=columns)
    table = table.assign(baseline=0.5, replicate=0.7, replicate_sd=0.09)
    scaled, unknown = vcc_in_words(table)
    assert "mean over 2 metrics: SAMS-VAE 0.90, no change −0.25." in scaled
    assert "direction fidelity, direction reach, overlap of DE genes, error of" in unknown
    # a replicate of another split is not clearly better
    table.loc[2, "replicate_sd"] = 0.11
    scaled, unknown = vcc_in_words(table)
    assert "mean over 1 metric: SAMS-VAE 0.60, no change −0.50." in scaled
    assert SCORES[RETRIEVAL].heading in unknown
    [unknown] = vcc_in_words(table.assign(replicate_sd=1.0))
    assert SCORES[ERROR].heading in unknown
    assert vcc_in_words(pd.DataFrame(columns=columns)) == []


def test_words_on_sampled_cells_tell_what_of_the_spread_is_missed():
    columns = ["model", "metric", "mean_value", "mean_control", "mean_replicate"]
    rows = [("sams_vae", ENERGY, 0.35, 1.1, 0.1), ("sams_vae", VARIANCE, 0.82, 0.9, 1.0)]
    [said] = spread_in_words(pd.DataFrame(rows, columns=columns))
    assert "SAMS-VAE 82 % of the variance, distance 25 %." in said
    assert spread_in_words(pd.DataFrame(columns=columns)) == []


def test_words_on_basal_states_are_of_the_models_that_claim_them():
    [sentence] = basal_in_words(BASAL)
    assert "4.5 % by SAMS-VAE; chance is 2.5 %" in sentence
    assert "tells one perturbation from control in 90 % of cells" in sentence
    assert "the basal states of SAMS-VAE do not count as independent" in sentence
    near = BASAL.assign(accuracy=BASAL["accuracy"].mask(BASAL["perturbation"] == "A", 0.54))
    [sentence] = basal_in_words(near)
    assert "the basal states of SAMS-VAE count as independent" in sentence
    assert basal_in_words(BASAL[BASAL["perturbation"] == "A"]) == []


def test_the_page_says_whether_the_paper_was_reproduced():
    table = pd.DataFrame({"verdict": ["inside", "inside", "outside", "not run"]})
    assert verdicts_in_words(table) == [
        "Of 3 results of the paper that were run as published, 2 lie inside the prediction interval and 1 outside. The others: 1 not run."
    ]
    [nothing] = verdicts_in_words(table[3:])
    assert "None of the paper's 1 results was run as published" in nothing


def perturbations_without_change():
    return pd.DataFrame({"perturbation": ["A"], "n_de": [0]})


def test_a_figure_with_nothing_to_show_is_its_message_alone(tmp_path):
    use_style()
    paths = [tmp_path / "figures" / f"effects{suffix}" for suffix in (".svg", ".pdf")]
    save_figure(nothing_to_show("No cells & no genes."), "caption", "{}", paths)
    entry = figure_entry(
        SHOWN_FIGURES["effects"], tmp_path, CAPTIONS / "effects.rst", True, OPTIONS
    )
    assert entry["nothing"] == "No cells & no genes."
    write(paths[0], DRAWING)
    assert (
        figure_entry(SHOWN_FIGURES["effects"], tmp_path, CAPTIONS / "effects.rst", True, OPTIONS)[
            "nothing"
        ]
        == ""
    )


def test_times_are_summed_up_by_rule(results, tmp_path):
    assert run_times(results, ["first"]) == [["train", "2", "1 h 07 min", "1 h 06 min", "–"]]
    assert run_times(results, ["second"]) == []
    assert run_times(tmp_path, ["first"]) == []


def test_the_archive_opens_like_the_folder_and_is_the_same_every_time(report, tmp_path):
    for name in ("a.zip", "b.zip"):
        write_archive(PROPERTIES, report, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    names = zipfile.ZipFile(tmp_path / "a.zip").namelist()
    assert {"report/report.html", "report/first/figures/effects.svg", "report/first/figures/effects.pdf", "report/second/tables/summary.tsv"} <= set(names)  # fmt: skip
    for file in re.findall(r'href="([^"#:]+)"', report.read_text()):
        assert f"report/{file}" in names


def test_what_was_found_is_a_text_for_the_terminal(results, report):
    text = (results / "findings.txt").read_text()
    assert max(map(len, text.splitlines())) <= 100
    found = " ".join(text.split())
    assert found.count("Comparison of models") == len(CONFIG["experiments"])
    assert "With JAK2 (31 genes) G1, G2 rise and G3 falls." in found
    assert "predicted effects agree best with those among held-out cells: 0.800" in found


def test_drawings_of_a_large_report_stay_beside_it(results, report, monkeypatch):
    monkeypatch.setattr(page_module, "LARGEST_PAGE", 100)
    large = results / "large.html"
    captions = [CAPTIONS / f"{name}.rst" for name in SHOWN_FIGURES]
    write_report(
        CONFIG, PROPERTIES, captions, CAPTIONS / "report.html.j2", large, results / "large.txt"
    )
    assert 'src="data:image' not in large.read_text()
    assert 'src="first/figures/effects.svg"' in large.read_text()
    assert 'src="data:image' in report.read_text()


def test_long_tables_are_cut_after_their_most_telling_rows(tmp_path):
    write(tmp_path / "tables/t.tsv", "pvalue\tempty\n" + "".join(f"{p}\t\n" for p in range(2 * MOST_ROWS, 0, -1)))  # fmt: skip
    entry = table_entry(Table("t.tsv", "caption", first="pvalue"), tmp_path)
    content = json.loads(entry["data"])
    assert content["columns"] == ["pvalue"]
    assert content["rows"] == [[p] for p in range(1, MOST_ROWS + 1)]
    assert (entry["number"], entry["left_out"]) == (2 * MOST_ROWS, MOST_ROWS)


def test_a_table_tells_once_what_is_the_same_in_all_rows(tmp_path):
    text = "model\tn_cells\tp\tmean_p\tempty\n" + "sams\t3\t0.1\t0.15\t\nsams\t3\t0.2\t0.15\t\n"
    write(tmp_path / "tables/t.tsv", text)
    entry = table_entry(Table("t.tsv", "caption", file_only=("mean_*",)), tmp_path)
    content = json.loads(entry["data"])
    assert (content["columns"], content["rows"]) == (["p"], [[0.1], [0.2]])
    assert entry["constant"] == "model sams; n cells 3"
    assert content["constant"] == "sams 3"  # a search finds it
    write(tmp_path / "tables/t.tsv", "cells\tall\tp\n123456\t123456\t-0.5\n7\t123456\t-0.5\n")
    entry = table_entry(Table("t.tsv", "caption"), tmp_path)
    assert json.loads(entry["data"])["rows"] == [[123456], [7]]  # whole beside fractions
    assert entry["constant"] == "all 123456; p −0.5"
    write(tmp_path / "tables/t.tsv", "model\tp\nsams\t0.1\n")  # of one row, all
    entry = table_entry(Table("t.tsv", "caption"), tmp_path)
    assert (json.loads(entry["data"])["columns"], entry["constant"]) == (["model", "p"], "")


def test_tables_are_written_for_the_page_without_false_precision():
    table = pd.DataFrame(
        {"a": [1, 2], "b": [0.123456, np.nan], "c": ["x", None], "d": [True, False]}
    )
    assert json.loads(as_json(table))["rows"] == [[1, 0.1235, "x", "yes"], [2, None, None, "no"]]


READ_A_TABLE = """
const box = document.getElementById("first-table-de_comparison");
box.open = true;
setTimeout(() => {
  const told = (rows) => [...rows].map((row) => row.cells[2].textContent).join();
  const body = box.querySelector("tbody");
  const found = [told(body.rows)];
  box.querySelectorAll("th")[2].click();
  found.push(told(body.rows));
  const search = box.querySelector("input");
  search.value = "sams 2";
  search.dispatchEvent(new Event("input"));
  found.push(told(body.rows), box.querySelector(".count").textContent);
  const choice = document.getElementById("choose-experiment");
  const hidden = () => document.querySelectorAll("[data-experiment='second'][hidden]").length > 0;
  found.push(hidden());
  choice.value = "";
  choice.dispatchEvent(new Event("change"));
  found.push(hidden(), body.rows[0].cells[1].textContent);
  const told_ = document.createElement("output");
  told_.textContent = JSON.stringify(found);
  document.body.append(told_);
}, 500);
"""


def test_the_page_opens_from_disk_without_network_or_error_and_its_tables_can_be_read(report):
    seen = visit(report, READ_A_TABLE)
    assert seen.console == []
    assert seen.requests == []
    told = json.loads(html.unescape(re.search(r"<output>(.*?)</output>", seen.html).group(1)))
    assert told == ["2,1,0", "0,1,2", "2", "1 of 1 rows", True, False, TRICKY]


def test_the_first_screen_answers_five_questions(results):
    answers = dict(
        five_answers(
            results / "first/tables",
            PROPERTIES["first"],
            "knockdown",
            0.05,
            *[["sams_vae"]] * 2,
            "random",
        )
    )
    assert list(answers) == [SOUND, EFFECTS_, MECHANISMS, MODELS, NEXT]
    assert answers[SOUND][0].startswith("The screen is usable, with these reservations: 1 of 3")
    assert answers[EFFECTS_] == [
        "2 of 3 perturbations are hits: they change expression as a whole (JAK2, B). 2 of them and "
        "0 others change at least one gene significantly.",
        "With JAK2 (31 genes) G1, G2 rise and G3 falls.",
        "For 2 of 3 perturbations it can be told which cells respond; effects of the others are too "
        "small in a single cell. A median of 70 % respond. Estimated cells that do not respond, by "
        "their fraction: B 40 % (16 [4, 36] of 40), JAK2 20 % (8 [4, 36] of 40).",
    ]
    assert "TNFA (JAK2, A)" in answers[MECHANISMS][0]
    assert answers[MODELS] == [
        "SAMS-VAE has the highest mean score over the 14 metrics that can rank models here: 0.90 "
        "(0: the mean effect; 1: a replicate of the measurement). Next is no change (0.00). "
        "SAMS-VAE is the best in 90 % of bootstrap samples.",
        "SAMS-VAE is significantly better than every other: the 95 % intervals of the differences "
        "exclude 0.",
        "SAMS-VAE: r 0.80 with the effects of held-out cells; without replicates, differences are "
        "not tested.",
        "Predictions are judged on held-out cells of perturbations that models were trained on.",
    ]
    assert answers[NEXT][0].endswith("leave them out if so: g2 (weak effect).")
    assert answers[NEXT][1].startswith("Not hits: CAV1. More cells")
    without = five_answers(
        results / "second/tables", PROPERTIES["second"], None, 0.05, [], [], "as_simulated"
    )
    assert [question for question, _ in without] == [MODELS]


@pytest.mark.parametrize(
    ("highest", "said"),
    [
        ([-0.4, -0.1, 0.0], ["SAMS-VAE is significantly better than every other"]),
        ([0.1, 0.02, 0.0], ["SAMS-VAE is not significantly better than no change and third:"]),
        ([-0.4, 0.02, 0.0], ["SAMS-VAE is not significantly better than third:"]),
        ([np.nan, np.nan, 0.0], []),
        ([-0.4, np.nan, 0.0], []),  # one is not compared
    ],
)
def test_the_ranking_says_whether_the_best_is_significantly_better(highest, said):
    third = RANKING[:1].assign(model="third", rank=3)
    ranking = pd.concat([RANKING[:1], third, RANKING[1:]]).assign(difference_high=highest)
    first, *others = answers._ranking(ranking, ["sams_vae"])
    assert first.startswith("SAMS-VAE has the highest mean score")
    assert [one[: len(start)] for one, start in zip(others, said, strict=True)] == said


def test_perturbations_of_much_the_same_effect_are_described_together(tmp_path):
    SIMILARITY.to_parquet(tmp_path / "similarity.parquet")
    perturbations = pd.DataFrame(
        {"perturbation": ["JAK2", "B", "CAV1"], "n_de": [9, 8, 7], "raised": "G1 +1.2", "lowered": ""}
    )  # fmt: skip
    told = list(answers._described(perturbations, tmp_path))
    assert told == [
        "With JAK2 (9 genes) G1 rises.",
        "With B (8 genes) G1 rises.",
        "With CAV1 (7 genes) G1 rises.",
    ]
    alike = SIMILARITY.assign(similarity=[1.0, 0.8, -0.9, 0.9])  # the last of a prediction
    alike.to_parquet(tmp_path / "similarity.parquet")
    told = list(answers._described(perturbations, tmp_path))
    assert told == [
        "With JAK2 (9 genes) G1 rises; much the same effect (r > 0.7): B.",
        "With CAV1 (7 genes) G1 rises.",
    ]


def test_guides_are_named_to_which_fewer_cells_respond():
    responders = pd.DataFrame(
        {"perturbation": ["A", "A", "A", "B", "B"], "guide": ["", "a1", "a2", "", "b1"],
         "responders": [0.7, 0.4, 0.65, 0.5, np.nan], "low": [0.6, 0.2, 0.5, 0.4, np.nan],
         "high": [0.8, 0.5, 0.8, 0.6, np.nan]}
    )  # fmt: skip
    assert list(answers._rarely_responding(responders)) == [
        "Also look at guides to which fewer cells respond: a1 (40 % instead of 70 %)."
    ]
    assert list(answers._rarely_responding(responders[3:])) == []


@pytest.mark.parametrize(("low", "said"), [(-0.1, 1), (-9.0, 1), (0.1, 0), (np.nan, 0)])
def test_a_model_that_may_be_no_better_than_the_reference_is_named(low, said):
    told = list(answers._not_better(RANKING[1:].assign(low=low).to_dict("records")))
    assert len(told) == said
    if said:
        assert told[0].startswith(
            "It is not certain that SAMS-VAE predicts better than the mean effect"
        )


def mechanisms_tables(folder, members, fdr=0.01):
    of_set = [("JAK2", 0.01), ("A", 0.001), ("A+STAT1", 0.01), ("C", 0.2)]
    rows = pd.DataFrame(of_set, columns=["perturbation", "fdr"])
    rows = rows.assign(model="observed", method="over_representation", set="HALLMARK_TNFA")
    others = pd.concat(
        [rows, rows[3:].assign(fdr=0.01, model="m"), rows[3:].assign(fdr=0.01, set="B")]
    )
    write(folder / "enrichment.tsv", others.to_csv(sep="\t", index=False))
    write(folder / "pathway_agreement.tsv", AGREEMENT.to_csv(sep="\t", index=False))
    keys = {"split": "s", "model": "m", "seed": 0, "dimension": 3}
    factors = pd.DataFrame([keys | {"n_perturbations": 3, "perturbations": members}])
    sets = pd.DataFrame([keys | {"set": "HALLMARK_TNFA", "fdr": fdr, "pvalue": 0.001}])
    write(folder / "factors.tsv", factors.to_csv(sep="\t", index=False))
    write(folder / "factor_enrichment.tsv", sets.to_csv(sep="\t", index=False))


@pytest.mark.parametrize(
    ("members", "fdr", "said"),
    [
        ("A;JAK2", 0.01, ["Gene set and factor agree on A, JAK2."]),
        (
            "JAK2;B",
            0.01,
            [
                "Gene set and factor agree on JAK2; B moves the factor without that gene set; "
                "A, A+STAT1 have the gene set without the factor."
            ],
        ),
        ("B;C", 0.01, []),
        ("A;JAK2", 0.2, []),
    ],
)
def test_the_first_screen_reconciles_gene_set_and_factor(tmp_path, members, fdr, said):
    mechanisms_tables(tmp_path, members, fdr)
    _, _, *told = answers._mechanisms(tmp_path, [GENE_SETS, TRAINING, MASKS], ["m"], 0.05)
    assert told == said


def batch_effects(path, plain, within, error=0.1):
    """A file of effects of all cells, without regard to batches and within them."""
    layers = {
        "ate": np.array(plain), "ate_stratified": np.array(within),
        "standard_error_stratified": np.full(np.shape(plain), error),
    }  # fmt: skip
    obs = pd.DataFrame({"is_stratified": True}, index=NAMES)
    anndata.AnnData(layers["ate"], obs, pd.DataFrame(index=GENES), layers=layers).write_h5ad(path)


@pytest.mark.parametrize("at_once", [1, 3, 500])
def test_effects_that_batches_would_move_are_counted(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(soundness, "PERTURBATIONS_AT_ONCE", at_once)
    plain = np.tile([0.1, -0.1, np.nan], (4, 1))
    plain[1, 1], plain[3, 0] = 0.21, -0.5
    batch_effects(tmp_path / "e.h5ad", plain, np.zeros((4, 3)))
    said, remedy = batch_shifts_in_words(tmp_path / "e.h5ad")
    assert (
        remedy == " and, if ignored, would move 2 of 8 effects, so effects are compared within them"
    )
    assert said == (
        "Ignoring batches would move 2 of 8 effects by more than two standard errors, most that "
        "of FEW on G1 (−0.50 instead of +0.00)."
    )


def test_batches_without_effects_move_nothing(tmp_path):
    batch_effects(tmp_path / "e.h5ad", EFFECTS, EFFECTS)
    said, _ = batch_shifts_in_words(tmp_path / "e.h5ad")
    assert said == "Ignoring batches would move 0 of 11 effects by more than two standard errors."
    batch_effects(tmp_path / "zero.h5ad", EFFECTS, EFFECTS + 1, error=0.0)
    assert "move 0 of 0 effects" in batch_shifts_in_words(tmp_path / "zero.h5ad")[0]
    screen_effects().write_h5ad(tmp_path / "plain.h5ad")
    assert batch_shifts_in_words(tmp_path / "plain.h5ad") == ("", "")


def test_effects_within_unbalanced_batches_are_not_confounded(tmp_path):
    batch_effects(tmp_path / "e.h5ad", EFFECTS, EFFECTS)
    said, reservation = batches_in_words(OF_BATCHES, tmp_path / "e.h5ad")
    assert "80 % of the cells of B are in batch b1" in said
    assert said.endswith(
        "Ignoring batches would move 0 of 11 effects by more than two standard errors."
    )
    assert reservation == (
        "batches are unbalanced by up to 40 percentage points, so effects are compared within them"
    )
    plain = anndata.read_h5ad(tmp_path / "e.h5ad")
    plain.obs["is_stratified"] = False
    plain.write_h5ad(tmp_path / "plain.h5ad")
    said, reservation = batches_in_words(OF_BATCHES, tmp_path / "plain.h5ad")
    assert "Ignoring batches would move" in said
    assert reservation == "effects that ignore batches are confounded"
    even = OF_BATCHES.assign(fraction=0.41)
    assert batches_in_words(even, tmp_path / "e.h5ad")[1] == ""


def test_differences_of_batches_are_told_apart_from_their_balance(tmp_path):
    batch_effects(tmp_path / "e.h5ad", EFFECTS, EFFECTS)
    assert batch_differences_in_words(tmp_path / "e.h5ad") == ""
    effects = anndata.read_h5ad(tmp_path / "e.h5ad")
    effects.var["batch_pvalue"], effects.var["batch_variance"] = (
        [1e-9, 0.5, np.nan],
        [0.3, 0, np.nan],
    )
    effects.write_h5ad(tmp_path / "e.h5ad")
    assert batch_differences_in_words(tmp_path / "e.h5ad") == (
        "There is a batch effect: among control cells, 1 of 2 genes differ between batches (false "
        "discovery rate 5 %). Batches explain 15.0 % of the variance of a gene on average, and at "
        "most 30 % (G1)."
    )
    said, _ = batches_in_words(OF_BATCHES, tmp_path / "e.h5ad")
    assert said.startswith("There is a batch effect: among control cells, 1 of 2 genes")
    effects.var["batch_pvalue"] = [0.4, 0.5, np.nan]
    effects.write_h5ad(tmp_path / "e.h5ad")
    assert batch_differences_in_words(tmp_path / "e.h5ad") == (
        "No batch effect is detected: none of 2 genes differs between the control cells of "
        "batches (false discovery rate 5 %)."
    )
    assert "unbalanced by up to 40 percentage points" in said


def test_guides_fail_by_their_effect_and_not_by_the_transcript_alone():
    guides = pd.DataFrame(
        [("weak", "weak effect", 0.2, np.nan), ("both", "low concordance, weak knock-down", 0.9, 0.1),
         ("works", "weak knock-down", 0.9, 0.0), ("silent", "weak knock-down", np.nan, 0.0),
         ("usual", np.nan, 1.0, -1.0), ("measured", np.nan, np.nan, -1.0),
         ("unmeasured", np.nan, np.nan, np.nan), ("nearly", np.nan, 0.55, np.nan),
         ("low", "weak knock-down", 0.51, 0.0), ("alone", np.nan, np.nan, -1.0)],
        columns=["guide", "reason", "slope", "knock_down"],
    )  # fmt: skip
    guides["odd"] = guides["reason"].notna()
    guides["perturbation"] = ["P"] * 9 + ["Q"]
    judged = judge_guides(guides)
    assert [list(part["guide"]) for part in judged] == [
        ["weak", "both"], ["works", "low"], ["silent"], ["unmeasured"], ["nearly", "low"], ["alone"],
    ]  # fmt: skip
    said, reservation = guides_in_words(guides, "knockdown")
    assert "Of 10 guides, 6 can be compared by the effect; 2 of these may have failed" in said
    assert "with hardly more than 0.5 of the effect of the other guides: low (0.51), nearly" in said
    assert "1 guide could not be compared, as the only one of a perturbation." in said
    assert "With works the target changes less, but the effect is that" in said
    assert "With silent the target changes less, and too few genes" in said
    assert "1 guide could not be judged" in said
    assert "knock-out" not in said
    assert "With 1 guide the target changes as with the others, and too few genes" in said
    assert reservation == (
        "2 guides may have failed (weak, both); 3 guides change the target less than others"
    )
    assert guides_in_words(guides, "knockout")[1] == "2 guides may have failed (weak, both)"
    assert "a knock-out need not lower the transcript" in guides_in_words(guides, "knockout")[0]
    said, reservation = guides_in_words(guides[4:5], None)
    assert said == "Of 1 guide, 1 can be compared by the effect, and none is unlike the others."
    assert reservation == ""
    said, _ = guides_in_words(guides[5:7], None)
    assert said.startswith("Of 2 guides, 0 can be compared by the effect. With 1 guide the target")
    assert guides_in_words(guides[:0], None)[1] == ""


def test_the_first_screen_names_a_baseline_as_such_and_single_genes_of_no_hits(results, tmp_path):
    first, *_ = answers._ranking(RANKING, [])
    assert first.startswith("The baseline SAMS-VAE has the highest mean score")
    silent = pd.DataFrame(
        {
            "perturbation": ["A", "B", "C"],
            "n_de": [0, 1, 0],
            "detectable_effect": [0.3, np.nan, 0.5],
        }
    )
    assert answers._single_genes(silent) == "; single genes change with B (1)"
    assert "a change of 0.30 to 0.50 (log2)" in answers._detectable(silent)
    assert answers._detectable(silent[1:2]) == answers._single_genes(silent[:1]) == ""


def test_odd_guides_are_listed_by_reason():
    guides = pd.DataFrame(
        {"guide": ["a1", "b1", "b2", *(f"c{i}" for i in range(14))],
         "reason": ["weak effect", "low concordance", "low concordance", *["weak knock-down"] * 14]}
    )  # fmt: skip
    text = odd_guides(guides)
    assert text.startswith(
        "c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 and 2 more (weak knock-down)"
    )
    assert text.endswith("; b1, b2 (low concordance); a1 (weak effect)")


def unpacked(data, name):
    kind, text = data["arrays"][name]
    return np.frombuffer(base64.b64decode(text), kind)


def test_the_browser_holds_every_effect_to_its_step(results):
    data = browser_data(results / "first", PROPERTIES["first"], "sams_vae", 0.05)
    assert data["genes"] == GENES
    assert [one["effects"] for one in data["perturbations"]] == [[0, 3], [3, 6], [6, 9], [9, 12]]
    effect = unpacked(data, "effect").astype(float)
    effect[effect == MISSING] = np.nan
    np.testing.assert_allclose(effect * EFFECT_STEP, EFFECTS.ravel(), atol=EFFECT_STEP / 2)
    predicted = unpacked(data, "predicted").astype(float)
    assert predicted[:3].tolist() == [1000, MISSING, -1500]
    assert set(predicted[3:]) == {MISSING}
    stored = 10 ** (-unpacked(data, "pvalue").astype(float) * LOG_STEP)
    given = np.nan_to_num(PVALUES.ravel(), nan=1.0)
    np.testing.assert_allclose(stored, given, rtol=0.006, atol=1e-300)
    assert data["left_out"] is False
    assert data["strongest"] == "JAK2"
    facts = dict(data["perturbations"][0]["facts"])
    assert facts["Gene sets"] == "UV (FDR 0.01)"
    assert facts["Guides"] == "g1 (40 cells); g2 (9 cells): weak effect"
    assert facts["Responders"] == ("80 % of cells [10, 90]; 8 [4, 36] of 40 cells do not respond")
    assert facts["Change of its target"] == "JAK2 log2 −1.50 [−2.00, −1.00]"
    assert "not measure" in dict(data["perturbations"][2]["facts"])["Change of its target"]
    assert "Prediction" not in facts
    of_b = dict(data["perturbations"][1]["facts"])
    assert of_b["Prediction"] == "SAMS-VAE explains 30 % of the effect on held-out cells"
    assert data["perturbations"][0]["similar"] == [["B", 0.2], ["CAV1", -0.4]]
    assert data["perturbations"][1]["similar"] == [["JAK2", 0.2]]
    assert browser_data(results / "second", PROPERTIES["second"], "sams_vae", 0.05) is None


def test_a_large_screen_keeps_the_genes_of_smallest_pvalue():
    arrays, ranges = pack_effects(screen_effects(), np.zeros((4, 3)), most=8)
    assert ranges == [[0, 2], [2, 4], [4, 6], [6, 8]]
    genes = unpacked({"arrays": arrays}, "gene").reshape(4, 2)
    assert genes.tolist() == [[0, 2], [0, 2], [1, 2], [1, 2]]


LOOK_UP = """
const told = document.createElement("output");
const part = (name) => document.querySelector(`#browse [data-part="${name}"]`);
const rows = () => [...part("table").querySelectorAll("tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent));
const points = () => window.Bokeh?.documents[0]?.get_model_by_name("genes")?.data;
const title = () => part("title").textContent;
const until = async (ready) => {
  while (!ready()) await new Promise((resolve) => setTimeout(resolve, 50));
};
(async () => {
  location.hash = "perturbation=JAK2";
  await until(() => title() === "JAK2" && points()?.effect.length);
  const found = [title(), rows(), Array.from(points().effect), Array.from(points().colour)];
  part("table").querySelector("tbody a").click();
  await until(() => title().includes(" in all "));
  found.push(title(), rows().map((row) => row[0]), Array.from(points().name));
  location.hash = "perturbation=NOBODY";
  await until(() => title().includes("NOBODY"));
  told.textContent = JSON.stringify([...found, title()]);
  document.body.append(told);
})();
"""


def test_a_reader_looks_up_perturbations_and_genes(report):
    seen = visit(report, LOOK_UP)
    assert seen.console == []
    told = json.loads(html.unescape(re.search(r"<output>(.*?)</output>", seen.html).group(1)))
    title, rows, effects, colours, gene, perturbations, points, nobody = told
    assert title == "JAK2"
    assert [row[:3] for row in rows] == [
        ["G3", "−2", "−2.2"], ["G1", "1.23", "1.04"], ["G2", "0.1", "−0.1"],
    ]  # fmt: skip
    assert effects == [-2.0, 1.234, 0.1]
    assert colours[0] != colours[1] != colours[2] != colours[0]
    assert gene == "G3 in all perturbations"
    assert perturbations == points
    assert set(perturbations) == set(NAMES)
    assert perturbations[0] == "JAK2"
    assert nobody == "There is no perturbation NOBODY in this experiment."


POINT = """
const figure = document.getElementById("first-similarity");
figure.closest("details").open = true;
setTimeout(() => {
  const image = figure.querySelector("img");
  const box = image.getBoundingClientRect();
  const value = document.querySelector(".value");
  const point = ([across, down]) => {
    const place = { clientX: box.left + across * box.width, clientY: box.top + down * box.height };
    image.dispatchEvent(new PointerEvent("pointermove", place));
    return value.hidden ? null : value.textContent;
  };
  const found = PLACES.map(point);
  image.dispatchEvent(new PointerEvent("pointerleave"));
  const told = document.createElement("output");
  told.textContent = JSON.stringify([...found, value.hidden]);
  document.body.append(told);
}, 500);
"""


def test_a_reader_points_at_the_cells_of_a_heat_map(report, results):
    """The places of the cells are those of the frame that is drawn."""
    svg = (results / "first/figures/similarity.svg").read_text()
    size = np.array(re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups(), dtype=float)
    axes = svg[svg.index('<g id="axes_1">') :]
    corners = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", axes)[:4], dtype=float) / size
    low, high = corners.min(axis=0), corners.max(axis=0)
    centres = [
        list(low + (high - low) * [(column + 0.5) / 3, (row + 0.5) / 3])
        for row in range(3)
        for column in range(3)
    ]
    outside = list(high + 0.01)
    seen = visit(report, f"const PLACES = {json.dumps([*centres, outside])};" + POINT)
    assert seen.console == []
    told = json.loads(html.unescape(re.search(r"<output>(.*?)</output>", seen.html).group(1)))
    names = ["JAK2", "B", TRICKY]
    values = ["1", "–", "−0.5", "–", "1", "0.25", "−0.5", "0.25", "1"]
    assert told[:9] == [
        f"{row}, {column}: {values[3 * r + c]} (r over genes)"
        for r, row in enumerate(names)
        for c, column in enumerate(names)
    ]
    assert told[9:] == [None, True]
    assert "dc:relation" not in base64.b64decode(embedded(seen.html, "first-similarity")).decode()


def embedded(page, figure):
    """The embedded drawing of a figure."""
    [source] = re.findall(rf'id="{figure}">.*?base64,([^"]+)"', page, re.DOTALL)
    return source


def test_a_page_that_asks_the_network_is_found_out(tmp_path):
    write(tmp_path / "bad.html", '<!doctype html><html><img src="http://127.0.0.1:9/x.png"></html>')
    seen = visit(tmp_path / "bad.html", "undefined_function()")
    assert seen.requests == ["http://127.0.0.1:9/x.png"]
    assert any("undefined_function" in message for message in seen.console)


def test_the_strongest_factors_of_a_perturbation_are_named(monkeypatch):
    names = [f"P{number}" for number in range(7)]
    effects = pd.DataFrame(
        {
            "model": "m",
            "split": "s",
            "seed": 0,
            "perturbation": np.repeat(names, 4),
            "dimension": np.tile(range(4), 7),
            "shift": np.tile([0.5, -3.0, 2.0, 0.1], 7),
            "active": True,
        }
    )
    [[heading, text]] = browser._of_factors(effects, "m")["P0"]
    assert heading == "Latent factors"
    assert text.count("factor ") == 4
    assert "factor 1 (−3.0 SD), shared with P1, P2, P3, P4, P5;" in text
    monkeypatch.setattr(browser, "MOST_FACTORS_IN_ALL", 14)
    [[_, text]] = browser._of_factors(effects, "m")["P6"]
    assert [part[:8] for part in text.split("; ")] == ["factor 1", "factor 2", "2 weaker"]
