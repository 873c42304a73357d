"""Layout of results: runs of a configuration, their files, and the files of each target.

The module does not import torch, since the Snakefile imports it.
"""

import collections
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samsvae.config.configuration import gene_set_names
from samsvae.config.experiments import (
    Run,
    Split,
    can_be_fitted_together,
    candidates,
    conditions,
    expanded,
    given_split,
    has_grid,
    has_mask,
    is_ceiling,
    is_external,
    is_published,
    is_trained,
    prediction_path,
    runs,
    splits,
)
from samsvae.config.models import EXPRESSION
from samsvae.config.screens import (
    download_of,
    has_marginal_effects,
    knows_batches,
    knows_contexts,
    knows_guides,
    perturbation_kind,
)
from samsvae.report.sections import (
    BATCHES,
    CELLS,
    CONTEXTS,
    COUNTS,
    FRACTIONS,
    GENE_SETS,
    GRIDS,
    GROUPS,
    GUIDES,
    INTERVALS,
    MARGINAL,
    MASKS,
    PAPER,
    SPLIT_FOLDER,
    STATE_MAP,
    TABLES_FOLDER,
    TRAINING,
    TRUTH,
    Figure,
    figures_of,
    tables_of,
)
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import fingerprint
from samsvae.runtime.preflight import check_experiment, check_predictions, check_screen_file
from samsvae.sources import (
    GAUSSIAN,
    SIMULATORS,
    WITH_PROGRAMMES,
    files_of,
    fingerprints_of,
    own_settings,
)

# cells that perturbations are compared with, whether or not effects are marginal
REFERENCES = {False: "control cells", True: "other cells"}
Wildcards = Mapping[str, str]
RunOf = dict[str, Any]
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


