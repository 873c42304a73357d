"""Where results are, and what each target consists of."""

import os

import pytest
import yaml

from samsvae.config.configuration import merge, validate
from samsvae.runtime.errors import InputError
from samsvae.runtime.layout import (
    RUN,
    SPLIT,
    Layout,
    closing_words,
    figures_listed,
    one_of,
    report_suffix,
    run_of,
)
from tests.conftest import ROOT

DEFAULTS = yaml.safe_load((ROOT / "config.yaml").read_text())
OWN_FILE = {"source": "h5ad", "path": "a.h5ad", "perturbation_column": "p", "control": "c"}
PAIRS = {"kind": "unseen_combinations", "fractions": [0, 1], "seeds": [0]}


class Wildcards(list):
    """Like Snakemake's: a list of values, whose names are keys."""

    def __init__(self, **values):
        super().__init__(values.values())
        self.values = values

    def keys(self):
        return self.values.keys()

    def __getitem__(self, name):
        return self.values[name]


def layout(**user):
    return Layout(validate(merge(DEFAULTS, user)))


def with_own(check_files=False, **user):
    """Two experiments: a user's file with a grid of models, and a simulation without counts."""
    entries = {
        "screens": {"own": OWN_FILE, "normal": {"source": "simulated_additive"}},
        "gene_sets": {"h": "h.gmt", "k": "k.gmt"},
        "models": {
            "chosen": {"kind": "sams_vae", "grid": {"n_latent": [2, 3]}},
            "normal": {"kind": "cpa_vae", "likelihood": "normal"},
        },
        "experiments": {
            "own": {
                "screen": "own", "split": PAIRS, "models": ["chosen", "additive", "split_half"],
                "seeds": [3, 4],
            },
            "normal": {
                "screen": "normal", "split": {"kind": "as_simulated"}, "models": ["normal"],
                "perturbation_groups": "groups.gmt",
            },
        },
    }  # fmt: skip
    return Layout(validate(merge(DEFAULTS, {**entries, **user})), check_files)


def test_the_targets_of_the_default_configuration():
    default = layout()
    files = default.all_runs()
    # two experiments of one split: 3 trained models by 3 seeds with 2 files, 3 baselines and a
    # ceiling by 3 seeds with one; and the cells of one run
    assert len(files) == len(set(files)) == 2 * (3 * 3 * 2 + 3 + 3 + 1)
    assert "results/simulated/random-seed0/cpa_vae/seed2/model.safetensors" in files
    assert "results/simulated/tables/metrics.parquet" in default.all_tables()
    assert "results/simulated/tables/split.tsv" in default.all_tables()
    figures = default.all_figures()
    assert "results/simulated_unseen_pairs/figures/truth.svg" in figures
    assert not any("factor_groups" in path for path in figures)


def test_experiments_on_a_screen_have_the_same_assessment():
    default = layout()
    of_screen = default.for_screen("results/screens/{screen}/assessment/hits.tsv")
    jobs = [Wildcards(experiment=name) for name in ("simulated", "simulated_unseen_pairs")]
    assert {of_screen(job) for job in jobs} == {"results/screens/simulated/assessment/hits.tsv"}
    own = with_own()
    assert own.for_screen("{screen}")(Wildcards(experiment="own")) == "own"
    assert own.comparison_of(Wildcards(screen="own"))["fdr"] == 0.05


def test_models_are_told_by_what_gives_them():
    own = with_own()
    candidates = ["chosen--n_latent-2", "chosen--n_latent-3"]
    assert list(own.candidates["chosen"]) == candidates
    assert set(candidates) <= set(own.fitted)
    assert "chosen" in own.trained
    assert "chosen" not in own.fitted
    assert own.ceilings == ["split_half"]
    assert set(own.baselines) == {"additive", "other_contexts", "mean_effect", "no_change"}
    assert own.fitted_together == []
    together = with_own(training={"seeds_together": True})
    assert set(candidates) <= set(together.fitted_together)
    assert "seeds_together" not in together.training


