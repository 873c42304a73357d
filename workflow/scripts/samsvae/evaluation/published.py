"""Models and settings of Bereket and Karaletsos (2023) for the screen of Norman et al. 2019.

Their results are in data/reference/published_norman.csv, mean and standard deviation over splits.
Models are identified by kind and hyperparameters, not by their name in a configuration.

The module does not import torch, since the Snakefile imports it.
"""

from collections.abc import Mapping
from typing import Any

SOURCE = "norman"
CELLS, GENES = 111_255, 5_000
STEPS = 30_000

# experiment of the published table, by the kind of its splits
TASKS = {"unseen_combinations": "norman_ood", "data_efficiency": "norman_data_efficiency"}

# scope and metric of the workflow, by quantity of the published table
QUANTITIES = {
    "val_iwelbo": ("val", "iwelbo"),
    "test_iwelbo": ("test", "iwelbo"),
    "test_iwelbo_relative": ("test", "iwelbo_relative"),
    "ate_pearson_test": ("test", "pearson"),
    "ate_pearson_top20_test": ("test", "pearson_top20"),
}
REFERENCE = "sams_vae_correlated"  # of relative bounds, trained without any pairs

# settings that identify the published models; the table has those with one hidden layer
_COMMON = {"n_layers": 1, "shuffle_labels": False}
MODELS: dict[str, dict[str, Any]] = {
    "sams_vae_correlated": {"kind": "sams_vae", "embedding": "correlated"},
    "sams_vae_mean_field": {"kind": "sams_vae", "embedding": "mean_field"},
    "cpa_vae": {"kind": "cpa_vae"},
    "conditional_vae": {"kind": "conditional_vae"},
    "svae+": {"kind": "svae_plus"},
}
_BASAL_ENCODER = {"basal_encoder": "correlated"}

# further published settings, for models that have them
HYPERPARAMETERS = {
    "n_latent": 200,
    "n_hidden": 400,
    "likelihood": "negative_binomial",
    "mask_prior": 0.01,
    "beta": 2,
    "embedding_prior_scale": 1,
    "embedding_n_layers": 4,
    "embedding_n_hidden": 400,
}
_OF_CORRELATED_EMBEDDINGS = {"embedding_n_layers", "embedding_n_hidden"}
TRAINING = {
    "batch_size": 512,
    "particles": 5,
    "learning_rate": 0.0003,
    "learning_rate_schedule": "constant",
    "warm_up_steps": 0,
    "weight_decay": 0.000001,
    "gradient_clip": 100,
    "objective": "elbo",
    "mask_kl": "sampled",
    "mask_warmup_fraction": 0,
    "mask_kl_weight": 0,
}
BOUNDS = {"iwelbo_particles": 100}
EFFECTS = {"effect_estimator": "sampled", "effect_draws": 2_500}

Settings = Mapping[str, Any]


def is_published(source: str, split: str) -> bool:
    """Whether the paper has results for this source of a screen and kind of split."""
    return source == SOURCE and split in TASKS


def models_like(model: str, unique: bool, models: Mapping[str, Settings]) -> list[str]:
    """Find the models of a configuration that match a published model.

    Parameters
    ----------
    model
        Name in the published table.
    unique
        Whether combinations are perturbations of their own.
    models
        Settings by name.

    Returns
    -------
    list of str
        Names, in the order of `models`.
    """
    wanted = {**MODELS[model], **_COMMON, "combinations": "unique" if unique else "additive"}
    if wanted["kind"] in ("sams_vae", "cpa_vae"):
        wanted |= _BASAL_ENCODER
    return [
        name
        for name, settings in models.items()
        if all(settings.get(key) == value for key, value in wanted.items())
    ]


def differing_settings(
    model: Settings, training: Settings, evaluation: Settings, quantity: str
) -> list[str]:
    """List the settings that differ from the paper's, as text.

    Parameters
    ----------
    model, training, evaluation
        Settings of a model, its training and its evaluation.
    quantity
        Quantity of the published table.
    """
    wanted: dict[str, Any] = dict(HYPERPARAMETERS)
    if model.get("embedding") != "correlated":
        wanted = {k: v for k, v in wanted.items() if k not in _OF_CORRELATED_EMBEDDINGS}
    wanted |= TRAINING | (EFFECTS if quantity.startswith("ate_") else BOUNDS)
    settings = {**model, **training, **evaluation}
    if settings["effect_draws"] is None and settings["effect_estimator"] == "sampled":
        settings["effect_draws"] = EFFECTS["effect_draws"]
    return [
        f"{key} {settings[key]} (paper: {value})"
        for key, value in wanted.items()
        if key in settings and settings[key] != value
    ]
