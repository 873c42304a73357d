"""Generative models with their guides, by kind.

A family's module is imported when a model is built: a rule depends on its own family alone, and
the Snakefile does not import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from samsvae.config.models import KINDS
from samsvae.runtime.errors import InputError

if TYPE_CHECKING:
    from samsvae.models.base import PerturbationModel
    from samsvae.screen.features import PerturbationFeatures

# module and class of each kind
MODELS = {name: kind.implementation for name, kind in KINDS.items() if kind.implementation}

# settings of a model's entry that its constructor does not take
NOT_HYPERPARAMETERS = {
    "kind", "combinations", "covariates", "on_target", "on_target_prior_scale", "context_effects",
    "dispersion", "shuffle_labels", "grid", "perturbation_features", "feature_components",
}  # fmt: skip


def model_class(kind: str, with_features: bool = False) -> type[PerturbationModel]:
    """Import the class of a kind of model, or of the same kind with features of perturbations.

    Raises
    ------
    InputError
        If the kind is unknown, or cannot have features.
    """
    if kind not in MODELS:
        raise InputError(f"kind: {kind!r} is not a trained model; allowed: {', '.join(MODELS)}.")
    # of this kind alone: a family derived from it may have another prior
    implementation = vars(KINDS[kind]).get("with_features") if with_features else MODELS[kind]
    if implementation is None:
        raise InputError(f"perturbation_features: the kind {kind!r} cannot have any; set null.")
    module, name = implementation
    return getattr(importlib.import_module(module), name)


def build_model(
    settings: Mapping[str, Any],
    n_genes: int,
    n_perturbations: int,
    n_covariates: int = 0,
    target_genes: Sequence[int] = (),
    shared_effects: Sequence[int] = (),
    features: PerturbationFeatures | None = None,
) -> PerturbationModel:
    """Build a model with initial weights.

    Parameters
    ----------
    settings
        Its entry in the configuration.
    n_genes, n_perturbations, n_covariates
        Its sizes.
    target_genes
        Index of the gene of each pair of a perturbation and a measured gene that it targets; empty
        for a model without on-target effects.
    shared_effects
        Index of the perturbation of each effect in one context alone; empty for a model whose
        effects all contexts share.
    features
        Features of the perturbations, for a model whose prior depends on them.
    """
    hyperparameters = {k: v for k, v in settings.items() if k not in NOT_HYPERPARAMETERS}
    hyperparameters["n_covariates"] = n_covariates
    if shared_effects:
        hyperparameters["shared_effects"] = shared_effects
    if features is not None:
        hyperparameters["features"] = features
    family = model_class(settings["kind"], features is not None)
    model = family(n_genes, n_perturbations, **hyperparameters)
    if target_genes:
        from samsvae.models.base import OnTarget

        model.on_target = OnTarget(target_genes, settings["on_target_prior_scale"])
    if settings.get("dispersion") == "gene-batch" and n_covariates:
        model.likelihood.disperse_by(n_covariates)
    return model
