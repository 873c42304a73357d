import copy
import dataclasses
import inspect

import pytest
import yaml

from samsvae.biology.enrichment import Enrichment
from samsvae.config import experiments
from samsvae.config.configuration import check_keys, gene_set_names, merge, validate
from samsvae.config.experiments import runs, splits
from samsvae.config.sections import RENAMED, json_schema, schema_file
from samsvae.evaluation.baselines import BASELINES
from samsvae.inference.step import Training
from samsvae.models import MODELS, NOT_HYPERPARAMETERS, model_class
from samsvae.runtime.errors import InputError
from samsvae.sources.h5ad_source import H5adSource
from samsvae.sources.norman import NormanSource
from samsvae.sources.replogle import ReplogleSource
from samsvae.sources.simulated import AdditiveSimulation, Simulation, SvaePlusSimulation
from samsvae.sources.verification import PublishedFile
from tests.conftest import ROOT

SCHEMA = json_schema()
DEFAULTS = yaml.safe_load((ROOT / "config.yaml").read_text())


def validated(**user):
    return validate(merge(DEFAULTS, user))


def test_default_configuration_is_valid_and_complete():
    config = validated()
    assert config["training"]["gradient_clip"] == 100
    assert config["models"]["sams_vae_correlated"]["embedding_n_hidden"] == 200
    assert validate(config) == config


def test_validation_leaves_its_input_alone():
    before = copy.deepcopy(DEFAULTS)
    validate(DEFAULTS)
    assert before == DEFAULTS


def test_user_experiments_replace_the_default_ones():
    own = {"screen": "simulated", "split": {"kind": "random"}, "models": ["additive"]}
    config = validated(experiments={"own": own})
    assert list(config["experiments"]) == ["own"]
    assert "simulated" in config["screens"]


def test_training_of_the_default_experiments_is_not_that_of_others():
    own = {"screen": "simulated", "split": {"kind": "random"}, "models": ["cpa_vae"]}
    config = validated(experiments={"own": own}, training={"batch_size": 64})
    fields = {key: value for key, value in config["training"].items() if key != "seeds_together"}
    assert Training(**fields) == Training(batch_size=64)
    assert not config["training"]["seeds_together"]
    default = validated(training={"batch_size": 64})["training"]
    assert default == {**validated()["training"], "batch_size": 64}


def test_user_names_only_what_differs():
    config = validated(models={"cpa_vae": {"n_latent": 7}}, training={"max_steps": 9})
    assert config["models"]["cpa_vae"]["n_latent"] == 7
    assert config["models"]["cpa_vae"]["n_hidden"] == DEFAULTS["models"]["cpa_vae"]["n_hidden"]
    assert config["training"]["max_steps"] == 9
    assert config["training"]["learning_rate"] == DEFAULTS["training"]["learning_rate"]


@pytest.mark.parametrize("former", [True, False])
def test_a_former_name_of_a_key_is_accepted_with_one_warning(former, caplog):
    masks = ("open_masks", "mask_kl_per_cell")
    masks = masks if former else ("mask_warmup_fraction", "mask_kl_weight")
    factors = "targets" if former else "factors_per_perturbation"
    config = validated(
        training=dict(zip(masks, (0.1, 0.5), strict=True)), screens={"simulated": {factors: 2}}
    )
    training, screen = config["training"], config["screens"]["simulated"]
    assert (training["mask_warmup_fraction"], training["mask_kl_weight"]) == (0.1, 0.5)
    assert screen["factors_per_perturbation"] == 2
    assert not {"open_masks", "mask_kl_per_cell"} & set(training)
    assert "targets" not in screen
    assert len(caplog.records) == former
    for name in ("training.mask_warmup_fraction", "training.mask_kl_weight"):
        assert former == (name in caplog.text)
    assert former == ("screens.simulated.factors_per_perturbation" in caplog.text)


