"""Files of the Berkeley Function Calling Leaderboard as they are published (versions 2 to 4), read as items.

A question file has a line {"id", "question": [[messages]], "function": [...]} an item, and its possible answers, in
another file, {"id", "ground_truth": [{tool: {argument: [acceptable values]}}]}. Categories with one turn and JSON
Schema's types are read: simple, multiple, parallel, parallel_multiple and irrelevance, live or not. Source:
https://gorilla.cs.berkeley.edu/leaderboard.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals.items import RowError
from evals.rows import Row, Rows, jsonl_rows

TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}
"""BFCL's names of Python types -> JSON Schema's; None for no restriction."""
JSON_TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
_CATEGORY = re.compile(r"(.+?)_\d+(?:-\d+)*")


def bfcl_rows(questions: Path, answers: Path | None) -> Rows:
    """Items' keys for each question; `DataError` names the line of what cannot be read."""
    rows = jsonl_rows(questions)

    def read() -> Iterator[tuple[int, Row]]:
        truths = {} if answers is None else dict(_truths(answers))
        for number, row in rows.read():
            try:
                yield number, _item(row, truths, answers)
            except RowError as error:
                raise rows.error(number, error.field, error.message) from None

    return Rows(questions, read, rows.count)


def _truths(path: Path) -> Iterator[tuple[str, list[Row]]]:
    """(id, acceptable calls) of each line of a file of possible answers."""
    rows = jsonl_rows(path)
    for number, row in rows.read():
        name, truth = row.get("id"), row.get("ground_truth")
        if not isinstance(name, str):
            raise rows.error(number, "id", "missing")
        if not isinstance(truth, list) or not all(isinstance(call, dict) and len(call) == 1 for call in truth):
            raise rows.error(number, "ground_truth", "expected a list of {tool: {argument: [acceptable values]}}")
        calls = [(tool, arguments) for call in truth for tool, arguments in call.items()]
        yield name, [{"name": tool_name(tool), "arguments": arguments} for tool, arguments in calls]


def _item(row: Row, truths: dict[str, list[Row]], answers: Path | None) -> Row:
    name = row.get("id")
    category = _CATEGORY.fullmatch(name) if isinstance(name, str) else None
    if category is None:
        raise RowError("id", "expected BFCL's CATEGORY_NUMBER, such as parallel_multiple_7")
    kind = category.group(1)
    functions = row.get("function")
    functions = [functions] if isinstance(functions, dict) else functions
    if not isinstance(functions, list) or not (functions or "irrelevance" in kind):
        raise RowError("function", "expected a list of functions (multi-turn categories are not read)")
    if "irrelevance" in kind:
        expected: Row = {"calls": []}
    elif name in truths:
        expected = {"possible_calls": truths[name]}
    elif answers is None:
        raise RowError("id", f"items of category {kind} need the file of possible answers: give items.answers")
    else:
        raise RowError("id", f"{answers} has no possible answer for {name!r}")
    tools = [{"type": "function", "function": _function(place, f)} for place, f in enumerate(functions)]
    return {"id": name, "kind": kind, "messages": _messages(row.get("question")), "tools": tools, "expected": expected}


def _messages(question: Any) -> list[Row]:
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    if not isinstance(question, list) or not question or not isinstance(question[0], list):
        raise RowError("question", "expected [[messages]]")
    if len(question) > 1:
        raise RowError("question", f"{len(question)} turns; only questions of one turn are read")
    return list(question[0])


def tool_name(name: str) -> str:
    """The name as OpenAI's API allows it: a dot becomes an underscore, as BFCL does it for such models."""
    return name.replace(".", "_")


def _function(place: int, function: Any) -> Row:
    where = f"function.{place}"
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"{where}.name", "missing")
    parameters = json_schema(function.get("parameters", {}), f"{where}.parameters")
    return {
        "name": tool_name(function["name"]),
        "description": function.get("description", ""),
        "parameters": parameters,
    }


def json_schema(schema: Any, where: str = "") -> Any:
    """BFCL's description of parameters as a JSON Schema."""
    if not isinstance(schema, dict):
        return schema
    out: Row = {}
    for key, value in schema.items():
        here = f"{where}.{key}"
        if key == "type" and isinstance(value, str):
            if value not in TYPES and value not in JSON_TYPES:
                message = f"{value!r} is no type of JSON Schema (the Java and JavaScript categories are not read)"
                raise RowError(here, message)
            wanted = TYPES.get(value, value)
            if wanted is not None:
                out["type"] = wanted
        elif key == "properties" and isinstance(value, dict):
            out[key] = {name: json_schema(inner, f"{here}.{name}") for name, inner in value.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = json_schema(value, here)
        elif key != "required" or isinstance(value, list):  # some properties say `required: true` of themselves
            out[key] = value
    return out
