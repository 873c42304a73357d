"""Splits and runs of an experiment, and the candidates of hyperparameter grids.

Imports neither torch nor scanpy, since the Snakefile calls it.
"""

import copy
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samsvae.config.models import BASELINES, CEILINGS, EXTERNAL, MASKED

# kinds of splits, by what they need: fractions, or the context of each cell
UNSEEN_PERTURBATIONS = "unseen_perturbations"
WITH_FRACTIONS = ("unseen_combinations", "data_efficiency", "unseen_contexts", UNSEEN_PERTURBATIONS)
OF_CONTEXTS = ("unseen_contexts", "leave_context_out")
# kinds of splits that were made elsewhere, by the key that says where they are
FROM_COLUMN, FROM_TABLE = "from_column", "from_table"
GIVEN = {FROM_COLUMN: "column", FROM_TABLE: "table"}
SEED = "{seed}"  # in a name of a column or file, where there is one for each seed


@dataclass(frozen=True)
class Split:
    """One division of a screen's cells.

    Attributes
    ----------
    kind
        ``random``, ``unseen_combinations``, ``data_efficiency``, ``unseen_contexts``,
        ``leave_context_out``, ``unseen_perturbations``, ``as_simulated``, ``from_column`` or
        ``from_table``.
    seed
        Seed of the division.
    fraction
        Fraction of pairs of perturbations, or of the pairs' training cells, or of pairs of a
        perturbation and a context, or of single perturbations, that may be trained on; None for
        the other kinds.
    context
        Context whose perturbed cells are tested, of ``leave_context_out`` alone.
    """

    kind: str
    seed: int
    fraction: float | None = None
    context: str | None = None

    @property
    def name(self) -> str:
        """Folder name, for instance ``unseen_combinations-f0.5-seed0``."""
        fraction = "" if self.fraction is None else f"-f{self.fraction:g}"
        context = "" if self.context is None else "-" + re.sub("[^A-Za-z0-9.]+", "_", self.context)
        return f"{self.kind}{fraction}{context}-seed{self.seed}"


@dataclass(frozen=True)
class Run:
    """One model on one split with one seed."""

    split: str
    model: str
    seed: int


def splits(experiment: Mapping[str, Any]) -> dict[str, Split]:
    """List an experiment's splits by name, fractions or contexts first, then seeds."""
    settings = experiment["split"]
    made = [
        Split(settings["kind"], seed, fraction, context)
        for fraction in settings.get("fractions") or [None]
        for context in settings.get("contexts") or [None]
        for seed in settings["seeds"]
    ]
    return {split.name: split for split in made}