def test_a_key_under_both_of_its_names_is_refused():
    with pytest.raises(InputError) as error:
        validated(
            training={"open_masks": 0, "mask_warmup_fraction": 0},
            screens={"simulated": {"targets": 2, "factors_per_perturbation": 2}},
        )
    for words in ["training: 'open_masks'", "'mask_warmup_fraction'", "simulated: 'targets'"]:
        assert words in str(error.value)


def test_a_later_configuration_takes_precedence_under_either_name():
    earlier = merge(DEFAULTS, {"training": {"mask_warmup_fraction": 0.1}})
    later = merge(earlier, {"training": {"open_masks": 0.3}})
    assert validate(later)["training"]["mask_warmup_fraction"] == 0.3


def test_former_names_are_no_keys_and_new_ones_are():
    for (section, *_), names in RENAMED.items():
        known = {
            key
            for name, entry in SCHEMA["$defs"].items()
            if name == section or (section == "screens" and name.endswith("_screen"))
            for key in entry["properties"]
        }
        assert set(names.values()) <= known
        assert not set(names) & known


def test_another_source_replaces_the_default_screen_whole():
    own = {"source": "h5ad", "path": "a.h5ad", "perturbation_column": "p", "control": "c"}
    assert validated(screens={"simulated": own})["screens"]["simulated"]["delimiter"] == "+"


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({"models": {"m": {"kind": "sams_vea"}}}, ["models.m.kind", "'sams_vea'", "cpa_vae", "Did you mean 'sams_vae'"]),
        ({"models": {"cpa_vae": {"n_latnt": 3}}}, ["models.cpa_vae", "'n_latnt'", "value 3", "n_latent"]),
        ({"models": {"cpa_vae": {"mask_prior": 0.1}}}, ["models.cpa_vae", "'mask_prior'", "allowed"]),
        ({"models": {"cpa_vae": {"n_latent": -1}}}, ["models.cpa_vae.n_latent", "-1"]),
        ({"models": {"cpa_vae": {"likelihood": "zinb"}}}, ["likelihood", "'zinb'", "negative_binomial"]),
        ({"models": {"sams_vae_correlated": {"mask_prior": 1.5}}}, ["mask_prior", "1.5"]),
        ({"screens": {"simulated": {"source": "norman_2019"}}}, ["screens.simulated.source", "'norman_2019'", "h5ad"]),
        ({"screens": {"own": {"source": "h5ad", "control": "x"}}}, ["screens.own", "'path' is missing"]),
        ({"screens": {"own": {"source": "h5ad", "path": "x", "perturbation_columns": {"except": ["a"]}}}}, ["screens.own.perturbation_columns", "'prefix' is missing"]),
        ({"screens": {"own": {"source": "h5ad", "path": "x", "min_cells": -1}}}, ["screens.own.min_cells", "-1"]),
        ({"trainig": {}}, ["'trainig'", "Did you mean 'training'"]),
        ({"experiments": {}}, ["experiments"]),
        ({"models": {"../evil": {"kind": "additive"}}}, ["'../evil'", "Letters, digits"]),
        ({"training": {"max_steps": "many"}}, ["training.max_steps", "'many'"]),
        ({"training": 3}, ["training", "3"]),
        ({"enrichment": {"min_size": 50, "max_size": 10}}, ["enrichment.min_size", "50", "10"]),
        ({"evaluation": {"scored_cells": 1}}, ["evaluation.scored_cells", "2 or more"]),
    ],
)  # fmt: skip
def test_faults_are_named_with_key_value_and_what_is_allowed(user, said):
    with pytest.raises(InputError) as error:
        validated(**user)
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"screen": "absent"}, ["experiments.own.screen", "'absent'", "simulated"]),
        ({"models": ["cpa"]}, ["experiments.own.models", "'cpa'", "cpa_vae"]),
        ({"gene_sets": ["hallmark"]}, ["experiments.own.gene_sets", "'hallmark'", "programmes"]),
        ({"split": {"kind": "random", "fractions": [0.5]}}, ["fractions", "'random'"]),
        ({"split": {"kind": "data_efficiency"}}, ["'fractions' is missing"]),
        ({"split": {"kind": "sorted"}}, ["experiments.own.split.kind", "'sorted'", "random"]),
        ({"seeds": []}, ["experiments.own.seeds"]),
        ({"seeds": [0, 0]}, ["experiments.own.seeds"]),
    ],
)
def test_experiments_must_refer_to_what_is_there(change, said):
    own = {"screen": "simulated", "split": {"kind": "random"}, "models": ["additive"], **change}
    with pytest.raises(InputError) as error:
        validated(experiments={"own": own})
    for words in said:
        assert words in str(error.value)


