"""Generative models with their guides, by kind.

A family's module is imported when a model is built: a rule depends on its own family alone, and
the Snakefile does not import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from samsvae.config.models import KINDS
from samsvae.runtime.errors import InputError

if TYPE_CHECKING:
    from samsvae.models.base import PerturbationModel

# module and class of each kind
MODELS = {name: kind.implementation for name, kind in KINDS.items() if kind.implementation}

# settings of a model's entry that its constructor does not take
NOT_HYPERPARAMETERS = {"kind", "combinations", "shuffle_labels", "grid"}


def model_class(kind: str) -> type[PerturbationModel]:
    """Import the class of a kind of model.

    Raises
    ------
    InputError
        If the kind is unknown.
    """
    if kind not in MODELS:
        raise InputError(f"kind: {kind!r} is not a trained model; allowed: {', '.join(MODELS)}.")
    module, name = MODELS[kind]
    return getattr(importlib.import_module(module), name)


def build_model(
    settings: Mapping[str, Any], n_genes: int, n_perturbations: int
) -> PerturbationModel:
    """Build a model with initial weights from its entry in the configuration."""
    hyperparameters = {k: v for k, v in settings.items() if k not in NOT_HYPERPARAMETERS}
    return model_class(settings["kind"])(n_genes, n_perturbations, **hyperparameters)