def given_split(experiment: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return where a split that was made elsewhere is, and what its words mean.

    Parameters
    ----------
    experiment
        A validated entry of the configuration's experiments.
    seed
        Seed of the split, which takes the place of ``{seed}``.

    Returns
    -------
    dict
        ``column`` or ``table``, and ``parts``, the part of the split by the word for it, or None;
        empty for other kinds of splits.
    """
    settings = experiment["split"]
    key = GIVEN.get(settings["kind"])
    if key is None:
        return {}
    return {key: settings[key].replace(SEED, str(seed)), "parts": settings.get("parts")}


def conditions(splits: Mapping[str, Split]) -> dict[float, list[str]]:
    """Group the names of splits by fraction (NaN for none), whatever their seed or context."""
    groups: dict[float, list[str]] = {}
    for name, split in splits.items():
        fraction = math.nan if split.fraction is None else split.fraction
        groups.setdefault(fraction, []).append(name)
    return groups


def is_trained(model: Mapping[str, Any]) -> bool:
    """Tell whether a model of the configuration is trained (a baseline or ceiling is not)."""
    return model["kind"] not in (*BASELINES, *CEILINGS, *EXTERNAL)


def can_be_fitted_together(model: Mapping[str, Any]) -> bool:
    """Tell whether all seeds of a trained model can be fitted as one program.

    They have to see the same labels, and their random numbers to be drawn apart from the model's
    weights, which those of a Beta distribution cannot.
    """
    return not model["shuffle_labels"] and model.get("rate_guide") != "beta"


def is_ceiling(model: Mapping[str, Any]) -> bool:
    """Tell whether a model of the configuration is a measurement of held-out cells themselves."""
    return model["kind"] in CEILINGS


def is_external(model: Mapping[str, Any]) -> bool:
    """Tell whether the predictions of a model of the configuration come from another tool."""
    return model["kind"] in EXTERNAL


def has_mask(model: Mapping[str, Any]) -> bool:
    """Tell whether a model of the configuration says which perturbation uses which dimension."""
    return model["kind"] in MASKED


def runs(experiment: Mapping[str, Any], models: Mapping[str, Any]) -> list[Run]:
    """List an experiment's runs; a model without randomness runs with the first seed alone.

    These are baselines, and predictions from elsewhere that do not differ between seeds.

    Parameters
    ----------
    experiment
        A validated entry of the configuration's experiments.
    models
        The configuration's models.

    Returns
    -------
    list of Run
        In the order of splits, models, seeds.
    """
    return [
        Run(split, model, seed)
        for split in splits(experiment)
        for model in experiment["models"]
        for seed in experiment["seeds"][: None if _differs_by_seed(models[model]) else 1]
    ]


def _differs_by_seed(model: Mapping[str, Any]) -> bool:
    if is_external(model):
        return SEED in model["path"]
    return model["kind"] not in BASELINES


def prediction_path(model: Mapping[str, Any], experiment: str, run: Run) -> str:
    """Return the path of the predictions that another tool made for a run."""
    path: str = model["path"]
    return path.format(experiment=experiment, split=run.split, seed=run.seed)


GRID = "grid"
# what bounds cannot choose: a likelihood, since different ones are of different measurements,
# whether a model is a negative control, and features, since no validation cell is of an unseen
# perturbation
NOT_IN_A_GRID = {"kind", "likelihood", "shuffle_labels", "perturbation_features", GRID}
LONGEST_NAME = 128  # a name becomes part of file names

Entry = Mapping[str, Any]


def has_grid(model: Entry) -> bool:
    """Tell whether a model of the configuration is chosen from candidates."""
    return bool(model.get(GRID))


def candidates(name: str, model: Entry) -> dict[str, dict[str, Any]]:
    """List the candidates of a model with a grid.

    Parameters
    ----------
    name
        The model's.
    model
        Its entry in the configuration.

    Returns
    -------
    dict of dict
        By the candidate's name, for instance ``sams_vae--mask_prior-0.1--n_latent-100``, the
        hyperparameters in which candidates differ, in the grid's order, the last one first.
    """
    grid = model[GRID]
    found = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        found["--".join([name, *(f"{key}-{value}" for key, value in chosen.items())])] = chosen
    return found


def expanded(models: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
    """Put the candidates of every grid beside the models.

    Parameters
    ----------
    models
        Those of the configuration.

    Returns
    -------
    dict of dict
        Entries without a grid: of each model, and after it of its candidates.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        entries[name] = {key: value for key, value in model.items() if key != GRID}
        if has_grid(model):
            for candidate, chosen in candidates(name, model).items():
                entries[candidate] = {**entries[name], **chosen}
    return entries


def with_grids(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Let a schema say of each kind of model which hyperparameters its grid may have.

    Parameters
    ----------
    schema
        That of the configuration, in which a grid is any mapping of lists.

    Returns
    -------
    dict
        A copy in which a grid holds lists of what the hyperparameters of its model may be.
    """
    full = copy.deepcopy(dict(schema))
    for definition in full["$defs"].values():
        properties = definition.get("properties", {})
        if GRID in properties:
            properties[GRID] = {
                **properties[GRID],
                "additionalProperties": False,
                "properties": {
                    key: {"type": "array", "minItems": 1, "uniqueItems": True, "items": allowed}
                    for key, allowed in properties.items()
                    if key not in NOT_IN_A_GRID
                },
            }
    return full


def grid_faults(config: Mapping[str, Any]) -> list[str]:
    """List what is wrong with grids beyond their keys and values.

    Parameters
    ----------
    config
        A configuration that fits the schema.

    Returns
    -------
    list of str
        A line for each fault: too many candidates, or else names that are too long or taken.
    """
    with_grid = {name: model for name, model in config["models"].items() if has_grid(model)}
    most = config["evaluation"]["max_candidates"]
    sizes = {name: math.prod(map(len, model[GRID].values())) for name, model in with_grid.items()}
    too_many = [
        f"- models.{name}.grid: {size:,} candidates make {size * _runs(config, name):,} trainings; "
        f"leave some out, or raise evaluation.max_candidates (now {most})"
        for name, size in sizes.items()
        if size > most
    ]
    if too_many:
        return too_many
    found = {name: candidates(name, model) for name, model in with_grid.items()}
    names = Counter([*config["models"], *itertools.chain.from_iterable(found.values())])
    return [
        f"- models.{name}.grid: the candidate {candidate!r} {fault}"
        for name in found
        for candidate in found[name]
        for fault in [_fault_of_name(candidate, names)]
        if fault
    ]


def _fault_of_name(candidate: str, names: Mapping[str, int]) -> str:
    if names[candidate] > 1:
        return "would have the name of another model; call one of them otherwise"
    if len(candidate) > LONGEST_NAME:
        return (
            f"would have a name of {len(candidate)} characters, more than {LONGEST_NAME}; give the "
            "model a shorter name, or the grid fewer hyperparameters"
        )
    return ""


def _runs(config: Mapping[str, Any], model: str) -> int:
    """Count how often a model is trained."""
    return sum(
        len(splits(experiment)) * len(experiment["seeds"])
        for experiment in config["experiments"].values()
        if model in experiment["models"]
    )


# experiment of the published table of Norman's screen, by the kind of its splits
PUBLISHED_TASKS = {
    "unseen_combinations": "norman_ood",
    "data_efficiency": "norman_data_efficiency",
}


def is_published(source: str, split: str) -> bool:
    """Whether the paper has results for this source of a screen and kind of split."""
    return source == "norman" and split in PUBLISHED_TASKS
