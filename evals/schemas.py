"""JSON Schemas (draft 2020-12) of tools and answers: whether they are valid themselves, and what violates them.

Nothing is fetched: a `$ref` has to point into its own schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from evals.unicode import whole_text
from sqtool.files import canonical_json

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond what a number can be")
    return value


def parse_json(text: str) -> Any:
    """The value of a JSON text as the standard has it (no NaN, no Infinity); `ValueError` when it is none.

    Nesting that is deeper than Python's stack and numbers such as 1e999, which nothing could write down again, are a
    `ValueError` too: a looping model writes such texts. Half a surrogate pair becomes U+FFFD.
    """
    try:
        value = json.loads(text, parse_constant=_reject_constant, parse_float=_finite)
        return _whole(value) if _SURROGATE.search(text) else value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return {whole_text(key): _whole(one) for key, one in value.items()} if isinstance(value, dict) else value


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
