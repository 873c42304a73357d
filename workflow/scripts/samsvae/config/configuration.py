"""The configuration: merged with the defaults, checked, and refused in plain words.

Imports neither torch nor scanpy, since the Snakefile calls it.
"""

import copy
import difflib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from jsonschema.protocols import Validator

from samsvae.config.experiments import (
    GIVEN,
    GRID,
    LONGEST_NAME,
    OF_CONTEXTS,
    SEED,
    UNSEEN_PERTURBATIONS,
    WITH_FRACTIONS,
    Split,
    expanded,
    given_split,
    grid_faults,
    is_external,
    is_trained,
    with_grids,
)
from samsvae.config.models import EXPRESSION
from samsvae.config.schema import Schema
from samsvae.config.screens import (
    SOURCES,
    Source,
    download_of,
    has_marginal_effects,
    knows_contexts,
)
from samsvae.config.sections import RENAMED, json_schema
from samsvae.runtime.errors import InputError

Config = dict[str, Any]

logger = logging.getLogger(__name__)

SCREEN_PATHS = ("path", "genes", "guide_table")
SIMULATED_GENE_SETS = "programmes"
_NO_GRID = ". Candidates are chosen by their bound, which trained models alone have"


def merge(defaults: Mapping[str, Any], user: Mapping[str, Any]) -> Config:
    """Lay the user's configuration over the defaults.

    Parameters
    ----------
    defaults
        The content of config.yaml.
    user
        What the user gave with ``--configfile`` and ``--config``; only what differs.

    Returns
    -------
    dict
        The defaults with the user's values in their place. The user's `experiments` replace the
        defaults' as a whole, and `training`, which suits these, is dropped with them; a screen of
        another `source` and a model of another `kind` replaces the default entry of the same name.
        A key under its former name gets its new one, with a warning.

    Raises
    ------
    InputError
        If a key is given under both names.
    """
    merged = copy.deepcopy(dict(defaults))
    if "experiments" in user:
        merged.pop("training", None)
    for section, value in _with_new_names(user).items():
        known = merged.get(section)
        if section == "experiments" or not (isinstance(known, dict) and isinstance(value, Mapping)):
            merged[section] = copy.deepcopy(value)
            continue
        for name, entry in value.items():
            default = known.get(name)
            if isinstance(default, Mapping) and isinstance(entry, Mapping):
                kept = {} if _is_another(default, entry) else default
                known[name] = {**kept, **copy.deepcopy(entry)}
            else:
                known[name] = copy.deepcopy(entry)
    return merged


def _with_new_names(user: Mapping[str, Any]) -> Config:
    """Give keys under a former name their new one, and say so in one warning."""
    renamed = copy.deepcopy(dict(user))
    notices, problems = [], []
    for pattern, names in RENAMED.items():
        for path, entry in _matching(renamed, pattern):
            for old, new in names.items():
                if old in entry and new in entry:
                    problems.append(
                        f"- {path}: {old!r} is the former name of {new!r}, and both are given; "
                        f"leave out {old!r}"
                    )
                elif old in entry:
                    notices.append(f"- {path}.{old} is now called {path}.{new}")
            present = {names.get(key, key): value for key, value in entry.items()}
            entry.clear()
            entry.update(present)
    if problems:
        raise InputError("\n".join(["The configuration cannot be used:", *problems]))
    if notices:
        heading = "The configuration has former names of keys, which the next version refuses:"
        logger.warning("\n".join([heading, *notices]))
    return renamed


def _matching(config: Any, pattern: tuple[str, ...]) -> Iterator[tuple[str, Config]]:
    """Go through the mappings at a path, in which "*" is any name."""
    found = [("", config)]
    for part in pattern:
        found = [
            (f"{path}.{name}".lstrip("."), value)
            for path, entry in found
            if isinstance(entry, dict)
            for name, value in entry.items()
            if part in ("*", name)
        ]
    yield from ((path, entry) for path, entry in found if isinstance(entry, dict))