def test_every_fault_is_told_at_once():
    with pytest.raises(InputError) as error:
        validated(models={"m": {"kind": "x"}}, training={"particles": 0})
    assert "models.m.kind" in str(error.value)
    assert "training.particles" in str(error.value)


def schema_defaults(definition):
    def resolve(entry):
        if "default" in entry:
            return entry["default"]
        return resolve(SCHEMA["$defs"][entry["$ref"].rsplit("/", 1)[1]])

    properties = SCHEMA["$defs"][definition]["properties"]
    return {
        name: resolve(entry)
        for name, entry in properties.items()
        if "default" in entry or "$ref" in entry
    }


@pytest.mark.parametrize("kind", MODELS)
def test_model_defaults_in_schema_and_code_are_the_same(kind):
    in_code = {}
    for family in reversed(model_class(kind).__mro__):
        parameters = inspect.signature(family.__init__).parameters.values()
        in_code |= {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
    for follows_from_the_screen in ("n_covariates", "shared_effects"):
        in_code.pop(follows_from_the_screen, None)
    in_schema = schema_defaults(kind)
    if kind == "sams_vae_beta_bernoulli":
        del in_code["mask_prior"], in_code["context_mask_prior"]  # of the prior that it replaces
    assert {k: v for k, v in in_schema.items() if k not in NOT_HYPERPARAMETERS} == in_code


@pytest.mark.parametrize("kind", BASELINES)
def test_baseline_defaults_in_schema_and_code_are_the_same(kind):
    parameters = inspect.signature(BASELINES[kind]).parameters.values()
    assert schema_defaults(kind) == {
        p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY
    }


def test_the_schema_file_is_that_of_the_classes():
    """`make schema` writes it."""
    text = (ROOT / "workflow/schemas/config.schema.yaml").read_text()
    assert text == schema_file()
    assert yaml.safe_load(text) == SCHEMA


@pytest.mark.parametrize("section", ["evaluation", "enrichment"])
def test_the_default_configuration_has_the_defaults_of_the_classes(section):
    assert schema_defaults(section).items() >= DEFAULTS.get(section, {}).items()


def test_the_schema_knows_every_kind_of_model():
    kinds = set(SCHEMA["$defs"]["model"]["properties"]["kind"]["enum"])
    assert kinds == {*MODELS, *experiments.BASELINES, *experiments.CEILINGS, *experiments.EXTERNAL}


@pytest.mark.parametrize(
    ("definition", "settings"),
    [
        ("training", Training),
        ("enrichment", Enrichment),
        ("simulated_screen", Simulation),
        ("simulated_additive_screen", AdditiveSimulation),
        ("simulated_svae_plus_screen", SvaePlusSimulation),
        ("h5ad_screen", H5adSource),
        ("download", PublishedFile),
    ],
)
def test_other_defaults_in_schema_and_code_are_the_same(definition, settings):
    in_code = {
        field.name: list(field.default) if isinstance(field.default, tuple) else field.default
        for field in dataclasses.fields(settings)
        if field.default is not dataclasses.MISSING
    }
    defaults = schema_defaults(definition)
    # these choose jobs and describe targets, and are no settings of the class
    not_settings = ("seeds_together", "perturbation_kind")
    assert {k: v for k, v in defaults.items() if k not in not_settings} == in_code


@pytest.mark.parametrize(
    ("definition", "source", "not_settings"),
    [
        ("norman_screen", NormanSource, set()),
        ("replogle_screen", ReplogleSource, {"perturbations", "response_genes"}),
    ],
)
def test_defaults_of_published_screens_in_schema_and_code_are_the_same(
    definition, source, not_settings
):
    in_code = {f.name: f.default for f in dataclasses.fields(source) if f.name not in not_settings}
    assert schema_defaults(definition) == {**in_code, "path": None}


def test_the_published_files_are_those_of_the_specification():
    downloads = {name: PublishedFile.of(entry) for name, entry in validated()["downloads"].items()}
    assert {name: one.size for name, one in downloads.items()} == {
        "norman_original": 1_703_064_678,
        "norman_scperturb": 698_680_199,
        "replogle_original": 65_830_941_948,
        "replogle_scperturb": 8_805_466_154,
    }
    for one in downloads.values():
        assert len(one.urls) > 1
        assert one.checksums


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"urls": ["ftp://a"]}, ["downloads.norman_original.urls.0", "'ftp://a'", "http://"]),
        ({"urls": []}, ["downloads.norman_original.urls", "[]"]),
        ({"md5": "1234"}, ["downloads.norman_original.md5", "'1234'", "32 hexadecimal digits"]),
        ({"file": "../a.h5ad"}, ["downloads.norman_original.file", "without folders"]),
        ({"size": 0}, ["downloads.norman_original.size", "0"]),
        ({"sha256": None}, ["downloads.norman_original", "'md5' or 'sha256' is missing"]),
    ],
)
def test_faults_of_downloads_are_named(change, said):
    with pytest.raises(InputError) as error:
        validated(downloads={"norman_original": change})
    for words in said:
        assert words in str(error.value)


