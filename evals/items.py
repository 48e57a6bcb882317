"""Test items: read from rows of a data file, checked before anything is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evals.rows import Row, Rows, jsonl_rows
from evals.schemas import schema_problem
from sqtool.errors import DataError, did_you_mean
from sqtool.files import canonical_json, sha256_text

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


class PossibleCall(_Strict):
    """A tool call with every acceptable value of each argument, as in BFCL; "" among them: it may be left out. With no
    value at all, as in some rows of BFCL, no call will do."""

    name: str = Field(min_length=1)
    arguments: dict[str, list[Any]] = Field(default_factory=dict)

    def first(self) -> Call:
        """The call with the first acceptable value of each argument that is not left out."""
        chosen = {key: next((v for v in values if v != ""), "") for key, values in self.arguments.items() if values}
        required = {key: value for key, value in chosen.items() if "" not in self.arguments[key]}
        return Call(name=self.name, arguments={key: _first_inside(value) for key, value in required.items()})


def _first_inside(value: Any) -> Any:
    """Within an object, BFCL lists the acceptable values of each key."""
    if isinstance(value, dict):
        return {key: inner[0] if isinstance(inner, list) and inner else inner for key, inner in value.items()}
    return [_first_inside(inner) for inner in value] if isinstance(value, list) else value


class Expected(_Strict):
    """What a right answer is. `calls` are tool calls in any order, `[]` means that none is right; `possible_calls`
    are the same with several acceptable values; `choice` is an index into the item's `choices`."""

    text: str | None = None
    aliases: tuple[str, ...] | None = None
    """Other texts that are as right as `text`."""
    calls: tuple[Call, ...] | None = None
    possible_calls: tuple[PossibleCall, ...] | None = None
    choice: int | None = Field(default=None, ge=0)
    pattern: str | None = None
    """A regular expression that the answer has to match."""
    json_schema: dict[str, Any] | None = None
    """A schema that the answer, as JSON, has to fit."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Expected:
        given = [name for name in EXPECTED_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(EXPECTED_KINDS)}")
        if self.aliases is not None and self.text is None:
            raise ValueError("aliases go with text")
        return self

    def texts(self) -> tuple[str, ...]:
        """Every text that is right; empty where something else than a text is expected."""
        return () if self.text is None else (self.text, *(self.aliases or ()))


EXPECTED_KINDS = ("text", "calls", "possible_calls", "choice", "pattern", "json_schema")


class Item(_Strict):
    """One question. `fields` are for slicing results (`n_tools` is there without being written); `cluster` names items
    that share a source; `choices` are the answers among which a multiple-choice item lets choose."""

    id: str = Field(min_length=1)
    kind: str = ""
    cluster: str | None = None
    messages: tuple[Message, ...] = Field(min_length=1)
    tools: tuple[dict[str, Any], ...] | None = None
    tool_choice: Literal["auto", "none", "required"] = "auto"
    choices: tuple[Annotated[str, Field(min_length=1)], ...] | None = None
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


def tools_problem(tools: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """(field, what is wrong) of the tools that are offered, or None."""
    names: set[str] = set()
    for index, tool in enumerate(tools):
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
        problem = None if schema is None else schema_problem(schema)
        if problem is not None:
            path, message = problem
            return f"{where}.function.parameters" + (f".{path}" if path else ""), message
    return None


def _validation_problem(error: ValidationError) -> tuple[str, str]:
    """(field, message) of the first problem that pydantic found."""
    first = error.errors()[0]
    field = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return field, f"unknown key; {did_you_mean(str(first['loc'][0]), list(Item.model_fields))}"
    if first["type"] == "extra_forbidden" and first["loc"][0] == "expected" and len(first["loc"]) == 2:
        return field, f"unknown key; {did_you_mean(str(first['loc'][1]), list(Expected.model_fields))}"
    if first["type"] == "missing":
        return field, "missing"
    return field, first["msg"].removeprefix("Value error, ")


class RowError(Exception):
    """A row of which no item can be made: the field and what is wrong with it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


Shape = Callable[[int, Row], Row]
"""Makes an item's keys of a row and its number; `RowError` where it cannot."""


def load_items(
    source: Path | Rows,
    *,
    check: Check | None = None,
    slices: Sequence[str] = (),
    shape: Shape | None = None,
    limit: int | None = None,
) -> list[Item]:
    """The items of a JSONL file or of other rows, in their order; with `limit` so many of them, evenly spread.

    Every row is checked, also those that `limit` leaves out, which are not kept in memory: its form, a unique id,
    tools with valid JSON Schemas, the scorer's requirement (`check`) and the presence of the slice fields. Raises
    `DataError` for the first bad row; its remedy counts the others.
    """
    rows = jsonl_rows(source) if isinstance(source, Path) else source
    of = rows.count()
    chosen = None if limit is None or limit >= of else set(_spread(of, limit))
    items: list[Item] = []
    seen: dict[str, int] = {}
    first: tuple[int, str, str] | None = None
    bad = 0
    for place, (number, row) in enumerate(rows.read()):
        try:
            item = _item(number, row, shape, check, slices)
            if item.id in seen:
                raise RowError("id", f"{item.id!r} is also on {'line' if rows.by_line else 'row'} {seen[item.id]}")
        except RowError as error:
            bad += 1
            first = first or (number, error.field, error.message)
            continue
        seen[item.id] = number
        if chosen is None or place in chosen:
            items.append(item)
    if first is not None:
        number, field, message = first
        what = "line" if rows.by_line else "row"
        others = f"{bad - 1} more {what}{'s' if bad > 2 else ''} of this file {'are' if bad > 2 else 'is'} wrong. "
        remedy = (others if bad > 1 else "") + "Every item needs a unique id, messages and what its scorer needs."
        raise rows.error(number, field, message, remedy)
    if not items:
        raise DataError(rows.path, "no items", remedy="A task needs at least one item.")
    return items


def _item(number: int, row: Row, shape: Shape | None, check: Check | None, slices: Sequence[str]) -> Item:
    try:
        item = Item.model_validate(shape(number, row) if shape else row)
    except ValidationError as error:
        raise RowError(*_validation_problem(error)) from None
    problem = tools_problem(item.tools or ()) or (check(item) if check else None)
    if problem is not None:
        raise RowError(*problem)
    missing = next((s for s in slices if s != "kind" and s not in item.slice_fields()), None)
    if missing is not None:
        raise RowError(f"fields.{missing}", "missing, and the task slices by it")
    return item


def _spread(of: int, limit: int) -> list[int]:
    return [i * of // limit for i in range(limit)]


def take(items: Sequence[_T], limit: int | None) -> list[_T]:
    """`limit` items spread evenly over the sequence (all when None or more than there are); order kept."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in _spread(len(items), limit)]
