"""Models by the name that the configuration calls them.

A model's module is imported when the model is built. So the digest of code that builds models
holds none of them, and a rule adds the module of its own model alone. The Snakefile imports this
module, too, and must not wait for torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from samsvae.errors import InputError

if TYPE_CHECKING:
    from samsvae.models.base import PerturbationModel

# module and class of each kind
MODELS = {
    "sams_vae": ("samsvae.models.sams_vae", "SamsVae"),
    "sams_vae_beta_bernoulli": ("samsvae.models.sams_vae", "BetaBernoulliSamsVae"),
    "cpa_vae": ("samsvae.models.cpa_vae", "CpaVae"),
    "svae_plus": ("samsvae.models.svae_plus", "SvaePlus"),
    "conditional_vae": ("samsvae.models.conditional_vae", "ConditionalVae"),
}

# settings of a model's entry that say how data are presented and what else is tried, not what the
# model is
NOT_OF_THE_MODEL = {"kind", "combinations", "shuffle_labels", "grid"}


def build_model(
    settings: Mapping[str, Any], n_genes: int, n_perturbations: int
) -> PerturbationModel:
    """Build a model, with initial weights, from its entry in the configuration.

    Raises
    ------
    InputError
        If the kind is unknown.
    """
    kind = settings["kind"]
    if kind not in MODELS:
        raise InputError(f"kind: {kind!r} is not a trained model; allowed: {', '.join(MODELS)}.")
    module, name = MODELS[kind]
    family: type[PerturbationModel] = getattr(importlib.import_module(module), name)
    hyperparameters = {k: v for k, v in settings.items() if k not in NOT_OF_THE_MODEL}
    return family(n_genes, n_perturbations, **hyperparameters)