def _is_another(default: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    return any(key in entry and entry[key] != default.get(key) for key in ("source", "kind"))


def check_keys(path: str | Path) -> None:
    """Refuse a configuration file in which a key occurs twice; YAML would keep the last.

    Parameters
    ----------
    path
        A YAML or JSON file. What cannot be parsed is left to its reader.

    Raises
    ------
    InputError
        Naming the file and, for each such key, its path and both lines.
    """
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, OSError):
        return
    problems = list(_repeated_keys(root, (), set()))
    if problems:
        raise InputError("\n".join([f"{path}: keys must be unique:", *problems]))


def _repeated_keys(
    node: yaml.Node | None, path: tuple[str, ...], seen: set[yaml.Node]
) -> Iterator[str]:
    if node is None or node in seen:  # an alias leads to the node of its anchor
        return
    seen.add(node)
    if isinstance(node, yaml.SequenceNode):
        for place, child in enumerate(node.value):
            yield from _repeated_keys(child, (*path, str(place)), seen)
    elif isinstance(node, yaml.MappingNode):
        first_line: dict[str, int] = {}
        for key, child in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first_line:
                yield (
                    f"- line {line}: {'.'.join([*path, name])!r} stands in line "
                    f"{first_line[name]} already; leave out one of them"
                )
            first_line.setdefault(name, line)
            yield from _repeated_keys(child, (*path, name), seen)


def validate(config: Config) -> Config:
    """Fill in the catalogue's defaults and check every key and value.

    Parameters
    ----------
    config
        A merged configuration.

    Returns
    -------
    dict
        A copy of `config` with every default written out.

    Raises
    ------
    InputError
        Naming each wrong key, its value and what is allowed.
    """
    complete = copy.deepcopy(config)
    validator = _filling_validator(with_grids(json_schema()))
    errors = sorted(validator.iter_errors(complete), key=lambda e: list(map(str, e.path)))
    problems = [_explain(error) for error in errors] or _mismatches(complete)
    if problems:
        raise InputError("\n".join(["The configuration cannot be used:", *dict.fromkeys(problems)]))
    _expand_paths(complete)
    _keep_columns_of_splits(complete)
    return complete


def _expand_paths(config: Config) -> None:
    """Put the home folder and environment variables in the place of ``~`` and ``$NAME``."""
    entries = [
        *((screen, key) for screen in config["screens"].values() for key in SCREEN_PATHS),
        *((experiment, "perturbation_groups") for experiment in config["experiments"].values()),
        *((config["gene_sets"], name) for name in config["gene_sets"]),
        *((experiment["split"], "table") for experiment in config["experiments"].values()),
        *((model, "perturbation_features") for model in config["models"].values()),
        *((model, "path") for model in config["models"].values()),
    ]
    for entry, key in entries:
        if isinstance(entry.get(key), str):
            entry[key] = os.path.expanduser(os.path.expandvars(entry[key]))


def _keep_columns_of_splits(config: Config) -> None:
    """Let the screens of users' files keep the columns that splits are read from."""
    for experiment in config["experiments"].values():
        screen = config["screens"][experiment["screen"]]
        for seed in experiment["split"]["seeds"]:
            column = given_split(experiment, seed).get("column")
            if column and screen["source"] == "h5ad" and column not in screen["covariates"]:
                screen["covariates"] = [*screen["covariates"], column]


def _filling_validator(schema: Schema) -> Validator:
    """Make a validator that writes a property's default where the property is absent."""
    base = jsonschema.Draft202012Validator

    def fill_then_check(validator: Any, properties: Any, instance: Any, parent: Any) -> Any:
        for key, subschema in properties.items():
            if isinstance(instance, dict) and key not in instance:
                default = _default(subschema, schema)
                if default is not None:
                    instance[key] = copy.deepcopy(default[0])
        yield from base.VALIDATORS["properties"](validator, properties, instance, parent)

    # "properties" must come before the other keywords of the same object
    return jsonschema.validators.extend(base, {"properties": fill_then_check})(schema)


def _default(subschema: Schema, schema: Schema) -> tuple[Any] | None:
    if "default" in subschema:
        return (subschema["default"],)
    if "$ref" in subschema:
        return _default(schema["$defs"][subschema["$ref"].rsplit("/", 1)[1]], schema)
    return None


