"""JSON Schemas (draft 2020-12) of tools and answers: whether they are valid themselves, and what violates them.

Nothing is fetched: a `$ref` has to point into its own schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from sqtool.files import canonical_json


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_json(text: str) -> Any:
    """The value of a JSON text as the standard has it (no NaN, no Infinity); `ValueError` when it is none.

    Nesting that is deeper than Python's stack is a `ValueError` too: a looping model writes such texts.
    """
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def schema_problem(schema: Any) -> tuple[str, str] | None:
    """(dotted path within the schema, what is wrong), or None for a valid schema."""
    # The same tool stands in many items, and checking a schema takes a millisecond.
    try:
        return _checked(canonical_json(schema))
    except (TypeError, ValueError) as error:
        return "", f"not a valid JSON Schema: {error}"


@lru_cache(maxsize=16384)
def _checked(text: str) -> tuple[str, str] | None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    schema = json.loads(text)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return ".".join(str(p) for p in error.absolute_path), f"not a valid JSON Schema: {error.message}"
    resource = DRAFT202012.create_resource(schema)
    base = resource.id() or ""
    resolver = Registry().with_resource(base, resource).resolver(base)
    for path, reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            return path, f"the reference {reference!r} does not point into this schema (nothing is fetched)"
    return None


def _references(schema: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, target) of each `$ref` in a schema."""
    children = schema.items() if isinstance(schema, Mapping) else enumerate(schema) if isinstance(schema, list) else ()
    for key, value in children:
        here = f"{path}.{key}" if path else str(key)
        if key == "$ref" and isinstance(value, str):
            yield here, value
        yield from _references(value, here)


def violation(schema: Any, value: Any) -> str | None:
    """What makes `value` invalid under a valid `schema` (`format` is not asserted), or None."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from referencing import Registry

    error = best_match(Draft202012Validator(schema, registry=Registry()).iter_errors(value))
    if error is None:
        return None
    where = ".".join(str(p) for p in error.absolute_path)
    return f"{where}: {error.message}" if where else str(error.message)
