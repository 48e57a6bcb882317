"""Test items: one JSON object a line, checked before anything is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sqtool.errors import DataError, did_you_mean
from sqtool.files import canonical_json, read_jsonl, sha256_text

_T = TypeVar("_T")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(BaseModel):
    """One turn of a conversation, in OpenAI form. Keys beyond role and content (tool_calls, tool_call_id, name)
    go to the server as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None


class Call(_Strict):
    """A tool call that is expected: the tool's name and its arguments as a JSON object."""

    name: str = Field(min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)


class Expected(_Strict):
    """What a right answer is: a text, or tool calls in any order. `calls == []` means that none is right."""

    text: str | None = None
    calls: tuple[Call, ...] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Expected:
        if (self.text is None) == (self.calls is None):
            raise ValueError("give exactly one of text and calls")
        return self


class Item(_Strict):
    """One question. `fields` are for slicing results (`n_tools` is there without being written); `cluster` names items
    that share a source."""

    id: str = Field(min_length=1)
    kind: str = ""
    cluster: str | None = None
    messages: tuple[Message, ...] = Field(min_length=1)
    tools: tuple[dict[str, Any], ...] | None = None
    expected: Expected | None = None
    fields: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    max_tokens: int | None = Field(default=None, gt=0)

    def slice_fields(self) -> dict[str, str | int | float | bool | None]:
        """`fields`, and `n_tools` (how many tools are offered) where they do not say it themselves."""
        return {"n_tools": len(self.tools or ()), **self.fields}

    def wire_messages(self) -> list[dict[str, Any]]:
        """The messages as a server takes them: arguments of earlier tool calls as JSON text."""
        out = []
        for message in self.messages:
            value = message.model_dump(exclude_unset=True)
            if value.get("tool_calls"):
                value["tool_calls"] = [_wire_call(i, call) for i, call in enumerate(value["tool_calls"])]
            out.append(value)
        return out

    def digest(self) -> str:
        """Hex sha256 of what is asked and what is expected."""
        return sha256_text(canonical_json(self.model_dump(mode="json")))


def _wire_call(index: int, call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    if not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
    return {"id": f"call_{index}", "type": "function", **call, "function": function}


Check = Callable[[Item], tuple[str, str] | None]
"""A scorer's own requirement: None, or (field, what is wrong)."""


def _tools_problem(item: Item) -> tuple[str, str] | None:
    """(field, what is wrong) of an item's tools, or None."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    names: set[str] = set()
    for index, tool in enumerate(item.tools or ()):
        where = f"tools.{index}"
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            return where, 'expected {"type": "function", "function": {...}}'
        name = function.get("name")
        if not isinstance(name, str) or not name:
            return f"{where}.function.name", "missing"
        if name in names:
            return f"{where}.function.name", f"the tool {name!r} is offered twice"
        names.add(name)
        schema = function.get("parameters")
        if schema is None:
            continue
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            path = ".".join(str(p) for p in error.absolute_path)
            return (
                f"{where}.function.parameters" + (f".{path}" if path else ""),
                f"not a valid JSON Schema: {error.message}",
            )
    return None


def _validation_problem(error: ValidationError) -> tuple[str, str]:
    """(field, message) of the first problem that pydantic found."""
    first = error.errors()[0]
    field = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return field, f"unknown key; {did_you_mean(str(first['loc'][0]), list(Item.model_fields))}"
    if first["type"] == "missing":
        return field, "missing"
    return field, first["msg"].removeprefix("Value error, ")


def load_items(path: Path, *, check: Check | None = None, slices: Sequence[str] = ()) -> list[Item]:
    """All items of a JSONL file, in its order.

    Every line is checked: its form, a unique id, tools with valid JSON Schemas, the scorer's requirement (`check`)
    and the presence of the slice fields. Raises `DataError` for the first bad line; its remedy counts the others.
    """
    items: list[Item] = []
    seen: dict[str, int] = {}
    first: tuple[int, str, str] | None = None
    bad = 0
    for line, value in read_jsonl(path):
        problem: tuple[str, str] | None
        try:
            item = Item.model_validate(value)
        except ValidationError as error:
            problem = _validation_problem(error)
        else:
            problem = _tools_problem(item) or (check(item) if check else None)
            if problem is None and item.id in seen:
                problem = "id", f"{item.id!r} is also on line {seen[item.id]}"
            if problem is None:
                missing = next((s for s in slices if s != "kind" and s not in item.slice_fields()), None)
                if missing is not None:
                    problem = f"fields.{missing}", "missing, and the task slices by it"
            seen.setdefault(item.id, line)
            items.append(item)
        if problem is not None:
            bad += 1
            first = first or (line, *problem)
    if first is not None:
        line, field, message = first
        others = f"{bad - 1} more line{'s' if bad > 2 else ''} of this file {'are' if bad > 2 else 'is'} wrong. "
        raise DataError(
            path,
            message,
            line=line,
            field=field,
            remedy=(others if bad > 1 else "") + "Every item needs a unique id, messages and what its scorer needs.",
        )
    if not items:
        raise DataError(path, "no items", remedy="A task needs at least one item.")
    return items


def take(items: Sequence[_T], limit: int | None) -> list[_T]:
    """`limit` items spread evenly over the sequence (all when None or more than there are); order kept."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
