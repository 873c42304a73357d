"""Write the reference of the configuration from its schema while the site is built."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from samsvae.config.sections import json_schema  # noqa: E402

MARK = "<!-- the reference, from the schema -->"

Schema = dict[str, Any]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference in the place of its mark; MkDocs calls this for each page."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(MARK, reference(json_schema()))


def reference(schema: Schema) -> str:
    """Describe every key of a schema in Markdown.

    Parameters
    ----------
    schema
        A JSON schema whose definitions are under ``$defs``.

    Returns
    -------
    str
        A section for each section of the configuration, and in it one for each alternative, such
        as the kinds of model; a table of keys in each.
    """
    parts = []
    for name, property_ in schema["properties"].items():
        section = resolved(property_, schema)
        parts.append(f"## {name} {{ #{name} }}\n\n{text(section)}")
        if "properties" in section:
            parts.append(keys_table(section, schema))
        entry = section.get("additionalProperties")
        if isinstance(entry, dict) and entry:
            parts += entry_of(resolved(entry, schema), name, schema)
    return "\n\n".join(part for part in parts if part)


def entry_of(entry: Schema, section: str, schema: Schema) -> Iterator[str]:
    """Describe what stands under each name of a section."""
    yield keys_table(entry, schema)
    yield from nested_objects(entry, schema)
    for alternative in entry.get("allOf", []):
        key, value = next(iter(alternative["if"]["properties"].items()))
        chosen = resolved(alternative["then"], schema)
        heading = f"{key}: {value['const']}"
        yield f"### {heading} {{ #{section}-{value['const']} }}\n\n{text(chosen)}"
        yield keys_table(chosen, schema, leave_out={key})
        yield from nested_objects(chosen, schema)


def nested_objects(entry: Schema, schema: Schema) -> Iterator[str]:
    """Describe keys whose values have keys of their own."""
    for name, property_ in entry.get("properties", {}).items():
        value = resolved(property_, schema)
        if "properties" in value:
            yield f"Keys of `{name}`:"
            yield keys_table(value, schema)


def keys_table(
    entry: Schema, schema: Schema, leave_out: frozenset[str] | set[str] = frozenset()
) -> str:
    """Lay out keys with what they mean, what they may be and their defaults."""
    required = set(entry.get("required", []))
    rows = [
        f"| `{name}` | {cell(text(value))} | {cell(allowed(value))} "
        f"| {default_of(value, name in required)} |"
        for name, property_ in entry.get("properties", {}).items()
        if name not in leave_out
        for value in [resolved(property_, schema)]
    ]
    if not rows:
        return ""
    return "\n".join(["| key | meaning | allowed | default |", "| --- | --- | --- | --- |", *rows])


def resolved(property_: Schema, schema: Schema) -> Schema:
    """Follow a reference; what stands beside it, such as a description, takes precedence."""
    if "$ref" not in property_:
        return property_
    target = schema["$defs"][property_["$ref"].rsplit("/", 1)[1]]
    beside = {key: value for key, value in property_.items() if key != "$ref"}
    return {**resolved(target, schema), **beside}


def text(value: Mapping[str, Any]) -> str:
    """Take the description."""
    return " ".join(str(value.get("description", "")).split())


def allowed(value: Mapping[str, Any]) -> str:
    """Say which values are valid."""
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    kinds = value.get("type", "any")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    names = {"array": "list", "object": "keys", "string": "text"}
    said = " or ".join(names.get(kind, kind) for kind in kinds)
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value]
    return ", ".join([said, *limits])


def default_of(value: Mapping[str, Any], is_required: bool) -> str:
    """Say what holds where a key is absent."""
    if is_required:
        return "required"
    if "default" not in value:
        return "–"
    default = value["default"]
    if default is None:
        return "`null`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`" if default != "" else "empty"


def cell(words: str) -> str:
    """Keep text inside the cell of a table."""
    return words.replace("|", "\\|")
