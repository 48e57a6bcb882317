"""Item files: every fault is named with file, line and field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.items import Item, load_items, take
from evals.scorers import make_scorer
from sqtool.errors import DataError
from tests.unit.evals.builders import WEATHER, text_row, tool_row

Writer = Callable[..., Path]


def test_good_items_keep_their_order(write_jsonl: Writer) -> None:
    path = write_jsonl("x.jsonl", [text_row(2, "b"), "", text_row(1, "a")])
    assert [item.id for item in load_items(path)] == ["i2", "i1"]


def _broken_schema() -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": "city"}}}
    return tool_row([], tools=[tool])


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({**text_row(1, "a"), "id": ""}, "id", "at least 1"),
        ({k: v for k, v in text_row(1, "a").items() if k != "id"}, "id", "missing"),
        ({k: v for k, v in text_row(1, "a").items() if k != "messages"}, "messages", "missing"),
        ({**text_row(1, "a"), "messages": []}, "messages", "at least 1"),
        ({**text_row(1, "a"), "messages": [{"role": "usr", "content": "x"}]}, "messages.0.role", "user"),
        ({**text_row(1, "a"), "expcted": 1}, "expcted", "did you mean 'expected'"),
        ({**text_row(1, "a"), "expected": {"text": "a", "calls": []}}, "expected", "exactly one"),
        (_broken_schema(), "tools.0.function.parameters.required", "not a valid JSON Schema"),
        (tool_row([], tools=[{"name": "f"}]), "tools.0", "function"),
        (tool_row([], tools=[WEATHER, WEATHER]), "tools.1.function.name", "twice"),
    ],
)
def test_a_bad_line_is_named(write_jsonl: Writer, row: dict[str, Any], field: str, message: str) -> None:
    path = write_jsonl("x.jsonl", [text_row(0, "ok"), row])
    with pytest.raises(DataError) as caught:
        load_items(path)
    assert (caught.value.line, caught.value.field) == (2, field)
    assert message in caught.value.message
    assert str(path) in caught.value.message


def test_duplicate_ids_name_both_lines(write_jsonl: Writer) -> None:
    path = write_jsonl("x.jsonl", [text_row(1, "a"), text_row(2, "b"), text_row(1, "c")])
    with pytest.raises(DataError, match="also on line 1") as caught:
        load_items(path)
    assert caught.value.line == 3


def test_the_number_of_bad_lines_is_told(write_jsonl: Writer) -> None:
    path = write_jsonl("x.jsonl", [{"id": "a"}, {"id": "b"}, {"id": "c"}])
    with pytest.raises(DataError) as caught:
        load_items(path)
    assert caught.value.line == 1
    assert "2 more lines" in caught.value.remedy


@pytest.mark.parametrize(
    ("scorer", "row", "field"),
    [
        ("exact_match", {k: v for k, v in text_row(1, "a").items() if k != "expected"}, "expected.text"),
        ("exact_match", text_row(1, "  "), "expected.text"),
        ("exact_match", tool_row([]), "expected.text"),
        ("tool_calls", text_row(1, "a"), "expected.calls"),
        ("tool_calls", {k: v for k, v in tool_row([]).items() if k != "tools"}, "tools"),
        ("tool_calls", tool_row([{"name": "nothing", "arguments": {}}]), "expected.calls.0"),
        ("tool_calls", tool_row([{"name": "weather", "arguments": {}}]), "expected.calls.0"),
    ],
)
def test_what_the_scorer_needs_is_checked(write_jsonl: Writer, scorer: str, row: dict[str, Any], field: str) -> None:
    path = write_jsonl("x.jsonl", [row])
    with pytest.raises(DataError) as caught:
        load_items(path, check=make_scorer(scorer).check)
    assert caught.value.field == field


def test_slice_fields_must_be_there(write_jsonl: Writer) -> None:
    path = write_jsonl("x.jsonl", [text_row(1, "a", fields={"n": 1}), text_row(2, "b")])
    with pytest.raises(DataError, match=r"fields\.n"):
        load_items(path, slices=["kind", "n"])


def test_the_number_of_tools_is_a_field_of_every_item(write_jsonl: Writer) -> None:
    own = tool_row([]) | {"id": "own", "fields": {"n_tools": 7}}
    path = write_jsonl("x.jsonl", [tool_row([]) | {"fields": {"n": 1}}, own, text_row(1, "x")])
    items = load_items(path, slices=["n_tools"])
    assert [item.slice_fields() for item in items] == [{"n": 1, "n_tools": 2}, {"n_tools": 7}, {"n_tools": 0}]


def test_an_empty_file_is_an_error(write_jsonl: Writer) -> None:
    with pytest.raises(DataError, match="no items"):
        load_items(write_jsonl("x.jsonl", [""]))


def test_take_is_spread_evenly() -> None:
    items = [Item.model_validate(text_row(i, "a")) for i in range(10)]
    assert [item.id for item in take(items, 5)] == ["i0", "i2", "i4", "i6", "i8"]
    assert take(items, None) == items
    assert take(items, 99) == items


def test_earlier_tool_calls_go_over_the_wire_as_text() -> None:
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "é"}}}]},
        {"role": "tool", "tool_call_id": "call_0", "content": "1"},
    ]
    wire = Item.model_validate({"id": "a", "messages": messages}).wire_messages()
    call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    assert wire[1]["tool_calls"] == [call]
    assert wire[2]["tool_call_id"] == "call_0"