def test_a_published_screen_needs_its_download():
    bare = {key: value for key, value in DEFAULTS.items() if key != "downloads"}
    own = {"screen": "own", "split": {"kind": "random"}, "models": ["additive"]}
    user = {
        "screens": {"own": {"source": "norman", "copy": "scperturb"}},
        "experiments": {"own": own},
    }
    with pytest.raises(InputError, match=r"screens\.own: downloads\.norman_scperturb is missing"):
        validate(merge(bare, user))
    own_genes = {"source": "norman", "genes": "genes.txt"}
    with pytest.raises(InputError, match=r"screens\.own\.genes: 'genes\.txt' has no meaning"):
        validated(screens={"own": own_genes})
    with pytest.raises(InputError, match=r"screens\.own\.copy: 'scprturb'.*Did you mean"):
        validated(screens={"own": {"source": "norman", "copy": "scprturb"}})


@pytest.mark.parametrize(
    ("source", "split", "model", "said"),
    [
        ("simulated_additive", "random", "cpa_vae", "models: 'cpa_vae' cannot be used.*'likelihood' is 'normal'"),
        ("simulated_additive", "random", "additive", "models: 'additive' cannot be used"),
        ("simulated", "as_simulated", "additive", "split.kind: 'as_simulated' has no meaning"),
        ("simulated_svae_plus", "as_simulated", "additive", None),
    ],
)  # fmt: skip
def test_split_and_models_must_fit_the_source(source, split, model, said):
    user = {
        "screens": {"own": {"source": source}},
        "experiments": {"own": {"screen": "own", "split": {"kind": split}, "models": [model]}},
    }
    if said is None:
        assert gene_set_names(validated(**user), "own") == []
        return
    with pytest.raises(InputError, match=said):
        validated(**user)


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"kind": "from_column"}, "'column' is missing.*needs it, for instance split{seed}"),
        ({"kind": "from_table", "column": "part"}, "'part' has no meaning for the kind 'from_table'"),
        ({"kind": "random", "parts": {"ood": "test"}}, "split.parts.*has no meaning"),
        ({"kind": "from_column", "column": "a{fold}"}, "split.column: 'a{fold}' is not allowed"),
        ({"kind": "from_column", "column": "a", "parts": {"b": "dev"}}, "split.parts.b: 'dev' is not"),
        ({"kind": "from_table", "table": "a.tsv", "seeds": [0, 1]}, "would be the same split"),
    ],
)  # fmt: skip
def test_a_split_from_elsewhere_says_where_it_is(split, said):
    experiment = {"screen": "simulated", "split": split, "models": ["additive"]}
    with pytest.raises(InputError, match=said):
        validated(experiments={"own": experiment})


