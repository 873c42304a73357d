"""Layout of results: files of the runs of a configuration, and the inputs of each rule.

The module does not import torch, since the Snakefile imports it.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samsvae.config.configuration import gene_set_names
from samsvae.config.experiments import Run, given_split, has_mask, prediction_path
from samsvae.config.models import EXPRESSION
from samsvae.config.screens import download_of, perturbation_kind
from samsvae.report.sections import (
    SPLIT_FOLDER,
    TABLES_FOLDER,
    Figure,
    figure_options,
    figures_of,
    tables_of,
)
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import fingerprint
from samsvae.runtime.plan import Plan, RunOf
from samsvae.runtime.preflight import check_experiment, check_predictions, check_screen_file
from samsvae.sources import WITH_PROGRAMMES, files_of, fingerprints_of, own_settings

Wildcards = Mapping[str, str]
InputFunction = Callable[[Wildcards], list[str]]

SCREEN = "results/screens/{screen}/screen.h5ad"
ASSESSMENT = "results/screens/{screen}/assessment"
PROGRAMMES = "results/screens/{screen}/programmes.gmt"
CHECK = "results/checks/{screen}"
SPLIT = SPLIT_FOLDER
RUN = f"{SPLIT}/{{model}}/seed{{seed}}"
TABLES = TABLES_FOLDER
FIGURES = "results/{experiment}/figures"

# labels of a canonical screen, to check it like a user's file
CANONICAL = {"perturbation_matrix": {"obsm": "dosage", "names": "perturbations"}}


# factors, their genes and the gene sets enriched among these
FACTOR_TABLES = ("factors.tsv", "factor_genes.parquet", "factor_enrichment.tsv")


class Layout(Plan):
    """Files of a plan, and inputs and parameters of the rules that make them.

    A method that takes wildcards is an input or parameter function of rules. A method `for_...`
    takes a pattern, such as an output of another rule, and makes an input function of it.

    Parameters
    ----------
    config
        A validated configuration.
    check_files
        Whether to check the user's files when a job that needs them is planned.
    """

    def __init__(self, config: Mapping[str, Any], check_files: bool = False) -> None:
        super().__init__(config)
        self.check_files = check_files

    # What experiments and their models are.

    def comparison_of(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return the settings by which the cells of a screen are compared."""
        evaluation = self.config["evaluation"]
        keys = (
            "effects", "min_controls_per_batch", "depth_bins", "min_cells_null", "min_cells_guide",
            "fdr",
        )  # fmt: skip
        kind = perturbation_kind(self.screens[wildcards["screen"]])
        return {**{key: evaluation[key] for key in keys}, "perturbation_kind": kind}

    def for_screen(self, path: str) -> Callable[[Wildcards], str]:
        """Build an input: a path with the wildcard screen, of the screen of a job's experiment."""
        return lambda wildcards: path.format(
            screen=self.experiments[wildcards["experiment"]]["screen"]
        )

    def has(self, feature: str) -> Callable[[Wildcards], bool]:
        """Build a condition: whether a job's experiment has a feature of :meth:`properties`."""
        return lambda wildcards: feature in self.properties(wildcards["experiment"])

    def true_effects_of(self, wildcards: Wildcards) -> bool:
        """Whether the true effects of a job's screen are known."""
        return self.source(wildcards["experiment"]) in WITH_PROGRAMMES

    def tests_gene_sets_of(self, wildcards: Wildcards) -> bool:
        """Whether gene sets are tested among the genes of a job's experiment."""
        return self.has_counts(wildcards["experiment"]) and bool(self.gene_sets_of(wildcards))

    def trained_of(self, wildcards: Wildcards) -> bool:
        """Whether a job's model is trained."""
        return wildcards["model"] in self.trained

    def baseline_of(self, wildcards: Wildcards) -> bool:
        """Whether a job's model is a baseline, or predictions of another tool."""
        return wildcards["model"] in [*self.baselines, *self.external]

    # Screens, and the files that they are made of.

    def settings_of_screen(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return what the configuration says of the cells of a screen."""
        entry = self.screens[wildcards["screen"]]
        return {key: value for key, value in entry.items() if key != "perturbation_kind"}

    def content_of_download(self, name: str) -> dict[str, Any]:
        """Return the entry of a download without its URLs, which do not change the file."""
        return {k: v for k, v in self.config["downloads"][name].items() if k != "urls"}

    def content_of_screen(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return the entry of a screen's download without its URLs."""
        return self.content_of_download(str(download_of(self.screens[wildcards["screen"]])))

    def users_file_of(self, wildcards: Wildcards) -> str:
        """Return the path of a user's file, after its checks."""
        return self.users_files_of(wildcards)["path"]

    def users_files_of(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the user's files of a screen, after their checks."""
        self._check(check_screen_file, wildcards["screen"])
        return files_of(self.screens[wildcards["screen"]])

    def fingerprints_of(self, wildcards: Wildcards) -> dict[str, str]:
        """Compute fingerprints of the user's files, which detect replaced files of any date."""
        return fingerprints_of(self.screens[wildcards["screen"]])

    def warnings_of(self, wildcards: Wildcards) -> list[str]:
        """Return the marker file of shown warnings of an experiment's screen, if there is one."""
        screen = self.experiments[wildcards["experiment"]]["screen"]
        shown = f"{CHECK}.warnings.txt".format(screen=screen)
        return [shown] if screen in self.checked_screens() else []

    def applied_screen_of(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the files of a screen that a model is applied to, as ``screen`` and others.

        A user's file is read with all genes of the model; of other sources, the canonical screen.
        """
        if self.screens[wildcards["screen"]]["source"] != "h5ad":
            return {"screen": SCREEN.format(**wildcards)}
        files = dict(self.users_files_of(wildcards))
        return {"screen": files.pop("path"), **files}

    def receipt_of(self, wildcards: Wildcards) -> str:
        """Return the path of the receipt of a screen's published file."""
        name = wildcards["screen"]
        self._check(check_screen_file, name)
        if self.screens[name]["path"] is not None:
            return f"results/screens/{name}/verified.json"
        return f"results/downloads/{download_of(self.screens[name])}.json"

    def screen_of(self, wildcards: Wildcards) -> str:
        """Return the path of an experiment's screen, after checks of the experiment's files."""
        self._check(check_experiment, wildcards["experiment"])
        return SCREEN.format(screen=self.experiments[wildcards["experiment"]]["screen"])

    @functools.cache  # noqa: B019 - one layout lives as long as its workflow
    def _check(self, check: Callable[[Mapping[str, Any], str], object], name: str) -> None:
        """Check files while jobs are planned, and end Snakemake with a message on an error.

        SystemExit, since Snakemake adds a traceback to any other exception of an input function.
        """
        if self.check_files:
            try:
                check(self.config, name)
            except InputError as error:
                raise SystemExit(str(error)) from None

    def gene_sets_of(self, wildcards: Wildcards) -> list[str]:
        """List the GMT files that an experiment tests, in the order of their names."""
        experiment = wildcards["experiment"]
        return [self._gmt(name, experiment) for name in gene_set_names(self.config, experiment)]

    def gene_sets_on(self, screen: str) -> dict[str, str]:
        """Return the GMT files that experiments test on a screen, by name."""
        return {
            name: self._gmt(name, experiment)
            for experiment, entry in self.experiments.items()
            if entry["screen"] == screen
            for name in gene_set_names(self.config, experiment)
        }

    def _gmt(self, name: str, experiment: str) -> str:
        simulated = PROGRAMMES.format(screen=self.experiments[experiment]["screen"])
        return str(self.config["gene_sets"].get(name, simulated))

    def groups_of(self, wildcards: Wildcards) -> list[str]:
        """List the GMT file of known groups of perturbations, if there is one."""
        groups = self.experiments[wildcards["experiment"]]["perturbation_groups"]
        return [groups] if groups else []

    def feature_sources_of(self, wildcards: Wildcards) -> list[str]:
        """List what features of a job's model, or of all of its experiment's models, are made of.

        Paths of tables, or ``expression``.
        """
        own = _value(wildcards, "model")
        models = self.experiments[wildcards["experiment"]]["models"] if own is None else [own]
        named = [each for one in models for each in (one, *self.candidates.get(one, ()))]
        sources = (self.models[name].get("perturbation_features") for name in named)
        return sorted({source for source in sources if source})

    def features_of(self, wildcards: Wildcards) -> list[str]:
        """List the tables of features of a job's model, or of its experiment's models."""
        return [path for path in self.feature_sources_of(wildcards) if path != EXPRESSION]

    def features_of_models(self, models: Iterable[str]) -> list[str]:
        """List the tables of features of some models."""
        return sorted({path for model in models for path in self.features_of({"model": model})})

    def prediction_of(self, wildcards: Wildcards) -> str:
        """Return the file of another tool with the predictions of a job, after its checks."""
        self._check(check_predictions, wildcards["experiment"])
        run = Run(wildcards["split"], wildcards["model"], int(wildcards["seed"]))
        return prediction_path(self.models[run.model], wildcards["experiment"], run)

    def fingerprint_of_prediction(self, wildcards: Wildcards) -> str:
        """Compute the fingerprint of this file, which detects a replaced file of any date."""
        return fingerprint(self.prediction_of(wildcards))

    # What is checked before anything is trained.

    def checked_settings_of(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return the source settings of a check: the user's file, else the canonical screen."""
        entry = self.screens[wildcards["screen"]]
        if entry["source"] == "h5ad":
            return own_settings(entry)
        keys: tuple[str, ...] = ("unit", "compared_with")
        unit = {key: entry[key] for key in keys if key in entry}
        return {"path": SCREEN.format(**wildcards), **CANONICAL, **unit}

    def checked_files_of(self, wildcards: Wildcards) -> list[str]:
        """List the existing files of a check; the check reports missing ones."""
        settings = self.checked_settings_of(wildcards)
        made = [SCREEN.format(**wildcards), PROGRAMMES.format(**wildcards)]
        named = [settings.get(key) for key in ("path", "genes", "guide_table")]
        named += self.gene_sets_on(wildcards["screen"]).values()
        return [path for path in named if path and (path in made or Path(path).exists())]

    # Splits and runs.

    def given_split_of(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return where a job's split is, if it was made elsewhere, and what its words mean."""
        split = self.splits(wildcards["experiment"])[wildcards["split"]]
        return given_split(self.experiments[wildcards["experiment"]], split.seed)

    def split_table_of(self, wildcards: Wildcards) -> list[str]:
        """List the table that a job's split is read from, if there is one."""
        table = self.given_split_of(wildcards).get("table")
        return [table] if table else []

    def settings_of_splits(self, wildcards: Wildcards) -> dict[str, dict[str, Any]]:
        """Return the settings of an experiment's splits, by name."""
        return {name: vars(split) for name, split in self.splits(wildcards["experiment"]).items()}

    def runs_of(self, **chosen: Any) -> Callable[[Wildcards], list[RunOf]]:
        """Build a parameter function of the runs of a job's experiment, or of its split."""
        return lambda wildcards: self.runs(
            wildcards["experiment"], split=_value(wildcards, "split"), **chosen
        )

    def shown_runs_of(self, wildcards: Wildcards) -> list[RunOf]:
        """List the trained runs of a job: its own, or else the reference run of every model."""
        if _value(wildcards, "model") is not None:
            return [run_of(wildcards)]
        return self.runs(wildcards["experiment"], models=self.trained, reference=True)

    def reference_runs_of(self, wildcards: Wildcards) -> list[RunOf]:
        """List the reference run of a job's experiment, if it has trained models."""
        run = self.reference_run(wildcards["experiment"])
        return [] if run is None else [run]

    def single_models_of(self, wildcards: Wildcards) -> list[str]:
        """List the trained models of an experiment that has one split and one seed; else none."""
        entry = self.experiments[wildcards["experiment"]]
        if len(self.splits(wildcards["experiment"])) > 1 or len(entry["seeds"]) > 1:
            return []
        return [model for model in entry["models"] if model in self.trained]

    def seeds_to_choose_by(self, wildcards: Wildcards) -> list[int]:
        """List the seeds to select a candidate by: the experiment's, and the job's own."""
        seeds: list[int] = self.experiments[wildcards["experiment"]]["seeds"]
        own = int(wildcards["seed"])
        return seeds if own in seeds else [*seeds, own]

    def split_to_train_on(self, wildcards: Wildcards) -> str:
        """Return the path of the split that one seed of a model is trained on.

        Raises
        ------
        InputError
            If the seeds of the model are trained together, the job's not being one of them.
        """
        seeds = self.experiments[wildcards["experiment"]]["seeds"]
        # the rule of all seeds precedes that of one, whose input Snakemake asks for all the same
        if wildcards["model"] in self.fitted_together and int(wildcards["seed"]) not in seeds:
            raise InputError(
                f"The seeds of the model {wildcards['model']!r} are trained together, and "
                f"{wildcards['seed']} is none of them ({', '.join(map(str, seeds))}). Add it to "
                f"experiments.{wildcards['experiment']}.seeds, or leave out "
                "training.seeds_together."
            )
        return f"{SPLIT}/split.tsv".format(**wildcards)

    # Files of many runs.

    def for_runs(self, pattern: str, **chosen: Any) -> InputFunction:
        """Fill a pattern for each run of :meth:`runs_of`."""
        runs = self.runs_of(**chosen)
        return lambda wildcards: [
            pattern.format(experiment=wildcards["experiment"], **run) for run in runs(wildcards)
        ]

    def for_models(self, pattern: str) -> InputFunction:
        """Fill a pattern for each split and trained model of a job's experiment, over its seeds."""
        of_runs = self.for_runs(pattern, models=self.trained)
        return lambda wildcards: list(dict.fromkeys(of_runs(wildcards)))

    def for_seeds(self, pattern: str) -> InputFunction:
        """Fill a pattern for each training seed of a job's model on its split."""
        return lambda wildcards: self.for_runs(pattern, models=[wildcards["model"]])(wildcards)

    def for_shown_runs(self, pattern: str) -> InputFunction:
        """Fill a pattern for each run of :meth:`shown_runs_of`."""
        return lambda wildcards: [
            pattern.format(experiment=wildcards["experiment"], **run)
            for run in self.shown_runs_of(wildcards)
        ]

    def for_shown_split(self, pattern: str) -> Callable[[Wildcards], str]:
        """Fill a pattern for the split of these runs."""
        return lambda wildcards: pattern.format(
            experiment=wildcards["experiment"], split=self.shown_runs_of(wildcards)[0]["split"]
        )

    def for_reference_run(self, pattern: str) -> InputFunction:
        """Fill a pattern for the reference run of an experiment with trained models."""

        def filled(wildcards: Wildcards) -> list[str]:
            run = self.reference_run(wildcards["experiment"])
            return [] if run is None else [pattern.format(**wildcards, **run)]

        return filled

    def factor_tables_of(self, wildcards: Wildcards) -> list[str]:
        """List the tables of factors, their genes and sets, of a run; none without masks.

        The tables of reference runs are those of their experiment.
        """
        experiment, run = wildcards["experiment"], run_of(wildcards)
        if not has_mask(self.models[run["model"]]):
            return []
        shown = run in self.runs(experiment, models=self.trained, reference=True)
        folder = (TABLES if shown else RUN).format(experiment=experiment, **run)
        return [f"{folder}/{table}" for table in FACTOR_TABLES]

    def for_single_runs(self, pattern: str) -> InputFunction:
        """Fill a pattern for each trained run, if an experiment has one run per model."""
        return lambda wildcards: self.for_runs(pattern, models=self.single_models_of(wildcards))(
            wildcards
        )

    def for_splits(self, pattern: str) -> InputFunction:
        """Fill a pattern for each split of an experiment."""
        return lambda wildcards: [
            pattern.format(experiment=wildcards["experiment"], split=split)
            for split in self.splits(wildcards["experiment"])
        ]

    def halves_of(self, of_run: str, otherwise: str) -> Callable[[Wildcards], str]:
        """Fill the pattern of a run with the split-half ceiling of a split, or else another one."""

        def filled(wildcards: Wildcards) -> str:
            experiment, split = wildcards["experiment"], wildcards["split"]
            for run in self.runs(experiment, split, models=self.ceilings):
                if self.models[run["model"]]["kind"] == "split_half":
                    return of_run.format(experiment=experiment, **run)
            return otherwise.format(experiment=experiment, split=split)

        return filled

    def for_first_split(self, pattern: str) -> Callable[[Wildcards], str]:
        """Fill a pattern for the first split of an experiment, which detailed figures show."""
        return lambda wildcards: pattern.format(
            experiment=wildcards["experiment"],
            split=next(iter(self.splits(wildcards["experiment"]))),
        )

    def for_candidates(self, pattern: str, all_seeds: bool = False) -> InputFunction:
        """Fill a pattern for each candidate of a job's model, from the job's seed or from all."""

        def filled(wildcards: Wildcards) -> list[str]:
            fixed = {"experiment": wildcards["experiment"], "split": wildcards["split"]}
            own: list[int | str] = [wildcards["seed"]]
            seeds = [*self.seeds_to_choose_by(wildcards)] if all_seeds else own
            return [
                pattern.format(**fixed, model=candidate, seed=seed)
                for candidate in self.candidates[wildcards["model"]]
                for seed in seeds
            ]

        return filled

    def for_choices(self, pattern: str) -> InputFunction:
        """Fill a pattern for each split and model with a grid, by the first seed."""

        def filled(wildcards: Wildcards) -> list[str]:
            entry = self.experiments[wildcards["experiment"]]
            return [
                pattern.format(
                    experiment=wildcards["experiment"],
                    split=split,
                    model=model,
                    seed=entry["seeds"][0],
                )
                for split in self.splits(wildcards["experiment"])
                for model in entry["models"]
                if model in self.candidates
            ]

        return filled

    # Targets.

    def all_runs(self) -> list[str]:
        """List the models and predicted effects of every run, and the cells of reference runs."""
        trained = self.for_runs(f"{RUN}/model.safetensors", models=self.trained)
        predicted = self.for_runs(f"{RUN}/predicted_effects.h5ad")
        cells = self.for_reference_run(f"{RUN}/cells.h5ad")
        return [
            file
            for experiment in self.experiments
            for files in ([trained, predicted, cells] if self.has_counts(experiment) else [trained])
            for file in files({"experiment": experiment})
        ]

    def all_tables(self) -> list[str]:
        """List all tables of experiments, each once, and their metrics."""
        return sorted(
            {
                self.for_first_split(path)({"experiment": experiment})
                for experiment in self.experiments
                for path in [
                    *tables_of(self.properties(experiment)),
                    f"{TABLES}/metrics.parquet",
                ]
            }
        )

    def all_screens(self) -> list[str]:
        """List the screen and the first split of every experiment, which the report describes."""
        return [
            file
            for name, entry in self.experiments.items()
            for file in (
                SCREEN.format(screen=entry["screen"]),
                *(
                    self.for_first_split(f"{SPLIT}/{table}")({"experiment": name})
                    for table in ("split.tsv", "split.json")
                ),
            )
        ]

    def all_figures(self) -> list[str]:
        """List every figure of every experiment."""
        return [
            f"{FIGURES}/{figure.name}.svg".format(experiment=experiment)
            for experiment in self.experiments
            for figure in figures_of(self.properties(experiment))
        ]

    def tables_of_figures(self, figures: Iterable[Figure]) -> InputFunction:
        """Build an input function of the tables of figures."""
        patterns = [self.for_first_split(figure.path) for figure in figures]
        return lambda wildcards: [pattern(wildcards) for pattern in patterns]

    def options_of_figures(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return the options of figures."""
        experiment = wildcards["experiment"]
        return figure_options(self.config, experiment, self.properties(experiment))


def _value(wildcards: Wildcards, name: str) -> str | None:
    """Return a wildcard, None if the job does not have it; `in` would search values."""
    return wildcards[name] if name in wildcards.keys() else None  # noqa: SIM118


def figures_listed(table: str | Path) -> list[str]:
    """List the figures of perturbations that a table of perturbations names.

    Parameters
    ----------
    table
        A file ``<experiment>/tables/perturbations.tsv``, whose last column is a path from the
        experiment's folder.
    """
    path = Path(table)
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [str(path.parent.parent / line.rsplit("\t", 1)[1]) for line in lines]


def run_of(wildcards: Wildcards) -> RunOf:
    """Return the run of a job."""
    return {
        "split": wildcards["split"],
        "model": wildcards["model"],
        "seed": int(wildcards["seed"]),
    }


def one_of(names: Iterable[str]) -> str:
    """Build a regular expression that matches any of some names; nothing without names."""
    return "|".join(map(re.escape, names)) or "(?!)"


def report_suffix(name: str | None, configfiles: Sequence[str | Path], default: str | Path) -> str:
    """Return the suffix of a configuration's report, so that several reports can coexist.

    Parameters
    ----------
    name
        Name of the report in the configuration, if any.
    configfiles
        Files of the configuration.
    default
        The file of the default configuration.

    Returns
    -------
    str
        ``-<name>``, as in ``report-norman.html``; without a name, that of the files. Empty for the
        default configuration, and for an empty name.
    """
    if name is None:
        given = [Path(file) for file in configfiles]
        own = [file.stem for file in given if file.resolve() != Path(default).resolve()]
        name = re.sub(r"[^\w-]+", "_", "-".join(own))
    return f"-{name}" if name else ""


def closing_words(report: str, findings: str, started: float) -> str:
    """Return the message at the end of a run: new findings, and the path of the report.

    Parameters
    ----------
    report, findings
        Paths of the report and of its findings as text.
    started
        Time in seconds since the epoch.

    Returns
    -------
    str
        Empty without a report.
    """
    if not Path(report).is_file():
        return ""
    text = Path(findings)
    is_new = text.is_file() and text.stat().st_mtime >= started
    told = f"\n{text.read_text(encoding='utf-8')}\n" if is_new else ""
    return f"{told}The report: {report}"
