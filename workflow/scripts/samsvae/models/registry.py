"""Models by the name that the configuration calls them."""

from collections.abc import Mapping
from typing import Any

from samsvae.errors import InputError
from samsvae.models.base import PerturbationModel
from samsvae.models.conditional_vae import ConditionalVae
from samsvae.models.cpa_vae import CpaVae
from samsvae.models.sams_vae import BetaBernoulliSamsVae, SamsVae
from samsvae.models.svae_plus import SvaePlus

MODELS: dict[str, type[PerturbationModel]] = {
    "sams_vae": SamsVae,
    "sams_vae_beta_bernoulli": BetaBernoulliSamsVae,
    "cpa_vae": CpaVae,
    "svae_plus": SvaePlus,
    "conditional_vae": ConditionalVae,
}

# settings of a model's entry that say how data are presented, not what the model is
NOT_OF_THE_MODEL = {"kind", "combinations"}


def build_model(
    settings: Mapping[str, Any], n_genes: int, n_perturbations: int
) -> PerturbationModel:
    """Build a model from its entry in the configuration.

    Parameters
    ----------
    settings
        ``kind`` and hyperparameters.
    n_genes, n_perturbations
        G and T.

    Returns
    -------
    PerturbationModel
        With freshly initialised weights.

    Raises
    ------
    InputError
        If the kind is unknown.
    """
    kind = settings["kind"]
    if kind not in MODELS:
        raise InputError(f"kind: {kind!r} is not a trained model; allowed: {', '.join(MODELS)}.")
    hyperparameters = {k: v for k, v in settings.items() if k not in NOT_OF_THE_MODEL}
    return MODELS[kind](n_genes, n_perturbations, **hyperparameters)