def test_the_screen_of_a_file_keeps_the_columns_of_its_splits():
    screen = {"source": "h5ad", "path": "a.h5ad", "perturbation_column": "p", "covariates": ["age"]}
    split = {"kind": "from_column", "column": "fold{seed}", "seeds": [0, 3]}
    user = {
        "screens": {"own": screen},
        "experiments": {"own": {"screen": "own", "split": split, "models": ["additive"]}},
    }
    complete = validated(**user)
    assert complete["screens"]["own"]["covariates"] == ["age", "fold0", "fold3"]
    assert validate(complete) == complete


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "'path' is missing"),
        ({"path": "{model}.h5ad"}, "'{model}.h5ad' is not allowed.*no others"),
        ({"path": "a.h5ad", "content": "samples"}, "allowed: effects, cells"),
        ({"path": "a.h5ad", "grid": {"missing": ["refuse"]}}, "unknown key 'grid'"),
    ],
)
def test_predictions_from_elsewhere_say_where_they_are(settings, said):
    with pytest.raises(InputError, match=said):
        validated(models={"theirs": {"kind": "external", **settings}})


def test_predicted_cells_have_no_effects_of_single_perturbations():
    screen = {
        "source": "h5ad", "path": "a.h5ad", "perturbation_column": "p", "unit": "perturbation",
    }  # fmt: skip
    user = {
        "screens": {"own": screen},
        "models": {"theirs": {"kind": "external", "path": "b.h5ad", "content": "cells"}},
        "experiments": {"own": {"screen": "own", "split": {"kind": "random"}, "models": ["theirs"]}},
    }  # fmt: skip
    with pytest.raises(InputError, match=r"models\.theirs\.content: 'cells' has no meaning"):
        validated(**user)


def test_every_key_of_the_schema_is_described():
    def undescribed(entry, path):
        for name, value in entry.get("properties", {}).items():
            target = SCHEMA["$defs"].get(str(value.get("$ref", "")).rsplit("/", 1)[-1], {})
            if "const" not in value and "description" not in {**target, **value}:
                yield f"{path}.{name}"
            yield from undescribed(value, f"{path}.{name}")

    found = [key for name, part in SCHEMA["$defs"].items() for key in undescribed(part, name)]
    assert found == []


def test_the_template_for_ones_own_screen_shows_every_option_with_its_default():
    text = (ROOT / "config/own_screen.yaml").read_text()
    own = yaml.safe_load(text)
    properties = SCHEMA["$defs"]["h5ad_screen"]["properties"]
    shown = {line.strip(" #").split(":")[0] for line in text.splitlines() if ":" in line}
    assert set(properties) <= shown
    chosen = own["screens"]["my_screen"]
    needed = {"source", "path", "perturbation_column"}
    assert {k: v for k, v in chosen.items() if k not in needed} == {
        name: entry["default"]
        for name, entry in properties.items()
        if name in chosen and name not in needed
    }
    validated(**own)


def test_a_simulated_screen_brings_its_gene_sets_and_another_uses_all():
    config = validated()
    assert gene_set_names(config, "simulated") == ["programmes"]
    own = {"source": "h5ad", "path": "a", "perturbation_column": "p", "control": "c"}
    config = validated(
        screens={"own": own},
        gene_sets={"a": "a.gmt", "b": "b.gmt"},
        experiments={
            "own": {"screen": "own", "split": {"kind": "random"}, "models": ["additive"]},
            "one": {"screen": "own", "split": {"kind": "random"}, "models": ["additive"], "gene_sets": ["b"]},
        },
    )  # fmt: skip
    assert gene_set_names(config, "own") == ["a", "b"]
    assert gene_set_names(config, "one") == ["b"]


