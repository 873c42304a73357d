"""What an experiment consists of: its splits, and the runs of models on them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samsvae.config.models import BASELINES, CEILINGS, MASKED


@dataclass(frozen=True)
class Split:
    """One division of a screen's cells.

    Attributes
    ----------
    kind
        ``random``, ``unseen_combinations``, ``data_efficiency`` or ``as_simulated``.
    seed
        Seed of the division.
    fraction
        Fraction of pairs, or of the pairs' training cells, that may be trained on; None for the
        other kinds.
    """

    kind: str
    seed: int
    fraction: float | None = None

    @property
    def name(self) -> str:
        """Folder name, for instance ``unseen_combinations-f0.5-seed0``."""
        fraction = "" if self.fraction is None else f"-f{self.fraction:g}"
        return f"{self.kind}{fraction}-seed{self.seed}"


@dataclass(frozen=True)
class Run:
    """One model on one split with one seed."""

    split: str
    model: str
    seed: int


def splits(experiment: Mapping[str, Any]) -> dict[str, Split]:
    """List an experiment's splits by name, fractions first, then seeds."""
    settings = experiment["split"]
    made = [
        Split(settings["kind"], seed, fraction)
        for fraction in settings.get("fractions") or [None]
        for seed in settings["seeds"]
    ]
    return {split.name: split for split in made}


def conditions(splits: Mapping[str, Split]) -> dict[float, list[str]]:
    """Group the names of splits that differ by their seed alone, by fraction (NaN for none)."""
    groups: dict[float, list[str]] = {}
    for name, split in splits.items():
        fraction = math.nan if split.fraction is None else split.fraction
        groups.setdefault(fraction, []).append(name)
    return groups


def is_trained(model: Mapping[str, Any]) -> bool:
    """Tell whether a model of the configuration is trained (a baseline or ceiling is not)."""
    return model["kind"] not in (*BASELINES, *CEILINGS)


def can_be_fitted_together(model: Mapping[str, Any]) -> bool:
    """Tell whether all seeds of a trained model can be fitted as one program.

    They have to see the same labels, and their random numbers to be drawn apart from the model's
    weights, which those of a Beta distribution cannot.
    """
    return not model["shuffle_labels"] and model.get("rate_guide") != "beta"


def is_ceiling(model: Mapping[str, Any]) -> bool:
    """Tell whether a model of the configuration is a measurement of held-out cells themselves."""
    return model["kind"] in CEILINGS


def has_mask(model: Mapping[str, Any]) -> bool:
    """Tell whether a model of the configuration says which perturbation uses which dimension."""
    return model["kind"] in MASKED


def runs(experiment: Mapping[str, Any], models: Mapping[str, Any]) -> list[Run]:
    """List an experiment's runs; a baseline, having no randomness, runs with the first seed alone.

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
        for seed in experiment["seeds"][: 1 if models[model]["kind"] in BASELINES else None]
    ]
