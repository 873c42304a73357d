"""Sections of the configuration as classes, and the JSON schema that is written from them.

A section is a pydantic model: its fields are the keys, with bounds, defaults and descriptions.
Pydantic writes a value that may be null or of several types as ``anyOf``, where a validator can
only say that nothing fits. Here such alternatives are joined into one list of types, so that an
error names the value and what is allowed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

ONE_LINE = r"^(?=.*\S)[^\x00-\x1f\x7f{}]+$"
# a path with {experiment}, {split} and {seed} in the place of their values; a name with {seed}
OF_RUN = r"^(?=.*\S)([^\x00-\x1f\x7f{}]|\{(experiment|split|seed)\})+$"
OF_SEED = r"^(?=.*\S)([^\x00-\x1f\x7f{}]|\{seed\})+$"
NAME = "^[A-Za-z0-9][A-Za-z0-9_-]*$"
UNIQUE: JsonDict = {"uniqueItems": True}

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Words = Annotated[str, Field(min_length=1)]
FilePath = Annotated[str, Field(pattern=ONE_LINE)]
Name = Annotated[
    str,
    Field(
        description='Letters, digits, "_" and "-"; it becomes part of file names.',
        max_length=64,
        pattern=NAME,
    ),
]
Seeds = Annotated[
    list[Annotated[int, Field(ge=0, le=2**32 - 1)]],
    Field(min_length=1, json_schema_extra=UNIQUE),
]

Schema = dict[str, Any]


class Section(BaseModel):
    """Keys of the configuration that stand together; the docstring describes them to the user."""

    # Python's regular expressions are those of the JSON schema's validator
    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re")


def definition(
    section: type[Section],
    references: Mapping[str, str] = MappingProxyType({}),
    **constants: str,
) -> Schema:
    """Write the JSON schema of a section.

    Parameters
    ----------
    section
        Sections among its fields are written where they are used.
    references
        Definitions that are referred to instead, by the name of the class.
    **constants
        Keys with a single value that come before the section's own, for instance the `kind` of a
        model.

    Returns
    -------
    dict
        An object without further keys, described by the section's docstring.
    """
    made = section.model_json_schema()
    return _object(made, made.get("$defs", {}), references, constants)


def choice(
    section: type[Section], key: str, meaning: str, definitions: Mapping[str, str]
) -> Schema:
    """Write the schema of an entry whose keys depend on the value of one of them.

    Parameters
    ----------
    section
        What all alternatives are; its docstring begins with the description.
    key
        The one that chooses, for instance ``kind``.
    meaning
        Description of this key.
    definitions
        Name of the definition that is chosen, by the value of the key.
    """
    return {
        "description": _one_line(section.__doc__).partition(". ")[0] + ".",
        "type": "object",
        "required": [key],
        "properties": {key: {"description": meaning, "enum": list(definitions)}},
        "allOf": [
            {"if": {"properties": {key: {"const": value}}}, "then": {"$ref": _reference(name)}}
            for value, name in definitions.items()
        ],
    }


def _reference(name: str) -> str:
    return f"#/$defs/{name}"


def _one_line(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def _object(
    made: Schema,
    definitions: Schema,
    references: Mapping[str, str],
    constants: Mapping[str, str] = MappingProxyType({}),
) -> Schema:
    required = made.get("required", [])
    return {
        "description": _one_line(made.get("description")),
        "type": "object",
        "additionalProperties": False,
        **({"required": required} if required else {}),
        "properties": {
            **{key: {"const": value} for key, value in constants.items()},
            **{
                key: _value(value, definitions, references)
                for key, value in made["properties"].items()
            },
        },
    }


def _value(made: Schema, definitions: Schema, references: Mapping[str, str]) -> Schema:
    """Write what a key may be: one list of types in place of alternatives."""

    def inner(value: Schema) -> Schema:
        return _value(value, definitions, references)

    made = {key: value for key, value in made.items() if key != "title"}
    if "$ref" in made:
        name = made.pop("$ref").rsplit("/", 1)[1]
        if name in references:
            return {"$ref": _reference(references[name]), **made}
        made = {**_object(definitions[name], definitions, references), **made}
    if "anyOf" in made:
        made = {**_joined([inner(option) for option in made.pop("anyOf")]), **made}
    if "patternProperties" in made:  # a mapping whose keys follow a pattern
        [(pattern, value)] = made.pop("patternProperties").items()
        made["propertyNames"] = {"type": "string", "pattern": pattern, **made["propertyNames"]}
        made["additionalProperties"] = value
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = inner(made[key])
    if "const" in made:
        made["enum"] = [made.pop("const")]
    if "enum" in made:
        made.pop("type", None)
    if made.get("default", 0) is None and "null" not in _types(made):
        del made["default"]  # such a key may be absent, but not null
    return made


def _joined(options: list[Schema]) -> Schema:
    """Join alternatives whose keywords each concern one type alone."""
    if any("enum" in option for option in options):
        return {"enum": [value for option in options for value in option.get("enum", [None])]}
    types = [kind for option in options for kind in _types(option)]
    joined: Schema = {}
    for option in options:
        joined |= option
    return {**joined, "type": types}


def _types(value: Schema) -> list[str]:
    if "enum" in value:
        return ["null"] if None in value["enum"] else []
    kinds = value["type"]
    return [kinds] if isinstance(kinds, str) else list(kinds)