def test_runs_cover_splits_models_and_seeds_and_baselines_once():
    experiment = {
        "split": {"kind": "unseen_combinations", "seeds": [0, 1], "fractions": [0, 0.5]},
        "models": ["m", "b", "c"],
        "seeds": [3, 4],
    }
    kinds = {"m": "sams_vae", "b": "additive", "c": "split_half"}
    made = runs(experiment, {name: {"kind": kind} for name, kind in kinds.items()})
    assert next(iter(splits(experiment))) == "unseen_combinations-f0-seed0"
    assert len(made) == 4 * (2 + 1 + 2)
    assert {run.seed for run in made if run.model == "b"} == {3}
    assert {run.seed for run in made if run.model == "c"} == {3, 4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models:\n  a: {kind: cpa_vae}\nmodels:\n  b: {kind: cpa_vae}\n", ["line 3: 'models' stands in line 1"]),
        ("training:\n  max_steps: 1\n  particles: 2\n  max_steps: 3\n", ["line 4: 'training.max_steps' stands in line 2"]),
        ("a: [{b: 1, b: 2}]\nc: {d: 1,\n    d: 2}\n", ["line 1: 'a.0.b'", "line 3: 'c.d' stands in line 2"]),
        ("a: 1\n'a': 2\n", ["line 2: 'a'"]),
        ('{"training": {"particles": 1, "particles": 2}}', ["line 1: 'training.particles'"]),
        ("x: &x {a: 1, a: 2}\ny: *x\n", ["line 1: 'x.a'"]),
    ],
)  # fmt: skip
def test_a_key_that_occurs_twice_is_named_with_its_lines(tmp_path, text, said):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        check_keys(path)
    for words in ["own.yaml", *said]:
        assert words in str(error.value)
    assert str(error.value).count("- line") == len(said)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: {b: 1}\nb: {a: 1}\n",
        "x: &x {a: 1}\ny: {<<: *x, a: 2}\nz: [*x, *x]\n",
        "not: [closed",
    ],
)
def test_keys_that_occur_once_are_left_alone(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    check_keys(path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("config/*.yaml")), ids=lambda path: path.name)
def test_keys_of_the_shipped_configurations_are_unique(path):
    check_keys(path)


def own_screen(**settings):
    own = {"source": "h5ad", "path": "a.h5ad", "perturbation_column": "p", **settings}
    experiment = {"screen": "own", "split": {"kind": "random"}, "models": ["additive"]}
    return validated(screens={"own": own}, experiments={"own": experiment})["screens"]["own"]


def test_a_label_that_yaml_reads_as_a_truth_value_is_to_be_quoted():
    for value in (yaml.safe_load("NO"), 5):
        with pytest.raises(InputError, match=r"screens\.own\.control: the value .*quotes"):
            own_screen(control=value)


@pytest.mark.parametrize("value", ["NT", ["NT1", "NT2"], {"pattern": "^NT"}])
def test_control_is_a_label_several_or_a_pattern(value):
    assert own_screen(control=value)["control"] == value


@pytest.mark.parametrize(
    "settings",
    [
        {"control": []}, {"control": {"patern": "x"}}, {"exclude": "nan"}, {"no_guide": "drop"},
        {"perturbation_columns": {"prefix": "a", "mixture": "gauss"}}, {"batch_column": []},
        {"guide_modality": {"layer": "x"}}, {"max_perturbations": 0},
    ],
)  # fmt: skip
def test_values_of_a_screen_that_cannot_be_meant(settings):
    with pytest.raises(InputError, match=rf"screens\.own\.{next(iter(settings))}"):
        own_screen(**settings)


def test_home_and_environment_are_put_into_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/here")
    monkeypatch.setenv("DATA", "/there")
    own = own_screen(path="~/a.h5ad", genes="$DATA/genes.txt", guide_table="guides.tsv")
    assert [own[key] for key in ("path", "genes", "guide_table")] == [
        "/here/a.h5ad", "/there/genes.txt", "guides.tsv",
    ]  # fmt: skip
    assert validated(gene_sets={"a": "~/a.gmt"})["gene_sets"]["a"] == "/here/a.gmt"
