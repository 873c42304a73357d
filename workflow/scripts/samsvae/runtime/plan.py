"""Models, experiments and runs of a configuration, without the files that they are stored in.

The module does not import torch, since the Snakefile imports it.
"""

import collections
import functools
import itertools
from collections.abc import Collection, Mapping
from typing import Any

from samsvae.config.configuration import gene_set_names
from samsvae.config.experiments import (
    Split,
    can_be_fitted_together,
    candidates,
    conditions,
    expanded,
    has_grid,
    has_mask,
    is_ceiling,
    is_external,
    is_published,
    is_trained,
    runs,
    splits,
)
from samsvae.config.screens import has_marginal_effects, knows_batches, knows_contexts, knows_guides
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
    STATE_MAP,
    TRAINING,
    TRUTH,
    Figure,
    figures_of,
)
from samsvae.sources import GAUSSIAN, SIMULATORS

RunOf = dict[str, Any]


class Plan:
    """Models, experiments and runs that a configuration defines.

    Parameters
    ----------
    config
        A validated configuration.

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

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
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

    def screen_entry(self, experiment: str) -> dict[str, Any]:
        """Return the configuration's entry of an experiment's screen."""
        entry: dict[str, Any] = self.screens[self.experiments[experiment]["screen"]]
        return entry

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

    def screens_of(self, *sources: str) -> list[str]:
        """List the screens of some sources."""
        return [name for name, entry in self.screens.items() if entry["source"] in sources]

    def checked_screens(self) -> list[str]:
        """List the screens that can be checked, those with counts, each once."""
        checked = filter(self.has_counts, self.experiments)
        return list(dict.fromkeys(self.experiments[name]["screen"] for name in checked))

    # Splits and runs.

    @functools.cache  # noqa: B019 - one plan lives as long as its workflow
    def splits(self, experiment: str) -> dict[str, Split]:
        """List an experiment's splits by name."""
        return splits(self.experiments[experiment])

    def names_of_splits(self) -> list[str]:
        """List the names of all splits of all experiments."""
        return sorted({name for experiment in self.experiments for name in self.splits(experiment)})

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

    def reference_run(self, experiment: str) -> RunOf | None:
        """Return the run whose cells.h5ad is always made, that of the first trained model."""
        return next(iter(self.runs(experiment, models=self.trained, reference=True)), None)

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
