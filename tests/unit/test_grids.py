"""Grids of hyperparameters: candidates, and what is refused before anything is trained."""

import pytest
import yaml

from samsvae.config.configuration import merge, validate
from samsvae.config.experiments import candidates, expanded
from samsvae.figures import readable
from samsvae.models import build_model
from samsvae.report.sentences import competitors
from samsvae.runtime.errors import InputError
from tests.conftest import ROOT

DEFAULTS = yaml.safe_load((ROOT / "config.yaml").read_text())
OWN = {
    "screen": "simulated",
    "split": {"kind": "random", "seeds": [0, 1]},
    "models": ["sams"],
    "seeds": [0, 1, 2],
}


def validated(grid, kind="sams_vae", **user):
    models = {"sams": {"kind": kind, "grid": grid}, **user.pop("models", {})}
    config = merge(DEFAULTS, {"models": models, "experiments": {"own": OWN}, **user})
    return validate(config)


def test_candidates_are_all_combinations_and_ordinary_models():
    config = validated({"mask_prior": [0.1, 0.01], "n_latent": [3, 5]})
    names = [
        "sams--mask_prior-0.1--n_latent-3",
        "sams--mask_prior-0.1--n_latent-5",
        "sams--mask_prior-0.01--n_latent-3",
        "sams--mask_prior-0.01--n_latent-5",
    ]
    assert list(candidates("sams", config["models"]["sams"])) == names
    entries = expanded(config["models"])
    place = list(entries).index("sams")
    assert list(entries)[place + 1 : place + 5] == names
    alone = {**entries["sams"], "mask_prior": 0.01, "n_latent": 5}
    assert entries[names[-1]] == alone
    assert build_model(entries[names[-1]], 10, 4).n_latent == 5
    assert readable(names[-1]) == "sams (mask prior 0.01, n latent 5)"


def test_a_configuration_without_grids_has_no_candidates():
    config = validate(DEFAULTS)
    entries = expanded(config["models"])
    assert list(entries) == list(config["models"])
    assert not any("grid" in entry for entry in entries.values())


def test_a_candidate_can_be_a_model_of_an_experiment():
    experiment = {**OWN, "models": ["sams", "sams--n_latent-3"]}
    validated({"n_latent": [3, 5]}, experiments={"own": experiment})
    with pytest.raises(InputError, match=r"'sams--n_latent-4' is not in models.*sams--n_latent-3"):
        validated(
            {"n_latent": [3, 5]}, experiments={"own": {**OWN, "models": ["sams--n_latent-4"]}}
        )


@pytest.mark.parametrize(
    ("grid", "settings", "said"),
    [
        ({"n_latnt": [3]}, {}, ["models.sams.grid: unknown key 'n_latnt'", "Did you mean 'n_latent'"]),
        ({"n_latent": []}, {}, ["models.sams.grid.n_latent", "[]", "non-empty"]),
        ({}, {}, ["models.sams.grid", "{}"]),
        ({"n_latent": 3}, {}, ["models.sams.grid.n_latent", "3", "'array'"]),
        ({"n_latent": [3, 3]}, {}, ["models.sams.grid.n_latent", "unique"]),
        ({"mask_prior": [0.1, 1.5]}, {}, ["models.sams.grid.mask_prior.1", "1.5"]),
        ({"embedding": ["mean_feild"]}, {}, ["grid.embedding.0", "Did you mean 'mean_field'"]),
        ({"likelihood": ["poisson"]}, {}, ["unknown key 'likelihood'"]),
        ({"mask_prior": [0.1]}, {"kind": "cpa_vae"}, ["unknown key 'mask_prior'", "n_latent"]),
        ({"ridge": [0.1, 1]}, {"kind": "bilinear"}, ["models.sams: unknown key 'grid'", "trained models alone"]),
        ({"n_latent": [3]}, {"models": {"sams--n_latent-3": {"kind": "cpa_vae"}}}, ["'sams--n_latent-3'", "name of another model"]),
        ({"n_latent": list(range(1, 31))}, {}, ["models.sams.grid", "30 candidates make 180 trainings", "evaluation.max_candidates (now 24)"]),
        ({"n_latent": list(range(1, 3001)), "n_hidden": list(range(1, 3001))}, {}, ["9,000,000 candidates"]),
        ({k: [1] for k in ("embedding_n_hidden", "embedding_n_layers", "embedding_prior_scale", "n_latent", "n_hidden", "n_layers", "combinations")} | {"combinations": ["additive"]}, {}, ["name of 132 characters", "shorter name"]),
    ],
)  # fmt: skip
def test_bad_grids_are_refused(grid, settings, said):
    with pytest.raises(InputError) as error:
        validated(grid, **settings)
    for words in said:
        assert words in str(error.value)


def test_many_candidates_are_allowed_with_notice():
    grid = {"n_latent": list(range(1, 31))}
    config = validated(grid, evaluation={"max_candidates": 30})
    assert len(candidates("sams", config["models"]["sams"])) == 30


def test_the_report_says_that_a_model_was_chosen():
    experiment = {**OWN, "models": ["sams", "sams--n_latent-3"]}
    config = validated({"n_latent": [3, 5]}, experiments={"own": experiment})
    chosen, candidate = competitors(config, "own")
    assert "best of 2 candidates by its validation cells" in chosen[1]
    assert "best of" not in candidate[1]