def test_runs_are_chosen_by_split_model_and_reference():
    own = with_own()
    assert len(own.runs("own")) == 2 * (2 + 1 + 2)
    first = "unseen_combinations-f0-seed0"
    assert {run["split"] for run in own.runs("own", split=first)} == {first}
    assert own.runs("own", models=["chosen"], reference=True) == [
        {"split": first, "model": "chosen", "seed": 3}
    ]
    job = Wildcards(experiment="own", split=first, model="chosen", seed="4")
    assert own.shown_runs_of(job) == [run_of(job)]
    assert own.shown_runs_of(Wildcards(experiment="own"))[0]["seed"] == 3
    by_split = own.runs_of(models=["additive"])
    assert len(by_split(Wildcards(experiment="own"))) == 2
    assert len(by_split(Wildcards(experiment="own", split=first))) == 1


def test_a_value_of_a_wildcard_is_not_taken_for_its_name():
    own = with_own()
    assert own.shown_runs_of(Wildcards(experiment="own", other="model"))[0]["model"] == "chosen"


def test_runs_given_out_are_copies():
    own = with_own()
    own.runs("own")[0]["seed"] = 99
    assert all(run["seed"] != 99 for run in own.runs("own"))


def test_patterns_are_filled_for_runs_splits_and_candidates():
    own = with_own()
    job = Wildcards(
        experiment="own", split="unseen_combinations-f1-seed0", model="chosen", seed="9"
    )
    assert own.for_candidates(f"{RUN}/a")(job) == [
        f"results/own/unseen_combinations-f1-seed0/chosen--n_latent-{n}/seed9/a" for n in (2, 3)
    ]
    assert len(own.for_candidates(f"{RUN}/a", all_seeds=True)(job)) == 2 * 3
    assert own.seeds_to_choose_by(job) == [3, 4, 9]
    everything = Wildcards(experiment="own")
    assert own.for_splits(f"{SPLIT}/a")(everything) == [
        f"results/own/unseen_combinations-f{f}-seed0/a" for f in (0, 1)
    ]
    assert own.for_first_split(f"{SPLIT}/a")(everything).endswith("-f0-seed0/a")
    assert own.for_choices(f"{RUN}/a")(everything) == [
        f"results/own/unseen_combinations-f{f}-seed0/chosen/seed3/a" for f in (0, 1)
    ]
    assert own.for_single_runs(f"{RUN}/a")(everything) == []
    assert own.for_single_runs(f"{RUN}/a")(Wildcards(experiment="normal")) == [
        "results/normal/as_simulated-seed0/normal/seed0/a"
    ]


def test_inputs_follow_from_what_is_known():
    own = with_own()
    job, without_counts = Wildcards(experiment="own"), Wildcards(experiment="normal")
    assert own.gene_sets_of(job) == ["h.gmt", "k.gmt"]
    assert own.tests_gene_sets_of(job)
    assert not own.tests_gene_sets_of(without_counts)
    assert own.groups_of(job) == []
    assert own.groups_of(without_counts) == ["groups.gmt"]
    assert own.has("counts")(job)
    assert not own.has("counts")(without_counts)
    assert own.has("training")(without_counts)
    assert not own.true_effects_of(without_counts)
    assert layout().true_effects_of(Wildcards(experiment="simulated"))
    assert layout().gene_sets_of(Wildcards(experiment="simulated")) == [
        "results/screens/simulated/programmes.gmt"
    ]


def test_screens_are_checked_as_files_of_their_owner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = with_own()
    assert own.checked_screens() == ["own"]  # the other has no counts
    job = Wildcards(screen="own")
    assert own.checked_settings_of(job)["path"] == "a.h5ad"
    assert own.checked_files_of(job) == []
    (tmp_path / "a.h5ad").touch()
    (tmp_path / "k.gmt").touch()
    assert own.checked_files_of(job) == ["a.h5ad", "k.gmt"]
    simulated = layout()
    assert simulated.checked_files_of(Wildcards(screen="simulated")) == [
        "results/screens/simulated/screen.h5ad", "results/screens/simulated/programmes.gmt",
    ]  # fmt: skip