def _explain(error: jsonschema.ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "the top level"
    match error.validator:
        case "additionalProperties":
            allowed = sorted(error.schema.get("properties", {}))
            unknown = [key for key in error.instance if key not in allowed]
            return "\n".join(
                f"- {where}: unknown key {key!r} (value {error.instance[key]!r}); "
                f"allowed: {', '.join(allowed)}{_closest(key, allowed)}"
                + (_NO_GRID if key == GRID else "")
                for key in unknown
            )
        case "enum":
            allowed = [str(value) for value in error.validator_value]
            return (
                f"- {where}: {error.instance!r} is not allowed; "
                f"allowed: {', '.join(allowed)}{_closest(error.instance, allowed)}"
            )
        case "required":
            missing = [key for key in error.validator_value if key not in error.instance]
            return f"- {where}: {', '.join(map(repr, missing))} is missing"
        case "pattern":
            return f"- {where}: {error.instance!r} is not allowed: {error.schema['description']}"
        case "type" if isinstance(error.instance, bool | int | float):
            return (
                f"- {where}: the value {error.instance!r} is not allowed: {error.message}. YAML "
                "reads NO, no, off and ON as true or false, and 0123 as a number: put a label in "
                'quotes, as in "NO".'
            )
        case _:
            return f"- {where}: the value {error.instance!r} is not allowed: {error.message}"


def _closest(word: object, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(allowed), n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def _mismatches(config: Config) -> list[str]:
    """Check what a schema cannot: that names refer to something, and that splits make sense."""
    problems = grid_faults(config)
    if problems:
        return problems
    problems = _download_mismatches(config)
    sections = {**config, "models": expanded(config["models"])}
    for name, experiment in config["experiments"].items():
        source = _source(config, experiment)
        for key in ("screen", "models", "gene_sets"):
            section = "screens" if key == "screen" else key
            wanted = [experiment[key]] if key == "screen" else experiment[key] or []
            known = list(sections[section])
            if key == "gene_sets" and source and source.brings_gene_sets:
                known.append(SIMULATED_GENE_SETS)
            problems += [
                f"- experiments.{name}.{key}: {one!r} is not in {section}; "
                f"allowed: {', '.join(known) or 'none are configured'}{_closest(one, known)}"
                for one in wanted
                if one not in known
            ]
        problems += _split_mismatches(name, experiment)
        problems += _source_mismatches(sections, name)
    if config["evaluation"]["scored_cells"] == 1:
        problems.append(
            "- evaluation.scored_cells: 1 cell has no distance to another; give 2 or more, or 0 "
            "for no such scores"
        )
    sizes = config["enrichment"]
    if sizes["min_size"] > sizes["max_size"]:
        problems.append(
            f"- enrichment.min_size: {sizes['min_size']} is larger than "
            f"enrichment.max_size: {sizes['max_size']}"
        )
    return problems


def _split_mismatches(name: str, experiment: Mapping[str, Any]) -> list[str]:
    """Check that a split has the settings that its kind needs, and no others."""
    split = experiment["split"]
    kind = split["kind"]
    needs = {
        "fractions": (WITH_FRACTIONS, "[0.5]"),
        "contexts": (("leave_context_out",), "[K562]"),
        **{key: ((of_kind,), f"split{SEED}") for of_kind, key in GIVEN.items()},
    }
    problems = []
    for key, (kinds, example) in needs.items():
        value = split.get(key)
        if kind not in kinds and value is not None:
            problems.append(
                f"- experiments.{name}.split.{key}: {value!r} has no meaning for the kind "
                f"{kind!r}; allowed for: {', '.join(kinds)}"
            )
        if kind in kinds and value is None:
            problems.append(
                f"- experiments.{name}.split: {key!r} is missing; the kind {kind!r} needs it, "
                f"for instance {example}"
            )
    if kind not in GIVEN and split.get("parts") is not None:
        problems.append(
            f"- experiments.{name}.split.parts: {split['parts']!r} has no meaning for the kind "
            f"{kind!r}; allowed for: {', '.join(GIVEN)}"
        )
    origin = split.get(GIVEN.get(kind, ""))
    if origin and SEED not in origin and len(split["seeds"]) > 1:
        problems.append(
            f"- experiments.{name}.split.seeds: {split['seeds']!r} would be the same split; put "
            f"{SEED} into {GIVEN[kind]!r}, or leave one seed"
        )
    contexts = split.get("contexts") or []
    folders = {context: Split(kind, 0, context=context).name for context in contexts}
    same = [one for one, own in folders.items() if list(folders.values()).count(own) > 1]
    if same:
        problems.append(
            f"- experiments.{name}.split.contexts: folders are named by contexts with letters, "
            f"digits and points alone, and {', '.join(map(repr, same))} would not differ; "
            "rename contexts in the screen"
        )
    problems += [
        f"- experiments.{name}.split.contexts: {context!r} is too long for the name of a folder"
        for context, own in folders.items()
        if len(own) > LONGEST_NAME
    ]
    return problems


def _listed(config: Config, experiment: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Look up the models of an experiment, and the candidates of their grids."""
    listed = set(experiment["models"])
    return {
        name: model
        for name, model in config["models"].items()
        if name in listed or name.split("--")[0] in listed
    }


def _context_mismatches(config: Config, name: str) -> list[str]:
    """Check that split and models of an experiment that need contexts have them."""
    experiment = config["experiments"][name]
    screen = config["screens"][experiment["screen"]]
    kind = experiment["split"]["kind"]
    models = _listed(config, experiment)
    specific = [one for one, model in models.items() if model.get("context_effects")]
    splits_contexts = [f"split.kind: {kind!r}"] if kind in OF_CONTEXTS else []
    models_contexts = [f"models: {one!r} with context_effects: true" for one in specific]
    predicts_contexts = [
        f"models: {one!r} of the kind 'other_contexts'"
        for one, model in models.items()
        if model.get("kind") == "other_contexts"
    ]
    if not knows_contexts(screen):
        return [
            f"- experiments.{name}.{what} needs contexts, and screens.{experiment['screen']} "
            "names none; set its context_column"
            for what in [*splits_contexts, *models_contexts, *predicts_contexts]
        ]
    problems = [
        f"- models.{one}.covariates: {models[one]['covariates']!r} lacks 'context', which "
        "context_effects: true needs"
        for one in specific
        if models[one]["covariates"] is not None and "context" not in models[one]["covariates"]
    ]
    if has_marginal_effects(screen):  # a condition is a cell's own
        of_conditions = splits_contexts if kind == "unseen_contexts" else []
        problems += [
            f"- experiments.{name}.{what} needs several cells of a condition, and "
            f"screens.{experiment['screen']}.unit is 'perturbation'"
            for what in [*of_conditions, *predicts_contexts]
        ]
    return problems


def _feature_mismatches(config: Config, name: str, has_counts: bool) -> list[str]:
    """Check that models of an experiment know perturbations without cells, if it tests any."""
    experiment = config["experiments"][name]
    models = _listed(config, experiment)
    problems = []
    if experiment["split"]["kind"] == UNSEEN_PERTURBATIONS:
        problems += [
            f"- experiments.{name}.models: {one!r} knows nothing of perturbations without training "
            f"cells, which the split {UNSEEN_PERTURBATIONS!r} tests; give it perturbation_features "
            "(a table, or 'expression'; kind sams_vae alone), or leave it out"
            for one, model in models.items()
            if is_trained(model) and model.get("perturbation_features") is None
        ]
    with_features = {
        one: model for one, model in models.items() if model.get("perturbation_features")
    }
    problems += [
        f"- models.{one}.combinations: 'unique' has no meaning with perturbation_features, which "
        "are of single perturbations; allowed: additive"
        for one, model in with_features.items()
        if model.get("combinations") == "unique"
    ]
    problems += [
        f"- models.{one}.perturbation_features: {EXPRESSION!r} needs counts, which the screen of "
        f"experiments.{name} does not have; name a table"
        for one, model in with_features.items()
        if model["perturbation_features"] == EXPRESSION and not has_counts
    ]
    problems += [
        f"- models.{one}.on_target: true has no meaning with perturbation_features, since nothing "
        "is learnt of the target gene of a perturbation without training cells; set false"
        for one, model in with_features.items()
        if model.get("on_target")
    ]
    return problems


def _download_mismatches(config: Config) -> list[str]:
    problems = [
        f"- downloads.{name}: 'md5' or 'sha256' is missing; one of them at least is needed"
        for name, published in config["downloads"].items()
        if published["md5"] is None and published["sha256"] is None
    ]
    for name, screen in config["screens"].items():
        download = download_of(screen)
        if download is not None and download not in config["downloads"]:
            problems.append(
                f"- screens.{name}: downloads.{download} is missing, the file that it is made of"
            )
        if screen["source"] == "norman" and screen["copy"] == "original" and screen["genes"]:
            problems.append(
                f"- screens.{name}.genes: {screen['genes']!r} has no meaning for the copy "
                "'original', which marks its genes; allowed for: scperturb"
            )
    return problems


def _source_mismatches(config: Config, name: str) -> list[str]:
    """Check that split and models of an experiment fit the source of its screen."""
    experiment = config["experiments"][name]
    source = _source(config, experiment)
    if source is None:
        return []
    problems = []
    if experiment["split"]["kind"] == "as_simulated" and not source.divides_cells:
        dividing = [one.name for one in SOURCES.values() if one.divides_cells]
        problems.append(
            f"- experiments.{name}.split.kind: 'as_simulated' has no meaning for a screen of the "
            f"source {source.name!r}; allowed for: {', '.join(dividing)}"
        )
    problems += _context_mismatches(config, name)
    problems += _feature_mismatches(config, name, source.has_counts)
    problems += [
        f"- models.{one}.dispersion: 'gene-batch' has no meaning for the likelihood "
        f"{model['likelihood']!r}; allowed for: negative_binomial"
        for one, model in _listed(config, experiment).items()
        if model.get("dispersion") == "gene-batch" and model["likelihood"] != "negative_binomial"
    ]
    marginal = has_marginal_effects(config["screens"][experiment["screen"]])
    problems += [
        f"- experiments.{name}.models: {one!r} has combinations: 'unique', by which a combination "
        f"has no single perturbations, and screens.{experiment['screen']}.unit is 'perturbation'; "
        "allowed: combinations: 'additive'"
        for one in experiment["models"]
        if marginal and config["models"].get(one, {}).get("combinations") == "unique"
    ]
    problems += [
        f"- models.{one}.content: 'cells' has no meaning on screens.{experiment['screen']}, whose "
        "unit is 'perturbation'; allowed: effects"
        for one, model in _listed(config, experiment).items()
        if marginal and is_external(model) and model["content"] == "cells"
    ]
    if not source.has_counts:
        models = {one: config["models"].get(one) for one in experiment["models"]}
        problems += [
            f"- experiments.{name}.models: {one!r} cannot be used, since the source "
            f"{source.name!r} has no counts; allowed: trained models whose 'likelihood' is 'normal'"
            for one, model in models.items()
            if model and not (is_trained(model) and model["likelihood"] == "normal")
        ]
    return problems


def _source(config: Mapping[str, Any], experiment: Mapping[str, Any]) -> type[Source] | None:
    """Look up the source of an experiment's screen; None if there is no such screen."""
    screen = config["screens"].get(experiment["screen"])
    return screen and SOURCES[screen["source"]]


def gene_set_names(config: Mapping[str, Any], experiment: str) -> list[str]:
    """Name the gene sets that an experiment tests.

    Parameters
    ----------
    config
        A validated configuration.
    experiment
        Name of an experiment.

    Returns
    -------
    list of str
        Those that it names; by default all of the configuration, or for a simulated screen the
        programmes that it brings, if any.
    """
    chosen = config["experiments"][experiment]
    if chosen["gene_sets"] is not None:
        return list(chosen["gene_sets"])
    source = SOURCES[config["screens"][chosen["screen"]]["source"]]
    if source.brings_gene_sets:
        return [SIMULATED_GENE_SETS]
    return [] if source.simulator else list(config["gene_sets"])
