"""Configurations drawn from the schema itself: mostly as it wants them, at times not at all."""

from typing import Any

from hypothesis import strategies as st

from samsvae.config.configuration import merge

JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
AWKWARD_TEXT = st.sampled_from(
    ["", " ", "..", "../x", "/", "a\nb", "$(x)", "{x}", "a" * 5000, "\0", "é", "null", "published"]
)


def values(schema: dict[str, Any], whole: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """What a part of the schema allows, and now and then something else."""
    allowed = _allowed(schema, whole, depth)
    return st.integers(0, 399).flatmap(lambda n: JSON_LIKE if n == 0 else allowed)


def changes(base: dict[str, Any], whole: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """One or two keys of a good configuration with other values, most of which can be used."""
    definitions = whole["$defs"]
    sections = {
        (name,): definitions[name]["properties"]
        for name in ("training", "evaluation", "enrichment")
    }
    for name, model in base["models"].items():
        sections["models", name] = definitions[model["kind"]]["properties"]
    for name, screen in base["screens"].items():
        sections["screens", name] = definitions[f"{screen['source']}_screen"]["properties"]
    for name in base["experiments"]:
        sections["experiments", name] = definitions["experiment"]["properties"]
    places = [(*path, key) for path, properties in sections.items() for key in properties]

    def change(place: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
        *path, key = place
        return values(sections[tuple(path)][key], whole).map(lambda value: _nested(place, value))

    one = st.sampled_from(places).flatmap(change)
    return st.lists(one, min_size=1, max_size=2).map(_merged)


def _nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value


def _merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        merged = merge(merged, part)
    return merged


def _allowed(schema: dict[str, Any], whole: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return values(whole["$defs"][schema["$ref"].rsplit("/", 1)[1]], whole, depth)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "allOf" in schema:
        chosen = [branch["then"] for branch in schema["allOf"]]
        return st.sampled_from(chosen).flatmap(lambda one: values(one, whole, depth))
    kinds = schema.get("type", "object")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return st.one_of([_of_kind(kind, schema, whole, depth) for kind in kinds])


def _of_kind(
    kind: str, schema: dict[str, Any], whole: dict[str, Any], depth: int
) -> st.SearchStrategy[Any]:
    if kind == "null":
        return st.none()
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        low = schema.get("minimum", -3)
        return st.integers(low, schema.get("maximum", low + 40)) | st.integers()
    if kind == "number":
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        return st.floats(low, schema.get("maximum", 100)) | st.floats()
    if kind == "string":
        return AWKWARD_TEXT | st.text(max_size=10) | st.sampled_from(["simulated", "additive", "x"])
    if kind == "array":
        inner = values(schema.get("items", {}), whole, depth + 1)
        return st.lists(inner, max_size=4)
    properties = {
        name: values(entry, whole, depth + 1)
        for name, entry in schema.get("properties", {}).items()
    }
    known = {name: s for name, s in properties.items() if name in schema.get("required", ())}
    others = {name: s for name, s in properties.items() if name not in known}
    fixed = st.fixed_dictionaries(known, optional=others)
    if not isinstance(schema.get("additionalProperties"), dict):
        return fixed
    names = st.sampled_from(["simulated", "additive", "own", "x-1"]) | AWKWARD_TEXT
    more = st.dictionaries(
        names, values(schema["additionalProperties"], whole, depth + 1), max_size=3
    )
    return st.builds(lambda a, b: {**a, **b}, fixed, more)