def test_files_are_checked_once_while_jobs_are_planned_and_what_is_wrong_ends_it(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    planning, running = with_own(check_files=True), with_own()
    for ask, job in [
        (planning.users_file_of, Wildcards(screen="own")),
        (planning.screen_of, Wildcards(experiment="own")),
    ]:
        with pytest.raises(SystemExit) as ended:
            ask(job)
        assert "a.h5ad" in str(ended.value.code)
    assert running.users_file_of(Wildcards(screen="own")) == "a.h5ad"
    assert running.screen_of(Wildcards(experiment="own")) == "results/screens/own/screen.h5ad"


def test_a_seed_that_was_not_trained_with_the_others_is_refused():
    job = {"experiment": "own", "split": "s", "seed": "5"}
    alone, together = with_own(), with_own(training={"seeds_together": True})
    for own, model in [(alone, "chosen--n_latent-2"), (together, "another")]:
        assert own.split_to_train_on(Wildcards(**job, model=model)) == "results/own/s/split.tsv"
    with pytest.raises(InputError, match=r"5 is none of them \(3, 4\)"):
        together.split_to_train_on(Wildcards(**job, model="chosen--n_latent-2"))
    assert together.by_seeds() == {(3, 4): ["own"], (0,): ["normal"]}
    assert alone.by_seeds() == {}


def test_downloads_are_told_apart_by_content_and_not_by_address():
    published = layout(
        screens={"n": {"source": "norman"}, "mine": {"source": "norman", "path": "mine.h5ad"}}
    )
    assert "urls" not in published.content_of_screen(Wildcards(screen="n"))
    assert published.content_of_screen(Wildcards(screen="n"))["file"] == "Norman_2019.h5ad"
    receipts = [published.receipt_of(Wildcards(screen=name)) for name in ("n", "mine")]
    assert receipts == [
        "results/downloads/norman_original.json",
        "results/screens/mine/verified.json",
    ]


def test_figures_are_drawn_by_module_from_tables_of_the_first_split():
    own = with_own()
    drawn = {
        (name, experiment): figures
        for name, figures, experiments in own.figures_by_module()
        for experiment in experiments
    }
    paths = [
        f"results/{experiment}/figures/{figure.name}.svg"
        for (_, experiment), figures in drawn.items()
        for figure in figures
    ]
    assert sorted(paths) == sorted(own.all_figures())
    assert all(len({figure.module for figure in figures}) == 1 for figures in drawn.values())
    job = Wildcards(experiment="own")
    [[name, figures]] = [
        [name, figures]
        for (name, experiment), figures in drawn.items()
        if experiment == "own" and "perturbations" in [figure.name for figure in figures]
    ]
    assert name.startswith("draw_scores")
    tables = own.tables_of_figures(figures)(job)
    assert "results/own/unseen_combinations-f0-seed0/metrics.parquet" in tables
    assert len(tables) == len(figures)
    assert own.options_of_figures(job)["models"] == ["chosen", "additive", "split_half"]


def test_names_are_matched_as_they_are():
    import re

    assert re.fullmatch(one_of(["a.b", "c"]), "a.b")
    assert not re.fullmatch(one_of(["a.b", "c"]), "axb")
    assert not re.fullmatch(one_of([]), "")


@pytest.mark.parametrize(
    ("name", "files", "suffix"),
    [
        (None, [], ""),
        (None, ["config.yaml"], ""),
        (None, ["config/norman.yaml"], "-norman"),
        (None, ["config.yaml", "config/norman.yaml", "more.yaml"], "-norman-more"),
        (None, ["my screen.v2.yaml"], "-my_screen_v2"),
        ("mine", ["config/norman.yaml"], "-mine"),
        ("mine", [], "-mine"),
    ],
)
def test_reports_of_configurations_lie_side_by_side(monkeypatch, name, files, suffix):
    monkeypatch.chdir(ROOT)
    assert report_suffix(name, files, ROOT / "config.yaml") == suffix


def test_the_last_words_show_what_is_new(tmp_path):
    report, findings = tmp_path / "report.html", tmp_path / "findings.txt"
    assert closing_words(str(report), str(findings), 0) == ""
    report.touch()
    findings.write_text("SAMS-VAE is best.")
    os.utime(findings, (1000, 1000))
    assert "SAMS-VAE is best." in closing_words(str(report), str(findings), 999)
    assert closing_words(str(report), str(findings), 1001) == f"The report: {report}"


def test_figures_of_perturbations_are_read_from_their_list(tmp_path):
    table = tmp_path / "own/tables/perturbations.tsv"
    table.parent.mkdir(parents=True)
    table.write_text("perturbation\tfigure\nA\tfigures/perturbations/A.svg\n")
    assert figures_listed(table) == [f"{tmp_path}/own/figures/perturbations/A.svg"]