class Layout:
    """Runs, files and targets of a configuration.

    A method that takes wildcards is an input or parameter function of rules. A method `for_...`
    takes a pattern, such as an output of another rule, and makes an input function of it.

    Parameters
    ----------
    config
        A validated configuration.
    check_files
        Whether to check the user's files when a job that needs them is planned.

    Attributes
    ----------
    models
        Settings of every model by name, candidates of grids included.
    candidates
        Candidates by the name of a model with a grid; one of them is selected on each split.
    trained, fitted, fitted_together
        Names of the trained models; of those without a grid, which have a training of their own;
        and of those among them whose seeds are trained together.
    ceilings, external, baselines
        Names of the other models; the external ones are predictions of other tools.
    training
        Settings of training that results depend on.
    """

    def __init__(self, config: Mapping[str, Any], check_files: bool = False) -> None:
        self.config = config
        self.check_files = check_files
        self.experiments: dict[str, dict[str, Any]] = config["experiments"]
        self.screens: dict[str, dict[str, Any]] = config["screens"]
        self.models = expanded(config["models"])
        self.candidates = {
            name: candidates(name, model)
            for name, model in config["models"].items()
            if has_grid(model)
        }
        self.trained = [name for name, model in self.models.items() if is_trained(model)]
        self.fitted = [name for name in self.trained if name not in self.candidates]
        together = config["training"]["seeds_together"]
        self.fitted_together = [
            name for name in self.fitted if together and can_be_fitted_together(self.models[name])
        ]
        self.training = {k: v for k, v in config["training"].items() if k != "seeds_together"}
        self.ceilings = [name for name, model in self.models.items() if is_ceiling(model)]
        self.external = [name for name, model in self.models.items() if is_external(model)]
        others = [*self.trained, *self.ceilings, *self.external]
        self.baselines = [name for name in self.models if name not in others]

    # What experiments and their models are.

    def source(self, experiment: str) -> str:
        """Return the source of an experiment's screen."""
        return str(self.screens[self.experiments[experiment]["screen"]]["source"])

    def has_counts(self, experiment: str) -> bool:
        """Whether an experiment's screen has counts, and so effects on expression."""
        return self.source(experiment) not in GAUSSIAN

    def has_published_results(self, experiment: str) -> bool:
        """Whether the paper reports results of such an experiment."""
        split = self.experiments[experiment]["split"]["kind"]
        return is_published(self.source(experiment), split)

    def is_simulated(self, experiment: str) -> bool:
        """Whether the truth of an experiment's screen is known."""
        return self.source(experiment) in SIMULATORS

    def properties(self, experiment: str) -> list[str]:
        """List the features of an experiment that figures and tables need."""
        entry = self.experiments[experiment]
        trained = any(model in self.trained for model in entry["models"])
        has = {
            COUNTS: self.has_counts(experiment),
            CELLS: self.has_counts(experiment)
            and not has_marginal_effects(self.screen_entry(experiment))
            and self.config["evaluation"]["scored_cells"],
            BATCHES: knows_batches(self.screen_entry(experiment)),
            CONTEXTS: knows_contexts(self.screen_entry(experiment)),
            GUIDES: knows_guides(self.screen_entry(experiment)),
            MARGINAL: has_marginal_effects(self.screen_entry(experiment)),
            TRAINING: trained,
            GENE_SETS: gene_set_names(self.config, experiment),
            FRACTIONS: len(conditions(self.splits(experiment))) > 1,
            GRIDS: any(model in self.candidates for model in entry["models"]),
            PAPER: trained and self.has_published_results(experiment),
            MASKS: any(has_mask(self.models[model]) for model in entry["models"]),
            GROUPS: entry["perturbation_groups"],
            STATE_MAP: self.config["evaluation"]["mapped_cells"],
            INTERVALS: trained
            and self.has_counts(experiment)
            and self.config["evaluation"]["interval_draws"],
            TRUTH: self.is_simulated(experiment),
        }
        return sorted(name for name, present in has.items() if present)

    def experiments_with(self, *needed: str, without: str = "") -> list[str]:
        """List the experiments that have all these properties, and not that one."""
        has = {name: set(self.properties(name)) for name in self.experiments}
        return [name for name in has if has[name] >= set(needed) and without not in has[name]]

    def screen_entry(self, experiment: str) -> dict[str, Any]:
        """Return the configuration's entry of an experiment's screen."""
        entry: dict[str, Any] = self.screens[self.experiments[experiment]["screen"]]
        return entry

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

    def screens_of(self, *sources: str) -> list[str]:
        """List the screens of some sources."""
        return [name for name, entry in self.screens.items() if entry["source"] in sources]

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

    def checked_screens(self) -> list[str]:
        """List the screens that can be checked, those with counts, each once."""
        checked = filter(self.has_counts, self.experiments)
        return list(dict.fromkeys(self.experiments[name]["screen"] for name in checked))

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

    @functools.cache  # noqa: B019
    def splits(self, experiment: str) -> dict[str, Split]:
        """List an experiment's splits by name."""
        return splits(self.experiments[experiment])

    def names_of_splits(self) -> list[str]:
        """List the names of all splits of all experiments."""
        return sorted({name for experiment in self.experiments for name in self.splits(experiment)})

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

    def runs(
        self,
        experiment: str,
        split: str | None = None,
        models: Collection[str] | None = None,
        reference: bool = False,
    ) -> list[RunOf]:
        """List the runs of an experiment.

        Parameters
        ----------
        experiment
            Its name.
        split, models
            Those to keep; all if None.
        reference
            Keep the first split and the first seed alone, which detailed figures show.

        Returns
        -------
        list of dict
            Split, model and seed of each.
        """
        first = (next(iter(self.splits(experiment))), self.experiments[experiment]["seeds"][0])
        return [
            dict(run)
            for run in self._all_runs(experiment)
            if (split is None or run["split"] == split)
            and (models is None or run["model"] in models)
            and (not reference or (run["split"], run["seed"]) == first)
        ]

    @functools.cache  # noqa: B019
    def _all_runs(self, experiment: str) -> list[RunOf]:
        return [vars(run) for run in runs(self.experiments[experiment], self.models)]

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

    def reference_run(self, experiment: str) -> RunOf | None:
        """Return the run whose cells.h5ad is always made, that of the first trained model."""
        return next(iter(self.runs(experiment, models=self.trained, reference=True)), None)

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

    def by_seeds(self, models: Collection[str] | None = None) -> dict[tuple[int, ...], list[str]]:
        """Group the experiments with any of some models by their list of seeds.

        Parameters
        ----------
        models
            Models whose seeds are one job; those that are fitted together if None.
        """
        joined = set(self.fitted_together if models is None else models)
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, experiment in self.experiments.items():
            chosen_from = [self.candidates.get(model, ()) for model in experiment["models"]]
            if joined & {*experiment["models"], *itertools.chain.from_iterable(chosen_from)}:
                groups.setdefault(tuple(experiment["seeds"]), []).append(name)
        return groups

    def by_baselines(self) -> dict[tuple[tuple[str, int], ...], list[str]]:
        """Group the experiments with baselines by these, each with the seed of its runs."""
        groups: dict[tuple[tuple[str, int], ...], list[str]] = {}
        for name in self.experiments:
            runs = self.runs(name, models=self.baselines, reference=True)
            if runs:
                found = tuple((run["model"], run["seed"]) for run in runs)
                groups.setdefault(found, []).append(name)
        return groups

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

    def all_figures(self) -> list[str]:
        """List every figure of every experiment."""
        return [
            f"{FIGURES}/{figure.name}.svg".format(experiment=experiment)
            for experiment in self.experiments
            for figure in figures_of(self.properties(experiment))
        ]

    def figures_by_module(self) -> list[tuple[str, list[Figure], list[str]]]:
        """Group the figures of experiments by module, as one job draws them.

        Returns
        -------
        list of tuple
            Name of a rule, figures of a module of :mod:`samsvae.figures`, and the experiments that
            have exactly these figures of it.
        """
        groups: dict[tuple[str, tuple[Figure, ...]], list[str]] = {}
        for experiment in self.experiments:
            by_module: dict[str, list[Figure]] = {}
            for figure in figures_of(self.properties(experiment)):
                by_module.setdefault(figure.module, []).append(figure)
            for module, figures in by_module.items():
                groups.setdefault((module, tuple(figures)), []).append(experiment)
        named, sets = [], collections.Counter[str]()
        for (module, shown), experiments in groups.items():
            sets[module] += 1
            number = f"_{sets[module]}" if sets[module] > 1 else ""
            named.append((f"draw_{module}{number}", list(shown), experiments))
        return named

    def tables_of_figures(self, figures: Iterable[Figure]) -> InputFunction:
        """Build an input function of the tables of figures."""
        patterns = [self.for_first_split(figure.path) for figure in figures]
        return lambda wildcards: [pattern(wildcards) for pattern in patterns]

    def options_of_figures(self, wildcards: Wildcards) -> dict[str, Any]:
        """Return the options of figures."""
        evaluation = self.config["evaluation"]
        marginal = MARGINAL in self.properties(wildcards["experiment"])
        return {
            "reference": REFERENCES[marginal],
            "models": self.experiments[wildcards["experiment"]]["models"],
            "evaluation": {key: evaluation[key] for key in ("top_genes", "fdr")},
        }


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
