"""What may stand at a place of the recipe, read from its JSON Schema: keys, types and choices.

pydantic says that a key is unknown; this says which keys are known there, so that a message can suggest one, and finds
texts where numbers belong, which pydantic would quietly convert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqtool.yaml_text import Path

Schema = Mapping[str, Any]


class Shape:
    """A place-by-place view of one JSON Schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._definitions: Mapping[str, Any] = schema.get("$defs", {})

    def keys(self, path: Path) -> list[str]:
        """Names that a mapping at `path` may have; empty when any name is allowed or none is known."""
        return sorted({name for schema in self._at(path) for name in schema.get("properties", {})})

    def types(self, path: Path) -> set[str]:
        """JSON types allowed at `path` (`integer`, `string`, ...); empty when the schema does not say."""
        found: set[str] = set()
        for schema in self._at(path):
            if "type" in schema:
                kind = schema["type"]
                found.update([kind] if isinstance(kind, str) else kind)
            elif "enum" in schema or "const" in schema:
                values = schema.get("enum", [schema.get("const")])
                found.update(_type_of(value) for value in values)
            else:
                return set()
        return found

    def choices(self, path: Path) -> list[str]:
        """The texts that `path` may be when it is one of a list; empty otherwise."""
        found: list[str] = []
        for schema in self._at(path):
            values = schema.get("enum", [schema["const"]] if "const" in schema else [])
            found += [value for value in values if isinstance(value, str)]
        return sorted(set(found))

    def _at(self, path: Path) -> list[Schema]:
        places = list(self._expand(self._schema))
        for part in path:
            places = [inner for place in places for step in _step(place, part) for inner in self._expand(step)]
        return places

    def _expand(self, schema: Any, depth: int = 0) -> Iterator[Schema]:
        """The alternatives that a schema stands for: references followed, any/one/all-of opened."""
        if not isinstance(schema, Mapping) or depth > 20:
            return
        if "$ref" in schema:
            yield from self._expand(self._definitions.get(str(schema["$ref"]).rsplit("/", 1)[-1]), depth + 1)
            return
        parts = [part for word in ("anyOf", "oneOf", "allOf") for part in schema.get(word, ())]
        if parts:
            for part in parts:
                yield from self._expand(part, depth + 1)
        if not parts or "properties" in schema:
            yield schema


def _step(schema: Schema, part: str | int) -> Iterator[Any]:
    if isinstance(part, int):
        prefix = schema.get("prefixItems", [])
        if part < len(prefix):
            yield prefix[part]
        elif "items" in schema:
            yield schema["items"]
        return
    properties = schema.get("properties", {})
    if part in properties:
        yield properties[part]
    elif isinstance(schema.get("additionalProperties"), Mapping):
        yield schema["additionalProperties"]


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return "integer" if isinstance(value, int) else "number" if isinstance(value, float) else "string"
